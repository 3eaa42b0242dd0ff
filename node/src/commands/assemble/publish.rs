//! A router that was trained here, as a record that the network knows.

use crate::{
    Error, Result,
    clock::{is_half_spent, unix_now},
    node::Node,
};
use hdd_protocol::{Announcement, Blob, Charter, RouterManifest, RouterTraining, Signed, Verified};
use hdd_router_service::TrainedRouter;

/// Takes the weights into the registry and announces a manifest of them.
///
/// # Errors
/// The protocol's, the registry's and the network's.
pub async fn publish(
    node: &Node,
    charter: &Verified<Charter>,
    trained: TrainedRouter,
) -> Result<Verified<RouterManifest>> {
    let TrainedRouter { weights, training, .. } = trained;
    let registry = node.registry.clone();
    let weights = tokio::task::spawn_blocking(move || registry.import_file(&weights)).await??;
    let manifest = sign(node, charter, weights, training)?;
    announce(node, &manifest).await?;
    eprintln!("published router {}, licensed {}", manifest.digest().short(), manifest.licence);
    Ok(manifest)
}

/// Announces again, under a new signature if half of the manifest's life is spent.
///
/// # Errors
/// As [`publish`].
pub async fn renew(
    node: &Node,
    charter: &Verified<Charter>,
    manifest: Verified<RouterManifest>,
) -> Result<Verified<RouterManifest>> {
    let manifest = match is_half_spent(manifest.issued_at, manifest.expires_at) {
        true => sign(node, charter, manifest.weights, manifest.training.clone())?,
        false => manifest,
    };
    announce(node, &manifest).await?;
    Ok(manifest)
}

fn sign(
    node: &Node,
    charter: &Verified<Charter>,
    weights: Blob,
    training: RouterTraining,
) -> Result<Verified<RouterManifest>> {
    let (author, now) = (node.key.public(), unix_now());
    let manifest = RouterManifest {
        charter: charter.digest(),
        author,
        sequence: node.registry.next_router_sequence(author, charter.digest())?,
        issued_at: now,
        expires_at: now + charter.limits.manifest_seconds,
        weights,
        training,
        licence: charter.licence.clone(),
    };
    manifest.check_against(charter, now)?;
    Ok(Signed::sign(manifest, &node.key)?)
}

async fn announce(node: &Node, manifest: &Verified<RouterManifest>) -> Result<()> {
    let peers = node.client.announce(Announcement::Router(manifest.bytes().to_vec())).await?;
    tracing::info!(router = %manifest.digest().short(), peers, "announced");
    // Without a peer there is no table to write into yet; peers that come learn of the record when they connect.
    if let Err(error) = node.client.provide_blob(manifest.weights.digest).await {
        tracing::info!("not yet in the DHT: {}", Error::from(error).chain());
    }
    Ok(())
}
