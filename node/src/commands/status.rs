//! `hdd-node status`.

use super::experts;
use crate::{
    Result,
    clock::unix_now,
    control::{Reply, Request},
    node::Source,
    report::Status,
    settings::Settings,
    table,
};

/// No flags of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node status --data ./node1 --json")]
pub struct Args {}

/// Prints what this node is and holds.
///
/// # Errors
/// As [`Source::find`] and [`Source::ask`].
pub async fn run(_: Args, settings: Settings) -> Result<()> {
    let source = Source::find(&settings).await?;
    let reply = source.ask(Request::Status).await;
    source.close().await;
    let Reply::Status(status) = reply? else { return Ok(()) };
    if settings.json {
        return table::print_json(&status);
    }
    table::print(&page(&status))
}

fn page(status: &Status) -> String {
    let state = if status.role == "visit" { "not running; looked for this command" } else { &status.role };
    let charter = status.charter.as_ref().map_or("not known yet".into(), |c| {
        format!("{}, {} clusters, {}", table::printable(&c.name), c.clusters, c.digest)
    });
    let lines = [
        ("node", state.into()),
        ("version", status.version.clone()),
        ("peer id", status.peer_id.clone()),
        ("author", status.author.to_string()),
        ("data", status.data.display().to_string()),
        ("charter", charter),
        ("listening", status.listening.join("\n            ")),
        ("peers", status.peers.to_string()),
        ("experts", format!("{} known, {} own", status.experts, status.own.len())),
        ("files", format!("{}, {}", status.blobs, table::bytes(status.blob_bytes))),
        ("free", table::bytes(status.free_bytes)),
    ];
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect();
    if !status.own.is_empty() {
        text.push('\n');
        text.push_str(&experts::listing(&status.own, unix_now()));
    }
    text
}
