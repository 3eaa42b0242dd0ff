//! What a network's raw output means. Every objective meets in the pair `(x0, eps)`; no conversion is pairwise.
//!
//! Paper Eq. 3-5, and Salimans and Ho (2022) for `v`.

use crate::{Coefficients, column};
use hdd_protocol::Objective;
use tch::Tensor;

/// Estimates of the clean sample and of the noise.
#[derive(Debug)]
pub struct Pair {
    /// `(B, ...)`
    pub x0: Tensor,
    /// `(B, ...)`
    pub eps: Tensor,
}

/// The training target of `objective` on a path with coefficients `at`, one an image. Shapes `(B, ...)`.
pub fn target(objective: Objective, x0: &Tensor, eps: &Tensor, at: &[Coefficients]) -> Tensor {
    let c = |f: fn(&Coefficients) -> f64| column(at.iter().map(f), x0);
    match objective {
        Objective::Epsilon => eps.shallow_clone(),
        Objective::X0 => x0.shallow_clone(),
        Objective::V => c(|k| k.alpha) * eps - c(|k| k.sigma) * x0,
        Objective::Velocity => c(|k| k.d_alpha) * x0 + c(|k| k.d_sigma) * eps,
    }
}

/// The pair implied by the raw output `u` at `x = alpha x0 + sigma eps`. Shapes `(B, ...)`.
///
/// Divides by alpha for epsilon: keep `t` below 1. At `sigma = 0` an x0 network says nothing of the noise; its mean, 0,
/// stands in.
pub fn to_pair(objective: Objective, u: &Tensor, x: &Tensor, at: &[Coefficients]) -> Pair {
    let c = |f: fn(&Coefficients) -> f64| column(at.iter().map(f), x);
    match objective {
        Objective::Epsilon => Pair { x0: (x - c(|k| k.sigma) * u) * c(|k| 1.0 / k.alpha), eps: u.shallow_clone() },
        Objective::X0 => {
            let inverse = c(|k| if k.sigma > 0.0 { 1.0 / k.sigma } else { 0.0 });
            Pair { x0: u.shallow_clone(), eps: (x - c(|k| k.alpha) * u) * inverse }
        }
        Objective::V => {
            let norm = |k: &Coefficients| k.alpha * k.alpha + k.sigma * k.sigma;
            let c = |f: &dyn Fn(&Coefficients) -> f64| column(at.iter().map(f), x);
            Pair {
                x0: c(&|k| k.alpha / norm(k)) * x - c(&|k| k.sigma / norm(k)) * u,
                eps: c(&|k| k.sigma / norm(k)) * x + c(&|k| k.alpha / norm(k)) * u,
            }
        }
        Objective::Velocity => {
            let norm = |k: &Coefficients| k.alpha * k.d_sigma - k.d_alpha * k.sigma;
            let c = |f: &dyn Fn(&Coefficients) -> f64| column(at.iter().map(f), x);
            Pair {
                x0: c(&|k| k.d_sigma / norm(k)) * x - c(&|k| k.sigma / norm(k)) * u,
                eps: c(&|k| k.alpha / norm(k)) * u - c(&|k| k.d_alpha / norm(k)) * x,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoisePath, normal};
    use hdd_protocol::Schedule;
    use tch::Kind;

    #[test]
    fn every_objective_round_trips_on_every_path() {
        let normal = |seed| normal(&[9, 5], seed).unwrap().to_kind(Kind::Double);
        let (x0, eps) = (normal(1), normal(2));
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::CosineOffset { offset: 0.008 }, Schedule::DDPM] {
            let path = NoisePath::new(&schedule);
            let at: Vec<_> = (1..10).map(|i| path.at(f64::from(i) / 10.0)).collect();
            let x = column(at.iter().map(|k| k.alpha), &x0) * &x0 + column(at.iter().map(|k| k.sigma), &x0) * &eps;
            for objective in [Objective::Epsilon, Objective::X0, Objective::V, Objective::Velocity] {
                let pair = to_pair(objective, &target(objective, &x0, &eps, &at), &x, &at);
                for (got, wanted) in [(&pair.x0, &x0), (&pair.eps, &eps)] {
                    let error = (got - wanted).abs().max().double_value(&[]);
                    assert!(error < 1e-9, "{objective} on {schedule}: {error}");
                }
            }
        }
    }
}
