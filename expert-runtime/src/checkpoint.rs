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

/// Layout of the folder, its description and its files. 1 knew neither the lowest loss nor how a run began.
pub(crate) const FORMAT: u32 = 2;
/// Saved steps that are kept, beside the last good one.
const KEPT: usize = 2;

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointConfig {
    /// Layout of the folder; this build writes and reads 2.
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
    /// Mean loss over the last hundred steps that were not left out.
    pub loss: f32,
    /// Whether the loss was near its lowest: below twice that, by its median over a hundred steps.
    pub good: bool,
    /// The file whose weights training began from; none where it began from a draw.
    pub parent: Option<Digest>,
    /// Whether the draw left the blocks' shared modulation at zero (Section 2.5) instead of PixArt-alpha's N(0, 0.02).
    pub zero_modulation: bool,
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

    /// Writes a checkpoint under `parent` and drops all but the last two and the last good one.
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
        let good = last_good_checkpoint(parent)?.map(|checkpoint| checkpoint.folder);
        for (_, old) in steps(parent)?.into_iter().rev().skip(KEPT).filter(|(_, old)| Some(old) != good.as_ref()) {
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
        let unreadable = |e| bad(format!("config.json is not readable: {e}"));
        check_format(folder, serde_json::from_slice::<Layout>(&bytes).map_err(unreadable)?.format)?;
        let config: CheckpointConfig = serde_json::from_slice(&bytes).map_err(unreadable)?;
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

/// The last saved step under `parent` whose loss was near its lowest, if any; damaged ones are passed over.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed.
pub fn last_good_checkpoint(parent: &Path) -> Result<Option<Checkpoint>> {
    let saved = steps(parent)?.into_iter().rev();
    Ok(saved.filter_map(|(_, folder)| Checkpoint::open(&folder).ok()).find(|checkpoint| checkpoint.config.good))
}

/// What every format of the description has.
#[derive(Deserialize)]
struct Layout {
    format: u32,
}

/// Refuses a description of another format.
pub(crate) fn check_format(folder: &Path, format: u32) -> Result<()> {
    let what = match format {
        FORMAT => return Ok(()),
        ..FORMAT => "an earlier build wrote it: begin under another --name, or import the weights again",
        _ => "update hdd-node",
    };
    let why = format!("has format {format}, this build reads {FORMAT}; {what}");
    Err(Error::Checkpoint { path: folder.to_owned(), why })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Trainer;
    use hdd_protocol::{Architecture, Objective, Schedule, TimestepMap};
    use serde_json::Value;
    use tch::{Device, Tensor};

    fn config() -> CheckpointConfig {
        let architecture = Architecture { channels: 3, size: 8, text_width: 6, ..Architecture::new(8, 1, 1, 4) };
        let spec = ExpertSpec {
            architecture,
            objective: Objective::Velocity,
            schedule: Schedule::Linear,
            cluster: 0,
            timestep_map: TimestepMap::Paper,
            preconditioning: None,
        };
        let recipe = Recipe { batch: 4, ..Recipe::default() };
        Trainer::new(Digest::of(b""), &spec, &recipe, 1, Device::Cpu).unwrap().config().clone()
    }

    fn save(parent: &Path, config: &CheckpointConfig) -> Checkpoint {
        let tensors = Named::from([("a".to_owned(), Tensor::from(1.0f32))]);
        Checkpoint::save(parent, config, &tensors, &tensors).unwrap()
    }

    #[test]
    fn the_last_two_and_the_last_good_one_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        let kept = |step, good| {
            save(parent.path(), &CheckpointConfig { step, good, ..config() });
            steps(parent.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>()
        };
        assert_eq!(kept(10, true), [10]);
        assert_eq!(kept(20, true), [10, 20]);
        assert_eq!(kept(30, false), [20, 30]);
        assert_eq!(kept(40, false), [20, 30, 40]);
        assert_eq!(kept(50, false), [20, 40, 50]);
        assert_eq!(last_good_checkpoint(parent.path()).unwrap().unwrap().config.step, 20);
        assert_eq!(kept(60, true), [50, 60]);
    }

    #[test]
    fn numbers_come_back_exactly_and_other_formats_are_named() {
        let parent = tempfile::tempdir().unwrap();
        for i in 1..2_000u32 {
            // Among such numbers are some that a reader that is quick rather than exact rounds wrongly.
            let learning_rate = f64::from(i).sqrt() / 3_000.0;
            let text = serde_json::to_string(&learning_rate).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&text).unwrap(), learning_rate, "{text}");
        }
        let saved = save(parent.path(), &config());
        assert_eq!(Checkpoint::open(&saved.folder).unwrap().config, saved.config);

        let path = saved.folder.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (format, word) in [(1, "another --name"), (3, "update hdd-node")] {
            json["format"] = format.into();
            json.as_object_mut().unwrap().remove("good"); // as format 1 was
            fs::write(&path, json.to_string()).unwrap();
            let error = Checkpoint::open(&saved.folder).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
