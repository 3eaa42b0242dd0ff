//! What an expert is, as plain data; `hdd-expert-runtime` turns it into tensors.

use crate::{Result, error::ensure};
use serde::{Deserialize, Serialize};
use std::fmt;

const NAME: &str = "expert specification";

/// Shape of a text-conditioned DiT with AdaLN-Single (Section 2.5): one modulation of 6D numbers is computed from the time and
/// shared by all blocks, each of which adds a learned table of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Channels of a token, `D`; a multiple of `heads` and of 4 (the position embedding has four parts).
    pub width: u32,
    /// Transformer blocks.
    pub depth: u32,
    /// Attention heads.
    pub heads: u32,
    /// Side of a square patch in latent pixels.
    pub patch: u32,
    /// Channels of a latent, `C`.
    pub channels: u32,
    /// Side of a square latent, `H = W`; a multiple of `patch`.
    pub size: u32,
    /// Channels of a text token.
    pub text_width: u32,
    /// Text tokens, `L`.
    pub text_length: u32,
    /// Whether cross-attention's input is normalised (Eq. 18: yes; PixArt and Paris: no).
    pub cross_norm: bool,
    /// Epsilon of every LayerNorm.
    pub norm_epsilon: f32,
    /// The network sees `time_scale * t`; 999 for DiT.
    pub time_scale: f32,
    /// Whether that product is rounded to an integer (the paper's reading).
    pub round_time: bool,
}

impl Architecture {
    /// A square-latent architecture with this project's conventions: normalised cross-attention, `999 t`, epsilon 1e-6.
    pub const fn new(width: u32, depth: u32, heads: u32, patch: u32) -> Self {
        Self {
            width,
            depth,
            heads,
            patch,
            channels: 4,
            size: 32,
            text_width: 768,
            text_length: 77,
            cross_norm: true,
            norm_epsilon: 1e-6,
            time_scale: 999.0,
            round_time: false,
        }
    }

    /// A published size for 32x32x4 latents and CLIP text, by name in any case: `DiT-S/2`, `DiT-B/2`, `DiT-L/2` or `DiT-XL/2`.
    pub fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().trim_start_matches("dit-") {
            "s/2" => Some(Self::new(384, 12, 6, 2)),
            "b/2" => Some(Self::new(768, 12, 12, 2)),
            "l/2" => Some(Self::new(1024, 24, 16, 2)),
            "xl/2" => Some(Self::new(1152, 28, 16, 2)),
            _ => None,
        }
    }

    /// Image tokens, `N = (size / patch)^2`.
    pub fn tokens(&self) -> u32 {
        (self.size / self.patch).pow(2)
    }

    /// Trainable parameters, null text included, position table excluded.
    pub fn parameters(&self) -> u64 {
        let (d, l) = (u64::from(self.width), u64::from(self.depth));
        let (text, patch) = (u64::from(self.text_width), u64::from(self.patch * self.patch * self.channels));
        let linear = |i: u64, o: u64| i * o + o;
        let time = linear(256, d) + linear(d, d) + linear(d, 6 * d);
        let block = 6 * d
            + linear(d, 3 * d) + linear(d, d) // self-attention
            + linear(d, d) + linear(d, 2 * d) + linear(d, d) // cross-attention
            + linear(d, 4 * d) + linear(4 * d, d); // MLP
        let last = 2 * d + linear(d, patch);
        linear(patch, d) + time + linear(text, d) + u64::from(self.text_length) * text + l * block + last
    }

    /// # Errors
    /// [`crate::Error::OutOfRange`] for a shape that no network can have, or that no node could hold.
    pub fn check(&self) -> Result<()> {
        let positive = |field, value: u32, limit: u32| {
            ensure((1..=limit).contains(&value), NAME, field, || format!("is {value}, must be 1 to {limit}"))
        };
        positive("width", self.width, 4096)?;
        positive("depth", self.depth, 128)?;
        positive("heads", self.heads, 64)?;
        positive("patch", self.patch, 16)?;
        positive("channels", self.channels, 64)?;
        positive("size", self.size, 256)?;
        positive("text_width", self.text_width, 4096)?;
        positive("text_length", self.text_length, 512)?;
        ensure(self.width.is_multiple_of(self.heads), NAME, "width", || {
            format!("is {}, must be a multiple of {} heads", self.width, self.heads)
        })?;
        ensure(self.width.is_multiple_of(4), NAME, "width", || format!("is {}, must be a multiple of 4", self.width))?;
        ensure(self.size.is_multiple_of(self.patch), NAME, "size", || {
            format!("is {}, must be a multiple of the patch {}", self.size, self.patch)
        })?;
        ensure((1e-9..=1e-2).contains(&self.norm_epsilon), NAME, "norm_epsilon", || "must be 1e-9 to 0.01".into())?;
        ensure((1.0..=1e4).contains(&self.time_scale), NAME, "time_scale", || "must be 1 to 10,000".into())
    }
}

