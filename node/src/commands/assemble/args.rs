use crate::{
    Error, Result,
    commands::fetch::parse_id,
    torch::{DeviceArgs, ImageArgs},
};
use hdd_expert_runtime::data::Images;
use hdd_protocol::{Charter, PublicKey, RouterRecipe};
use hdd_router_service::Policy;
use std::{path::PathBuf, str::FromStr};

/// Whose experts are taken, which router is used, and how they are served.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The router is trained on this machine's images once, and published for others; or it is one that another \
                  aggregator has published, tested here before it serves.\n\n\
                  Example:\n  hdd-node assemble --per-cluster 2 --listen /ip4/0.0.0.0/tcp/4801\n  \
                  hdd-node assemble --router any --no-images --bootstrap /ip4/192.0.2.7/tcp/4801"
)]
pub struct Args {
    /// Take experts and routers of this author only; repeat it for several
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    allow: Vec<PublicKey>,
    /// Never take experts and routers of this author; repeat it for several
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    block: Vec<PublicKey>,
    /// Most experts of a cluster to serve, each of which takes memory; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 4)]
    per_cluster: usize,
    /// Largest held-out loss of an expert, above 0, as a multiple of that of its cluster's mean image
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true, default_value_t = 1.0)]
    pub max_loss: f64,
    /// Requests that may wait, 1 to 65535; further ones are refused as busy
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub queue: u16,
    /// The router: `train` one here, take `any` that the network has, or the one with this digest (of its manifest or file,
    /// 8 or more digits), or a safetensors file [default: train; any with --no-images]
    #[arg(long, value_name = "train|any|DIGEST|FILE")]
    router: Option<RouterChoice>,
    /// Train on from this router's weights, named as for --router, instead of from random ones
    #[arg(long, value_name = "any|DIGEST|FILE", conflicts_with = "no_images")]
    pub router_from: Option<RouterChoice>,
    /// What a router of others must show on held-out images at low noise, 0 to 1: 0 is as good as always guessing the
    /// largest cluster, 1 is never wrong
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, default_value_t = 0.25)]
    pub router_margin: f64,
    /// Steps of the router's training, if it has to be trained [default: the charter's]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    router_steps: Option<u64>,
    /// First step size of the router's training, 1e-8 to 1 [default: the charter's]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    router_learning_rate: Option<f64>,
    /// Images of the router's training computed at a time; gradients accumulate to the whole batch [default: as many as the
    /// memory takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub router_micro_batch: Option<u32>,
    /// Seed of the router's training [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Images to train the router on and to test experts with
    #[command(flatten)]
    images: ImageArgs,
    /// Work without images: the router is another's, and experts and router are only looked at for sane behaviour
    #[arg(long, conflicts_with = "images")]
    no_images: bool,
    /// Where to compute
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Which router, or which weights to begin with.
#[derive(Debug, Clone, PartialEq)]
pub enum RouterChoice {
    /// One trained here.
    Train,
    /// The best that the network has, by its author's figures, that passes the tests here.
    Any,
    /// The one whose manifest or weights have a digest that begins so.
    Digest(String),
    /// A safetensors file.
    File(PathBuf),
}

impl FromStr for RouterChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "train" => Ok(Self::Train),
            "any" => Ok(Self::Any),
            _ => match parse_id(text) {
                Ok(digits) => Ok(Self::Digest(digits)),
                Err(_) if PathBuf::from(text).is_file() => Ok(Self::File(text.into())),
                Err(_) => Err("expected train, any, 8 to 64 hexadecimal digits, or a file".into()),
            },
        }
    }
}

impl Args {
    /// # Errors
    /// [`Error::Usage`] for numbers out of range and for flags that do not go together.
    pub fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Usage(why));
        if self.max_loss.is_nan() || self.max_loss <= 0.0 {
            return wrong(format!("--max-loss is {}, must be above 0", self.max_loss));
        }
        if !(0.0..=1.0).contains(&self.router_margin) {
            return wrong(format!("--router-margin is {}, must be 0 to 1", self.router_margin));
        }
        if self.router_from == Some(RouterChoice::Train) {
            return wrong("--router-from names weights to begin with: any, a digest or a file".into());
        }
        match self.router() {
            RouterChoice::Train if self.no_images => {
                wrong("a router is trained on images; leave out --no-images, or take one with --router any".into())
            }
            RouterChoice::Train => Ok(()),
            RouterChoice::Any | RouterChoice::Digest(_) | RouterChoice::File(_) => {
                let training = [
                    ("--router-from", self.router_from.is_some()),
                    ("--router-steps", self.router_steps.is_some()),
                    ("--router-learning-rate", self.router_learning_rate.is_some()),
                    ("--router-micro-batch", self.router_micro_batch.is_some()),
                    ("--seed", self.seed.is_some()),
                ];
                match training.into_iter().find(|(_, is_given)| *is_given) {
                    Some((flag, _)) => wrong(format!("{flag} goes with --router train")),
                    None => Ok(()),
                }
            }
        }
    }

    /// Which router.
    pub fn router(&self) -> RouterChoice {
        let default = if self.no_images { RouterChoice::Any } else { RouterChoice::Train };
        self.router.clone().unwrap_or(default)
    }

    /// How a router is trained.
    pub fn recipe(&self, charter: &Charter) -> RouterRecipe {
        let base = charter.router.clone();
        RouterRecipe {
            steps: self.router_steps.unwrap_or(base.steps),
            learning_rate: self.router_learning_rate.unwrap_or(base.learning_rate),
            ..base
        }
    }

    /// Seed of its training.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_default()
    }

    /// Whose work is taken, and how much of it.
    pub fn policy(&self) -> Policy {
        Policy { allowed: self.allow.clone(), blocked: self.block.clone(), per_cluster: self.per_cluster }
    }

    /// The images at hand, which are none with `--no-images`.
    ///
    /// # Errors
    /// As [`ImageArgs::read`].
    pub fn images(&self, charter: &Charter) -> Result<Images> {
        if self.no_images { Ok(Images::empty(charter.latent.size)) } else { Ok(self.images.read(charter)?.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        let line = Line::try_parse_from(std::iter::once("assemble").chain(line.split_whitespace()));
        let args = line.map_err(|error| error.to_string())?.args;
        args.check().map(|()| args).map_err(|error| error.to_string())
    }

    #[test]
    fn routers_are_named_in_four_ways() {
        assert_eq!(parse("").unwrap().router(), RouterChoice::Train);
        assert_eq!(parse("--no-images").unwrap().router(), RouterChoice::Any);
        assert_eq!(parse("--router any").unwrap().router(), RouterChoice::Any);
        assert_eq!(parse("--router 0123ABCD").unwrap().router(), RouterChoice::Digest("0123abcd".into()));
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("--router-from {}", file.path().display());
        assert_eq!(parse(&line).unwrap().router_from, Some(RouterChoice::File(file.path().into())));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_remedy() {
        for (line, word) in [
            ("--router nowhere.safetensors", "a file"),
            ("--router train --no-images", "--router any"),
            ("--router any --router-from any", "--router train"),
            ("--router any --router-steps 9", "--router-steps goes with --router train"),
            ("--no-images --seed 0", "--seed goes with --router train"),
            ("--router-from train", "weights to begin with"),
            ("--router-from any --no-images", "--no-images"),
            ("--no-images --images .", "--images"),
            ("--router-margin 1.5", "0 to 1"),
            ("--max-loss nan", "above 0"),
        ] {
            let error = parse(line).err().unwrap_or_default();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
