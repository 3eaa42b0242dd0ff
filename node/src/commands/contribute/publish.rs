//! From a checkpoint to a signed manifest that the network knows, for as long as the node runs.

use super::Args;
use crate::{
    Error, Result,
    clock::{ANNOUNCE, is_half_spent, unix_now},
    node::Node,
};
use hdd_expert_runtime::Checkpoint;
use hdd_protocol::{Announcement, Charter, Manifest, Signed, Training, Verified};

/// Takes the weights into the registry and announces a manifest of them: the current one if it says the same, else the
/// next in sequence.
///
/// # Errors
/// A licence that is not the charter's; the protocol's, the registry's and the network's.
pub async fn publish(
    node: &Node,
    charter: &Verified<Charter>,
    args: &Args,
    checkpoint: Checkpoint,
) -> Result<Verified<Manifest>> {
    let (registry, file) = (node.registry.clone(), checkpoint.model());
    let weights = tokio::task::spawn_blocking(move || registry.import_file(&file)).await??;
    let author = node.key.public();
    let own = node.registry.manifests(Some(charter.digest()))?;
    let last = own.into_iter().find(|m| m.author == author && m.name == args.name);
    let manifest = match last {
        Some(last) if last.weights == weights && !is_half_spent(last.issued_at, last.expires_at) => last,
        _ => {
            let config = checkpoint.config;
            let training = Training {
                steps: config.step,
                images: config.images,
                loss: config.loss,
                seed: config.seed,
                recipe: config.recipe,
                parent: config.parent,
            };
            let manifest = Manifest {
                charter: charter.digest(),
                author,
                name: args.name.clone(),
                sequence: 0,
                issued_at: 0,
                expires_at: 0,
                spec: config.spec,
                weights,
                training,
                licence: args.licence(charter)?,
                next_key: None,
            };
            sign(node, charter, manifest)?
        }
    };
    announce(node, &manifest).await?;
    Ok(manifest)
}

/// Signs `manifest` as the next in its sequence, with a whole life before it.
fn sign(node: &Node, charter: &Verified<Charter>, manifest: Manifest) -> Result<Verified<Manifest>> {
    let now = unix_now();
    let manifest = Manifest {
        sequence: node.registry.next_sequence(manifest.author, manifest.charter, &manifest.name)?,
        issued_at: now,
        expires_at: now + charter.limits.manifest_seconds,
        ..manifest
    };
    manifest.check_against(charter, now)?;
    Ok(Signed::sign(manifest, &node.key)?)
}

async fn announce(node: &Node, manifest: &Verified<Manifest>) -> Result<()> {
    let peers = node.client.announce(Announcement::Manifest(manifest.bytes().to_vec())).await?;
    tracing::info!(manifest = %manifest.digest().short(), peers, "announced");
    // Without a peer there is no table to write into yet; peers that come learn of the record when they connect.
    if let Err(error) = node.client.provide_blob(manifest.weights.digest).await {
        tracing::info!("not yet in the DHT: {}", Error::from(error).chain());
    }
    Ok(())
}

/// Announces from time to time, signs anew when half of the manifest's life is spent, and keeps connected to aggregators, so
/// that one can fetch the weights even from a node that nobody can dial.
///
/// # Errors
/// The network's, the protocol's and the registry's.
pub async fn keep_available(node: &Node, charter: &Verified<Charter>, manifest: Verified<Manifest>) -> Result<()> {
    let mut manifest = manifest;
    loop {
        for aggregator in node.client.aggregators(charter.digest()).await.unwrap_or_default() {
            // Asking for the offer dials; whether there is one yet does not matter.
            if let Err(error) = node.client.offer(aggregator).await {
                tracing::debug!(%aggregator, %error, "no offer");
            }
        }
        tokio::time::sleep(ANNOUNCE).await;
        if is_half_spent(manifest.issued_at, manifest.expires_at) {
            manifest = sign(node, charter, (*manifest).clone())?;
        }
        announce(node, &manifest).await?;
    }
}
