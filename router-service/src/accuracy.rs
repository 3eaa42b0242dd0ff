//! How often a router is right, by noise level.

use crate::{Result, Router, RouterExamples};
use hdd_expert_runtime::sampler;
use hdd_protocol::ACCURACY_BINS;
use tch::Kind;

/// Images that are looked at together.
const BATCH: usize = 256;

/// Share of right predictions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterAccuracy {
    /// In equal bins of `t`, from data to noise.
    pub per_bin: [f64; ACCURACY_BINS],
}

impl RouterAccuracy {
    /// Over all times.
    pub fn mean(&self) -> f64 {
        self.per_bin.iter().sum::<f64>() / ACCURACY_BINS as f64
    }

    /// Over `t < 0.5`, where the image shows through the noise.
    pub fn low_noise(&self) -> f64 {
        let low = &self.per_bin[..ACCURACY_BINS / 2];
        low.iter().sum::<f64>() / low.len() as f64
    }
}

impl Router {
    /// Accuracy on `examples`, which must be some: each at the middle of every bin, with its text, in noise that is the same
    /// on every machine.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn accuracy(&self, examples: &RouterExamples) -> Result<RouterAccuracy> {
        let _guard = tch::no_grad_guard();
        let rows: Vec<i64> = (0..examples.len() as i64).collect();
        let mut per_bin = [0.0; ACCURACY_BINS];
        for (bin, share) in per_bin.iter_mut().enumerate() {
            let mut right = 0.0;
            for rows in rows.chunks(BATCH) {
                let part = examples.select(rows);
                let seeds: Vec<u64> = rows.iter().map(|&row| row as u64 * ACCURACY_BINS as u64 + bin as u64).collect();
                let [_, c, h, w] = part.latents.size4()?.into();
                let noise = sampler::noise(&seeds, [c, h, w], part.latents.device());
                let t = vec![(bin as f64 + 0.5) / ACCURACY_BINS as f64; rows.len()];
                let guess = self.logits(&part.noised(&t, &noise), &t, Some(&part.text)).argmax(-1, false);
                right += guess.eq_tensor(&part.labels).to_kind(Kind::Double).sum(None::<Kind>).double_value(&[]);
            }
            *share = right / examples.len() as f64;
        }
        Ok(RouterAccuracy { per_bin })
    }
}
