//! A model folder's weights, handed out by name.

use super::folder::unusable;
use crate::{
    Error, Result,
    weights::{self, Named},
};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, nn::Linear};

/// What `transformers` and `diffusers` call the file.
const NAMES: [&str; 2] = ["model.safetensors", "diffusion_pytorch_model.safetensors"];

/// Tensors of a file that no layer has taken yet.
pub(super) struct Weights {
    path: PathBuf,
    tensors: Named,
    device: Device,
    kind: Kind,
}

impl Weights {
    /// The folder's tensors, to be handed out on `device` as `kind`. Leading `prefixes`, by which a larger model names its
    /// parts, are taken off.
    pub fn open(folder: &Path, prefixes: &[&str], device: Device, kind: Kind) -> Result<Self> {
        if !matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Err(unusable(folder, format!("cannot compute in {kind:?}; choose a floating-point kind")));
        }
        let path = NAMES.iter().map(|name| folder.join(name)).find(|path| path.exists()).ok_or_else(|| {
            unusable(
                folder,
                format!(
                    "holds neither {} nor {}; fetch one of them from where the model came from",
                    NAMES[0], NAMES[1]
                ),
            )
        })?;
        let bare = |name: String| prefixes.iter().find_map(|p| name.strip_prefix(p)).map(str::to_owned).unwrap_or(name);
        let tensors = weights::read(&path)?.into_iter().map(|(name, tensor)| (bare(name), tensor)).collect();
        Ok(Self { path, tensors, device, kind })
    }

    /// The shape of a tensor that is there and not taken.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Tensor::size)
    }

    /// Takes a tensor, which must have that shape and be finite.
    pub fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.tensors.remove(name).ok_or_else(|| self.bad(format!("tensor {name} is missing")))?;
        if tensor.size() != shape {
            let have = tensor.size();
            return Err(self.bad(format!("tensor {name} has shape {have:?}, config.json asks for {shape:?}")));
        }
        if tensor.f_isfinite()?.f_all()?.int64_value(&[]) == 0 {
            return Err(self.bad(format!("tensor {name} holds NaN or infinity")));
        }
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }

    /// `{name}.weight` of `(outputs, inputs)`, and `{name}.bias` if there is to be one.
    pub fn linear(&mut self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Result<Linear> {
        let ws = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bs = if bias { Some(self.tensor(&format!("{name}.bias"), &[outputs])?) } else { None };
        Ok(Linear { ws, bs })
    }

    /// `{name}.weight` and `{name}.bias` of `(width)`: scale and shift of a normalisation.
    pub fn affine(&mut self, name: &str, width: i64) -> Result<[Tensor; 2]> {
        Ok([self.tensor(&format!("{name}.weight"), &[width])?, self.tensor(&format!("{name}.bias"), &[width])?])
    }

    /// Checks that nothing is left but tensors whose names begin with one of `others`: weights beyond the configuration
    /// mean that the two do not belong together.
    pub fn finish(self, others: &[&str]) -> Result<()> {
        match self.tensors.keys().find(|name| !others.iter().any(|other| name.starts_with(other))) {
            Some(name) => Err(self.bad(format!("tensor {name} belongs to no part that config.json describes"))),
            None => Ok(()),
        }
    }

    fn bad(&self, why: String) -> Error {
        Error::Weights { path: self.path.clone(), why }
    }
}
