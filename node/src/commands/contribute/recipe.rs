//! The flags of training: the recipe, which the manifest records, and how its batches are computed.

use crate::{Error, Result};
use clap::ValueEnum;
use hdd_protocol::{LossWeighting, Precision, Recipe, TimeSampling};

/// How to train, as numbers that the manifest records (paper Section 6.2). What is not given is the charter's.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training [defaults: the charter's recipe]")]
pub struct RecipeArgs {
    /// Optimiser steps in all, 1 to 100000000
    #[arg(long)]
    pub steps: Option<u64>,
    /// Images a step, 1 to 65536
    #[arg(long)]
    batch: Option<u32>,
    /// AdamW's step size after warmup, 1e-8 to 1
    #[arg(long, allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// Steps of linear warmup; 0 is none
    #[arg(long)]
    warmup: Option<u64>,
    /// AdamW's first decay, of the mean gradient; 0 to 0.999999
    #[arg(long, allow_negative_numbers = true)]
    beta1: Option<f64>,
    /// AdamW's second decay, of the mean squared gradient; 0 to 0.999999
    #[arg(long, allow_negative_numbers = true)]
    beta2: Option<f64>,
    /// AdamW's epsilon, 1e-12 to 0.1
    #[arg(long, allow_negative_numbers = true)]
    epsilon: Option<f64>,
    /// AdamW's decoupled weight decay, 0 to 1
    #[arg(long, allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Largest norm of all gradients together, 1e-6 to 1e6; larger ones are scaled down to it
    #[arg(long, allow_negative_numbers = true)]
    clip: Option<f64>,
    /// Decay of the averaged weights, a step; 0 to 0.999999
    #[arg(long, allow_negative_numbers = true)]
    ema_decay: Option<f64>,
    /// Probability that an image is trained on without its text, 0 to 1
    #[arg(long, allow_negative_numbers = true)]
    text_dropout: Option<f64>,
    /// Distribution of training times
    #[arg(long, value_enum)]
    times: Option<TimesName>,
    /// Mean of the normal of logit-normal times, -5 to 5 [default: 0]; above 0 favours high noise
    #[arg(long, allow_negative_numbers = true)]
    times_mean: Option<f32>,
    /// Standard deviation of that normal, 0.01 to 5 [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    times_std: Option<f32>,
    /// Weigh the loss by min(1 / alpha^2, LIMIT), with LIMIT 1 to 10000: for epsilon, more weight to high noise; 1 weighs all
    /// times alike
    #[arg(long, value_name = "LIMIT", allow_negative_numbers = true)]
    inverse_alpha: Option<f32>,
    /// Arithmetic of the network; weights stay float32
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
}

/// How batches are computed. What is not given is chosen for the memory that is free, and kept when a run goes on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Memory [defaults: chosen for the device]")]
pub struct ComputeArgs {
    /// Images computed at a time; gradients accumulate to the whole batch, which is the recipe's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub micro_batch: Option<u32>,
    /// Compute activations again in the backward pass: a third more work, a fraction of the memory
    #[arg(long)]
    pub recompute: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimesName {
    /// Evenly over [0, 1]
    Uniform,
    /// Sigmoid of a normal: fewer at the ends
    LogitNormal,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionName {
    /// Single precision
    Float32,
    /// Single precision with TensorFloat-32 products on NVIDIA cards from Ampere on
    Tf32,
    /// bfloat16 products, on cards from Ampere on
    Bf16,
    /// Half precision products with loss scaling
    Fp16,
}

impl RecipeArgs {
    /// `base` with what the flags change.
    ///
    /// # Errors
    /// The protocol's for a number out of range; [`Error::Usage`] for numbers of a distribution that has none.
    pub fn recipe(&self, base: &Recipe) -> Result<Recipe> {
        let recipe = Recipe {
            steps: self.steps.unwrap_or(base.steps),
            batch: self.batch.unwrap_or(base.batch),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            warmup: self.warmup.unwrap_or(base.warmup),
            beta1: self.beta1.unwrap_or(base.beta1),
            beta2: self.beta2.unwrap_or(base.beta2),
            epsilon: self.epsilon.unwrap_or(base.epsilon),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            clip: self.clip.unwrap_or(base.clip),
            ema_decay: self.ema_decay.unwrap_or(base.ema_decay),
            text_dropout: self.text_dropout.unwrap_or(base.text_dropout),
            times: self.times(base.times)?,
            weighting: self.inverse_alpha.map_or(base.weighting, |limit| LossWeighting::InverseAlpha { limit }),
            precision: match self.precision {
                Some(PrecisionName::Float32) => Precision::Float32,
                Some(PrecisionName::Tf32) => Precision::Tf32,
                Some(PrecisionName::Bf16) => Precision::Bf16,
                Some(PrecisionName::Fp16) => Precision::Fp16,
                None => base.precision,
            },
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// The charter's distribution with what the flags change.
    fn times(&self, base: TimeSampling) -> Result<TimeSampling> {
        let changed = match self.times {
            Some(TimesName::Uniform) => TimeSampling::Uniform,
            Some(TimesName::LogitNormal) => TimeSampling::LogitNormal { mean: 0.0, std: 1.0 },
            None => base,
        };
        match changed {
            TimeSampling::LogitNormal { mean, std } => Ok(TimeSampling::LogitNormal {
                mean: self.times_mean.unwrap_or(mean),
                std: self.times_std.unwrap_or(std),
            }),
            TimeSampling::Uniform if self.times_mean.or(self.times_std).is_some() => Err(Error::Usage(
                "--times-mean and --times-std belong to --times logit-normal; uniform times have neither".into(),
            )),
            TimeSampling::Uniform => Ok(TimeSampling::Uniform),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        recipe: RecipeArgs,
    }

    fn recipe(flags: &str, base: &Recipe) -> Result<Recipe> {
        Flags::try_parse_from(std::iter::once("test").chain(flags.split_whitespace())).unwrap().recipe.recipe(base)
    }

    #[test]
    fn every_number_of_the_recipe_has_a_flag() {
        let flags = "--steps 7 --batch 3 --learning-rate 0.2 --warmup 5 --beta1 0.8 --beta2 0.95 --epsilon 1e-6 \
                     --weight-decay 0.01 --clip 2 --ema-decay 0.5 --text-dropout 0.3 --times logit-normal \
                     --times-mean -0.5 --times-std 2 --inverse-alpha 9 --precision fp16";
        let wanted = Recipe {
            steps: 7,
            batch: 3,
            learning_rate: 0.2,
            warmup: 5,
            beta1: 0.8,
            beta2: 0.95,
            epsilon: 1e-6,
            weight_decay: 0.01,
            clip: 2.0,
            ema_decay: 0.5,
            text_dropout: 0.3,
            times: TimeSampling::LogitNormal { mean: -0.5, std: 2.0 },
            weighting: LossWeighting::InverseAlpha { limit: 9.0 },
            precision: Precision::Fp16,
        };
        assert_eq!(recipe(flags, &Recipe::default()).unwrap(), wanted);
        assert_eq!(recipe("", &wanted).unwrap(), wanted);
        let shifted = recipe("--times-mean 1", &wanted).unwrap();
        assert_eq!(shifted.times, TimeSampling::LogitNormal { mean: 1.0, std: 2.0 });
        assert_eq!(recipe("--times uniform", &wanted).unwrap().times, TimeSampling::Uniform);
        recipe("--times-std 1", &Recipe::default()).unwrap_err();
        recipe("--beta2 1", &Recipe::default()).unwrap_err();
    }
}
