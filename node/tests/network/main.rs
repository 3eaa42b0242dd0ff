//! Real nodes on loopback, and strangers who keep to no rule.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixtures;
mod stranger;

mod blobs; // fetched, resumed, and never wrong
mod bootstrap; // dead ones named, healed, remembered
mod gossip; // what is forwarded and what is not
mod reconciliation; // late joiners and nodes that were away
mod routers; // travel as manifests do
mod service; // offers and requests
