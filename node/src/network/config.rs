use crate::clock::unix_now;
use libp2p::Multiaddr;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Tells Unix seconds; tests set it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a node takes part in the network.
#[derive(Clone)]
pub struct NetworkConfig {
    /// Addresses to listen on; port 0 takes a free one. None: the node only dials.
    pub listen: Vec<Multiaddr>,
    /// Nodes to join through; redialled while they cannot be reached.
    pub bootstrap: Vec<Multiaddr>,
    /// Where peers are remembered between runs, as JSON.
    pub peers_file: Option<PathBuf>,
    /// Whether to look for peers on the local network with multicast DNS.
    pub lan: bool,
    /// Whether to relay connections between peers that cannot reach each other.
    pub serve_relay: bool,
    /// Bounds on what peers can make this node do.
    pub limits: Limits,
    /// The clock that manifests are judged by.
    pub now: Clock,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            bootstrap: Vec::new(),
            peers_file: None,
            lan: false,
            serve_relay: false,
            limits: Limits::default(),
            now: Arc::new(unix_now),
        }
    }
}

/// Bounds and times. Everything that a peer can ask for, or make this node keep, has one.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections that peers opened.
    pub inbound: u32,
    /// Connections that this node opened.
    pub outbound: u32,
    /// Connections with one peer.
    pub per_peer: u32,
    /// Records and sync requests looked at at once; more are ignored and found again by the next reconciliation.
    pub work: usize,
    /// Records from one peer looked at at once.
    pub work_per_peer: usize,
    /// Charters kept on the word of peers.
    pub charters: usize,
    /// Pages of digests read from a peer in one reconciliation.
    pub sync_pages: usize,
    /// Time between reconciliations with a connected peer.
    pub sync_interval: Duration,
    /// Blob streams served at once.
    pub uploads: usize,
    /// Blob streams served at once to one peer.
    pub uploads_per_peer: usize,
    /// Service streams served at once.
    pub requests: usize,
    /// Service streams served at once to one peer.
    pub requests_per_peer: usize,
    /// Bytes asked for at once; what a broken transfer sends again at most. A multiple of 16 KiB.
    pub piece: u64,
    /// Providers tried for one blob.
    pub providers: usize,
    /// Rounds over the providers of a blob before a fetch gives up.
    pub rounds: u32,
    /// Longest time to reach a peer, agree on a protocol and hear a first answer.
    pub handshake: Duration,
    /// Longest silence within a transfer.
    pub idle: Duration,
    /// Least rate of a transfer, bytes a second; a slower peer is given up.
    pub slowest: u64,
    /// What the rate is averaged over: time spent waiting for the peer.
    pub slowest_over: Duration,
    /// Longest silence of an aggregator that works on a request.
    pub service_idle: Duration,
    /// First wait before an unreachable bootstrap is dialled again; doubles each time.
    pub redial_first: Duration,
    /// Longest such wait.
    pub redial_last: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbound: 256,
            outbound: 128,
            per_peer: 4,
            work: 64,
            work_per_peer: 4,
            charters: 64,
            sync_pages: 256,
            sync_interval: Duration::from_secs(180),
            uploads: 32,
            uploads_per_peer: 8,
            requests: 32,
            requests_per_peer: 8,
            piece: 8 << 20,
            providers: 32,
            rounds: 3,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(20),
            slowest: 64 << 10,
            slowest_over: Duration::from_secs(30),
            service_idle: Duration::from_secs(600),
            redial_first: Duration::from_secs(1),
            redial_last: Duration::from_secs(60),
        }
    }
}
