//! Checkpoints: a folder a saved step, each written aside and renamed, so that a reader sees whole ones only.
//!
//! `step-00000500/config.json` says what the weights are, `model.safetensors` holds the averaged weights that are
//! published, `training.safetensors` what training needs to go on.

use crate::{
    Error, Result,
    error::At,
    train::Compute,
    weights::{self, Named},
};
use hdd_protocol::{Digest, ExpertSpec, Recipe};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// Saved steps that are kept.
const KEPT: usize = 2;

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointConfig {
    /// Layout of the folder; this build writes and reads 1.
    pub format: u32,
    /// The network that the expert is for.
    pub charter: Digest,
    /// What the expert is.
    pub spec: ExpertSpec,
    /// How it is trained.
    pub recipe: Recipe,
    /// How its batches are computed.
    pub compute: Compute,
    /// Seed of initialisation, order and noise.
    pub seed: u64,
    /// Distinct images trained on.
    pub images: u64,
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss over the last hundred steps.
    pub loss: f32,
    /// The file whose weights training began from; absent where it began from a draw.
    #[serde(default)]
    pub parent: Option<Digest>,
}

/// A saved step on disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// Its description.
    pub config: CheckpointConfig,
}

impl Checkpoint {
    /// The file with the averaged weights.
    pub fn model(&self) -> PathBuf {
        self.folder.join("model.safetensors")
    }

    /// The file with everything that training needs to go on.
    pub fn training(&self) -> PathBuf {
        self.folder.join("training.safetensors")
    }

    /// Writes a checkpoint under `parent` and drops the oldest beyond two.
    ///
    /// # Errors
    /// [`Error::Io`], with earlier checkpoints untouched.
    pub fn save(parent: &Path, config: &CheckpointConfig, model: &Named, training: &Named) -> Result<Self> {
        fs::create_dir_all(parent).at("create", parent)?;
        let work = tempfile::Builder::new().prefix(".saving-").tempdir_in(parent).at("create a folder in", parent)?;
        let json = serde_json::to_vec_pretty(config).map_err(std::io::Error::from).at("describe", parent)?;
        let path = work.path().join("config.json");
        fs::write(&path, json).and_then(|()| File::open(&path)?.sync_all()).at("write", &path)?;
        weights::write(
            &work.path().join("model.safetensors"),
            model,
            HashMap::from([("format".to_owned(), "pt".to_owned())]),
        )?;
        weights::write(&work.path().join("training.safetensors"), training, HashMap::new())?;
        let folder = parent.join(format!("step-{:08}", config.step));
        if folder.exists() {
            fs::remove_dir_all(&folder).at("replace", &folder)?;
        }
        fs::rename(work.path(), &folder).at("rename to", &folder)?;
        let _ = work.keep(); // moved away: nothing is left to clean up
        File::open(parent).and_then(|f| f.sync_all()).at("sync", parent)?;
        for (_, old) in steps(parent)?.into_iter().rev().skip(KEPT) {
            fs::remove_dir_all(&old).at("remove", &old)?;
        }
        Ok(Self { folder, config: config.clone() })
    }

    /// Opens one saved step.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for a description that this build cannot read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let bad = |why: String| Error::Checkpoint { path: folder.to_owned(), why };
        let bytes = fs::read(&path).at("read", &path)?;
        let config: CheckpointConfig =
            serde_json::from_slice(&bytes).map_err(|e| bad(format!("config.json is not readable: {e}")))?;
        if config.format != 1 {
            return Err(bad(format!("has format {}, this build reads 1; update hdd-node", config.format)));
        }
        config.spec.check()?;
        config.recipe.check()?;
        Ok(Self { folder: folder.to_owned(), config })
    }
}

/// The saved step with the highest number under `parent`, if any.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn latest_checkpoint(parent: &Path) -> Result<Option<Checkpoint>> {
    if !parent.exists() {
        return Ok(None);
    }
    steps(parent)?.last().map(|(_, folder)| Checkpoint::open(folder)).transpose()
}

/// Saved steps, ascending.
fn steps(parent: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(parent).at("list", parent)? {
        let entry = entry.at("list", parent)?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok()) {
            steps.push((step, entry.path()));
        }
    }
    steps.sort();
    Ok(steps)
}
