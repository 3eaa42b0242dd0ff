//! `hdd-node`: parses the command line, starts logging and the runtime, runs one command, reports its failure.

use clap::Parser as _;
use hdd_node::{
    Error, Result,
    cli::{self, Cli, Command},
    logging,
    settings::{GlobalArgs, Settings},
    shutdown::Shutdown,
    table,
};
use std::{process::ExitCode, time::Duration};

/// Blocking work that outlives its command, such as hashing a file, is left behind after this.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let Cli { global, version, command } = Cli::parse();
    let result = match command {
        _ if version => table::print(&cli::version()),
        None => table::print(&cli::orientation()),
        Some(command) => run(command, global),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command, global: GlobalArgs) -> Result<()> {
    let filter = global.log.clone().unwrap_or_else(|| logging::filter(global.verbose, command.is_long_lived()));
    logging::init(&filter);
    #[cfg(feature = "torch")]
    hdd_node::torch::leave_panics_to_their_owners();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start threads for", "the async runtime"))?;
    let result = runtime.block_on(async { command.run(Settings::new(global, Shutdown::on_signals()?)).await });
    runtime.shutdown_timeout(GRACE);
    result
}
