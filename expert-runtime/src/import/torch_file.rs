//! Files that `torch.save` wrote: a zip archive, not compressed, with a pickle that describes the tensors and one file a
//! storage. For files of the person at this machine only; what comes from a peer goes through [`weights`] alone.

use super::pickle::{self, Stored};
use crate::{Error, Result, error::At, weights};
use std::{
    fs::File,
    io::{BufReader, Read as _},
    path::Path,
};
use zip::{CompressionMethod, ZipArchive};

/// Largest description, bytes.
const PICKLE_LIMIT: u64 = 4 << 20;
/// Most files in the archive: one a storage, with an optimiser's.
const FILE_LIMIT: usize = 1 << 16;

type Archive = ZipArchive<BufReader<File>>;

/// The tensors of a file whose names `wanted` accepts.
///
/// # Errors
/// [`Error::Io`]; [`Error::Weights`] for another format, a compressed or truncated archive, a tensor outside its storage,
/// not contiguous, or of no floating kind.
pub fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<weights::Named> {
    let bad = |why: String| Error::Weights { path: path.to_owned(), why };
    let file = BufReader::new(File::open(path).at("open", path)?);
    let mut archive = ZipArchive::new(file).map_err(|e| {
        bad(format!(
            "it is no zip archive ({e}); older files of PyTorch are written anew by torch.save(torch.load(...))"
        ))
    })?;
    if archive.len() > FILE_LIMIT {
        return Err(bad(format!("it holds {} files, at most {FILE_LIMIT} are read", archive.len())));
    }
    let description = archive.file_names().find(|name| name.ends_with("/data.pkl")).map(str::to_owned);
    let description = description.ok_or_else(|| bad("it holds no data.pkl; torch.save did not write it".into()))?;
    let folder = description.trim_end_matches("data.pkl").to_owned();
    let program = entry(&mut archive, &description, PICKLE_LIMIT).map_err(bad)?;
    let stored = pickle::tensors(&program).map_err(bad)?;
    let stored = stored.into_iter().filter(|(name, _)| wanted(name));
    stored
        .map(|(name, stored)| {
            let tensor = tensor(&mut archive, &folder, &stored).map_err(|why| bad(format!("tensor {name} {why}")))?;
            Ok((name, tensor))
        })
        .collect()
}

fn tensor(archive: &mut Archive, folder: &str, stored: &Stored) -> Result<tch::Tensor, String> {
    let kind = stored.kind.ok_or("has no floating kind")?;
    let mut step = 1usize;
    for (&side, &stride) in stored.shape.iter().zip(&stored.strides).rev() {
        if side != 1 && stride != step {
            return Err("is not contiguous; save it again after .contiguous()".into());
        }
        step = step.checked_mul(side).ok_or("is too large")?;
    }
    let bytes = entry(archive, &format!("{folder}data/{}", stored.storage), u64::MAX)?;
    let size = kind.elt_size_in_bytes();
    let range = stored.offset.checked_mul(size).zip(step.checked_mul(size));
    let own = range.and_then(|(from, length)| bytes.get(from..from.checked_add(length)?));
    weights::from_bytes(own.ok_or("lies outside its storage; the file may be truncated")?, &stored.shape, kind)
}

/// The bytes of one file; not compressed, so no more of them than the archive has.
fn entry(archive: &mut Archive, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let file = archive.by_name(name).map_err(|e| format!("its {name} cannot be read: {e}"))?;
    if file.compression() != CompressionMethod::Stored {
        return Err(format!("its {name} is compressed, which torch.save never does"));
    }
    if file.compressed_size() > limit {
        return Err(format!("its {name} has {} bytes, at most {limit} are read", file.compressed_size()));
    }
    let mut bytes = Vec::new();
    let claimed = file.compressed_size();
    file.take(claimed).read_to_end(&mut bytes).map_err(|e| format!("its {name} cannot be read: {e}"))?;
    Ok(bytes)
}
