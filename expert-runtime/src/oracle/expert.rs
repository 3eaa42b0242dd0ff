use super::Mixture;
use crate::{ClusterExpert, Condition, NoisePath, Result, VelocityField, linear_velocity, target};
use hdd_protocol::{Conversion, Objective, Schedule};
use tch::Tensor;

/// The best expert there can be for one cluster of a [`Mixture`]: the least-squares prediction of its objective's target.
#[derive(Debug)]
pub struct ExactExpert {
    world: Mixture,
    cluster: u16,
    objective: Objective,
    schedule: Schedule,
    path: NoisePath,
}

impl ExactExpert {
    /// The exact expert of `cluster` in `world`.
    ///
    /// # Errors
    /// As [`Mixture::of_cluster`].
    pub fn new(world: &Mixture, cluster: u16, objective: Objective, schedule: Schedule) -> Result<Self> {
        let path = NoisePath::new(&schedule);
        Ok(Self { world: world.of_cluster(cluster)?, cluster, objective, schedule, path })
    }

    /// The raw output at `x`, `(B, ...)`, a point of the expert's own path at the times `t`. Targets are linear in
    /// `(x0, eps)`, so the target of the posterior mean is the posterior mean of the target.
    pub fn predict(&self, x: &Tensor, t: &[f64]) -> Tensor {
        let at: Vec<_> = t.iter().map(|&t| self.path.at(t)).collect();
        let pair = self.world.posterior_mean(x, &at);
        target(self.objective, &pair.x0, &pair.eps, &at)
    }
}

impl ClusterExpert for ExactExpert {
    fn cluster(&self) -> u16 {
        self.cluster
    }

    fn objective(&self) -> Objective {
        self.objective
    }

    fn schedule(&self) -> Schedule {
        self.schedule
    }

    fn velocity_field(&self, conversion: Conversion, clamp: f64) -> impl VelocityField {
        ExactField { expert: self, conversion, clamp }
    }
}

/// An [`ExactExpert`] with its conversion. It knows no text, so guidance leaves it as it is.
struct ExactField<'a> {
    expert: &'a ExactExpert,
    conversion: Conversion,
    clamp: f64,
}

impl VelocityField for ExactField<'_> {
    fn velocity(&self, x: &Tensor, t: &[f64], _: &Condition) -> Result<Tensor> {
        let ExactExpert { objective, path, .. } = self.expert;
        let predict = |x: &Tensor, t: &[f64]| self.expert.predict(x, t);
        Ok(linear_velocity((*objective, path), self.conversion, self.clamp, (x, t), predict))
    }
}
