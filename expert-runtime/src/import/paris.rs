//! Paris: eight published flow-matching experts of this line of work, and their router.
//!
//! The same network under PyTorch's own layer names: its cross-attention is not normalised, its LayerNorm adds 1e-5, and it
//! reads `1000 t`. It has no null text of its own (its unconditional text is CLIP's of the empty string), so one is drawn.

use super::{Choice, Draft, Imported, Origin, depth_of, heads_of, need, shape_of};
use crate::{
    Error, Result,
    weights::{self, Named},
};
use hdd_protocol::{Architecture, ExpertSpec, Objective, Schedule};
use std::path::Path;

/// An expert of Paris: `source` is its safetensors file.
///
/// # Errors
/// [`Error::Weights`] for another layout, a missing or misshapen tensor, or a choice that cannot be.
pub fn from_paris(source: &Path, choice: &Choice) -> Result<Imported> {
    let bad = |why: String| Error::Weights { path: source.to_owned(), why };
    let tensors = weights::read(source)?;
    let kept = rename(&tensors).map_err(bad)?;
    let spec = spec(&tensors, &kept, choice).map_err(bad)?;
    let mut draft = Draft { kept, drawn: vec!["null_embedding"], ..Draft::default() };
    if spec.objective != Objective::Velocity {
        draft.kept.retain(|name, _| !name.starts_with("final_layer."));
        draft.drawn.push("final_layer.");
    }
    draft.build((Origin::Paris, source), &spec, choice)
}

/// The router of Paris under this project's names, position table left out. It was trained on `1000 t`.
///
/// # Errors
/// [`Error::Weights`] for another layout.
pub fn paris_router(source: &Path) -> Result<Named> {
    let bad = |why: String| Error::Weights { path: source.to_owned(), why };
    let router = rename(&weights::read(source)?).map_err(bad)?;
    if router.contains_key("cls_token") {
        Ok(router)
    } else {
        Err(bad("it has no cls_token, so it is no router".into()))
    }
}

fn spec(tensors: &Named, kept: &Named, choice: &Choice) -> Result<ExpertSpec, String> {
    let [width, channels, patch, size] =
        shape_of(need(tensors, "patch_embed.weight", 4)?, need(tensors, "pos_embed", 3)?)?;
    let text_width = need(kept, "text_proj.weight", 2)?.size()[1];
    let architecture = Architecture {
        channels,
        size,
        text_width: u32::try_from(text_width).map_err(|e| e.to_string())?,
        text_length: choice.text[1],
        cross_norm: false,
        norm_epsilon: 1e-5,
        time_scale: 1000.0,
        ..Architecture::new(width, depth_of(kept, "blocks."), heads_of(width, choice)?, patch)
    };
    let spec = ExpertSpec {
        architecture,
        objective: choice.objective.unwrap_or(Objective::Velocity),
        schedule: choice.schedule.unwrap_or(Schedule::Linear),
        cluster: choice.cluster.unwrap_or(0),
        timestep_map: choice.timestep_map.unwrap_or_default(),
        preconditioning: None,
    };
    spec.check().map_err(|e| e.to_string())?;
    Ok(spec)
}

/// Paris's names as this project's; the position table is left out, and the joint projection of cross-attention is cut into the
/// queries' and the rest.
pub(super) fn rename(tensors: &Named) -> Result<Named, String> {
    let mut renamed = Named::new();
    for (name, tensor) in tensors {
        if name == "pos_embed" {
            continue;
        }
        let name = name.replace("patch_embed.", "x_embedder.proj.").replace("time_embed.", "t_embedder.");
        let Some((block, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
            renamed.insert(name, tensor.shallow_clone());
            continue;
        };
        if let Some(kind) = part.strip_prefix("cross_attn.in_proj_") {
            let rows = tensor.size().first().copied().unwrap_or(0);
            if rows == 0 || rows % 3 != 0 {
                return Err(format!("tensor layers.{block}.{part} has {rows} rows, not three projections"));
            }
            let cut = |from, length| tensor.narrow(0, from, length);
            renamed.insert(format!("blocks.{block}.cross_attn.q_linear.{kind}"), cut(0, rows / 3));
            renamed.insert(format!("blocks.{block}.cross_attn.kv_linear.{kind}"), cut(rows / 3, rows / 3 * 2));
            continue;
        }
        let part = part.replace("attn.in_proj_", "attn.qkv.").replace("attn.out_proj.", "attn.proj.");
        let part = part.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.");
        renamed.insert(format!("blocks.{block}.{part}"), tensor.shallow_clone());
    }
    Ok(renamed)
}
