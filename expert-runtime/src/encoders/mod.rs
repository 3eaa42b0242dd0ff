//! Pretrained encoders, read from local folders as Hugging Face publishes them: [`ClipText`] with its [`Tokenizer`] for
//! captions, [`Dinov2`] for what an image shows, [`Vae`] for the latents that experts are trained on.
//!
//! A folder holds `config.json` and safetensors weights. Sizes in the configuration allocate nothing: every tensor comes from
//! the file, is held against the configured shape and must be finite. An encoder computes in the floating-point kind and on
//! the device that it was opened with, takes inputs of any such kind on any device, and builds no gradient.

mod clip;
mod dinov2;
mod folder;
mod tokenizer;
mod transformer;
mod vae;
mod weights;

pub use clip::{ClipText, TextStates};
pub use dinov2::Dinov2;
pub use folder::{Family, family};
pub use tokenizer::Tokenizer;
pub use vae::{Moments, Vae};

use crate::{Error, Result};
use tch::{Kind, Tensor};

/// Checks that `x` is `(B, channels, H, W)` of floating-point numbers with sides of at least `side`.
fn check_image(what: &str, x: &Tensor, channels: i64, side: i64) -> Result<()> {
    let fits = matches!(x.size()[..], [b, c, h, w] if b > 0 && c == channels && h >= side && w >= side);
    if fits && matches!(x.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
        return Ok(());
    }
    Err(Error::Data {
        what: what.to_owned(),
        why: format!(
            "is {:?} of shape {:?}, expected floating-point numbers of shape (B, {channels}, H, W), sides of {side} at least",
            x.kind(),
            x.size()
        ),
    })
}
