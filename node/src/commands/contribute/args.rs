use crate::{
    Error, Result,
    torch::{DeviceArgs, ImageArgs},
};
use clap::ValueEnum;
use hdd_protocol::{Architecture, Charter, LossWeighting, Objective, Recipe, Schedule, TimeSampling};

/// What to train, on what, and how. What is not given is the charter's.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Pictures, captions and their folder stay on this machine; the manifest carries counts.\n\n\
                        Example:\n  hdd-node contribute --cluster 2 --objective velocity --limit 300 --bootstrap /ip4/192.0.2.7/tcp/4801")]
pub struct Args {
    /// Your name for this expert; a new run under it goes on with it, or replaces it
    #[arg(long, default_value = "expert", value_parser = parse_name)]
    pub name: String,
    /// Cluster to train on [default: the one with the fewest experts among those that your images reach]
    #[arg(long, value_name = "K")]
    pub cluster: Option<u16>,
    /// What the network predicts
    #[arg(long, value_enum, default_value_t = ObjectiveName::Velocity)]
    objective: ObjectiveName,
    /// Noising path [default: linear for velocity, cosine for the others]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// Images at hand
    #[command(flatten)]
    pub images: ImageArgs,
    /// Most images of the cluster to train on
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Seed of initialisation, order and noise, and of which images a limit leaves
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// SPDX expression of the weights' licence; must be the charter's
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
    /// Train and stop, without publishing
    #[arg(long)]
    pub no_publish: bool,
    /// Save a checkpoint this often, steps
    #[arg(long, value_name = "STEPS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: u64,
    /// Draw a sample grid this often, steps; always the same seeds and prompts
    #[arg(long, value_name = "STEPS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub preview_every: u64,
    /// Where to compute
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    architecture: ArchitectureArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Architecture [defaults: the charter's]")]
struct ArchitectureArgs {
    /// A published size: DiT-S/2, DiT-B/2, DiT-L/2 or DiT-XL/2
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// Channels of a token
    #[arg(long)]
    width: Option<u32>,
    /// Transformer blocks
    #[arg(long)]
    depth: Option<u32>,
    /// Attention heads
    #[arg(long)]
    heads: Option<u32>,
    /// Side of a patch, latent pixels
    #[arg(long)]
    patch: Option<u32>,
}

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training [defaults: the charter's recipe]")]
struct RecipeArgs {
    /// Optimiser steps
    #[arg(long)]
    steps: Option<u64>,
    /// Images a step
    #[arg(long)]
    batch: Option<u32>,
    /// AdamW's step size
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Steps of linear warmup
    #[arg(long)]
    warmup: Option<u64>,
    /// AdamW's weight decay
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Largest gradient norm
    #[arg(long)]
    clip: Option<f64>,
    /// Decay of the averaged weights, a step
    #[arg(long)]
    ema_decay: Option<f64>,
    /// Probability of training without the text
    #[arg(long)]
    text_dropout: Option<f64>,
    /// Distribution of training times
    #[arg(long, value_enum)]
    times: Option<TimesName>,
    /// Weigh the loss by min(1 / alpha^2, LIMIT): for epsilon, more weight to high noise
    #[arg(long, value_name = "LIMIT")]
    inverse_alpha: Option<f32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ObjectiveName {
    /// The noise (DDPM)
    Epsilon,
    /// The clean sample
    X0,
    /// alpha eps - sigma x0
    V,
    /// The path's velocity (flow matching)
    Velocity,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScheduleName {
    /// (1 - t, t)
    Linear,
    /// (cos, sin)
    Cosine,
    /// Cosine with the offset 0.008
    CosineOffset,
    /// DDPM's thousand betas
    LinearBeta,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TimesName {
    /// Evenly over [0, 1]
    Uniform,
    /// Sigmoid of a standard normal: fewer at the ends
    LogitNormal,
}

fn parse_name(text: &str) -> hdd_protocol::Result<String> {
    hdd_protocol::check_name(text).map(|()| text.to_owned())
}

impl Args {
    /// What the network predicts.
    pub fn objective(&self) -> Objective {
        match self.objective {
            ObjectiveName::Epsilon => Objective::Epsilon,
            ObjectiveName::X0 => Objective::X0,
            ObjectiveName::V => Objective::V,
            ObjectiveName::Velocity => Objective::Velocity,
        }
    }

    /// The noising path.
    pub fn schedule(&self) -> Schedule {
        match (self.schedule, self.objective()) {
            (Some(ScheduleName::Linear), _) | (None, Objective::Velocity) => Schedule::Linear,
            (Some(ScheduleName::Cosine), _) | (None, _) => Schedule::Cosine,
            (Some(ScheduleName::CosineOffset), _) => Schedule::CosineOffset { offset: 0.008 },
            (Some(ScheduleName::LinearBeta), _) => Schedule::DDPM,
        }
    }

    /// The weights' licence, which must be the charter's.
    ///
    /// # Errors
    /// [`Error::Usage`] for another.
    pub fn licence(&self, charter: &Charter) -> Result<String> {
        match &self.licence {
            Some(licence) if *licence != charter.licence => Err(Error::Usage(format!(
                "charter {} takes weights under {}, not {licence}; leave --licence out to agree to it",
                charter.name, charter.licence
            ))),
            _ => Ok(charter.licence.clone()),
        }
    }

    /// The network's shape in the charter's latent space.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name; the protocol's for an impossible shape.
    pub fn architecture(&self, charter: &Charter) -> Result<Architecture> {
        let ArchitectureArgs { architecture, width, depth, heads, patch } = &self.architecture;
        let mut a = charter.architecture.clone();
        if let Some(name) = architecture {
            let named = Architecture::named(name).ok_or_else(|| {
                Error::Usage(format!(
                    "no architecture is named '{name}'; there are DiT-S/2, DiT-B/2, DiT-L/2 and DiT-XL/2"
                ))
            })?;
            (a.width, a.depth, a.heads, a.patch) = (named.width, named.depth, named.heads, named.patch);
        }
        for (field, flag) in
            [(&mut a.width, width), (&mut a.depth, depth), (&mut a.heads, heads), (&mut a.patch, patch)]
        {
            *field = flag.unwrap_or(*field);
        }
        a.check()?;
        Ok(a)
    }

    /// The charter's recipe with what the flags change.
    ///
    /// # Errors
    /// The protocol's for a number out of range.
    pub fn recipe(&self, charter: &Charter) -> Result<Recipe> {
        let (base, flags) = (charter.recipe.clone(), &self.recipe);
        let recipe = Recipe {
            steps: flags.steps.unwrap_or(base.steps),
            batch: flags.batch.unwrap_or(base.batch),
            learning_rate: flags.learning_rate.unwrap_or(base.learning_rate),
            warmup: flags.warmup.unwrap_or(base.warmup),
            weight_decay: flags.weight_decay.unwrap_or(base.weight_decay),
            clip: flags.clip.unwrap_or(base.clip),
            ema_decay: flags.ema_decay.unwrap_or(base.ema_decay),
            text_dropout: flags.text_dropout.unwrap_or(base.text_dropout),
            times: match flags.times {
                Some(TimesName::Uniform) => TimeSampling::Uniform,
                Some(TimesName::LogitNormal) => TimeSampling::LogitNormal { mean: 0.0, std: 1.0 },
                None => base.times,
            },
            weighting: flags.inverse_alpha.map_or(base.weighting, |limit| LossWeighting::InverseAlpha { limit }),
            ..base
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// Steps, if a flag says how many.
    pub fn steps(&self) -> Option<u64> {
        self.recipe.steps
    }
}
