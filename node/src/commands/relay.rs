//! `hdd-node relay`: a bootstrap node that also relays connections. Needs no libtorch and little of anything.

use crate::{Result, node::Node, settings::Settings};

/// No flags of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node relay --data /var/lib/hdd-node --listen /ip4/0.0.0.0/tcp/4801")]
pub struct Args {}

/// Runs until it is stopped.
///
/// # Errors
/// As [`Node::host`].
pub async fn run(_: Args, settings: Settings) -> Result<()> {
    let node = Node::host(&settings, "relay", settings.registry()?, None, true).await?;
    let result = settings.shutdown.until(node.greet()).await;
    if result.is_ok() {
        settings.shutdown.requested().await;
    }
    node.stop().await;
    result
}
