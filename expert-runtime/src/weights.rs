//! Weights files: safetensors and nothing else.
//!
//! A file may come from a stranger. Its header is bounded before it is parsed, tensors are matched by name and shape
//! before one byte becomes a tensor, and a pickle is refused by its first bytes whatever its name says.

use crate::{Error, Result, error::At};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View, tensor::TensorView};
use std::{
    borrow::Cow,
    cell::Cell,
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::Path,
};
use tch::{Device, Kind, TchError, Tensor};

/// Largest header, bytes.
const HEADER_LIMIT: u64 = 1 << 20;
/// Most tensors in a file.
const TENSOR_LIMIT: usize = 4096;

/// Named tensors in a fixed order.
pub type Named = BTreeMap<String, Tensor>;

/// Writes tensors as they are, with `metadata` in the header, and syncs them: whole or not at all, in place of what had the
/// file's name. One tensor at a time is held twice in memory.
///
/// # Errors
/// [`Error::Io`]; [`Error::Weights`] for a tensor kind that safetensors lacks; [`Error::Torch`] without memory.
pub fn write(path: &Path, tensors: &Named, metadata: HashMap<String, String>) -> Result<()> {
    let bad = |why: String| Error::Weights { path: path.to_owned(), why };
    let failure = Cell::new(None);
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let dtype = dtype_of(kind).ok_or_else(|| bad(format!("tensor {name} has kind {kind:?}")))?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        views.push((name, Stored { tensor, dtype, shape, failure: &failure }));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = tempfile::Builder::new().prefix(".saving-").tempdir_in(folder).at("create a folder in", folder)?;
    let aside = work.path().join("tensors");
    // safetensors lets nobody but the owner read what it writes; the file is to have the permissions of any other.
    let usual = File::create_new(&aside).and_then(|file| file.metadata()).at("create", path)?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), &aside).or_else(|e| match e {
        SafeTensorError::IoError(e) => Err(e).at("write", path),
        e => Err(bad(e.to_string())),
    })?;
    if let Some(error) = failure.take() {
        return Err(error.into());
    }
    let file = File::options().append(true).open(&aside).at("open", &aside)?;
    file.set_permissions(usual).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&aside, path)).at("write", path)
}

/// A tensor whose bytes are made when they are written.
struct Stored<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
    failure: &'a Cell<Option<TchError>>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = || {
            let tensor = self.tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
            let mut bytes = vec![0u8; self.data_len()];
            tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
            Ok(bytes)
        };
        // The trait knows no error: it is kept until the file is done, and the file is thrown away.
        Cow::Owned(bytes().unwrap_or_else(|error| {
            self.failure.set(Some(error));
            Vec::new()
        }))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Copies the file's tensors into `targets`, converting the kind. Names and shapes must match exactly; a stored
/// `pos_embed` is ignored, since it is fixed by the shape.
///
/// # Errors
/// [`Error::Io`]; [`Error::Weights`] with the first tensor that is missing, unknown, of another shape or not finite.
pub fn read_into(path: &Path, targets: &Named) -> Result<()> {
    let _guard = tch::no_grad_guard();
    with_tensors(path, |tensors| {
        check_shapes(tensors, targets)?;
        for (name, target) in targets {
            let view = tensors.tensor(name).map_err(|e| e.to_string())?;
            let source = to_tensor(&view).map_err(|why| format!("tensor {name} {why}"))?;
            copy(name, &source, target)?;
        }
        Ok(())
    })
}

/// Every tensor of a file, as stored.
///
/// # Errors
/// As [`read_into`], for files that are no safetensors.
pub fn read(path: &Path) -> Result<Named> {
    with_tensors(path, |tensors| {
        let named = |(name, view): (&str, TensorView<'_>)| match to_tensor(&view) {
            Ok(tensor) => Ok((name.to_owned(), tensor)),
            Err(why) => Err(format!("tensor {name} {why}")),
        };
        tensors.iter().map(named).collect()
    })
}

/// Copies `source`, which must have its shape and be finite, into the tensor `name`.
pub(crate) fn copy(name: &str, source: &Tensor, target: &Tensor) -> Result<(), String> {
    if source.size() != target.size() {
        let (have, want) = (source.size(), target.size());
        return Err(format!("tensor {name} has shape {have:?}, the architecture asks for {want:?}"));
    }
    let refused = |e: TchError| Error::from(e).to_string();
    let finite = source.f_isfinite().and_then(|t| t.f_all()).map_err(refused)?;
    if finite.int64_value(&[]) == 0 {
        return Err(format!("tensor {name} holds NaN or infinity"));
    }
    target.shallow_clone().f_copy_(source).map_err(refused)
}

fn check_shapes(tensors: &SafeTensors<'_>, targets: &Named) -> Result<(), String> {
    for (name, target) in targets {
        let view = tensors.tensor(name).map_err(|_| format!("tensor {name} is missing"))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        if shape != target.size() {
            return Err(format!("tensor {name} has shape {shape:?}, the architecture asks for {:?}", target.size()));
        }
    }
    match tensors.names().into_iter().find(|name| !targets.contains_key(*name) && *name != "pos_embed") {
        Some(name) => Err(format!("tensor {name} belongs to no part of the architecture")),
        None => Ok(()),
    }
}

