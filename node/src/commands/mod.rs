//! One file a command: its flags as `Args`, and `run`.

#[cfg(feature = "torch")]
pub mod assemble;
pub mod completions;
#[cfg(feature = "torch")]
pub mod contribute;
#[cfg(feature = "torch")]
pub mod evaluate;
pub mod experts;
pub mod fetch;
pub mod key;
pub mod peers;
pub mod relay;
pub mod revoke;
pub mod sample;
pub mod seed;
pub mod status;
