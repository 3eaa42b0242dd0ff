//! From admitted experts to images: the router and its training, the tests that an expert must pass, the fusion of
//! experts into one velocity field, and the thread that owns the device.
//!
//! "Router" means the expert router and nothing else: `p(k | x_t, t)` over the charter's clusters (paper Eq. 2). It predicts
//! the cluster, not the expert, so experts come and go without retraining.
//!
//! **Architecture Invariant:** tensors stay on the [`Engine`]'s thread; callers talk to it over a bounded channel.

mod admission;
mod engine;
mod ensemble;
mod error;
mod policy;
mod router;
mod selection;
mod train;

pub use admission::{HeldOut, Report, test_expert};
pub use engine::{AdmitReply, Engine, EngineConfig, RouterStage, SampleSink};
pub use ensemble::{Ensemble, Fusion, Member};
pub use error::{Error, Result};
pub use policy::{Decision, Policy};
pub use router::Router;
pub use selection::{Candidate, weights};
pub use train::{RouterAccuracy, RouterExamples, train_router};
