//! `hdd-node seed`: keeps what the registry holds available, and takes in what it missed.

use crate::{Error, Result, clock::unix_now, network::Event, node::Node, progress::Progress, settings::Settings};
use hdd_protocol::{Blob, Digest};
use std::{path::PathBuf, time::Duration};
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Fetching is tried again this often without news.
const RETRY: Duration = Duration::from_secs(60);

/// What to seed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node seed --fetch-all --bootstrap /ip4/192.0.2.7/tcp/4801")]
pub struct Args {
    /// Folder whose files are taken in first
    dir: Option<PathBuf>,
    /// Fetch the weights of every expert and router of the network: a mirror
    #[arg(long)]
    fetch_all: bool,
}

/// Runs until it is stopped.
///
/// # Errors
/// As [`Node::host`]; [`Error::Io`] if the folder cannot be read.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let registry = settings.registry()?;
    if let Some(dir) = args.dir.clone() {
        let registry = registry.clone();
        tokio::task::spawn_blocking(move || import(&dir, &registry)).await??;
    }
    let node = Node::host(&settings, "seed", registry, None, false).await?;
    let result = settings.shutdown.until(seed(&node, args.fetch_all)).await;
    node.stop().await;
    result
}

fn import(dir: &PathBuf, registry: &hdd_registry::Registry) -> Result<()> {
    let failed = || Error::io("read the folder", dir);
    for entry in std::fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_type().map_err(failed())?.is_file() {
            let blob = registry.import_file(&entry.path())?;
            tracing::info!(file = %entry.path().display(), blob = %blob.digest, "took in");
        }
    }
    Ok(())
}

async fn seed(node: &Node, fetch_all: bool) -> Result<()> {
    node.greet().await?;
    let blobs = node.registry.blobs()?;
    tracing::info!(blobs = blobs.len(), bytes = blobs.iter().map(|blob| blob.size).sum::<u64>(), "seeding");
    for blob in blobs {
        provide(node, blob.digest).await;
    }
    let mut events = node.client.events();
    loop {
        if fetch_all {
            mirror(node).await?;
        }
        tokio::select! {
            stopped = news(&mut events) => if stopped { return Ok(()) },
            () = tokio::time::sleep(RETRY) => {}
        }
        events = node.client.events(); // what arrives in a burst is looked at once
    }
}

/// Waits for what may make a fetch worth trying; true if the network has stopped.
async fn news(events: &mut Receiver<Event>) -> bool {
    loop {
        match events.recv().await {
            Ok(Event::ManifestArrived(_) | Event::RouterArrived(_) | Event::PeerConnected(_))
            | Err(RecvError::Lagged(_)) => return false,
            Ok(_) => {}
            Err(RecvError::Closed) => return true,
        }
    }
}

async fn provide(node: &Node, blob: Digest) {
    if let Err(error) = node.client.provide_blob(blob).await {
        tracing::warn!(blob = %blob.short(), "cannot announce: {}", Error::from(error).chain());
    }
}

/// Fetches what is missing, one file after another. What fails is logged and tried again in the next round.
async fn mirror(node: &Node) -> Result<()> {
    let charter = match node.charter().await {
        Ok(charter) => charter,
        Err(error) => {
            tracing::warn!("the charter is not known yet: {}", error.chain());
            return Ok(());
        }
    };
    let (registry, now) = (&node.registry, unix_now());
    let experts = registry.manifests(Some(charter.digest()))?.into_iter();
    let experts = experts.filter(|m| m.check_against(&charter, now).is_ok()).map(|m| (m.name.clone(), m.weights));
    let routers = registry.routers(Some(charter.digest()))?.into_iter();
    let routers = routers.filter(|m| m.check_against(&charter, now).is_ok()).map(|m| ("router".into(), m.weights));
    for (name, weights) in experts.chain(routers) {
        let Blob { digest, size } = weights;
        if registry.has_blob(digest).is_some() {
            continue;
        }
        let bar = Progress::bytes(format!("fetch {} ({name})", digest.short()), size);
        match node.client.fetch(weights, |progress| bar.set(progress.done)).await {
            Ok(_) => provide(node, digest).await,
            Err(error) => tracing::warn!(blob = %digest.short(), "cannot fetch: {}", Error::from(error).chain()),
        }
    }
    Ok(())
}
