//! One file a command: its flags as `Args`, and `run`.

#[cfg(feature = "torch")]
pub mod assemble;
pub mod completions;
#[cfg(feature = "torch")]
pub mod contribute;
#[cfg(feature = "torch")]
pub mod encode;
#[cfg(feature = "torch")]
pub mod evaluate;
pub mod experts;
pub mod fetch;
#[cfg(feature = "torch")]
pub mod import;
pub mod key;
#[cfg(feature = "torch")]
mod names;
pub mod peers;
#[cfg(feature = "torch")]
pub mod predict;
pub mod relay;
pub mod revoke;
pub mod routers;
pub mod sample;
pub mod seed;
pub mod status;
