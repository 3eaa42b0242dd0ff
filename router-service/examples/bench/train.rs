use crate::{Case, Result, fill, next_round, reply};
use hdd_expert_runtime::{
    Expert,
    train::{Compute, Examples, Trainer},
    weights::{self, Named},
};
use hdd_protocol::{Digest, ExpertSpec, Objective, Recipe, Schedule, TimestepMap};
use serde::Deserialize;
use std::{collections::HashMap, path::Path, time::Instant};
use tch::Tensor;

/// Training as `contribute` does it, loader, clipping and average included.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Images in memory.
    images: u32,
    micro_batch: u32,
    recompute: bool,
}

/// A flow-matching expert of `cluster`.
pub fn spec(case: &Case, cluster: u16) -> ExpertSpec {
    ExpertSpec {
        architecture: case.architecture.clone(),
        objective: Objective::Velocity,
        schedule: Schedule::Linear,
        cluster,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    }
}

impl Train {
    /// Takes its rounds within the training loop, whose loader then works ahead as it does in a run.
    pub fn serve(&self, case: &Case) -> Result<()> {
        let spec = spec(case, 0);
        let recipe = Recipe { batch: case.batch, precision: case.precision, steps: 100_000_000, ..Recipe::default() };
        let mut trainer = Trainer::new(Digest::of(b"bench"), &spec, &recipe, 1, case.device())?;
        trainer.set_compute(Compute { micro_batch: self.micro_batch, recompute: self.recompute });
        let (x, text) = case.inputs(self.images);
        let examples = Examples::new(&x, &text)?;

        let wait = || next_round(|folder| check(case, &spec, folder));
        reply(0.0); // ready
        let Some(mut left) = wait()? else { return Ok(()) };
        let mut start = Instant::now();
        let mut outcome = Ok(());
        trainer.run(&examples, |_, _| {
            left -= 1;
            if left == 0 {
                reply(start.elapsed().as_secs_f64());
                match wait() {
                    Ok(steps) => left = steps.unwrap_or(0),
                    Err(error) => outcome = Err(error),
                }
                start = Instant::now();
            }
            Ok(left > 0)
        })?;
        outcome
    }
}

/// Weights as `expert-0.safetensors`; `x`, `t`, `text` and the network's `output` there as `check.safetensors`.
fn check(case: &Case, spec: &ExpertSpec, folder: &Path) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let expert = Expert::new(spec, 2, case.device())?;
    fill(&expert.parameters());
    expert.save(&folder.join("expert-0.safetensors"))?;
    let (x, text) = case.inputs(case.batch);
    let times: Vec<f64> = (0..case.batch).map(|i| (f64::from(i) + 0.5) / f64::from(case.batch)).collect();
    let output = expert.forward(&x, &times, &text);
    let t = Tensor::from_slice(&times.iter().map(|&t| t as f32).collect::<Vec<_>>());
    let named = [("x", x), ("text", text), ("t", t), ("output", output)];
    let named: Named = named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    Ok(weights::write(&folder.join("check.safetensors"), &named, HashMap::new())?)
}
