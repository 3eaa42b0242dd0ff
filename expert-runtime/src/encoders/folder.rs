//! Model folders: their small JSON files, and which encoder a folder holds.

use crate::{Error, Result, data::read_bounded, error::At};
use serde::{Deserialize, de::DeserializeOwned};
use std::path::Path;

/// Largest `config.json`, bytes.
const CONFIG: u64 = 1 << 20;

/// The encoders that this build has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// CLIP's text tower, alone or in a whole CLIP.
    Clip,
    /// DINOv2, with registers or without.
    Dinov2,
    /// The autoencoder of latent diffusion.
    Vae,
}

/// Which encoder the folder holds, as its `config.json` says.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for a configuration of something else.
pub fn family(folder: &Path) -> Result<Family> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(alias = "_class_name")]
        model_type: Option<String>,
    }
    let name = config::<Config>(folder)?.model_type.unwrap_or_default();
    match name.as_str() {
        "clip" | "clip_text_model" => Ok(Family::Clip),
        "dinov2" | "dinov2_with_registers" => Ok(Family::Dinov2),
        "AutoencoderKL" => Ok(Family::Vae),
        _ => Err(unusable(
            folder,
            format!(
                "its config.json names the model '{name}'; this build reads clip, clip_text_model, dinov2, dinov2_with_registers and AutoencoderKL"
            ),
        )),
    }
}

/// The folder's `config.json`.
pub(super) fn config<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    read_json(&folder.join("config.json"), CONFIG)
}

/// A JSON file of at most `limit` bytes.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let bytes = read_bounded(path, limit).at("read", path)?;
    serde_json::from_slice(&bytes).map_err(|e| unusable(path, format!("is not readable: {e}")))
}

/// What is wrong with the model folder or file at `path`.
pub(super) fn unusable(path: &Path, why: impl Into<String>) -> Error {
    Error::Data { what: format!("model {}", path.display()), why: why.into() }
}
