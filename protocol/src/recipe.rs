//! How an expert or router is trained. Defaults are the paper's (Sections 6.2, 6.3) but for the precision, which is single; a
//! charter carries its own. Ranges are those that `check` lets through.

use crate::{Result, error::ensure};
use serde::{Deserialize, Serialize};

/// How training times are drawn from [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TimeSampling {
    /// Uniform.
    Uniform,
    /// `sigmoid(mean + std n)` with normal `n` (Esser et al., Section 3.1).
    LogitNormal {
        /// Centre before the sigmoid, -5 to 5; positive means noisier.
        mean: f32,
        /// Standard deviation before the sigmoid, 0.01 to 5.
        std: f32,
    },
}

/// Weight of the squared error at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LossWeighting {
    /// 1 (Eq. 3, 4).
    Uniform,
    /// `min(1 / alpha^2, limit)`: gives an epsilon network the weights of a velocity network (Proposition 1) up to the
    /// limit, since its errors are divided by alpha when it is asked for a clean sample.
    InverseAlpha {
        /// Largest weight, 1 to 10,000.
        limit: f32,
    },
}

/// Arithmetic of the network's products in training. Weights, moments and averages are float32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision.
    Float32,
    /// Single precision with TensorFloat-32 products on CUDA devices that have them; single precision elsewhere.
    Tf32,
    /// bfloat16 products; TensorFloat-32 may serve those that stay in single precision.
    Bf16,
    /// Half precision products with dynamic loss scaling (Micikevicius et al., 2018), as Section 6.2; else as [`Self::Bf16`].
    Fp16,
}

/// Training of an expert: AdamW with linear warmup to a constant step size, and an average of the weights, which is published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Optimiser steps in all, 1 to 100,000,000.
    pub steps: u64,
    /// Images a step, 1 to 65,536, however many of them are computed at a time.
    pub batch: u32,
    /// AdamW's step size after warmup, 1e-8 to 1.
    pub learning_rate: f64,
    /// Steps of linear warmup, 0 (none) to 100,000,000.
    pub warmup: u64,
    /// AdamW's decay of the mean gradient, a step; 0 to 0.999999.
    pub beta1: f64,
    /// AdamW's decay of the mean squared gradient, a step; 0 to 0.999999.
    pub beta2: f64,
    /// AdamW's epsilon, 1e-12 to 0.1.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay, 0 to 1; a step takes `learning_rate * weight_decay` of a weight away.
    pub weight_decay: f64,
    /// Largest norm of all gradients together, 1e-6 to 1,000,000; larger ones are scaled down to it.
    pub clip: f64,
    /// Decay of the averaged weights, a step; 0 (no average) to 0.999999.
    pub ema_decay: f64,
    /// Probability that an image's text is replaced by the learned null, 0 to 1.
    pub text_dropout: f64,
    /// Distribution of training times.
    pub times: TimeSampling,
    /// Weight of the loss at a time.
    pub weighting: LossWeighting,
    /// Arithmetic of the network's products.
    pub precision: Precision,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            steps: 500_000,
            batch: 128,
            learning_rate: 1e-4,
            warmup: 5_000,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            ema_decay: 0.9999,
            text_dropout: 0.1,
            times: TimeSampling::Uniform,
            weighting: LossWeighting::Uniform,
            precision: Precision::Float32,
        }
    }
}

impl Recipe {
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the field.
    pub fn check(&self) -> Result<()> {
        const NAME: &str = "training recipe";
        let within = |field, value, low, high| within(NAME, field, value, low, high);
        ensure((1..=100_000_000).contains(&self.steps), NAME, "steps", || "must be 1 to 100,000,000".into())?;
        ensure((1..=65_536).contains(&self.batch), NAME, "batch", || "must be 1 to 65,536".into())?;
        ensure(self.warmup <= 100_000_000, NAME, "warmup", || "must be at most 100,000,000".into())?;
        within("learning_rate", self.learning_rate, 1e-8, 1.0)?;
        within("beta1", self.beta1, 0.0, 0.999_999)?;
        within("beta2", self.beta2, 0.0, 0.999_999)?;
        within("epsilon", self.epsilon, 1e-12, 1e-1)?;
        within("weight_decay", self.weight_decay, 0.0, 1.0)?;
        within("clip", self.clip, 1e-6, 1e6)?;
        within("ema_decay", self.ema_decay, 0.0, 0.999_999)?;
        within("text_dropout", self.text_dropout, 0.0, 1.0)?;
        if let TimeSampling::LogitNormal { mean, std } = self.times {
            within("times.mean", f64::from(mean), -5.0, 5.0)?;
            within("times.std", f64::from(std), 0.01, 5.0)?;
        }
        if let LossWeighting::InverseAlpha { limit } = self.weighting {
            within("weighting.limit", f64::from(limit), 1.0, 1e4)?;
        }
        Ok(())
    }
}

/// Shape and training of a router (Section 6.3): AdamW in single precision with decays 0.9 and 0.999, its step size on a
/// cosine from `learning_rate` to a hundredth of it, no warmup. Of a router with text, a tenth of the texts is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterRecipe {
    /// Channels of a token, 4 to 4,096; a multiple of `heads` and of 4.
    pub width: u32,
    /// Transformer blocks, 1 to 128.
    pub depth: u32,
    /// Attention heads, 1 to 64.
    pub heads: u32,
    /// Side of a square patch in latent pixels, 1 to 16; the charter's latent size is a multiple of it.
    pub patch: u32,
    /// Whether the router also sees the text: `p(k | x_t, t, c)`. Without it, it knows only the prior at `t = 1`.
    pub text: bool,
    /// Optimiser steps in all, 1 to 100,000,000.
    pub steps: u64,
    /// Images a step, 1 to 65,536.
    pub batch: u32,
    /// AdamW's first step size, 1e-8 to 1.
    pub learning_rate: f64,
    /// AdamW's decoupled weight decay, 0 to 1.
    pub weight_decay: f64,
}

impl Default for RouterRecipe {
    /// The paper's B/2 router; 25 epochs of 11M images are about a million steps.
    fn default() -> Self {
        Self {
            width: 768,
            depth: 12,
            heads: 12,
            patch: 2,
            text: false,
            steps: 1_074_000,
            batch: 256,
            learning_rate: 5e-5,
            weight_decay: 1e-2,
        }
    }
}

impl RouterRecipe {
    /// # Errors
    /// [`crate::Error::OutOfRange`] with the field.
    pub fn check(&self) -> Result<()> {
        const NAME: &str = "router recipe";
        let ok = (4..=4096).contains(&self.width)
            && (1..=128).contains(&self.depth)
            && (1..=64).contains(&self.heads)
            && (1..=16).contains(&self.patch)
            && self.width.is_multiple_of(self.heads)
            && self.width.is_multiple_of(4);
        ensure(ok, NAME, "shape", || {
            "is no network: width must be 4 to 4,096 and a multiple of heads and of 4, depth 1 to 128, heads 1 to 64, patch 1 to 16"
                .into()
        })?;
        ensure((1..=100_000_000).contains(&self.steps), NAME, "steps", || "must be 1 to 100,000,000".into())?;
        ensure((1..=65_536).contains(&self.batch), NAME, "batch", || "must be 1 to 65,536".into())?;
        within(NAME, "learning_rate", self.learning_rate, 1e-8, 1.0)?;
        within(NAME, "weight_decay", self.weight_decay, 0.0, 1.0)
    }
}

fn within(what: &'static str, field: &'static str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure((low..=high).contains(&value), what, field, || format!("is {value}, must be {low} to {high}"))
}
