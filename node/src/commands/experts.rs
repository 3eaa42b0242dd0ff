//! `hdd-node experts`.

use crate::{
    Result,
    clock::unix_now,
    control::{Reply, Request},
    node::Source,
    report::Expert,
    settings::Settings,
    table::{self, count, duration, table},
};
use hdd_registry::{Verdict, VerdictState};

/// No flags of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node experts --bootstrap /ip4/192.0.2.7/tcp/4801 --json")]
pub struct Args {}

const HEADER: [&str; 13] = [
    "manifest",
    "name",
    "author",
    "cluster",
    "objective",
    "parameters",
    "images",
    "steps",
    "size",
    "here",
    "age",
    "expires",
    "verdict",
];

/// Prints the current manifests of the network.
///
/// # Errors
/// As [`Source::find`] and [`Source::ask`].
pub async fn run(_: Args, settings: Settings) -> Result<()> {
    let source = Source::find(&settings).await?;
    let reply = source.ask(Request::Experts).await;
    source.close().await;
    let Reply::Experts(experts) = reply? else { return Ok(()) };
    if settings.json {
        return table::print_json(&experts);
    }
    table::print(&listing(&experts, unix_now()))
}

/// The experts as a table, at the Unix time `now`.
pub fn listing(experts: &[Expert], now: u64) -> String {
    if experts.is_empty() {
        return "no expert is known yet\n".into();
    }
    let row = |e: &Expert| {
        vec![
            e.manifest.short(),
            e.name.clone(),
            e.author.short(),
            e.cluster.to_string(),
            format!("{} / {}", e.objective, e.schedule),
            count(e.parameters),
            count(e.images),
            count(e.steps),
            table::bytes(e.weights.size),
            if e.held { "yes" } else { "no" }.into(),
            duration(now.saturating_sub(e.issued_at)),
            if e.expires_at <= now { "expired".into() } else { format!("in {}", duration(e.expires_at - now)) },
            verdict(e.verdict.as_ref()),
        ]
    };
    format!("{}\n", table(&HEADER, experts.iter().map(row)))
}

/// What this node's checks said, in a cell.
pub fn verdict(verdict: Option<&Verdict>) -> String {
    let Some(verdict) = verdict else { return "-".into() };
    let word = match verdict.state {
        VerdictState::Pending => "pending",
        VerdictState::Admitted => "admitted",
        VerdictState::Refused => "refused",
    };
    if verdict.reason.is_empty() { word.into() } else { format!("{word}: {}", verdict.reason) }
}
