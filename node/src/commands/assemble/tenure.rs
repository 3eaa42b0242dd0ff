//! The router in service, for as long as it may serve: an own one is kept published, one of another author is given up once it
//! is taken back or has expired.

use super::publish::renew;
use crate::{
    Error, Result,
    clock::{ANNOUNCE, unix_now},
    network::Event,
    node::Node,
};
use hdd_protocol::{Charter, RouterManifest, Verified};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// The router is looked at this often without news.
const ROUND: Duration = Duration::from_secs(30);

/// Returns, having said why, once the router may serve no longer; never for one without a manifest, which is a file of the
/// user's.
///
/// # Errors
/// [`Error::Usage`] if this node's own was revoked: the same flags would train the same weights. As
/// [`publish`](super::publish::publish).
pub async fn tend(node: &Node, charter: &Verified<Charter>, manifest: Option<Verified<RouterManifest>>) -> Result<()> {
    let Some(mut manifest) = manifest else { return std::future::pending().await };
    let own = manifest.author == node.key.public();
    let mut announced = Instant::now();
    let mut events = node.client.events();
    loop {
        // Its author may have signed the same weights anew.
        let mut current = node.registry.routers(Some(charter.digest()))?.into_iter();
        manifest = current.find(|m| m.author == manifest.author && m.weights == manifest.weights).unwrap_or(manifest);
        let name = manifest.digest().short();
        if !node.registry.router_stands(&manifest)? {
            let why = format!("router {name} is out of service: it was revoked, or its author signed two as one");
            if own {
                return Err(Error::Usage(format!("{why}; start again with another --seed or --router")));
            }
            eprintln!("{why}");
            return Ok(());
        }
        if own && announced.elapsed() >= ANNOUNCE {
            manifest = renew(node, charter, manifest).await?;
            announced = Instant::now();
        } else if let (false, Err(why)) = (own, manifest.check_against(charter, unix_now())) {
            eprintln!("router {name} is out of service: {why}");
            return Ok(());
        }
        let _ = tokio::time::timeout(ROUND, revocation(&mut events)).await;
    }
}

/// Returns when a revocation may have arrived.
async fn revocation(events: &mut Receiver<Event>) {
    loop {
        match events.recv().await {
            Ok(Event::RevocationArrived(_)) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
