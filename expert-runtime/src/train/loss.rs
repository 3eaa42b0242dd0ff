use super::Batch;
use crate::{Coefficients, Expert, column, objective::target};
use hdd_protocol::LossWeighting;
use tch::Tensor;

/// Weighted squared error of the raw output against the objective's target (Eq. 3, 4), a scalar.
///
/// `predict` is the network: `x (B, C, H, W)`, times and text `(B, L, W)` to the raw output, shaped as `x`.
pub fn loss(
    expert: &Expert,
    weighting: LossWeighting,
    batch: &Batch,
    predict: impl FnOnce(&Tensor, &[f64], &Tensor) -> Tensor,
) -> Tensor {
    let Batch { x0, eps, times, .. } = batch;
    let at: Vec<Coefficients> = times.iter().map(|&t| expert.path().at(t)).collect();
    let x = column(at.iter().map(|k| k.alpha), x0) * x0 + column(at.iter().map(|k| k.sigma), x0) * eps;
    let null = expert.network().null_text(x0.size()[0]);
    let text = batch.text.lerp_tensor(&null, &batch.dropped);
    let error = predict(&x, times, &text) - target(expert.spec().objective, x0, eps, &at);
    let square = error.square();
    match weighting {
        LossWeighting::Uniform => square.mean(None),
        LossWeighting::InverseAlpha { limit } => {
            let weight = |k: &Coefficients| (1.0 / (k.alpha * k.alpha)).min(f64::from(limit));
            (square * column(at.iter().map(weight), x0)).mean(None)
        }
    }
}
