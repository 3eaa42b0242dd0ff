//! Everything with tensors about one expert: its network, objectives, schedules and conversions, its training, its
//! checkpoints and the data that it is trained on.
//!
//! The seam to serving is [`VelocityField`]: an expert with its [`Conversion`](hdd_protocol::Conversion) is one, an ensemble
//! of experts is one, and the [`sample`](sampler::sample) loop needs nothing else.
//!
//! **Architecture Invariant:** bytes become a tensor only through [`weights`], which reads safetensors with its own caps;
//! nothing that a peer sent is ever unpickled. Nothing here knows peers, sockets or the registry.

mod checkpoint;
mod conversion;
pub mod data;
pub mod encoders;
mod error;
mod expert;
mod field;
mod fused;
pub mod import;
pub mod network;
mod objective;
pub mod oracle;
mod panics;
mod preconditioning;
mod random;
pub mod sampler;
mod schedule;
pub mod train;
pub mod weights;

pub use checkpoint::{Checkpoint, CheckpointConfig, last_good_checkpoint, latest_checkpoint};
pub use conversion::{PIXEL_CLAMP, VAE_CLAMP, aligned_point, aligned_velocity, linear_velocity, paper_velocity};
pub use error::{Error, Result};
pub use expert::{Expert, ExpertField};
pub use field::{ClusterExpert, ClusterPosterior, Condition, Guidance, VelocityField};
pub use fused::{Adam, AdamState, keep_pages, lerp, normal, torch_version};
pub use objective::{Pair, target, to_pair};
pub use panics::{leave_panics_to_their_owners, panic_message};
pub use preconditioning::{Preconditioning, precondition};
pub use random::seeded;
pub use schedule::{Coefficients, NoisePath};

use tch::{Device, Tensor};

/// One number an image as a column that broadcasts over `like`: `(B, 1, 1, ...)` of its kind and device.
pub fn column(values: impl IntoIterator<Item = f64>, like: &Tensor) -> Tensor {
    let values: Vec<f64> = values.into_iter().collect();
    let mut shape = vec![1; like.dim().max(1)];
    shape[0] = values.len() as i64;
    Tensor::from_slice(&values).to_kind(like.kind()).to_device(like.device()).reshape(shape)
}

/// The device to use: the first CUDA card if libtorch sees one, else the CPU.
pub fn default_device() -> Device {
    Device::cuda_if_available()
}
