//! The libp2p swarm behind a small handle.
//!
//! [`start`] builds the swarm and spawns its loop; [`Client`] is how everything else speaks to it; [`Event`] is what it
//! reports. Records (manifests, routers, revocations) arrive by gossip and by reconciliation and pass one door, `intake`. Blobs and
//! an aggregator's service move over streams of their own, outside the loop. Peers are found through bootstraps, a file of
//! remembered peers, Kademlia and, if asked for, multicast DNS.
//!
//! Not here: what an expert is good for, and who is trusted; those who act on records decide.
//!
//! **Architecture Invariant:** nothing here names a tensor, waits in the loop, or keeps anything from a peer without a
//! bound.

mod behaviour;
mod blob;
mod bootstrap;
mod client;
mod command;
mod config;
mod connections;
mod discovery;
mod error;
mod event_loop;
mod fetch;
mod frames;
mod gossip;
mod identity;
mod intake;
mod listen;
mod pace;
mod pipe;
mod quota;
mod remembered;
mod service;
mod slots;
mod sync;
mod task;
mod transport;

pub use client::Client;
pub use command::{Direction, Event, PeerInfo};
pub use config::{Clock, Limits, NetworkConfig};
pub use error::{Error, Result};
pub use fetch::Progress;
pub use identity::{peer_id, public_key};
pub use libp2p::{Multiaddr, PeerId};
pub use service::Service;

use bootstrap::{Dialer, Goal};
use client::Shared;
use discovery::Provided;
use event_loop::EventLoop;
use hdd_protocol::{Digest, SecretKey, protocols};
use hdd_registry::Registry;
use intake::Intake;
use libp2p::{StreamProtocol, kad::RecordKey};
use quota::Quota;
use remembered::Remembered;
use slots::Slots;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;
/// Commands that wait for the loop.
const COMMANDS: usize = 64;

/// A running network. It stops when this is dropped; [`Running::stop`] also waits for it.
pub struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Remembers the peers, closes connections and listeners, and waits until that is done.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the network died");
        }
    }
}

/// Starts a node on the current tokio runtime: listens, dials and serves what `registry` holds, and `service` if given.
/// `key` is the node's identity towards peers, the same that its records are signed with.
///
/// # Errors
/// [`Error::Listen`] for an address that is in use or not this machine's; [`Error::Setup`].
pub async fn start(
    config: NetworkConfig,
    key: &SecretKey,
    registry: Arc<Registry>,
    service: Option<Arc<dyn Service>>,
) -> Result<(Client, Running)> {
    let key = identity::keypair(key).map_err(|e| Error::Setup { what: "the key", cause: e.to_string() })?;
    let me = key.public().to_peer_id();
    let mut swarm = transport::swarm(&config, key)?;
    let mut listeners = HashMap::new();
    for address in &config.listen {
        let id = listen::on(&mut swarm, address)?;
        listeners.insert(id, Vec::new());
    }
    let remembered = match config.peers_file.clone() {
        Some(path) => task::blocking(move || Remembered::load(&path)).await,
        None => Remembered::default(),
    };
    let bootstraps = config.bootstrap.iter().cloned().map(Goal::Bootstrap);
    let goals = bootstraps.chain(remembered.iter().map(|(peer, at)| Goal::Remembered(*peer, at.clone())));
    let (first, last) = (config.limits.redial_first, config.limits.redial_last);
    let dialer = Dialer::new(goals, Instant::now(), first, last);

    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (events, _) = broadcast::channel(EVENTS);
    let streams = swarm.behaviour().streams.new_control();
    let shared = Shared { registry, limits: Arc::new(config.limits), events, now: config.now };
    let client = Client { me, commands, streams, shared: Arc::new(shared) };
    let mut servers = serve(&client, service)?;
    let judging = Slots::new(client.limits().work, client.limits().work_per_peer);
    let event_loop = EventLoop {
        swarm,
        client: client.clone(),
        peers: HashMap::new(),
        dialer,
        remembered,
        peers_file: config.peers_file,
        unsaved: false,
        provided: Provided::default(),
        quota: Quota::new(std::time::Instant::now()),
        lookups: HashMap::new(),
        connects: HashMap::new(),
        asks: HashMap::new(),
        unsent: VecDeque::new(),
        announced: None,
        judging,
        listeners,
        listening: Vec::new(),
        work: JoinSet::new(),
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        event_loop.run(receiver, stopped).await;
        servers.shutdown().await;
    });
    Ok((client, Running { stop, task }))
}

fn serve(client: &Client, service: Option<Arc<dyn Service>>) -> Result<JoinSet<()>> {
    let mut servers = JoinSet::new();
    let mut control = client.streams.clone();
    let mut accept = |protocol| {
        let accepted = control.accept(StreamProtocol::new(protocol));
        accepted.map_err(|e| Error::Setup { what: protocol, cause: e.to_string() })
    };
    servers.spawn(blob::serve(accept(protocols::BLOB)?, client.registry().clone(), client.limits().clone()));
    if let Some(service) = service {
        servers.spawn(service::serve(accept(protocols::SERVICE)?, service, client.limits().clone()));
    }
    Ok(servers)
}

fn provider_key(blob: Digest) -> RecordKey {
    RecordKey::new(blob.as_bytes())
}

/// Apart from the charter's own digest, which names a record.
fn service_key(charter: Digest) -> RecordKey {
    let mut name = b"hdd aggregators\0".to_vec();
    name.extend_from_slice(charter.as_bytes());
    RecordKey::new(Digest::of(&name).as_bytes())
}
