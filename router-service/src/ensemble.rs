//! Fusion of experts into one velocity field: `u(x) = sum_k p(k | x, t) u_k(x)` (paper Eq. 1).
//!
//! Router and experts are networks by default; any [`ClusterPosterior`] and [`ClusterExpert`]s can stand in their places, so
//! that fusion is held against exact oracles.

use crate::{Candidate, Router, weights};
use hdd_expert_runtime::{ClusterExpert, ClusterPosterior, Condition, Expert, VelocityField, column};
use hdd_protocol::{Conversion, Digest, ExpertSelection, Schedule, Share};
use std::cell::RefCell;
use tch::Tensor;

/// An admitted expert.
pub struct Member<E = Expert> {
    /// Its manifest.
    pub manifest: Digest,
    /// Its network.
    pub expert: E,
}

/// Admitted experts and the router over their charter's clusters.
pub struct Ensemble<R = Router, E = Expert> {
    /// Predicts clusters.
    pub router: R,
    /// Experts, in no order.
    pub members: Vec<Member<E>>,
    /// Predicted clean samples are clamped to plus or minus this.
    pub clamp: f64,
    /// The paper's clamp in this latent space, for its own conversion.
    pub paper_clamp: f64,
}

impl<R: ClusterPosterior, E: ClusterExpert> Ensemble<R, E> {
    /// This ensemble as a velocity field for one batch of `images`.
    pub fn fusion(
        &self,
        selection: ExpertSelection,
        conversion: Conversion,
        converted_below: Option<f32>,
        images: usize,
    ) -> Fusion<'_, R, E> {
        let candidates = self
            .members
            .iter()
            .map(|m| Candidate { cluster: m.expert.cluster(), linear: m.expert.schedule() == Schedule::Linear });
        Fusion {
            ensemble: self,
            selection,
            conversion,
            converted_below,
            candidates: candidates.collect(),
            used: RefCell::new(vec![vec![0.0; self.members.len()]; images]),
        }
    }
}

/// An [`Ensemble`] with the settings of a request. Remembers how much each expert contributed to each image.
pub struct Fusion<'a, R = Router, E = Expert> {
    ensemble: &'a Ensemble<R, E>,
    selection: ExpertSelection,
    conversion: Conversion,
    converted_below: Option<f32>,
    candidates: Vec<Candidate>,
    used: RefCell<Vec<Vec<f64>>>, // (images, members), summed weights
}

impl<R: ClusterPosterior, E: ClusterExpert> Fusion<'_, R, E> {
    /// Each image's experts with their mean weight over the evaluations so far, heaviest first.
    pub fn shares(&self) -> Vec<Vec<Share>> {
        let share = |member: &Member<E>, weight: f64| Share {
            manifest: member.manifest,
            cluster: member.expert.cluster(),
            objective: member.expert.objective(),
            weight: weight as f32,
        };
        let used = self.used.borrow();
        used.iter()
            .map(|row| {
                let total = row.iter().sum::<f64>().max(f64::MIN_POSITIVE);
                let members = self.ensemble.members.iter().zip(row).filter(|(_, w)| **w > 0.0);
                let mut shares: Vec<Share> = members.map(|(m, w)| share(m, w / total)).collect();
                shares.sort_by(|a, b| b.weight.total_cmp(&a.weight));
                shares
            })
            .collect()
    }
}

impl<R: ClusterPosterior, E: ClusterExpert> VelocityField for Fusion<'_, R, E> {
    fn velocity(&self, x: &Tensor, t: &[f64], condition: &Condition) -> hdd_expert_runtime::Result<Tensor> {
        let posterior = self.ensemble.router.posterior(x, t, condition.text.as_ref())?;
        // (images, members)
        let weights: Vec<Vec<f64>> = posterior
            .iter()
            .zip(t)
            .map(|(p, &t)| weights(p, &self.candidates, self.selection, self.converted_below, t))
            .collect();
        for (used, row) in self.used.borrow_mut().iter_mut().zip(&weights) {
            used.iter_mut().zip(row).for_each(|(sum, w)| *sum += w);
        }
        let out = x.zeros_like();
        for (i, member) in self.ensemble.members.iter().enumerate() {
            let rows: Vec<usize> = (0..weights.len()).filter(|&row| weights[row][i] > 0.0).collect();
            if rows.is_empty() {
                continue;
            }
            let index = Tensor::from_slice(&rows.iter().map(|&r| r as i64).collect::<Vec<_>>()).to_device(x.device());
            let times: Vec<f64> = rows.iter().map(|&r| t[r]).collect();
            let clamp = match self.conversion {
                Conversion::Aligned { .. } => self.ensemble.clamp,
                Conversion::Paper { .. } => self.ensemble.paper_clamp,
            };
            let field = member.expert.velocity_field(self.conversion, clamp);
            let part = x.index_select(0, &index);
            let v = field.velocity(&part, &times, &condition.rows(&rows, &index))?;
            let v = v * column(rows.iter().map(|&r| weights[r][i]), &part);
            let _ = out.shallow_clone().f_index_add_(0, &index, &v)?;
        }
        Ok(out)
    }
}
