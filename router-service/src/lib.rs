//! From admitted experts to images: the router and its training, the tests that an expert must pass, the fusion of
//! experts into one velocity field, and the thread that owns the device.
//!
//! "Router" means the expert router and nothing else: `p(k | x_t, t)` over the charter's clusters (paper Eq. 2). It predicts
//! the cluster, not the expert, so experts come and go without retraining.
//!
//! **Architecture Invariant:** tensors stay on the [`Engine`]'s thread; callers talk to it over a bounded channel.

mod accuracy;
mod admission;
mod engine;
mod ensemble;
mod error;
mod policy;
mod router;
mod router_admission;
mod router_jobs;
mod selection;
mod train;

pub use accuracy::RouterAccuracy;
pub use admission::{HeldOut, Report, test_expert};
pub use engine::{AdmitReply, Engine, EngineConfig, SampleSink};
pub use ensemble::{Ensemble, Fusion, Member};
pub use error::{Error, Result};
pub use policy::{Decision, Policy};
pub use router::Router;
pub use router_admission::{RouterCheck, test_router};
pub use router_jobs::{RouterFile, RouterPlan, TrainedRouter};
pub use selection::{Candidate, weights};
pub use train::{RouterExamples, RouterParent, RouterProgress, RouterTrainer};
