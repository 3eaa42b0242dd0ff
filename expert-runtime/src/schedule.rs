//! Noising paths `x_t = alpha(t) x0 + sigma(t) eps` on the clock `t` in [0, 1], `t = 0` data, `t = 1` noise.
//!
//! Paper Section 2.3 and Eq. 26; the offset cosine is Nichol and Dhariwal's (2021), linear-beta is DDPM's (Ho et al.,
//! 2020) and DiT's. Times are few, so everything here is float64 on the host; tensors only see the results.

use hdd_protocol::Schedule;
use std::f64::consts::FRAC_PI_2;

/// Values of a path at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Share of the clean sample.
    pub alpha: f64,
    /// Share of the noise.
    pub sigma: f64,
    /// `d alpha / dt`.
    pub d_alpha: f64,
    /// `d sigma / dt`.
    pub d_sigma: f64,
}

/// A [`Schedule`] ready for evaluation.
#[derive(Debug, Clone)]
pub enum NoisePath {
    /// `(1 - t, t)`.
    Linear,
    /// `(cos(pi t / 2), sin(pi t / 2))`.
    Cosine,
    /// `alpha = cos(u) / cos(u0)`, `u = pi/2 (t + s) / (1 + s)`.
    CosineOffset {
        /// `s`.
        offset: f64,
    },
    /// Running sums of `log(1 - beta)`: log alpha-bar at each index.
    LinearBeta {
        /// One entry an index, falling.
        log_alpha_bar: Vec<f64>,
    },
}

impl NoisePath {
    /// The path that `schedule` describes.
    pub fn new(schedule: &Schedule) -> Self {
        match *schedule {
            Schedule::Linear => Self::Linear,
            Schedule::Cosine => Self::Cosine,
            // The offset's closed forms lose their slope at t = 0 without one.
            Schedule::CosineOffset { offset: 0.0 } => Self::Cosine,
            Schedule::CosineOffset { offset } => Self::CosineOffset { offset },
            Schedule::LinearBeta { steps, start, end } => {
                let mut sum = 0.0;
                let beta = |i: u32| start + (end - start) * f64::from(i) / f64::from(steps - 1);
                let log_alpha_bar = (0..steps)
                    .map(|i| {
                        sum += (-beta(i)).ln_1p();
                        sum
                    })
                    .collect();
                Self::LinearBeta { log_alpha_bar }
            }
        }
    }

    /// Alpha, sigma and their closed-form derivatives at `t`, clamped to [0, 1].
    pub fn at(&self, t: f64) -> Coefficients {
        let t = t.clamp(0.0, 1.0);
        match self {
            Self::Linear => Coefficients { alpha: 1.0 - t, sigma: t, d_alpha: -1.0, d_sigma: 1.0 },
            Self::Cosine => {
                let (sigma, alpha) = (FRAC_PI_2 * t).sin_cos();
                Coefficients { alpha, sigma, d_alpha: -FRAC_PI_2 * sigma, d_sigma: FRAC_PI_2 * alpha }
            }
            Self::CosineOffset { offset } => {
                // alpha_bar = f(t) / f(0) with f = cos^2: alpha is f's ratio of cosines squared under the root.
                let rate = FRAC_PI_2 / (1.0 + offset);
                let (u, u0) = (rate * (t + offset), rate * offset);
                let alpha = u.cos() / u0.cos();
                variance_preserving(alpha, -rate * u.sin() / u0.cos())
            }
            Self::LinearBeta { log_alpha_bar } => {
                let last = log_alpha_bar.len() - 1;
                let index = t * last as f64;
                let low = (index.floor() as usize).min(last - 1);
                let slope = log_alpha_bar[low + 1] - log_alpha_bar[low];
                let log_bar = log_alpha_bar[low] + (index - low as f64) * slope;
                let alpha = (log_bar / 2.0).exp();
                let sigma = (-log_bar.exp_m1()).sqrt();
                let d_alpha = alpha * slope * last as f64 / 2.0;
                Coefficients { alpha, sigma, d_alpha, d_sigma: -alpha * d_alpha / sigma }
            }
        }
    }

