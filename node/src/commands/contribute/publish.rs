//! From a checkpoint to a signed manifest that the network knows.

use super::Args;
use crate::{Error, Result, clock::unix_now, node::Node};
use hdd_expert_runtime::Checkpoint;
use hdd_protocol::{Announcement, Charter, Manifest, Signed, Training, Verified};
use std::time::Duration;

/// The manifest is announced again this often: gossip forgets, and peers come and go.
const AGAIN: Duration = Duration::from_secs(600);

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
    let now = unix_now();
    let author = node.key.public();
    let own = node.registry.manifests(Some(charter.digest()))?;
    let last = own.into_iter().find(|m| m.author == author && m.name == args.name);
    let manifest = match last {
        // Half its life is left: nothing new to say.
        Some(last) if last.weights == weights && now < last.issued_at / 2 + last.expires_at / 2 => last,
        _ => {
            let config = checkpoint.config;
            let manifest = Manifest {
                charter: charter.digest(),
                author,
                name: args.name.clone(),
                sequence: node.registry.next_sequence(author, charter.digest(), &args.name)?,
                issued_at: now,
                expires_at: now + charter.limits.manifest_seconds,
                spec: config.spec,
                weights,
                training: Training {
                    steps: config.step,
                    images: config.images,
                    loss: config.loss,
                    seed: config.seed,
                    recipe: config.recipe,
                    parent: None,
                },
                licence: args.licence(charter)?,
                next_key: None,
            };
            manifest.check_against(charter, now)?;
            Signed::sign(manifest, &node.key)?
        }
    };
    announce(node, &manifest).await?;
    Ok(manifest)
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

/// Announces again from time to time, until stopped.
///
/// # Errors
/// The network's.
pub async fn keep_available(node: &Node, manifest: &Verified<Manifest>) -> Result<()> {
    loop {
        tokio::time::sleep(AGAIN).await;
        announce(node, manifest).await?;
    }
}