/// What the network's raw output estimates, on the path of its [`Schedule`] with coefficients `alpha(t)` and `sigma(t)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The noise: DDPM (Eq. 3).
    Epsilon,
    /// The clean sample.
    X0,
    /// `alpha eps - sigma x0` (Salimans and Ho).
    V,
    /// `alpha' x0 + sigma' eps`: flow matching (Eq. 4 on the linear path).
    Velocity,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epsilon => "epsilon",
            Self::X0 => "x0",
            Self::V => "v",
            Self::Velocity => "velocity",
        })
    }
}

/// The noising path `x_t = alpha(t) x0 + sigma(t) eps`, `t = 0` data, `t = 1` noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// `(1 - t, t)`.
    Linear,
    /// `(cos(pi t / 2), sin(pi t / 2))`, Eq. 26.
    Cosine,
    /// Nichol and Dhariwal's cosine with its offset.
    CosineOffset {
        /// `s`, 0.008 in that work; 0 to 0.1.
        offset: f64,
    },
    /// DDPM's betas rising linearly; index `(steps - 1) t`, log alpha-bar interpolated between indices.
    LinearBeta {
        /// Discrete steps, 1000 in DDPM and DiT; 2 to 10,000.
        steps: u32,
        /// First beta, 1e-4.
        start: f64,
        /// Last beta, 0.02.
        end: f64,
    },
}

impl Schedule {
    /// DDPM's and DiT's 1000 betas from 1e-4 to 0.02.
    pub const DDPM: Self = Self::LinearBeta { steps: 1000, start: 1e-4, end: 0.02 };

    fn check(&self) -> Result<()> {
        match *self {
            Self::Linear | Self::Cosine => Ok(()),
            Self::CosineOffset { offset } => {
                ensure((0.0..=0.1).contains(&offset), NAME, "offset", || format!("is {offset}, must be 0 to 0.1"))
            }
            Self::LinearBeta { steps, start, end } => {
                ensure((2..=10_000).contains(&steps), NAME, "steps", || format!("is {steps}, must be 2 to 10,000"))?;
                ensure(0.0 < start && start < end && end < 1.0, NAME, "beta", || {
                    format!("runs from {start} to {end}, must rise within 0 to 1")
                })
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineOffset { .. } => "cosine-offset",
            Self::LinearBeta { .. } => "linear-beta",
        })
    }
}

/// How a network reads the time of its own path; its input is `time_scale` times the number named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimestepMap {
    /// The time itself (paper Section 2.5).
    #[default]
    Paper,
    /// The place on DDPM's thousand betas with the same signal-to-noise ratio: weights that come from DiT then read the noise
    /// level that they were trained at. The linear path's 0.5 is index 258.
    Snr,
}

impl fmt::Display for TimestepMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paper => "paper",
            Self::Snr => "snr",
        })
    }
}

/// Everything needed to run an expert's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSpec {
    /// The network's shape.
    pub architecture: Architecture,
    /// What its output estimates.
    pub objective: Objective,
    /// The path that it was trained on.
    pub schedule: Schedule,
    /// Index of the charter's cluster that it was trained on.
    pub cluster: u16,
    /// How it reads the time; the paper's reading where a description in JSON leaves it out.
    #[serde(default)]
    pub timestep_map: TimestepMap,
    /// Standard deviation of the data, if the network's input and output are preconditioned for it (Karras et al. 2022,
    /// Section 5); absent, the raw output is the network's (the paper).
    #[serde(default)]
    pub preconditioning: Option<f32>,
}

impl ExpertSpec {
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the field.
    pub fn check(&self) -> Result<()> {
        self.architecture.check()?;
        if let Some(std) = self.preconditioning {
            ensure((0.01..=100.0).contains(&std), NAME, "preconditioning", || {
                format!("is {std}, must be 0.01 to 100")
            })?;
        }
        self.schedule.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_papers() {
        assert_eq!(Architecture::named("DiT-XL/2").unwrap().parameters(), 605_734_672);
        assert_eq!(Architecture::named("b/2").unwrap().parameters(), 118_429_456);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let good = Architecture::new(128, 4, 4, 4);
        good.check().unwrap();
        for bad in [
            Architecture { width: 130, ..good.clone() },
            Architecture { heads: 3, ..good.clone() },
            Architecture { patch: 5, ..good.clone() },
            Architecture { depth: 0, ..good.clone() },
            Architecture { width: 1 << 30, ..good.clone() },
            Architecture { norm_epsilon: f32::NAN, ..good.clone() },
        ] {
            bad.check().unwrap_err();
        }
    }
}
