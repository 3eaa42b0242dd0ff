use hdd_protocol::TimeSampling;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// Training times in (0, 1), one an image.
///
/// Uniform times are stratified: one from each of `n` equal parts of the interval, in random order of the images, which
/// lowers the variance of the loss and leaves its mean (Kingma et al., 2021, Appendix I.1).
pub fn draw_times(distribution: TimeSampling, n: usize, rng: &mut impl Rng) -> Vec<f64> {
    const MARGIN: f64 = 1e-5; // the ends are singular for some objectives
    (0..n)
        .map(|i| match distribution {
            TimeSampling::Uniform => (i as f64 + rng.random::<f64>()) / n as f64,
            TimeSampling::LogitNormal { mean, std } => {
                let z: f64 = StandardNormal.sample(rng);
                1.0 / (1.0 + (-(f64::from(mean) + f64::from(std) * z)).exp())
            }
        })
        .map(|t| t.clamp(MARGIN, 1.0 - MARGIN))
        .collect()
}
