use crate::{Case, Result, fill, next_round, reply, train::spec};
use hdd_expert_runtime::{
    Condition, Expert, Guidance,
    sampler::{sample, time_grid},
    weights::{self, Named},
};
use hdd_protocol::{Conversion, Digest, ExpertSelection, RouterRecipe, Solver};
use hdd_router_service::{Ensemble, Member, Router};
use serde::Deserialize;
use std::{collections::HashMap, ops::ControlFlow, path::Path, time::Instant};
use tch::{Kind, Tensor};

/// Sampling as an aggregator does it: router, fusion and Euler's steps.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    experts: u16,
    selection: ExpertSelection,
    guidance: f64,
    router: RouterRecipe,
}

/// An ensemble with a batch to denoise.
struct Sampling {
    ensemble: Ensemble,
    selection: ExpertSelection,
    x: Tensor, // (B, C, H, W)
    condition: Condition,
}

impl Sample {
    /// Denoises the same batch each round.
    pub fn serve(&self, case: &Case) -> Result<()> {
        let sampling = self.prepare(case)?;
        reply(0.0); // ready
        while let Some(steps) = next_round(|folder| sampling.check(folder))? {
            let start = Instant::now();
            let _ = sampling.denoise(steps)?;
            reply(start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn prepare(&self, case: &Case) -> Result<Sampling> {
        let members = (0..self.experts).map(|cluster| {
            let expert = Expert::new(&spec(case, cluster), u64::from(cluster), case.device())?;
            fill(&expert.parameters());
            Ok(Member { manifest: Digest::of(&cluster.to_be_bytes()), expert })
        });
        let members = members.collect::<Result<_>>()?;
        let a = &case.architecture;
        let mut router = Router::new(&self.router, [a.channels, a.size], a.text_width, self.experts, 1, case.device());
        fill(&router.parameters());
        router.freeze();
        let (x, text) = case.inputs(case.batch);
        let guidance = Guidance { scale: vec![self.guidance; case.batch as usize], negative: None };
        Ok(Sampling {
            ensemble: Ensemble { router, members, clamp: 5.0, paper_clamp: 5.0 },
            selection: self.selection,
            x,
            condition: Condition { text: Some(text), guidance: Some(guidance) },
        })
    }
}

impl Sampling {
    /// The batch after `steps` steps of Euler, and the experts that were asked on the way.
    fn denoise(&self, steps: u64) -> Result<(Tensor, usize)> {
        let images = self.x.size()[0] as usize;
        let fusion = self.ensemble.fusion(self.selection, Conversion::DEFAULT, None, images);
        let times = time_grid(u32::try_from(steps)?, 1.0);
        let on_step = |_| ControlFlow::Continue(());
        let x = sample(&fusion, self.x.shallow_clone(), &self.condition, &times, Solver::Euler, on_step)?;
        let x = x.ok_or("sampling was stopped")?;
        x.sum(Kind::Float).double_value(&[]); // waits for the device
        let mut asked: Vec<u16> = fusion.shares().iter().flatten().map(|share| share.cluster).collect();
        asked.sort_unstable();
        asked.dedup();
        Ok((x, asked.len()))
    }
    /// Weights as `expert-0.safetensors` and so on, and `router.safetensors`; `x`, `text` and, after three steps, `output` as
    /// `check.safetensors`, with the number of experts that they took as `asked`.
    fn check(&self, folder: &Path) -> Result<()> {
        for (i, member) in self.ensemble.members.iter().enumerate() {
            member.expert.save(&folder.join(format!("expert-{i}.safetensors")))?;
        }
        self.ensemble.router.save(&folder.join("router.safetensors"))?;
        let (output, asked) = self.denoise(3)?;
        let text = self.condition.text.as_ref().map(Tensor::shallow_clone).unwrap_or_default();
        let asked = Tensor::from_slice(&[asked as f32]);
        let named = [("x", self.x.shallow_clone()), ("text", text), ("output", output), ("asked", asked)];
        let named: Named = named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        Ok(weights::write(&folder.join("check.safetensors"), &named, HashMap::new())?)
    }
}
