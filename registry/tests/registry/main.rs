//! The store as the rest of the node uses it, and as a crash, a full disk or a hostile peer leaves it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blobs;
mod fixtures;
mod folder;
mod kill;
mod records;
mod routers;
