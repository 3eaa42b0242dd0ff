use super::recipe::{ComputeArgs, RecipeArgs};
use crate::{
    Error, Result,
    commands::names::{ObjectiveName, ScheduleName},
    files,
    torch::{DeviceArgs, ImageArgs},
};
use clap::builder::RangedU64ValueParser;
use hdd_expert_runtime::import::usual_schedule;
use hdd_protocol::{Architecture, Charter, ExpertSpec, Objective, Recipe, Schedule};
use std::path::PathBuf;

/// What to train, on what, and how. What is not given is the charter's.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Pictures, captions and their folder stay on this machine; the manifest carries counts.\n\n\
                        Example:\n  hdd-node contribute --cluster 2 --objective velocity --limit 300 --bootstrap /ip4/192.0.2.7/tcp/4801")]
pub struct Args {
    /// Your name for this expert, 1 to 64 letters, digits, '-', '_' and '.'; a new run under it goes on with it, or replaces it
    #[arg(long, default_value = "expert", value_parser = parse_name)]
    pub name: String,
    /// Cluster to train on [default: the one that an import for --init names, else the one with the fewest experts among those
    /// that your images reach]
    #[arg(long, value_name = "K")]
    pub cluster: Option<u16>,
    /// What the network predicts
    #[arg(long, value_enum, default_value_t = ObjectiveName::Velocity)]
    objective: ObjectiveName,
    /// Noising path [default: that of the weights of --init; linear for velocity, cosine for the others]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// Let the network estimate only what a linear guess leaves open, for data of this standard deviation, 0.01 to 100
    /// (Karras et al.): an epsilon expert then draws as well as the others after a short training [default: off, as in
    /// the paper]
    #[arg(long, value_name = "STD", allow_negative_numbers = true)]
    pub precondition: Option<f32>,
    /// Begin from the weights in this folder, which `hdd-node import` or another `contribute` wrote; they give the architecture
    #[arg(long, value_name = "FOLDER", conflicts_with = "ArchitectureArgs")]
    pub init: Option<PathBuf>,
    /// Begin with the modulation that the blocks share at zero, as the paper's Section 2.5 [default: small random numbers, as
    /// PixArt-alpha]
    #[arg(long, conflicts_with = "init")]
    pub zero_modulation: bool,
    /// Images at hand
    #[command(flatten)]
    pub images: ImageArgs,
    /// Most images of the cluster to train on [default: all]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub limit: Option<usize>,
    /// Seed of initialisation, order and noise, and of which images a limit leaves
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// SPDX expression of the weights' licence, to agree to the charter's by name; no other is taken [default: the charter's]
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
    /// Train and stop, without publishing
    #[arg(long)]
    pub no_publish: bool,
    /// Save a checkpoint each time this many steps are done
    #[arg(long, value_name = "STEPS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: u64,
    /// Draw a sample grid each time this many steps are done; always the same seeds and prompts
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
    /// Channels of a token, 4 to 4096; a multiple of the heads and of 4
    #[arg(long)]
    width: Option<u32>,
    /// Transformer blocks, 1 to 128
    #[arg(long)]
    depth: Option<u32>,
    /// Attention heads, 1 to 64
    #[arg(long)]
    heads: Option<u32>,
    /// Side of a patch in latent pixels, 1 to 16; the charter's latent size is a multiple of it
    #[arg(long)]
    patch: Option<u32>,
    /// Whether cross-attention's input is normalised: the paper's Eq. 18 says true, PixArt and Paris false
    #[arg(long, value_name = "true|false")]
    cross_norm: Option<bool>,
    /// Epsilon of every LayerNorm, 1e-9 to 0.01
    #[arg(long, value_name = "EPSILON", allow_negative_numbers = true)]
    norm_epsilon: Option<f32>,
    /// What the network reads of a time in 0 to 1 is this times it, 1 to 10000
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    time_scale: Option<f32>,
    /// Whether that product is rounded to an integer, as in the paper
    #[arg(long, value_name = "true|false")]
    round_time: Option<bool>,
}

