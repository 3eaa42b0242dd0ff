//! The words that nodes of an hdd network exchange: pure data, their bytes and their signatures.
//!
//! A [`Charter`] fixes what independent people must share for their experts to fit together. A [`Manifest`] says exactly
//! what one contributor made, a [`RouterManifest`] what an aggregator trained. An [`Offer`] says what an aggregator serves.
//! All travel as [`Signed`] envelopes; code that acts on one takes [`Verified`], which only [`Signed::verify`] makes.
//!
//! **Architecture Invariant:** this crate does no I/O, reads no clock, draws no randomness and knows no tensors, sockets
//! or databases. Times and random bytes are arguments.

mod charter;
mod codec;
mod digest;
mod error;
mod expert;
mod identity;
mod manifest;
mod messages;
mod offer;
mod recipe;
mod revocation;
mod router;
mod sampling;
mod signed;

pub use charter::{Charter, Codec, FeatureExtractor, Latent, Limits, Text, TextEncoder, check_name};
pub use codec::{decode, encode};
pub use digest::Digest;
pub use error::{Error, Result};
pub use expert::{Architecture, ExpertSpec, Objective, Schedule, TimestepMap};
pub use identity::{PublicKey, SecretKey, Signature};
pub use manifest::{Blob, Manifest, Training};
pub use messages::{
    Announcement, ErrorCode, Picture, Provenance, SampleEvent, ServiceRequest, ServiceResponse, Share, SyncRequest,
    SyncResponse, protocols,
};
pub use offer::{Offer, OfferedExpert};
pub use recipe::{LossWeighting, Precision, Recipe, RouterRecipe, TimeSampling};
pub use revocation::{Revocation, RevocationTarget};
pub use router::{ACCURACY_BINS, RouterManifest, RouterTraining};
pub use sampling::{Conversion, ExpertSelection, SampleLimits, SampleRequest, Solver};
pub use signed::{Signed, SignedPayload, Verified, WIRE_VERSION};
