//! Preconditioning (Karras et al. 2022, Section 5), for any objective on any path.
//!
//! An epsilon network's errors are divided by alpha where a clean sample is asked of it: at high noise a small error ruins
//! the picture. Here the network estimates only what the best linear guess from `x` leaves open, scaled to unit variance.
//! That residual is the same quantity whatever the objective, and an error of `d` in it moves the predicted clean sample by
//! at most `d` standard deviations of the data, at every noise level.

use crate::{Coefficients, column};
use hdd_protocol::Objective;
use tch::Tensor;

/// Factors around a network `F` at one time: the raw output is `skip x + out F(input x)`.
#[derive(Debug, Clone, Copy)]
pub struct Preconditioning {
    /// Brings `x` to unit variance.
    pub input: f64,
    /// The best linear guess of the target from `x`.
    pub skip: f64,
    /// Standard deviation of what that guess leaves open; signed, so that `F` does not depend on the objective.
    pub out: f64,
}

impl Preconditioning {
    /// The factors for centred data of standard deviation `std` at a point of the path with coefficients `at`.
    pub fn new(objective: Objective, at: &Coefficients, std: f64) -> Self {
        let Coefficients { alpha, sigma, d_alpha, d_sigma } = *at;
        let (of_x0, of_eps) = match objective {
            Objective::Epsilon => (0.0, 1.0),
            Objective::X0 => (1.0, 0.0),
            Objective::V => (-sigma, alpha),
            Objective::Velocity => (d_alpha, d_sigma),
        };
        let variance = (alpha * std).powi(2) + sigma.powi(2);
        Self {
            input: variance.powf(-0.5),
            skip: (of_x0 * alpha * std.powi(2) + of_eps * sigma) / variance,
            out: std * (of_x0 * sigma - of_eps * alpha) / variance.sqrt(),
        }
    }
}

/// The raw output at `x (B, ...)` from a network that is asked about a scaled `x`; shaped as `x`.
pub fn precondition(
    (objective, std): (Objective, f64),
    x: &Tensor,
    at: &[Coefficients],
    network: impl FnOnce(&Tensor) -> Tensor,
) -> Tensor {
    let factors: Vec<_> = at.iter().map(|at| Preconditioning::new(objective, at, std)).collect();
    let factor = |f: fn(&Preconditioning) -> f64| column(factors.iter().map(f), x);
    factor(|p| p.skip) * x + factor(|p| p.out) * network(&(factor(|p| p.input) * x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NoisePath, normal,
        objective::{target, to_pair},
    };
    use hdd_protocol::Schedule;
    use tch::Kind;

    const STD: f64 = 0.7;
    const OBJECTIVES: [Objective; 4] = [Objective::Epsilon, Objective::X0, Objective::V, Objective::Velocity];

    /// What the network has to estimate at `(x0, eps)`.
    fn residual(objective: Objective, at: Coefficients, x0: &Tensor, eps: &Tensor) -> Tensor {
        let p = Preconditioning::new(objective, &at, STD);
        let x = at.alpha * x0 + at.sigma * eps;
        (target(objective, x0, eps, &[at]) - p.skip * x) / p.out
    }

    #[test]
    fn the_residual_has_unit_variance_and_is_the_same_for_every_objective() {
        let normal = |seed| normal(&[1, 100_000], seed).unwrap().to_kind(Kind::Double);
        let (x0, eps) = (STD * normal(1), normal(2));
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::DDPM] {
            let path = NoisePath::new(&schedule);
            for t in [0.05, 0.3, 0.6, 0.95] {
                let first = residual(Objective::Epsilon, path.at(t), &x0, &eps);
                assert!((first.std(true).double_value(&[]) - 1.0).abs() < 0.02, "{schedule} at {t}");
                for objective in OBJECTIVES {
                    let error = (residual(objective, path.at(t), &x0, &eps) - &first).abs().max().double_value(&[]);
                    assert!(error < 1e-9, "{objective} on {schedule} at {t}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_networks_error_moves_the_clean_sample_by_its_size_at_most() {
        let x = normal(&[1, 64], 3).unwrap().to_kind(Kind::Double);
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::DDPM] {
            let path = NoisePath::new(&schedule);
            for objective in OBJECTIVES {
                for t in [0.01, 0.3, 0.9, 0.99, 0.999] {
                    let at = [path.at(t)];
                    let x0 = |error: f64| {
                        let raw = precondition((objective, STD), &x, &at, |x| x.zeros_like() + error);
                        to_pair(objective, &raw, &x, &at).x0
                    };
                    let moved = (x0(0.1) - x0(0.0)).abs().max().double_value(&[]);
                    assert!(moved <= 0.1 * STD + 1e-9, "{objective} on {schedule} at {t}: {moved}");
                }
            }
        }
    }
}
