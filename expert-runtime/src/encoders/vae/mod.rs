//! The autoencoder of latent diffusion (Rombach et al., 2022), `diffusers`' AutoencoderKL: images to latents of an eighth of
//! their side, and back.

mod blocks;
mod decoder;
mod encoder;

use super::{
    check_image,
    folder::{config, unusable},
    weights::Weights,
};
use crate::{Error, Result};
use blocks::{Conv, POINT, SAME};
use decoder::Decoder;
use encoder::Encoder;
use serde::Deserialize;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The configuration, with the defaults that older files leave out.
#[derive(Debug, Deserialize)]
struct Config {
    in_channels: i64,
    out_channels: i64,
    latent_channels: i64,
    block_out_channels: Vec<i64>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    layers_per_block: i64,
    #[serde(default = "groups")]
    norm_num_groups: i64,
    #[serde(default = "silu")]
    act_fn: String,
    #[serde(default = "scaling")]
    scaling_factor: f64,
    #[serde(default)]
    shift_factor: Option<f64>,
    #[serde(default)]
    latents_mean: Option<Vec<f64>>,
    #[serde(default)]
    latents_std: Option<Vec<f64>>,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "yes")]
    use_quant_conv: bool,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
    #[serde(default = "side")]
    sample_size: i64,
}

fn groups() -> i64 {
    32
}

fn silu() -> String {
    "silu".into()
}

fn scaling() -> f64 {
    0.18215
}

fn side() -> i64 {
    32
}

fn yes() -> bool {
    true
}

impl Config {
    /// What this code cannot compute, if anything.
    fn refusal(&self) -> Option<String> {
        let levels = self.block_out_channels.len();
        let is = |types: &[String], name: &str| types.len() == levels && types.iter().all(|t| t == name);
        if levels == 0
            || !is(&self.down_block_types, "DownEncoderBlock2D")
            || !is(&self.up_block_types, "UpDecoderBlock2D")
        {
            return Some("has other blocks than one DownEncoderBlock2D and one UpDecoderBlock2D a level".into());
        }
        if levels > 8 || self.layers_per_block < 1 || !(1..1 << 16).contains(&self.sample_size) {
            let (layers, side) = (self.layers_per_block, self.sample_size);
            return Some(format!("has {levels} levels of {layers} layers for images of {side} pixels"));
        }
        if !matches!(self.act_fn.as_str(), "silu" | "swish") {
            return Some(format!("has the nonlinearity {}, this build has silu", self.act_fn));
        }
        if self.norm_num_groups < 1 || self.block_out_channels.iter().any(|c| *c < 1 || c % self.norm_num_groups != 0) {
            return Some(format!("has {} groups, which do not divide its channels", self.norm_num_groups));
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Some("scales each latent channel by itself, which this build does not".into());
        }
        let normal = self.scaling_factor.is_normal() && self.shift_factor.is_none_or(f64::is_finite);
        (!normal).then(|| "has a scaling_factor or shift_factor that is no usable number".into())
    }
}

/// The Gaussian that an image is encoded to.
#[derive(Debug)]
pub struct Moments {
    /// `(B, C, h, w)`.
    pub mean: Tensor,
    /// Logarithm of the variance, -30 to 20, `(B, C, h, w)`.
    pub logvar: Tensor,
}

/// An autoencoder with its convention of scale.
#[derive(Debug)]
pub struct Vae {
    encoder: Encoder,
    quant: Option<Conv>,
    post_quant: Option<Conv>,
    decoder: Decoder,
    channels: [i64; 2], // of images and latents
    factor: i64,
    sample_size: i64,
    scale: f64,
    shift: f64,
    at: (Device, Kind),
}

impl Vae {
    /// Reads an AutoencoderKL folder, with attention under its present names or the first ones.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for a configuration that this build does not compute; [`Error::Weights`] for weights that
    /// are not of it.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self> {
        let c: Config = config(folder)?;
        if let Some(why) = c.refusal() {
            return Err(unusable(folder, format!("its config.json {why}")));
        }
        let mut w = Weights::open(folder, &[], device, kind)?;
        let latents = c.latent_channels;
        let vae = Self {
            encoder: Encoder::load(&mut w, &c)?,
            quant: if c.use_quant_conv {
                Some(Conv::load(&mut w, "quant_conv", [2 * latents; 2], POINT)?)
            } else {
                None
            },
            post_quant: if c.use_post_quant_conv {
                Some(Conv::load(&mut w, "post_quant_conv", [latents; 2], POINT)?)
            } else {
                None
            },
            decoder: Decoder::load(&mut w, &c)?,
            channels: [c.in_channels, latents],
            factor: 1 << (c.block_out_channels.len() - 1),
            sample_size: c.sample_size,
            scale: c.scaling_factor,
            shift: c.shift_factor.unwrap_or(0.0),
            at: (device, kind),
        };
        w.finish(&[])?;
        Ok(vae)
    }

    /// Side in pixels of the images that it was trained on.
    pub fn sample_size(&self) -> i64 {
        self.sample_size
    }

    /// Pixels a latent, along a side.
    pub fn factor(&self) -> i64 {
        self.factor
    }

    /// Encodes images in [-1, 1], `(B, 3, H, W)` to latents `(B, C, H / factor, W / factor)`, unscaled.
    ///
    /// # Errors
    /// [`Error::Data`] for another shape or kind, sides below [`factor`](Self::factor), or numbers beyond half precision.
    pub fn encode(&self, images: &Tensor) -> Result<Moments> {
        check_image("the autoencoder's image", images, self.channels[0], self.factor)?;
        let x = self.encoder.forward(&self.here(images));
        let x = self.finite(self.quant.as_ref().map_or_else(|| x.shallow_clone(), |quant| quant.forward(&x)))?;
        let parts = x.chunk(2, 1);
        Ok(Moments { mean: parts[0].contiguous(), logvar: parts[1].clamp(-30.0, 20.0) })
    }

    /// Decodes unscaled latents `(B, C, h, w)` to images near [-1, 1], `(B, 3, h factor, w factor)`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_image("the autoencoder's latent", latents, self.channels[1], 1)?;
        let z = self.here(latents);
        self.finite(
            self.decoder.forward(&self.post_quant.as_ref().map_or_else(|| z.shallow_clone(), |conv| conv.forward(&z))),
        )
    }

    /// A latent as diffusion models take it, of variance about 1: `(z - shift_factor) scaling_factor`, of any shape.
    pub fn scale(&self, latents: &Tensor) -> Tensor {
        (latents - self.shift) * self.scale
    }

    /// Inverse of [`scale`](Self::scale).
    pub fn unscale(&self, latents: &Tensor) -> Tensor {
        latents / self.scale + self.shift
    }

    fn here(&self, x: &Tensor) -> Tensor {
        x.to_device(self.at.0).to_kind(self.at.1)
    }

    /// `x`, unless half precision, whose range some autoencoders leave, overflowed.
    fn finite(&self, x: Tensor) -> Result<Tensor> {
        if self.at.1 == Kind::Half && x.isfinite().all().int64_value(&[]) == 0 {
            let why = "its numbers leave the range of half precision; use bfloat16 or float32".into();
            return Err(Error::Data { what: "the autoencoder".into(), why });
        }
        Ok(x)
    }
}
