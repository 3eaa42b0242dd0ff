//! Another expert of a network as the beginning of a new one.

use super::{Choice, Draft, Imported, Origin, usual_schedule};
use crate::{Result, weights};
use hdd_protocol::ExpertSpec;
use std::path::Path;

/// An expert that goes on from the weights `model` of an expert `spec`. Everything is kept, but for another objective the final
/// layer, whose output would mean something else, is drawn anew.
///
/// # Errors
/// [`crate::Error::Weights`] for a file that holds another network.
pub fn from_hdd(model: &Path, spec: &ExpertSpec, choice: &Choice) -> Result<Imported> {
    let objective = choice.objective.unwrap_or(spec.objective);
    let same = objective == spec.objective;
    let usual = || if same { spec.schedule } else { usual_schedule(objective) };
    let new = ExpertSpec {
        objective,
        schedule: choice.schedule.unwrap_or_else(usual),
        cluster: choice.cluster.unwrap_or(spec.cluster),
        timestep_map: choice.timestep_map.unwrap_or(spec.timestep_map),
        preconditioning: spec.preconditioning,
        architecture: spec.architecture.clone(),
    };
    let mut draft = Draft { kept: weights::read(model)?, ..Draft::default() };
    draft.kept.remove("pos_embed");
    if !same {
        draft.kept.retain(|name, _| !name.starts_with("final_layer."));
        draft.drawn.push("final_layer.");
    }
    draft.build((Origin::Hdd, model), &new, choice)
}
