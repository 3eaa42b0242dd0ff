//! Messages between nodes. Signed records travel as envelope bytes, so that what arrives is what was signed.

use crate::{Digest, Objective, SampleRequest};
use serde::{Deserialize, Serialize};

/// Names of the protocols and topics. The number is the wire version: nodes of several versions list all they speak, and
/// multistream-select picks one that both have.
pub mod protocols {
    /// Gossip topic of [`super::Announcement`].
    pub const ANNOUNCEMENTS: &str = "/hdd/announcements/1";
    /// Kademlia's protocol, apart from other networks'.
    pub const KADEMLIA: &str = "/hdd/kad/1";
    /// Identify's protocol version.
    pub const IDENTIFY: &str = "/hdd/1";
    /// Reconciliation of records: request-response.
    pub const SYNC: &str = "/hdd/sync/1";
    /// Verified ranges of a blob: a stream.
    pub const BLOB: &str = "/hdd/blob/1";
    /// An aggregator's service: a stream.
    pub const SERVICE: &str = "/hdd/service/1";
}

/// A signed record on its way through gossip, in its envelope's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Announcement {
    /// A `Signed<Manifest>`.
    Manifest(Vec<u8>),
    /// A `Signed<Revocation>`.
    Revocation(Vec<u8>),
    /// A `Signed<RouterManifest>`.
    Router(Vec<u8>),
}

impl Announcement {
    /// Largest encoding, bytes; gossipsub's own limit is 64 KiB.
    pub const LIMIT: usize = 32 << 10;
}

/// What a node asks a peer for when they meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncRequest {
    /// The digests of records held, in ascending order, beginning after this one.
    Digests {
        /// The last digest of the previous page.
        after: Option<Digest>,
    },
    /// These records, at most [`SyncRequest::PAGE`] of them.
    Records(Vec<Digest>),
    /// The charter with this digest.
    Charter(Digest),
}

impl SyncRequest {
    /// Most digests or records of an answer.
    pub const PAGE: usize = 512;
    /// Largest encoding, bytes.
    pub const LIMIT: usize = 64 << 10;
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncResponse {
    /// Digests in ascending order; fewer than [`SyncRequest::PAGE`] means that no more follow.
    Digests(Vec<Digest>),
    /// Those of the records that are held.
    Records(Vec<Announcement>),
    /// The charter's envelope, if held.
    Charter(Option<Vec<u8>>),
}

impl SyncResponse {
    /// Largest encoding, bytes: a page of the largest records.
    pub const LIMIT: usize = 12 << 20;
}

/// What a client asks an aggregator for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ServiceRequest {
    /// What it serves.
    Offer,
    /// Pictures.
    Sample(SampleRequest),
}

impl ServiceRequest {
    /// Largest encoding, bytes.
    pub const LIMIT: usize = 64 << 10;
}

/// The answer: one offer, or events until [`SampleEvent::Done`] or [`ServiceResponse::Refused`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ServiceResponse {
    /// A `Signed<Offer>`'s bytes.
    Offer(Vec<u8>),
    /// Progress of a request.
    Event(SampleEvent),
    /// The request cannot be served.
    Refused {
        /// Stable code.
        code: ErrorCode,
        /// What is wrong and what to do.
        message: String,
    },
}

impl ServiceResponse {
    /// Largest encoding, bytes.
    pub const LIMIT: usize = 16 << 20;
}

/// Progress of a sample request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SampleEvent {
    /// Accepted; this many requests are before it.
    Queued {
        /// Requests before this one.
        ahead: u32,
    },
    /// Steps done.
    Step {
        /// Steps done.
        done: u32,
        /// Steps in all.
        of: u32,
    },
    /// One picture, in the order of the seeds.
    Picture {
        /// The picture.
        picture: Picture,
        /// How it came to be.
        provenance: Provenance,
    },
    /// No more follows.
    Done,
}

/// Eight-bit RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `3 * width * height` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// True if the bytes are as many as the sides say, and the sides at most 4,096.
    pub fn is_whole(&self) -> bool {
        let sides = 1..=4096;
        sides.contains(&self.width)
            && sides.contains(&self.height)
            && self.rgb.len() == 3 * self.width as usize * self.height as usize
    }
}

/// An expert's part in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The expert's manifest.
    pub manifest: Digest,
    /// Its cluster.
    pub cluster: u16,
    /// Its objective.
    pub objective: Objective,
    /// Its mean weight over the steps, 0 to 1.
    pub weight: f32,
}

/// How a picture came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The network.
    pub charter: Digest,
    /// The router's weights.
    pub router: Option<Digest>,
    /// The picture's own seed.
    pub seed: u64,
    /// Experts by weight, heaviest first.
    pub experts: Vec<Share>,
}

/// Why a request was refused. Codes keep their meaning across versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// A field is out of range.
    Invalid,
    /// The queue is full; try again later.
    Busy,
    /// No expert is admitted yet.
    NotReady,
    /// The aggregator failed.
    Internal,
}
