//! From an expert's raw output to a velocity on the linear path.
//!
//! `paper` is the paper's Sections 2.3 and 8: the expert's schedule at the same time. A point of the linear path has
//! another signal-to-noise ratio than the expert's own path at that time, so in a mixture a converted expert is asked about
//! inputs that it never saw. `aligned` asks it about the point of its own path with the same ratio instead,
//! and needs no damping.

use crate::{Coefficients, NoisePath, column, objective::to_pair};
use hdd_protocol::{Conversion, Objective};
use tch::Tensor;

/// The paper's clamp of predicted clean VAE latents.
pub const VAE_CLAMP: f64 = 20.0;
/// The paper's clamp of predicted clean pixels.
pub const PIXEL_CLAMP: f64 = 5.0;
/// The paper's `alpha_safe = max(alpha, 0.01)`.
const SAFE_ALPHA: f64 = 0.01;
/// The paper's step of finite differences.
const DIFFERENCE: f64 = 1e-4;

/// The linear path's velocity at `(x, t)` of a model whose raw output `predict(x, t)` estimates `objective` on `path`: the
/// one way from networks and oracles to a [`crate::VelocityField`]. Shapes `(B, ...)`, one time an image in [0, 1];
/// predicted clean samples are clamped to plus or minus `clamp`.
pub fn linear_velocity(
    (objective, path): (Objective, &NoisePath),
    conversion: Conversion,
    clamp: f64,
    (x, t): (&Tensor, &[f64]),
    predict: impl FnOnce(&Tensor, &[f64]) -> Tensor,
) -> Tensor {
    match (objective, path, conversion) {
        // A velocity on the linear path needs no conversion.
        (Objective::Velocity, NoisePath::Linear, _) => predict(x, t),
        (.., Conversion::Aligned { floor }) => {
            let (own_t, factor) = aligned_point(path, t, f64::from(floor));
            let own_x = x * column(factor, x);
            let u = predict(&own_x, &own_t);
            aligned_velocity((objective, path), &u, (&own_x, &own_t), (x, t), clamp)
        }
        (.., Conversion::Paper { damping }) => {
            paper_velocity((objective, path), &predict(x, t), (x, t), clamp, damping)
        }
    }
}

/// Times of the expert's own path with the ratio of the linear path at `min(t, 1 - floor)`, and the factor that takes
/// `x` there: `x' = factor x`, `factor = hypot(alpha', sigma') / hypot(1 - t, t)`.
pub fn aligned_point(path: &NoisePath, t: &[f64], floor: f64) -> (Vec<f64>, Vec<f64>) {
    t.iter()
        .map(|&t| {
            let te = t.min(1.0 - floor);
            let own = path.time_of_ratio(te, 1.0 - te);
            let c = path.at(own);
            (own, c.alpha.hypot(c.sigma) / (1.0 - t).hypot(t))
        })
        .unzip()
}

/// The linear path's velocity at `(x, t)` from the raw output `u` at the aligned point `(own_x, own_t)`.
/// Shapes `(B, ...)`; predicted clean samples are clamped to plus or minus `clamp`.
pub fn aligned_velocity(
    (objective, path): (Objective, &NoisePath),
    u: &Tensor,
    (own_x, own_t): (&Tensor, &[f64]),
    (x, t): (&Tensor, &[f64]),
    clamp: f64,
) -> Tensor {
    let at: Vec<Coefficients> = own_t.iter().map(|&t| path.at(t)).collect();
    let pair = to_pair(objective, u, own_x, &at);
    let x0 = pair.x0.clamp(-clamp, clamp);
    // (x - (1 - t) x0) / t - x0 for t > 0; at t = 0 the network's own noise.
    let column = |f: &dyn Fn(f64) -> f64| column(t.iter().map(|&t| f(t)), x);
    let inner = (x - column(&|t| 1.0 - t) * &x0) * column(&|t| if t > 0.0 { 1.0 / t } else { 0.0 });
    let own = pair.eps * column(&|t| if t > 0.0 { 0.0 } else { 1.0 });
    inner + own - x0
}

/// The paper's velocity (Eq. 5-7, 22-30) at `(x, t)` from the raw output `u` there, with Eq. 31 if `damping`.
/// Shapes `(B, ...)`.
pub fn paper_velocity(
    (objective, path): (Objective, &NoisePath),
    u: &Tensor,
    (x, t): (&Tensor, &[f64]),
    clamp: f64,
    damping: bool,
) -> Tensor {
    let at: Vec<Coefficients> = t.iter().map(|&t| path.at(t)).collect();
    let pair = match objective {
        // Eq. 5 with the safe denominator; the numerator keeps the true sigma.
        Objective::Epsilon => {
            let safe: Vec<_> = at.iter().map(|c| Coefficients { alpha: c.alpha.max(SAFE_ALPHA), ..*c }).collect();
            to_pair(objective, u, x, &safe)
        }
        _ => to_pair(objective, u, x, &at),
    };
    let slopes: Vec<(f64, f64)> = t.iter().map(|&t| slope(path, t)).collect();
    let factor = |t: f64| if damping { damping_at(t) } else { 1.0 };
    let x0 = pair.x0.clamp(-clamp, clamp);
    let a = column(slopes.iter().zip(t).map(|(s, &t)| s.0 * factor(t)), x);
    let s = column(slopes.iter().zip(t).map(|(s, &t)| s.1 * factor(t)), x);
    a * x0 + s * pair.eps
}

/// Finite differences of `(alpha, sigma)`, one-sided at the ends.
fn slope(path: &NoisePath, t: f64) -> (f64, f64) {
    let (low, high) = ((t - DIFFERENCE).max(0.0), (t + DIFFERENCE).min(1.0));
    let (a, b) = (path.at(low), path.at(high));
    ((b.alpha - a.alpha) / (high - low), (b.sigma - a.sigma) / (high - low))
}

/// Eq. 31. The factors are float32 numbers, as in the reference that the golden vectors come from.
fn damping_at(t: f64) -> f64 {
    f64::from(match t {
        t if t > 0.85 => 0.88f32,
        t if t > 0.6 => 0.93,
        _ => 0.96,
    })
}
