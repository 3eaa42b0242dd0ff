//! What an expert must show before it serves: weights that fit, finite behaviour, and a held-out denoising loss below that
//! of a predictor that only knows its cluster's mean image.

use crate::{Error, Result};
use hdd_expert_runtime::{Condition, Expert, VelocityField, column, sampler};
use hdd_protocol::{Conversion, ExpertSpec};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Tensor};

/// Times at which the loss is measured.
const TIMES: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];
/// Most held-out images that are looked at.
const IMAGES: usize = 64;
/// Of fewer images neither the loss nor their mean says much.
const FEWEST: usize = 8;
/// No sane velocity is larger; latents have a spread of about 1.
const EXPLODED: f64 = 1e4;

/// Held-out latents by cluster.
pub struct HeldOut {
    /// `(N, C, H, W)`
    pub latents: Tensor,
    /// Cluster of each, N.
    pub labels: Vec<u16>,
}

impl HeldOut {
    /// The images of one cluster, at most 64 of them, `(M, C, H, W)`; `None` if there are fewer than 8.
    fn of_cluster(&self, cluster: u16) -> Option<Tensor> {
        let rows: Vec<i64> = (0i64..).zip(&self.labels).filter(|(_, c)| **c == cluster).map(|(row, _)| row).collect();
        let rows = &rows[..rows.len().min(IMAGES)];
        (rows.len() >= FEWEST)
            .then(|| self.latents.index_select(0, &Tensor::from_slice(rows).to_device(self.latents.device())))
    }
}

/// What the tests measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Mean squared error of the predicted clean sample over all times.
    pub loss: f64,
    /// The same for the cluster's mean image: the floor.
    pub floor: f64,
    /// `(t, loss)`.
    pub per_time: Vec<(f64, f64)>,
}

/// Loads and tests an expert; `max_ratio` is the largest loss as a share of the floor. The report is absent where there are
/// too few held-out images of the expert's cluster to measure on.
///
/// # Errors
/// [`Error::Refused`] with the test that failed and its figures.
pub fn test_expert(
    spec: &ExpertSpec,
    weights: &Path,
    held_out: &HeldOut,
    clamp: f64,
    max_ratio: f64,
    device: Device,
) -> Result<(Expert, Option<Report>)> {
    let _guard = tch::no_grad_guard();
    let expert = Expert::load(spec, weights, device).map_err(|e| Error::Refused(e.to_string()))?;
    behaves(&expert, clamp)?;
    let Some(images) = held_out.of_cluster(spec.cluster) else { return Ok((expert, None)) };
    let report = measure(&expert, &images, clamp)?;
    if report.loss > max_ratio * report.floor {
        return Err(Error::Refused(format!(
            "its held-out loss is {:.4}, {:.2} times the {:.4} of its cluster's mean image (at most {max_ratio} is taken); \
             train it longer or on images of cluster {}",
            report.loss,
            report.loss / report.floor,
            report.floor,
            spec.cluster
        )));
    }
    Ok((expert, Some(report)))
}

/// Random and extreme inputs at every noise level give finite velocities of a sane size.
fn behaves(expert: &Expert, clamp: f64) -> Result<()> {
    let a = &expert.spec().architecture;
    let shape = [a.channels, a.size, a.size].map(i64::from);
    let noise = sampler::noise(&[1, 2, 3, 4], shape, expert.device());
    let times = [1.0, 0.66, 0.33, 0.01];
    let condition = Condition { text: None, guidance: None };
    let field = expert.field(Conversion::DEFAULT, clamp);
    for (what, x) in
        [("noise", noise.shallow_clone()), ("zeros", noise.zeros_like()), ("extreme input", &noise * 100.0)]
    {
        let v = field.velocity(&x, &times, &condition)?;
        let largest = v.abs().max().double_value(&[]);
        // A converted velocity may grow as x / t.
        let limit = EXPLODED * (1.0 + x.abs().max().double_value(&[]));
        if !largest.is_finite() || largest > limit {
            return Err(Error::Refused(format!("on {what} its velocity reaches {largest:e}")));
        }
    }
    Ok(())
}

fn measure(expert: &Expert, images: &Tensor, clamp: f64) -> Result<Report> {
    let n = images.size()[0];
    let shape = [images.size()[1], images.size()[2], images.size()[3]];
    let condition = Condition { text: None, guidance: None };
    let field = expert.field(Conversion::DEFAULT, clamp);
    let mut per_time = Vec::with_capacity(TIMES.len());
    for (i, t) in TIMES.into_iter().enumerate() {
        let seeds: Vec<u64> = (0..n as u64).map(|j| j + 1000 * i as u64).collect();
        let noise = sampler::noise(&seeds, shape, images.device());
        let x = images * (1.0 - t) + noise * t;
        let times = vec![t; n as usize];
        let v = field.velocity(&x, &times, &condition)?;
        let x0 = &x - v * column(times, &x); // x_t - t v
        per_time.push((t, (x0 - images).square().mean(None).double_value(&[])));
    }
    let loss = per_time.iter().map(|p| p.1).sum::<f64>() / per_time.len() as f64;
    let mean = images.mean_dim([0i64].as_slice(), true, None);
    Ok(Report { loss, floor: (images - mean).square().mean(None).double_value(&[]), per_time })
}
