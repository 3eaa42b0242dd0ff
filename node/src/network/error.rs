use hdd_protocol::{Digest, ErrorCode, PublicKey};
use libp2p::{Multiaddr, PeerId};
use std::{path::PathBuf, time::Duration};

/// What can go wrong between this node and its peers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}; {remedy}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// The system's reason.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The swarm cannot be set up on this machine.
    #[error("cannot set up {what}: {cause}")]
    Setup {
        /// The part that failed.
        what: &'static str,
        /// Its reason.
        cause: String,
    },
    /// The node's event loop has ended.
    #[error("the network of this node has stopped")]
    Stopped,
    /// Nobody was reached in time.
    #[error("no peer reached within {} s: {causes}", waited.as_secs())]
    NoPeers {
        /// How long was waited.
        waited: Duration,
        /// Each bootstrap address with its cause, or what to do without one.
        causes: String,
    },
    /// A peer cannot be dialled.
    #[error("cannot reach peer {peer}: {cause}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// Why.
        cause: String,
    },
    /// A connected peer stopped answering, or its connection broke.
    #[error("lost the connection to peer {peer}: {cause}; try again")]
    ConnectionLost {
        /// The peer.
        peer: PeerId,
        /// Why.
        cause: String,
    },
    /// A peer answered outside the protocol.
    #[error("peer {peer} answered wrongly: {why}")]
    BadAnswer {
        /// The peer.
        peer: PeerId,
        /// What was wrong.
        why: String,
    },
    /// An offer is signed by another key than the peer's.
    #[error("peer {peer} shows an offer by {signer}, not by itself; it cannot be trusted")]
    WrongAggregator {
        /// The peer.
        peer: PeerId,
        /// Who signed.
        signer: PublicKey,
    },
    /// An aggregator refused a request.
    #[error("the aggregator refused ({code:?}): {message}")]
    Refused {
        /// Stable code.
        code: ErrorCode,
        /// What is wrong and what to do.
        message: String,
    },
    /// Neither this node nor a connected peer has the charter.
    #[error("charter {digest} is unknown here and at {asked} connected peers; name a bootstrap of its network")]
    UnknownCharter {
        /// The charter.
        digest: Digest,
        /// Peers that were asked.
        asked: usize,
    },
    /// Nobody says to have a blob.
    #[error("no peer has blob {digest} ({asked} asked); its contributor may be offline, try again later")]
    NoProvider {
        /// The blob.
        digest: Digest,
        /// Peers that were asked.
        asked: usize,
    },
    /// Peers have a blob, but none could send it whole. What arrived is kept: another fetch goes on from there.
    #[error("blob {digest}: {done} of {size} bytes arrived, then provider {peer} failed: {why}; fetch again to go on")]
    ProviderFailed {
        /// The blob.
        digest: Digest,
        /// The provider tried last.
        peer: Box<PeerId>,
        /// Verified bytes on disk.
        done: u64,
        /// Bytes of the blob.
        size: u64,
        /// Why.
        why: String,
    },
    /// A provider's bytes do not match the blob's hash, and nobody else has it.
    #[error("blob {digest}: provider {peer} sent bytes that do not match the hash; nothing of them was kept")]
    WrongBytes {
        /// The blob.
        digest: Digest,
        /// The provider.
        peer: PeerId,
    },
    /// The disk cannot hold a blob.
    #[error("{} has {free} bytes free, {needed} are needed; make room or choose another data folder", folder.display())]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// The folder.
        folder: PathBuf,
    },
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(hdd_registry::Error),
    /// A record breaks the protocol's rules.
    #[error(transparent)]
    Protocol(#[from] hdd_protocol::Error),
}

impl From<hdd_registry::Error> for Error {
    fn from(error: hdd_registry::Error) -> Self {
        match error {
            hdd_registry::Error::NoSpace { needed, free, folder } => Self::NoSpace { needed, free, folder },
            other => Self::Registry(other),
        }
    }
}

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
