//! `hdd-node peers`.

use crate::{
    Result,
    control::{Reply, Request},
    node::Source,
    report::Peer,
    settings::Settings,
    table::{self, table},
};

/// No flags of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node peers --data ./node1")]
pub struct Args {}

/// Prints the connected peers.
///
/// # Errors
/// As [`Source::find`] and [`Source::ask`].
pub async fn run(_: Args, settings: Settings) -> Result<()> {
    let source = Source::find(&settings).await?;
    let reply = source.ask(Request::Peers).await;
    source.close().await;
    let Reply::Peers(peers) = reply? else { return Ok(()) };
    if settings.json {
        return table::print_json(&peers);
    }
    if peers.is_empty() {
        return table::print("no peer is connected\n");
    }
    let row = |peer: &Peer| {
        vec![
            peer.id.clone(),
            peer.agent.clone(),
            if peer.inbound { "in" } else { "out" }.into(),
            peer.rtt_ms.map_or("-".into(), |ms| format!("{ms:.1} ms")),
            peer.addresses.first().cloned().unwrap_or_default(),
        ]
    };
    table::print(&format!("{}\n", table(&["peer", "agent", "dialled", "round trip", "address"], peers.iter().map(row))))
}
