//! The node: the only crate that wires disk, network, tensors and command line together.
//!
//! [`network`] is the libp2p swarm behind a small [`network::Client`]; [`commands`] has one file a journey. Between them
//! stands [`node::Node`]: key, registry, charter and client of one running process. The library exists so that tests can
//! start real nodes in process; the binary is `main.rs`.
//!
//! **Architecture Invariant:** nothing here but what the feature `torch` guards names a tensor, so that a build without it
//! relays, lists, fetches and seeds.

pub mod charters;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod control;
pub mod error;
pub mod files;
pub mod keys;
pub mod logging;
pub mod network;
pub mod node;
pub mod picture;
pub mod progress;
pub mod report;
pub mod settings;
pub mod shutdown;
pub mod table;
#[cfg(feature = "torch")]
pub mod torch;

pub use error::{Error, Result};
