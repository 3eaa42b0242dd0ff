//! What a node knows, as plain data that a table or JSON can show and a control socket can carry.

use crate::{
    Result,
    clock::unix_now,
    network::{Direction, PeerInfo},
};
use hdd_protocol::{
    Blob, Charter, Digest, Manifest, Objective, PublicKey, RouterManifest, RouterTraining, Schedule, Verified,
};
use hdd_registry::{Registry, Verdict};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One node at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// What the process does: `relay`, `seed` and so on; `visit` for one that only looks.
    pub role: String,
    /// Version of the program.
    pub version: String,
    /// Its id in the network.
    pub peer_id: String,
    /// The key that signs what it publishes.
    pub author: PublicKey,
    /// Its data folder.
    pub data: PathBuf,
    /// Addresses that others can dial, with the peer id.
    pub listening: Vec<String>,
    /// Connected peers.
    pub peers: usize,
    /// The network, if its charter is known.
    pub charter: Option<CharterReport>,
    /// Current manifests of that network.
    pub experts: usize,
    /// Those that this key signed.
    pub own: Vec<Expert>,
    /// Files held.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Bytes that the data folder's disk has left.
    pub free_bytes: u64,
}

/// A network in brief.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CharterReport {
    /// Its name for people.
    pub name: String,
    /// Its name for programs.
    pub digest: Digest,
    /// Clusters, K.
    pub clusters: u16,
}

/// A manifest in brief.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expert {
    /// The manifest.
    pub manifest: Digest,
    /// The author's name for it.
    pub name: String,
    /// Who made it.
    pub author: PublicKey,
    /// Its version under this name.
    pub sequence: u64,
    /// Cluster that it was trained on.
    pub cluster: u16,
    /// What its output estimates.
    pub objective: Objective,
    /// The path that it was trained on.
    pub schedule: Schedule,
    /// Trainable parameters.
    pub parameters: u64,
    /// Distinct images trained on.
    pub images: u64,
    /// Optimiser steps done.
    pub steps: u64,
    /// The weights.
    pub weights: Blob,
    /// Whether this node holds the weights.
    pub held: bool,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Whether that time has passed.
    pub expired: bool,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// What this node's checks said, if it made any.
    pub verdict: Option<Verdict>,
}

/// A router's manifest in brief.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Router {
    /// The manifest.
    pub manifest: Digest,
    /// Who made it.
    pub author: PublicKey,
    /// Its version.
    pub sequence: u64,
    /// How it was made, and its author's own figures.
    pub training: RouterTraining,
    /// The weights.
    pub weights: Blob,
    /// Whether this node holds the weights.
    pub held: bool,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Whether that time has passed.
    pub expired: bool,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// What this node's tests said, if it made any.
    pub verdict: Option<Verdict>,
}

/// A connected peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: String,
    /// Addresses known of it.
    pub addresses: Vec<String>,
    /// Program and version, as it says.
    pub agent: String,
    /// Protocols, as it says.
    pub protocols: Vec<String>,
    /// Whether it dialled this node.
    pub inbound: bool,
    /// Milliseconds there and back.
    pub rtt_ms: Option<f64>,
}

impl Expert {
    /// What `registry` knows of a manifest. Blocks on the disk.
    ///
    /// # Errors
    /// The registry's.
    pub fn of(manifest: &Verified<Manifest>, registry: &Registry) -> Result<Self> {
        let m: &Manifest = manifest;
        Ok(Self {
            manifest: manifest.digest(),
            name: m.name.clone(),
            author: m.author,
            sequence: m.sequence,
            cluster: m.spec.cluster,
            objective: m.spec.objective,
            schedule: m.spec.schedule,
            parameters: m.spec.architecture.parameters(),
            images: m.training.images,
            steps: m.training.steps,
            weights: m.weights,
            held: registry.has_blob(m.weights.digest).is_some(),
            issued_at: m.issued_at,
            expires_at: m.expires_at,
            expired: m.expires_at <= unix_now(),
            licence: m.licence.clone(),
            verdict: registry.verdict(manifest.digest())?,
        })
    }

    /// Every current manifest of `charter`, by cluster, name and author. Blocks on the disk.
    ///
    /// # Errors
    /// The registry's.
    pub fn all(registry: &Registry, charter: Digest) -> Result<Vec<Self>> {
        let manifests = registry.manifests(Some(charter))?;
        let mut experts = manifests.iter().map(|m| Self::of(m, registry)).collect::<Result<Vec<_>>>()?;
        experts.sort_by(|a, b| (a.cluster, &a.name, a.author).cmp(&(b.cluster, &b.name, b.author)));
        Ok(experts)
    }
}

impl Router {
    /// What `registry` knows of a router. Blocks on the disk.
    ///
    /// # Errors
    /// The registry's.
    pub fn of(manifest: &Verified<RouterManifest>, registry: &Registry) -> Result<Self> {
        let m: &RouterManifest = manifest;
        Ok(Self {
            manifest: manifest.digest(),
            author: m.author,
            sequence: m.sequence,
            training: m.training.clone(),
            weights: m.weights,
            held: registry.has_blob(m.weights.digest).is_some(),
            issued_at: m.issued_at,
            expires_at: m.expires_at,
            expired: m.expires_at <= unix_now(),
            licence: m.licence.clone(),
            verdict: registry.verdict(manifest.digest())?,
        })
    }

    /// Every current router of `charter`, by author. Blocks on the disk.
    ///
    /// # Errors
    /// The registry's.
    pub fn all(registry: &Registry, charter: Digest) -> Result<Vec<Self>> {
        registry.routers(Some(charter))?.iter().map(|m| Self::of(m, registry)).collect()
    }
}

impl CharterReport {
    /// A charter in brief.
    pub fn of(charter: &Verified<Charter>) -> Self {
        Self { name: charter.name.clone(), digest: charter.digest(), clusters: charter.clusters() }
    }
}

impl From<PeerInfo> for Peer {
    fn from(peer: PeerInfo) -> Self {
        Self {
            id: peer.id.to_string(),
            addresses: peer.addresses.iter().map(ToString::to_string).collect(),
            agent: peer.agent,
            protocols: peer.protocols,
            inbound: peer.direction == Direction::Inbound,
            rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        }
    }
}
