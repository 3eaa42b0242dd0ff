//! Worlds whose denoiser is a closed form: Gaussian mixtures with one set of components a cluster.
//!
//! They are the project's ground truth. In such a world the posterior mean of `(x0, eps)` at any point of any noising path
//! is exact, and with it the marginal velocity field, the router's posterior and an expert of every objective on every
//! schedule. They implement the traits of networks ([`crate::VelocityField`], [`crate::ClusterPosterior`],
//! [`crate::ClusterExpert`]), so that fusion, conversions and samplers are tested against solutions and not against
//! themselves. Everything is computed in float64 on the tensors' device and returned in their kind.

mod expert;
mod mixture;

pub use expert::ExactExpert;
pub use mixture::{Component, Mixture};
