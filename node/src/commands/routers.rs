//! `hdd-node routers`.

use super::experts::verdict;
use crate::{
    Result,
    clock::unix_now,
    control::{Reply, Request},
    node::Source,
    report::Router,
    settings::Settings,
    table::{self, count, duration, table},
};

/// No flags of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "`hdd-node assemble --router DIGEST` serves with one instead of training one.\n\n\
                  Example:\n  hdd-node routers --bootstrap /ip4/192.0.2.7/tcp/4801 --json")]
pub struct Args {}

const HEADER: [&str; 11] = [
    "manifest",
    "author",
    "images",
    "steps",
    "held out",
    "right, data to noise",
    "size",
    "here",
    "age",
    "expires",
    "verdict",
];

/// Prints the current routers of the network.
///
/// # Errors
/// As [`Source::find`] and [`Source::ask`].
pub async fn run(_: Args, settings: Settings) -> Result<()> {
    let source = Source::find(&settings).await?;
    let reply = source.ask(Request::Routers).await;
    source.close().await;
    let Reply::Routers(routers) = reply? else { return Ok(()) };
    if settings.json {
        return table::print_json(&routers);
    }
    table::print(&listing(&routers, unix_now()))
}

/// The routers as a table, at the Unix time `now`.
pub fn listing(routers: &[Router], now: u64) -> String {
    if routers.is_empty() {
        return "no router is known yet; an aggregator publishes the one that it trains\n".into();
    }
    let row = |r: &Router| {
        vec![
            r.manifest.short(),
            r.author.short(),
            count(r.training.images),
            count(r.training.steps),
            count(r.training.held_out),
            r.training.accuracy.map_or_else(|| "not measured".into(), |bins| table::percentages(&bins.map(f64::from))),
            table::bytes(r.weights.size),
            if r.held { "yes" } else { "no" }.into(),
            duration(now.saturating_sub(r.issued_at)),
            if r.expires_at <= now { "expired".into() } else { format!("in {}", duration(r.expires_at - now)) },
            verdict(r.verdict.as_ref()),
        ]
    };
    format!("{}\n", table(&HEADER, routers.iter().map(row)))
}
