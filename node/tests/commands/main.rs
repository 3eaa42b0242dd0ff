//! Commands as a person types them, against real nodes on loopback.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

mod bad_input;
mod fixtures;
mod journeys;
