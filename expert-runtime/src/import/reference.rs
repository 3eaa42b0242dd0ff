//! Networks to hold against another implementation: a folder of an import or checkpoint, or one in the form of this project's
//! golden vectors, which a few lines of PyTorch write: `config.json` with the shape, `model.safetensors` (or
//! `weights.safetensors`) with this project's or Paris's names.

use super::{folder, paris};
use crate::{Error, Expert, Result, weights};
use hdd_protocol::{Architecture, ExpertSpec, Objective, TimestepMap};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tch::Device;

/// `config.json` of a golden case.
#[derive(Debug, Deserialize)]
struct Shape {
    d: u32,
    depth: u32,
    heads: u32,
    patch: u32,
    size: u32,
    ch: u32,
    ctx: u32,
    ctx_len: u32,
    cross_norm: bool,
    eps: f32,
    #[serde(default = "dit_scale")]
    time_scale: f32,
}

fn dit_scale() -> f32 {
    Architecture::new(4, 1, 1, 1).time_scale
}

/// A network ready to run.
pub struct Loaded {
    /// The network; its parameters take no gradients.
    pub expert: Expert,
    /// Whether the weights hold a null text.
    pub has_null: bool,
}

/// Loads the network in `folder`. Golden folders do not say what the output means: that is `objective` on its usual schedule,
/// velocity by default; another folder's own word must agree with it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] for a description of neither form or another objective; [`Error::Weights`].
pub fn load(folder: &Path, objective: Option<Objective>, device: Device) -> Result<Loaded> {
    let bad = |why: String| Error::Checkpoint { path: folder.to_owned(), why };
    let mut config: Value = folder::read_json(&folder.join("config.json"))?;
    let unreadable = |e| bad(format!("config.json is not readable: {e}"));
    let spec: ExpertSpec = match config.get_mut("spec") {
        Some(spec) => serde_json::from_value(spec.take()).map_err(unreadable)?,
        None => golden(&serde_json::from_value(config).map_err(unreadable)?, objective.unwrap_or(Objective::Velocity)),
    };
    spec.check()?;
    if let Some(objective) = objective.filter(|objective| *objective != spec.objective) {
        return Err(bad(format!("holds a network for {}, not for {objective}", spec.objective)));
    }
    let file = ["model.safetensors", "weights.safetensors"].map(|name| folder.join(name));
    let file = file.into_iter().find(|file| file.exists());
    let file = file.ok_or_else(|| bad("holds no model.safetensors".into()))?;
    let mut tensors = weights::read(&file)?;
    let wrong = |why: String| Error::Weights { path: file.clone(), why };
    if tensors.contains_key("patch_embed.weight") {
        tensors = paris::rename(&tensors).map_err(wrong)?;
    }
    tensors.remove("pos_embed");
    let expert = Expert::new(&spec, 0, device)?;
    let _guard = tch::no_grad_guard();
    for (name, target) in expert.parameters() {
        match tensors.get(&name) {
            Some(source) => weights::copy(&name, source, &target).map_err(wrong)?,
            None if name == NULL => {}
            None => return Err(wrong(format!("tensor {name} is missing"))),
        }
    }
    let parameters = expert.parameters();
    if let Some(name) = tensors.keys().find(|name| !parameters.contains_key(*name)) {
        return Err(wrong(format!("tensor {name} belongs to no part of the architecture")));
    }
    Ok(Loaded { expert, has_null: tensors.contains_key(NULL) })
}

const NULL: &str = "null_embedding";

fn golden(shape: &Shape, objective: Objective) -> ExpertSpec {
    let architecture = Architecture {
        channels: shape.ch,
        size: shape.size,
        text_width: shape.ctx,
        text_length: shape.ctx_len,
        cross_norm: shape.cross_norm,
        norm_epsilon: shape.eps,
        time_scale: shape.time_scale,
        ..Architecture::new(shape.d, shape.depth, shape.heads, shape.patch)
    };
    let schedule = super::usual_schedule(objective);
    ExpertSpec {
        architecture,
        objective,
        schedule,
        cluster: 0,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    }
}
