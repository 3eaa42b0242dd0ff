//! What one node keeps on disk: signed records, blobs under their hash, and what its own checks said of experts.
//!
//! Files are the truth. `records/`, `charters/` and `verdicts/` hold one small file each, `blobs/` a checkpoint and its
//! BLAKE3 tree under the checkpoint's hash, `partial/` what is still arriving. `index/` is a sled database that answers
//! questions about records without opening them; it holds nothing that cannot be read from the files again, and is rebuilt
//! when it is missing, broken or behind. Every file appears whole or not at all, whenever the process is killed.
//!
//! **Architecture Invariant:** this crate blocks (callers in async code use a blocking thread), names no tensor and no
//! socket, and reads no clock: times are arguments.

mod atomic;
mod blobs;
mod download;
mod error;
mod index;
mod layout;
mod reader;
mod records;
mod store;
mod verdicts;

pub use atomic::write_atomically;
pub use download::Download;
pub use error::{Error, Result};
pub use reader::BlobReader;
pub use records::Inserted;
pub use store::{Registry, RegistryOptions};
pub use verdicts::{Verdict, VerdictState};

/// Bytes that are verified at once: a chunk group of sixteen BLAKE3 chunks. Ranges of a blob begin at multiples of it.
pub const GROUP: u64 = 16 << 10;