fn parse_name(text: &str) -> hdd_protocol::Result<String> {
    hdd_protocol::check_name(text).map(|()| text.to_owned())
}

impl Args {
    /// Whether the charter takes what these flags ask for; costs nothing and needs no images.
    ///
    /// # Errors
    /// [`Error::Usage`] and the protocol's.
    pub fn check(&self, charter: &Charter) -> Result<()> {
        self.licence(charter)?;
        self.recipe(charter)?;
        self.architecture(charter)?;
        if let Some(folder) = &self.init {
            files::check_model(folder, files::EXPERT_FOLDER)?;
        }
        match self.cluster {
            Some(cluster) if cluster >= charter.clusters() => Err(Error::Usage(format!(
                "there is no cluster {cluster}; charter {} has 0 to {}",
                charter.name,
                charter.clusters() - 1
            ))),
            _ => Ok(()),
        }
    }

    /// What the network predicts.
    pub fn objective(&self) -> Objective {
        self.objective.into()
    }

    /// The noising path of a run that starts from weights of `beginning`, if it does.
    pub fn schedule(&self, beginning: Option<&ExpertSpec>) -> Schedule {
        let usual = || beginning.map_or_else(|| usual_schedule(self.objective()), |spec| spec.schedule);
        self.schedule.map_or_else(usual, Into::into)
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
        let ArchitectureArgs {
            architecture,
            width,
            depth,
            heads,
            patch,
            cross_norm,
            norm_epsilon,
            time_scale,
            round_time,
        } = &self.architecture;
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
        a.cross_norm = cross_norm.unwrap_or(a.cross_norm);
        a.norm_epsilon = norm_epsilon.unwrap_or(a.norm_epsilon);
        a.time_scale = time_scale.unwrap_or(a.time_scale);
        a.round_time = round_time.unwrap_or(a.round_time);
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use hdd_expert_runtime::data::emoji_charter;
    use hdd_protocol::SecretKey;
    use zeroize::Zeroizing;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &str) -> Args {
        Line::try_parse_from(std::iter::once("contribute").chain(flags.split_whitespace())).unwrap().args
    }

    fn charter() -> Charter {
        emoji_charter(SecretKey::from_seed(&Zeroizing::new([1; 32])).public(), 1).unwrap()
    }

    #[test]
    fn every_field_of_the_architecture_that_is_no_charters_has_a_flag() {
        let charter = charter();
        assert_eq!(parse("").architecture(&charter).unwrap(), charter.architecture);
        let flags = "--width 48 --depth 3 --heads 6 --patch 2 --cross-norm false --norm-epsilon 1e-5 --time-scale 1000 \
                     --round-time true";
        let wanted = Architecture {
            width: 48,
            depth: 3,
            heads: 6,
            patch: 2,
            cross_norm: false,
            norm_epsilon: 1e-5,
            time_scale: 1000.0,
            round_time: true,
            ..charter.architecture.clone()
        };
        assert_eq!(parse(flags).architecture(&charter).unwrap(), wanted);
        parse("--norm-epsilon 1").architecture(&charter).unwrap_err();
    }

    #[test]
    fn the_path_is_the_flags_or_the_beginnings_or_the_usual() {
        let beginning = ExpertSpec {
            architecture: charter().architecture,
            objective: Objective::Epsilon,
            schedule: Schedule::DDPM,
            cluster: 0,
            timestep_map: Default::default(),
            preconditioning: None,
        };
        let epsilon = parse("--objective epsilon");
        assert_eq!(epsilon.schedule(Some(&beginning)), Schedule::DDPM);
        assert_eq!(epsilon.schedule(None), Schedule::Cosine);
        assert_eq!(parse("--schedule linear").schedule(Some(&beginning)), Schedule::Linear);
    }
}
