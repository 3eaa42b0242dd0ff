//! Weights from elsewhere as the beginning of an expert (paper Eq. 20): facebookresearch DiT, Paris, and other experts of a
//! network.
//!
//! An import is a folder: `config.json` says what the network is, `model.safetensors` holds its weights, `import.json` tells
//! where every tensor comes from. Everything here reads files of the person at this machine; `torch_file.rs` is the one
//! reader of a format other than safetensors, and nothing that a peer sent comes near it.

mod dit;
mod folder;
mod hdd;
mod modulation;
mod paris;
mod pickle;
mod reference;
mod torch_file;

pub use dit::from_dit;
pub use folder::{Beginning, open};
pub use hdd::from_hdd;
pub use modulation::Residual;
pub use paris::{from_paris, paris_router};
pub use reference::{Loaded, load};

use crate::{
    Error, Expert, Result,
    error::At,
    network::position_embedding,
    weights::{self, Named},
};
use hdd_protocol::{Digest, ExpertSpec, Objective, Schedule, TimestepMap};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What a person may choose of an import; `None` leaves it to the source.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What the network is to predict. DiT's becomes velocity; other sources keep theirs.
    pub objective: Option<Objective>,
    /// The noising path that it is to be trained on; by default the source's, or for another objective that one's usual path.
    pub schedule: Option<Schedule>,
    /// How it reads the time.
    pub timestep_map: Option<TimestepMap>,
    /// The charter's cluster.
    pub cluster: Option<u16>,
    /// Attention heads, which weights do not show; known for the published widths.
    pub heads: Option<u32>,
    /// Width and length of the text, for a source that has none.
    pub text: [u32; 2],
    /// Keep the rows of DiT's final layer that predict noise.
    pub keep_final: bool,
    /// Seed of what is drawn.
    pub seed: u64,
}

/// The path that an objective is usually trained on: linear for velocity, cosine for the others.
pub fn usual_schedule(objective: Objective) -> Schedule {
    if objective == Objective::Velocity { Schedule::Linear } else { Schedule::Cosine }
}

/// Whose layout a source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// facebookresearch DiT.
    Dit,
    /// The published experts of Paris.
    Paris,
    /// An expert of this project.
    Hdd,
}

/// `import.json`: where every tensor comes from. Block numbers are written as `*`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whose layout the source has.
    pub from: Origin,
    /// Name of the source file, without its folder.
    pub file: String,
    /// BLAKE3 of the source file: the parent that manifests of the expert name.
    pub parent: Digest,
    /// Seed of what was drawn.
    pub seed: u64,
    /// The charter's cluster, if one was chosen: an expert that begins here is trained on it unless told otherwise.
    pub cluster: Option<u16>,
    /// Tensors that are the source's, renamed, cut or joined.
    pub kept: Vec<String>,
    /// Tensors computed from the source's.
    pub fitted: Vec<String>,
    /// Tensors of a fresh network.
    pub drawn: Vec<String>,
    /// What the shared modulation leaves of the blocks' own.
    pub modulation: Option<Residual>,
    /// What the final layer's table leaves of its modulation.
    pub final_modulation: Option<Residual>,
}

/// An expert with weights from elsewhere.
pub struct Imported {
    /// The expert, on the CPU.
    pub expert: Expert,
    /// Where its tensors come from.
    pub record: Record,
}

/// Tensors for a network, before it is built.
#[derive(Default)]
struct Draft {
    kept: Named,
    fitted: Named,
    /// Parts of names that the source lacks and that are drawn.
    drawn: Vec<&'static str>,
    modulation: Option<Residual>,
    final_modulation: Option<Residual>,
}

