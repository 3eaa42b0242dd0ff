//! Files of experts and routers, from peers, in reasonable time.

use crate::{Error, node::Node, progress::Progress};
use hdd_protocol::Blob;
use std::{path::PathBuf, time::Duration};

/// A fetch may take this long,
const PATIENCE: Duration = Duration::from_secs(60);
/// and a second more for each of these many bytes.
const SLOWEST: u64 = 256 << 10;

/// The file of `blob`, or nothing if it does not come in reasonable time: what else is due must not wait for one slow peer.
/// What arrived is kept. `what` names it for people.
pub async fn fetch(node: &Node, what: &str, blob: Blob) -> Option<PathBuf> {
    let bar = Progress::bytes(format!("fetching {what}"), blob.size);
    let patience = PATIENCE + Duration::from_secs(blob.size / SLOWEST);
    let fetch = node.client.fetch(blob, |progress| bar.set(progress.done));
    let why = match tokio::time::timeout(patience, fetch).await {
        Ok(Ok(file)) => return Some(file),
        Ok(Err(error)) => Error::from(error).chain(),
        Err(_) => format!("not here after {} s; what arrived is kept", patience.as_secs()),
    };
    eprintln!("cannot fetch {what} yet: {why}");
    None
}
