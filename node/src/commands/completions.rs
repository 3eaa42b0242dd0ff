//! `hdd-node completions`.

use crate::{Result, cli::Cli, settings::Settings, table};
use clap::CommandFactory as _;
use clap_complete::Shell;

/// Which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node completions bash > ~/.local/share/bash-completion/completions/hdd-node")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// [`crate::Error::Io`] if standard output cannot be written.
pub async fn run(args: Args, _: Settings) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hdd-node", &mut script);
    table::print(&String::from_utf8_lossy(&script))
}