impl Draft {
    /// Builds the network of `spec`: the draft's tensors, and a draw of the chosen seed for the rest.
    fn build(self, (from, source): (Origin, &Path), spec: &ExpertSpec, choice: &Choice) -> Result<Imported> {
        let bad = |why: String| Error::Weights { path: source.to_owned(), why };
        let parent = digest_of(source)?;
        let expert = Expert::new(spec, choice.seed, Device::Cpu)?;
        let parameters = expert.parameters();
        let _guard = tch::no_grad_guard();
        for (name, tensor) in self.kept.iter().chain(&self.fitted) {
            let target = parameters.get(name);
            let target = target.ok_or_else(|| bad(format!("tensor {name} belongs to no part of the architecture")))?;
            weights::copy(name, tensor, target).map_err(bad)?;
        }
        let drawn: Vec<&String> = parameters
            .keys()
            .filter(|name| !self.kept.contains_key(*name) && !self.fitted.contains_key(*name))
            .collect();
        if let Some(name) = drawn.iter().find(|name| !self.drawn.iter().any(|part| name.contains(part))) {
            return Err(bad(format!("tensor {name} is missing")));
        }
        let record = Record {
            from,
            file: source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            parent,
            seed: choice.seed,
            cluster: choice.cluster,
            kept: patterns(self.kept.keys()),
            fitted: patterns(self.fitted.keys()),
            drawn: patterns(drawn.into_iter()),
            modulation: self.modulation,
            final_modulation: self.final_modulation,
        };
        Ok(Imported { expert, record })
    }
}

/// Names with `blocks.7.` as `blocks.*.`, each once.
fn patterns<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut patterns: Vec<String> = names
        .map(|name| match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) => format!("blocks.*.{rest}"),
            None => name.clone(),
        })
        .collect();
    patterns.sort();
    patterns.dedup();
    patterns
}

fn digest_of(path: &Path) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).at("read", path)?;
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// The number of blocks that `prefix.N.` names count.
fn depth_of(tensors: &Named, prefix: &str) -> u32 {
    let numbers = tensors.keys().filter_map(|name| name.strip_prefix(prefix)?.split_once('.')?.0.parse::<u32>().ok());
    numbers.max().map_or(0, |last| last.saturating_add(1))
}

/// Heads of a network of `width`: as chosen, else those of the published sizes.
fn heads_of(width: u32, choice: &Choice) -> Result<u32, String> {
    let published = [(384, 6), (768, 12), (1024, 16), (1152, 16)];
    choice.heads.or_else(|| published.iter().find(|(w, _)| *w == width).map(|(_, heads)| *heads)).ok_or_else(|| {
        format!(
            "its width {width} is none of the published sizes, and weights do not show the attention heads; give them"
        )
    })
}

/// The tensor `name` with `sides` sides.
fn need<'a>(tensors: &'a Named, name: &str, sides: usize) -> Result<&'a Tensor, String> {
    match tensors.get(name) {
        Some(tensor) if tensor.dim() == sides => Ok(tensor),
        Some(tensor) => Err(format!("tensor {name} has shape {:?}, expected {sides} sides", tensor.size())),
        None => Err(format!("tensor {name} is missing")),
    }
}

/// Shape of a patch embedding `(D, C, p, p)` with its position table `(1, N, D)`: width, channels, patch and size. The table
/// must be the fixed one that networks here compute.
fn shape_of(embed: &Tensor, position: &Tensor) -> Result<[u32; 4], String> {
    let (embed, table) = (embed.size(), position.size());
    let side = (table.get(1).copied().unwrap_or(0) as f64).sqrt() as i64;
    let (width, patch) = (embed[0], embed[2]);
    if embed.contains(&0) || table != [1, side * side, width] || side == 0 || embed[3] != patch || width % 4 != 0 {
        return Err(format!("pos_embed {table:?} does not fit the patch embedding {embed:?} of a square latent"));
    }
    let expected = position_embedding(width, side);
    let error = (position.to_kind(Kind::Float) - expected).abs().max().double_value(&[]);
    if error.is_nan() || error > 1e-2 {
        return Err(format!(
            "pos_embed is off the fixed sine-cosine table by {error}; a learned one cannot be carried over"
        ));
    }
    let number = |n: i64| u32::try_from(n).map_err(|_| format!("a side is {n}"));
    Ok([number(width)?, number(embed[1])?, number(patch)?, number(side.saturating_mul(patch))?])
}
