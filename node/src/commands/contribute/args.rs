use super::recipe::{ComputeArgs, RecipeArgs};
use crate::{
    Error, Result,
    commands::names::{ObjectiveName, ScheduleName},
    torch::{DeviceArgs, ImageArgs},
};
use hdd_expert_runtime::import::usual_schedule;
use hdd_protocol::{Architecture, Charter, ExpertSpec, Objective, Recipe, Schedule};
use std::path::PathBuf;

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
    /// Let the network estimate only what a linear guess leaves open, for data of this standard deviation (Karras et al.):
    /// an epsilon expert then draws as well as the others after a short training [default: off, as in the paper]
    #[arg(long, value_name = "STD")]
    pub precondition: Option<f32>,
    /// Begin from the weights in this folder, which `hdd-node import` or another `contribute` wrote; they give the architecture
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["architecture", "width", "depth", "heads", "patch"])]
    pub init: Option<PathBuf>,
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
    /// Memory
    #[command(flatten)]
    pub compute: ComputeArgs,
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

fn parse_name(text: &str) -> hdd_protocol::Result<String> {
    hdd_protocol::check_name(text).map(|()| text.to_owned())
}

impl Args {
    /// What the network predicts.
    pub fn objective(&self) -> Objective {
        self.objective.into()
    }

    /// The noising path.
    pub fn schedule(&self) -> Schedule {
        self.schedule.map_or_else(|| usual_schedule(self.objective()), Into::into)
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

    /// Whether weights of `spec` can be trained on for this charter with these flags.
    ///
    /// # Errors
    /// [`Error::Usage`] if not.
    pub fn check_beginning(&self, spec: &ExpertSpec, charter: &Charter) -> Result<()> {
        let shape = |a: &Architecture| [a.channels, a.size, a.text_length, a.text_width];
        let in_words = |[channels, size, length, width]: [u32; 4]| {
            format!("{channels}x{size}x{size} latents and {length}x{width} text")
        };
        let (have, want) = (shape(&spec.architecture), shape(&charter.architecture));
        if have != want {
            let (have, want) = (in_words(have), in_words(want));
            return Err(Error::Usage(format!(
                "the weights of --init are for {have}, charter {} has {want}; import them for it or choose others",
                charter.name
            )));
        }
        if spec.objective != self.objective() {
            let (have, want) = (spec.objective, self.objective());
            return Err(Error::Usage(format!(
                "the weights of --init are for the objective {have}, not {want}; \
                 give --objective {have}, or import them with --objective {want}"
            )));
        }
        if self.precondition.is_some() && self.precondition != spec.preconditioning {
            return Err(Error::Usage(
                "the weights of --init say themselves how they are preconditioned; leave --precondition out".into(),
            ));
        }
        Ok(())
    }

    /// The charter's recipe with what the flags change.
    ///
    /// # Errors
    /// The protocol's for a number out of range.
    pub fn recipe(&self, charter: &Charter) -> Result<Recipe> {
        self.recipe.recipe(&charter.recipe)
    }

    /// Steps, if a flag says how many.
    pub fn steps(&self) -> Option<u64> {
        self.recipe.steps
    }
}
