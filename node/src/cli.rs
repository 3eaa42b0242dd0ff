//! The command line: one variant a command, each with its own `Args` in its own file under [`crate::commands`].

#[cfg(feature = "torch")]
use crate::commands::{assemble, contribute, encode, evaluate, import, predict};
use crate::{
    Result,
    commands::{completions, experts, fetch, key, peers, relay, revoke, routers, sample, seed, status},
    settings::{GlobalArgs, Settings},
};
use clap::{Parser, Subcommand};

const ROLES: &str = "\
hdd-node: people train diffusion experts at home, each on its own pictures, and make one model together.

Three roles:
  contributor  trains an expert on one cluster of images and publishes a signed manifest of it
  aggregator   collects experts, checks them, trains the router and serves pictures
  client       asks an aggregator for pictures

First commands:
";

#[cfg(feature = "torch")]
const TENSOR_COMMANDS: &str = "  \
  hdd-node contribute --bootstrap ADDRESS  train an expert on the embedded pictures
  hdd-node assemble --bootstrap ADDRESS    serve the experts of the network
";
#[cfg(not(feature = "torch"))]
const TENSOR_COMMANDS: &str = "";

const COMMANDS: &str = "  \
  hdd-node experts --bootstrap ADDRESS     what there is in the network
  hdd-node sample --prompt 'red apple' --out apple.png --bootstrap ADDRESS
  hdd-node status                          this node: key, addresses, experts, disk
  hdd-node seed                            keep experts available to others
  hdd-node relay                           be the address that others join through

`hdd-node --help` lists every command, `hdd-node COMMAND --help` explains one with an example.
";

/// What `hdd-node` prints without a command: what it is, and what this build can do.
pub fn orientation() -> String {
    [ROLES, TENSOR_COMMANDS, COMMANDS].concat()
}

