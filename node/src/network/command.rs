use super::Result;
use hdd_protocol::{Announcement, SyncRequest, SyncResponse};
use libp2p::{Multiaddr, PeerId, kad::RecordKey};
use std::time::Duration;
use tokio::sync::oneshot;

/// What a [`super::Client`] asks of the event loop.
pub(super) enum Command {
    /// The addresses listened on, once each listener has one.
    Listening(oneshot::Sender<Vec<Multiaddr>>),
    /// Gossip a record that has been accepted; answers with the number of peers that take part.
    Publish(Announcement, oneshot::Sender<usize>),
    /// Publish a provider record, and keep it published.
    Provide(RecordKey, oneshot::Sender<Result<()>>),
    /// Look providers up.
    Providers(RecordKey, oneshot::Sender<Vec<PeerId>>),
    /// Ask a peer for records.
    Ask(PeerId, SyncRequest, oneshot::Sender<Result<SyncResponse>>),
    /// Be connected to a peer.
    Connect(PeerId, oneshot::Sender<Result<()>>),
    /// Connected peers.
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    /// Bootstraps that are not connected, each with the cause if one is known.
    Unreached(oneshot::Sender<Vec<(Multiaddr, Option<String>)>>),
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// This node.
    Outbound,
}

/// A connected peer that has introduced itself.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its identity.
    pub id: PeerId,
    /// Addresses of the live connections.
    pub addresses: Vec<Multiaddr>,
    /// Its program and version, as it says.
    pub agent: String,
    /// Protocols that it speaks, as it says.
    pub protocols: Vec<String>,
    /// Who opened the first connection.
    pub direction: Direction,
    /// Round trip time, once measured.
    pub rtt: Option<Duration>,
}

/// What happens on the network, for whoever listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer has connected and introduced itself.
    PeerConnected(PeerId),
    /// The last connection to a peer has closed.
    PeerDisconnected(PeerId),
    /// A new manifest was accepted and stored.
    ManifestArrived(hdd_protocol::Digest),
    /// A new router's manifest was accepted and stored.
    RouterArrived(hdd_protocol::Digest),
    /// A new revocation was accepted and stored.
    RevocationArrived(hdd_protocol::Digest),
    /// A bootstrap could not be reached; it is dialled again.
    BootstrapFailed {
        /// Its address.
        addr: Multiaddr,
        /// Why.
        cause: String,
    },
}