    /// Natural logarithm of the signal-to-noise ratio `alpha^2 / sigma^2`; falls strictly in `t`.
    pub fn log_snr(&self, t: f64) -> f64 {
        let c = self.at(t);
        2.0 * (c.alpha.ln() - c.sigma.ln())
    }

    /// The time at which [`Self::log_snr`] is `log_snr`, clamped to the range that the path covers.
    pub fn time_of_log_snr(&self, log_snr: f64) -> f64 {
        // The smaller of the two carries the exponential, so that neither overflows.
        let small = (-log_snr.abs() / 2.0).exp();
        if log_snr > 0.0 { self.time_of_ratio(small, 1.0) } else { self.time_of_ratio(1.0, small) }
    }

    /// The time at which `sigma / alpha` is `sigma : alpha`, clamped to the range that the path covers.
    ///
    /// Closed for linear and both cosines, a search in the table for linear-beta.
    pub fn time_of_ratio(&self, sigma: f64, alpha: f64) -> f64 {
        match self {
            Self::Linear => sigma / (alpha + sigma),
            Self::Cosine => sigma.atan2(alpha) / FRAC_PI_2,
            Self::CosineOffset { offset } => {
                let rate = FRAC_PI_2 / (1.0 + offset);
                let share = alpha / alpha.hypot(sigma); // alpha of the variance-preserving path at this ratio
                (((share * (rate * offset).cos()).acos() / rate) - offset).clamp(0.0, 1.0)
            }
            Self::LinearBeta { log_alpha_bar } => {
                let last = log_alpha_bar.len() - 1;
                let log_bar = 2.0 * (alpha / alpha.hypot(sigma)).ln();
                let high = log_alpha_bar.partition_point(|&entry| entry > log_bar).clamp(1, last);
                let (a, b) = (log_alpha_bar[high - 1], log_alpha_bar[high]);
                ((high as f64 - 1.0 + (log_bar - a) / (b - a)) / last as f64).clamp(0.0, 1.0)
            }
        }
    }
}

/// Completes `(alpha, alpha')` with `sigma = sqrt(1 - alpha^2)`.
fn variance_preserving(alpha: f64, d_alpha: f64) -> Coefficients {
    let sigma = (1.0 - alpha * alpha).max(0.0).sqrt();
    // At sigma = 0 the true slope is infinite; a finite stand-in keeps 0 * slope at 0.
    let d_sigma = -alpha * d_alpha / sigma.max(1e-12);
    Coefficients { alpha, sigma, d_alpha, d_sigma }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Vec<NoisePath> {
        [Schedule::Linear, Schedule::Cosine, Schedule::CosineOffset { offset: 0.008 }, Schedule::DDPM]
            .iter()
            .map(NoisePath::new)
            .collect()
    }

    #[test]
    fn snr_falls_and_its_inverse_returns() {
        for path in paths() {
            let mut previous = f64::INFINITY;
            for i in 1..1000 {
                let t = f64::from(i) / 1000.0;
                let (snr, c) = (path.log_snr(t), path.at(t));
                assert!(snr < previous, "{path:?} at {t}");
                previous = snr;
                let back = path.time_of_ratio(c.sigma, c.alpha);
                assert!((back - t).abs() < 1e-9, "{t} came back as {back}");
                assert!((path.time_of_log_snr(snr) - t).abs() < 1e-9, "{path:?} at {t}");
            }
        }
    }

    #[test]
    fn a_ratio_beyond_the_path_gives_its_end() {
        for path in paths() {
            for extreme in [1e4, f64::INFINITY] {
                assert!(path.time_of_log_snr(extreme) < 1e-9, "{path:?}");
                assert!(path.time_of_log_snr(-extreme) > 1.0 - 1e-9, "{path:?}");
            }
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        for path in paths() {
            for i in 1..100 {
                // Between table entries, where linear-beta is smooth.
                let (t, h) = ((f64::from(i) * 10.0 + 0.5) / 999.0, 1e-7);
                let (c, low, high) = (path.at(t), path.at(t - h), path.at(t + h));
                assert!((c.d_alpha - (high.alpha - low.alpha) / (2.0 * h)).abs() < 1e-5);
                assert!((c.d_sigma - (high.sigma - low.sigma) / (2.0 * h)).abs() < 1e-5);
            }
        }
    }
}