/// Train diffusion experts at home and make one model together.
#[derive(Debug, Parser)]
#[command(name = "hdd-node", disable_version_flag = true, max_term_width = 120)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// Print the versions of the program, of its wire format and of libtorch, and whether CUDA is seen
    #[arg(short = 'V', long)]
    pub version: bool,
    /// What to do; without it a short orientation is printed.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an expert on a cluster of your images, publish it and keep it available
    #[cfg(feature = "torch")]
    Contribute(Box<contribute::Args>),
    /// Collect experts, test them, train the router and serve pictures
    #[cfg(feature = "torch")]
    Assemble(Box<assemble::Args>),
    /// Ask an aggregator for pictures of things that images at hand show, and tell how many of them are like those images
    #[cfg(feature = "torch")]
    Evaluate(Box<evaluate::Args>),
    /// Turn weights from elsewhere (DiT, Paris, another expert) into a beginning for `contribute --init`
    #[cfg(feature = "torch")]
    Import(Box<import::Args>),
    /// Run one network once on given tensors, to compare it with another implementation
    #[cfg(feature = "torch")]
    Predict(Box<predict::Args>),
    /// Run one pretrained encoder on captions or images, to compare it with another implementation
    #[cfg(feature = "torch")]
    Encode(Box<encode::Args>),
    /// Ask an aggregator for pictures of a text, and write them as PNG
    Sample(Box<sample::Args>),
    /// List the experts of the network
    Experts(experts::Args),
    /// List the routers that aggregators of the network have trained
    Routers(routers::Args),
    /// List the peers that this node is connected to
    Peers(peers::Args),
    /// Show this node: its identity, addresses and peers, its experts with their verdicts, and the disk
    Status(status::Args),
    /// Fetch an expert's weights or another file by its digest
    Fetch(fetch::Args),
    /// Keep the files and records of this node available to others, until stopped
    Seed(seed::Args),
    /// Be the node that others join and connect through, until stopped
    Relay(relay::Args),
    /// Take an expert of yours back, for ever
    Revoke(revoke::Args),
    /// Show, export or import this node's key
    Key(key::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

impl Command {
    /// Whether the command runs until it is stopped.
    pub fn is_long_lived(&self) -> bool {
        match self {
            #[cfg(feature = "torch")]
            Self::Contribute(_) | Self::Assemble(_) => true,
            Self::Seed(_) | Self::Relay(_) => true,
            _ => false,
        }
    }

    /// Runs it. Long-lived commands stop in good order by themselves; others are dropped where they are.
    ///
    /// # Errors
    /// The command's; [`crate::Error::Interrupted`].
    pub async fn run(self, settings: Settings) -> Result<()> {
        let shutdown = settings.shutdown.clone();
        match self {
            #[cfg(feature = "torch")]
            Self::Contribute(args) => contribute::run(*args, settings).await,
            #[cfg(feature = "torch")]
            Self::Assemble(args) => assemble::run(*args, settings).await,
            #[cfg(feature = "torch")]
            Self::Evaluate(args) => shutdown.interrupts(evaluate::run(*args, settings)).await,
            #[cfg(feature = "torch")]
            Self::Import(args) => shutdown.interrupts(import::run(*args, settings)).await,
            #[cfg(feature = "torch")]
            Self::Predict(args) => shutdown.interrupts(predict::run(*args, settings)).await,
            #[cfg(feature = "torch")]
            Self::Encode(args) => shutdown.interrupts(encode::run(*args, settings)).await,
            Self::Seed(args) => seed::run(args, settings).await,
            Self::Relay(args) => relay::run(args, settings).await,
            Self::Sample(args) => shutdown.interrupts(sample::run(*args, settings)).await,
            Self::Experts(args) => shutdown.interrupts(experts::run(args, settings)).await,
            Self::Routers(args) => shutdown.interrupts(routers::run(args, settings)).await,
            Self::Peers(args) => shutdown.interrupts(peers::run(args, settings)).await,
            Self::Status(args) => shutdown.interrupts(status::run(args, settings)).await,
            Self::Fetch(args) => shutdown.interrupts(fetch::run(args, settings)).await,
            Self::Revoke(args) => shutdown.interrupts(revoke::run(args, settings)).await,
            Self::Key(args) => shutdown.interrupts(key::run(args, settings)).await,
            Self::Completions(args) => completions::run(args, settings).await,
        }
    }
}

/// The versions, one a line.
pub fn version() -> String {
    let mut text = format!("hdd-node {}\nwire version {}\n", env!("CARGO_PKG_VERSION"), hdd_protocol::WIRE_VERSION);
    #[cfg(feature = "torch")]
    let torch = crate::torch::torch_version();
    #[cfg(not(feature = "torch"))]
    let torch: Option<String> = None;
    text.push_str(torch.as_deref().unwrap_or("built without libtorch: no training, no aggregator"));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::CharterChoice;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("hdd-node").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_sound_and_every_command_explains_itself_with_an_example() {
        let mut cli = Cli::command();
        cli.clone().debug_assert();
        for command in cli.get_subcommands_mut().filter(|c| !c.has_subcommands()) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example:\n  hdd-node "), "{}", command.get_name());
        }
    }

    #[test]
    fn the_first_commands_of_the_orientation_parse() {
        let text = orientation();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("  hdd-node")).collect();
        assert!(lines.len() >= 5);
        for line in lines {
            let line = line.trim_start_matches("  hdd-node").split("  ").next().unwrap();
            parse(&line.replace("ADDRESS", "/ip4/127.0.0.1/tcp/1").replace("'red apple'", "red")).unwrap();
        }
    }

    #[test]
    fn global_flags_stand_anywhere_and_may_be_repeated() {
        let before =
            parse("--bootstrap /ip4/1.2.3.4/tcp/1 --bootstrap /ip4/1.2.3.4/udp/1/quic-v1 --lan peers").unwrap();
        let after = parse("peers --bootstrap /ip4/1.2.3.4/tcp/1,/ip4/1.2.3.4/udp/1/quic-v1 --lan -vv").unwrap();
        assert_eq!(before.global.bootstrap, after.global.bootstrap);
        assert_eq!(before.global.bootstrap.len(), 2);
        assert!(before.global.lan && after.global.lan);
        assert_eq!(before.global.charter, CharterChoice::BuiltIn);
        assert_eq!(after.global.verbose, 2);
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (line, word) in [
            ("peers --listen 127.0.0.1:80", "--listen"),
            ("peers --bootstrap nonsense", "--bootstrap"),
            ("peers --charter emoji64", "emoji32"),
            ("peers --charter abcd", "64 hexadecimal digits"),
            ("peers --log hdd_node=loud", "--log"),
            ("sample", "--prompt"),
            ("sample --prompt x --count -1", "--count"),
            ("sample --prompt x --count many", "--count"),
            ("sample --prompt x --mode best", "top1"),
            ("sample --prompt x --aggregator nobody", "--aggregator"),
            ("sample --prompt x --scale 0", "--scale"),
            ("revoke", "NAME"),
            ("key import", "FILE"),
            ("frobnicate", "frobnicate"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(word), "{line}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