fn with_tensors<T>(path: &Path, f: impl FnOnce(&SafeTensors<'_>) -> Result<T, String>) -> Result<T> {
    let bad = |why: String| Error::Weights { path: path.to_owned(), why };
    let file = File::open(path).at("open", path)?;
    let length = file.metadata().at("read", path)?.len();
    if length < 8 {
        return Err(bad(format!("it has {length} bytes, which is no safetensors file; it may be truncated")));
    }
    // SAFETY-relevant assumption of mmap: checkpoints are replaced by rename, never rewritten in place.
    #[allow(unsafe_code)]
    let bytes = unsafe { Mmap::map(&file) }.at("map", path)?;
    let header = bytes.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    if header > HEADER_LIMIT.min(length - 8) {
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0x80, 0x02]) {
            return Err(bad("it is a pickle, which can run code; only safetensors are read".into()));
        }
        return Err(bad(format!("its header claims {header} bytes; it is truncated or no safetensors file")));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    if tensors.len() > TENSOR_LIMIT {
        return Err(bad(format!("it holds {} tensors, at most {TENSOR_LIMIT} are read", tensors.len())));
    }
    f(&tensors).map_err(bad)
}

fn to_tensor(view: &TensorView<'_>) -> Result<Tensor, String> {
    let kind = kind_of(view.dtype()).ok_or_else(|| format!("has the unsupported type {:?}", view.dtype()))?;
    from_bytes(view.data(), view.shape(), kind)
}

/// The tensor that `bytes` are, row by row.
pub(crate) fn from_bytes(bytes: &[u8], shape: &[usize], kind: Kind) -> Result<Tensor, String> {
    // libtorch does not check the slice's length.
    let wanted = shape.iter().try_fold(kind.elt_size_in_bytes(), |n, &side| n.checked_mul(side));
    if wanted != Some(bytes.len()) {
        return Err(format!("has {} bytes, not those of {shape:?} {kind:?}", bytes.len()));
    }
    let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Tensor::f_from_data_size(bytes, &shape, kind).map_err(|e| Error::from(e).to_string())
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normal;

    fn named(pairs: &[(&str, Tensor)]) -> Named {
        pairs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect()
    }

    #[test]
    fn a_header_of_640_bytes_is_no_pickle() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = named(&[("a", Tensor::ones([2], (Kind::Float, Device::Cpu)))]);
        let begins_as_pickle = (0..100).any(|padding| {
            let path = folder.path().join(padding.to_string());
            let metadata = HashMap::from([("padding".to_owned(), "x".repeat(8 * padding))]);
            write(&path, &tensors, metadata).unwrap();
            assert_eq!(read(&path).unwrap(), tensors);
            std::fs::read(&path).unwrap().starts_with(&[0x80, 0x02])
        });
        assert!(begins_as_pickle);
    }

    #[test]
    fn every_kind_comes_back_and_a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, "what was there").unwrap();
        let permissions = fs::metadata(&path).unwrap().permissions();
        let kinds = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Uint8];
        let tensor = |kind| (normal(&[3, 4], 2).unwrap().abs() * 9.0).to_kind(kind).transpose(0, 1); // in strides
        let mut tensors: Named = kinds.map(|kind| (format!("{kind:?}"), tensor(kind))).into();
        write(&path, &tensors, HashMap::new()).unwrap();
        assert_eq!(read(&path).unwrap(), tensors);
        assert_eq!(fs::metadata(&path).unwrap().permissions(), permissions);

        tensors.insert("complex".into(), Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu)));
        write(&path, &tensors, HashMap::new()).unwrap_err();
        assert_eq!(read(&path).unwrap().len(), kinds.len(), "the file is as it was");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn round_trip_and_hostile_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("good.safetensors");
        let a = normal(&[3, 4], 1).unwrap();
        write(
            &path,
            &named(&[("a", a.shallow_clone()), ("b", Tensor::ones([2], (Kind::Float, Device::Cpu)))]),
            HashMap::new(),
        )
        .unwrap();
        let into = named(&[("a", a.zeros_like()), ("b", Tensor::zeros([2], (Kind::Float, Device::Cpu)))]);
        read_into(&path, &into).unwrap();
        assert_eq!(into["a"], a);

        let good = std::fs::read(&path).unwrap();
        let nan = folder.path().join("nan.safetensors");
        write(&nan, &named(&[("a", &a / 0.0), ("b", into["b"].shallow_clone())]), HashMap::new()).unwrap();
        let mut long_header = good.clone();
        long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let cases: [(&str, Vec<u8>, &str); 8] = [
            ("empty", vec![], "truncated"),
            ("cut", good[..good.len() - 4].to_vec(), ""),
            ("header", long_header, "header claims"),
            ("zip", [b"PK\x03\x04".as_slice(), &good].concat(), "pickle"),
            ("pickle", [[0x80, 0x02].as_slice(), &good].concat(), "pickle"),
            ("trailing", [good.as_slice(), b"more"].concat(), ""),
            ("nan", std::fs::read(&nan).unwrap(), "NaN"),
            ("noise", vec![7; 4096], "header claims"),
        ];
        for (name, bytes, word) in cases {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = read_into(&path, &into).unwrap_err().to_string();
            assert!(error.contains(word), "{name}: {error}");
        }
        // A kind that is no tensor's here is refused with the name of the tensor that has it.
        let header = r#"{"odd":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1]].concat();
        fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("tensor odd has the unsupported type"), "{error}");
        fs::write(&path, &good).unwrap();

        let other_shape =
            named(&[("a", Tensor::zeros([4, 3], (Kind::Float, Device::Cpu))), ("b", into["b"].zeros_like())]);
        assert!(read_into(&path, &other_shape).unwrap_err().to_string().contains("shape"));
        let fewer = named(&[("a", a.zeros_like())]);
        assert!(read_into(&path, &fewer).unwrap_err().to_string().contains("belongs to no part"));
    }
}
