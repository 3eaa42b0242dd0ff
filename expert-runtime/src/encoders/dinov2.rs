//! DINOv2 (Oquab et al., 2023), with registers (Darcet et al., 2023) or without: an image to the vector of its CLS token,
//! whose direction says what the image shows. The paper clusters by that of ViT-L/14.

use super::{
    check_image,
    folder::{config, unusable},
    transformer::{Activation, Attention, Block, FeedForward, LayerNorm},
    weights::Weights,
};
use crate::Result;
use serde::Deserialize;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Mean and standard deviation of ImageNet's colours, in [0, 1]; what DINOv2 was trained with.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// `transformers`' Dinov2Config and Dinov2WithRegistersConfig, with the defaults that published files leave out.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    mlp_ratio: f64,
    image_size: i64,
    patch_size: i64,
    #[serde(default = "three")]
    num_channels: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    #[serde(default = "yes")]
    qkv_bias: bool,
    #[serde(default)]
    use_swiglu_ffn: bool,
    #[serde(default)]
    num_register_tokens: i64,
}

fn three() -> i64 {
    3
}

fn yes() -> bool {
    true
}

/// DINOv2's vision transformer.
#[derive(Debug)]
pub struct Dinov2 {
    patch: [Tensor; 2],        // (D, C, p, p), (D)
    class: Tensor,             // (1, 1, D)
    registers: Option<Tensor>, // (1, R, D)
    positions: Tensor,         // (1, 1 + side^2, D)
    antialias: bool,
    image_size: i64,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Dinov2 {
    /// Reads a Dinov2Model or Dinov2WithRegistersModel folder.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Data`] for a configuration that cannot be; [`crate::Error::Weights`] for weights
    /// that are not of it.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self> {
        let c: Config = config(folder)?;
        let (width, heads, patch) = (c.hidden_size, c.num_attention_heads, c.patch_size);
        let sound = width >= 1 && heads >= 1 && width % heads == 0 && c.layer_norm_eps > 0.0;
        if !(sound && patch >= 1 && c.image_size >= patch && c.image_size < 1 << 16) {
            return Err(unusable(
                folder,
                "its config.json has heads that do not divide the width, no positive layer_norm_eps, or sizes out of range",
            ));
        }
        let mut w = Weights::open(folder, &["dinov2.", "dinov2_with_registers."], device, kind)?;
        let side = c.image_size / patch;
        let at = |part: &str| format!("embeddings.{part}");
        let projection = at("patch_embeddings.projection");
        let with_registers = c.model_type == "dinov2_with_registers";
        let model = Self {
            patch: [
                w.tensor(&format!("{projection}.weight"), &[width, c.num_channels, patch, patch])?,
                w.tensor(&format!("{projection}.bias"), &[width])?,
            ],
            class: w.tensor(&at("cls_token"), &[1, 1, width])?,
            registers: if with_registers {
                Some(w.tensor(&at("register_tokens"), &[1, c.num_register_tokens, width])?)
            } else {
                None
            },
            positions: w.tensor(&at("position_embeddings"), &[1, 1 + side * side, width])?,
            antialias: with_registers,
            image_size: c.image_size,
            blocks: (0..c.num_hidden_layers).map(|layer| block(&mut w, layer, &c)).collect::<Result<_>>()?,
            norm: LayerNorm::load(&mut w, "layernorm", width, c.layer_norm_eps)?,
        };
        w.finish(&["embeddings.mask_token", "classifier."])?;
        Ok(model)
    }

    /// Width of the vectors, D.
    pub fn width(&self) -> i64 {
        self.class.size()[2]
    }

    /// Side in pixels whose positions are stored and not interpolated.
    pub fn image_size(&self) -> i64 {
        self.image_size
    }

    /// Pixels in [-1, 1] as DINOv2 wants them, `(B, 3, H, W) -> (B, 3, H, W)`: in [0, 1], less ImageNet's mean, over its
    /// standard deviation.
    pub fn normalise(images: &Tensor) -> Tensor {
        let channel = |values: [f64; 3]| {
            Tensor::from_slice(&values).to_kind(images.kind()).to_device(images.device()).reshape([1, 3, 1, 1])
        };
        ((images + 1.0) * 0.5 - channel(MEAN)) / channel(STD)
    }

    /// Every token after the last normalisation, CLS first, then registers, then patches row by row: normalised pixels
    /// `(B, C, H, W) -> (B, 1 + R + N, D)`. What is left over beyond whole patches is not looked at.
    ///
    /// # Errors
    /// [`crate::Error::Data`] for another shape or kind, or images smaller than a patch.
    pub fn tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.forward(pixels)?))
    }

    /// The CLS token after the last normalisation: normalised pixels `(B, C, H, W) -> (B, D)`.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn cls(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.forward(pixels)?.select(1, 0)))
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let [weight, bias] = &self.patch;
        let (channels, patch) = (weight.size()[1], weight.size()[2]);
        check_image("DINOv2's input", pixels, channels, patch)?;
        let x = pixels.to_device(weight.device()).to_kind(weight.kind());
        let (b, height, width) = (x.size()[0], x.size()[2], x.size()[3]);
        let x = x.conv2d(weight, Some(bias), [patch], [0], [1], 1).flatten(2, 3).transpose(1, 2); // (B, N, D)
        let repeat = |token: &Tensor| token.expand([b, -1, -1], false);
        let x = Tensor::cat(&[repeat(&self.class), x], 1)
            + resample(&self.positions, height / patch, width / patch, self.antialias);
        let x = match &self.registers {
            Some(registers) => {
                let patches = x.size()[1] - 1;
                Tensor::cat(&[x.narrow(1, 0, 1), repeat(registers), x.narrow(1, 1, patches)], 1)
            }
            None => x,
        };
        Ok(self.blocks.iter().fold(x, |x, block| block.forward(&x)))
    }
}

/// Positions `(1, 1 + side^2, D)` for `rows x columns` patches, `(1, 1 + rows columns, D)`: the stored square resampled
/// bicubically, as `transformers` does it (with registers, against aliasing, which is another cubic).
fn resample(positions: &Tensor, rows: i64, columns: i64, antialias: bool) -> Tensor {
    let (stored, width) = (positions.size()[1] - 1, positions.size()[2]);
    let side = (stored as f64).sqrt().round() as i64;
    if (rows, columns) == (side, side) {
        return positions.shallow_clone();
    }
    let square = positions.narrow(1, 1, stored).reshape([1, side, side, width]).permute([0, 3, 1, 2]);
    let square = square.to_kind(Kind::Float);
    let resampled = if antialias {
        square.internal_upsample_bicubic2d_aa([rows, columns], false, None, None)
    } else {
        square.upsample_bicubic2d([rows, columns], false, None, None)
    };
    let patches = resampled.to_kind(positions.kind()).permute([0, 2, 3, 1]).reshape([1, -1, width]);
    Tensor::cat(&[positions.narrow(1, 0, 1), patches], 1)
}

fn block(w: &mut Weights, layer: i64, c: &Config) -> Result<Block> {
    let (width, heads) = (c.hidden_size, c.num_attention_heads);
    let at = |part: &str| format!("encoder.layer.{layer}.{part}");
    let [q, k, v, out] =
        ["attention.query", "attention.key", "attention.value", "output.dense"].map(|p| at(&format!("attention.{p}")));
    let hidden = (width as f64 * c.mlp_ratio) as i64;
    Ok(Block {
        norms: [
            LayerNorm::load(w, &at("norm1"), width, c.layer_norm_eps)?,
            LayerNorm::load(w, &at("norm2"), width, c.layer_norm_eps)?,
        ],
        attention: Attention::load(w, [&q, &k, &v, &out], width, heads, (c.qkv_bias, false))?,
        feed_forward: if c.use_swiglu_ffn {
            // Two thirds, so that three matrices have the parameters of two, rounded up to a multiple of 8.
            let hidden = ((hidden as f64 * 2.0 / 3.0) as i64 + 7) / 8 * 8;
            FeedForward::SwiGlu(
                w.linear(&at("mlp.weights_in"), width, 2 * hidden, true)?,
                w.linear(&at("mlp.weights_out"), hidden, width, true)?,
            )
        } else {
            FeedForward::Plain(
                w.linear(&at("mlp.fc1"), width, hidden, true)?,
                c.hidden_act,
                w.linear(&at("mlp.fc2"), hidden, width, true)?,
            )
        },
        scales: Some([
            w.tensor(&at("layer_scale1.lambda1"), &[width])?,
            w.tensor(&at("layer_scale2.lambda1"), &[width])?,
        ]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cubic convolution (Keys, 1981) with slope `a`.
    fn cubic(a: f64, x: f64) -> f64 {
        match x.abs() {
            x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
            _ => 0.0,
        }
    }

    /// Weight of each of `input` samples in each of `output`, `(output, input)`.
    fn weights(input: i64, output: i64, antialias: bool) -> Tensor {
        let scale = input as f64 / output as f64;
        let stretch = if antialias { scale.max(1.0) } else { 1.0 };
        let row = |i: i64| {
            let centre = (i as f64 + 0.5) * scale - 0.5;
            let mut row = vec![0.0; input as usize];
            for k in (centre - 2.0 * stretch).floor() as i64..=(centre + 2.0 * stretch).ceil() as i64 {
                let inside = k.clamp(0, input - 1);
                // The border is repeated; against aliasing it is left out and the rest weighs more.
                if !antialias || k == inside {
                    row[inside as usize] += cubic(if antialias { -0.5 } else { -0.75 }, (k as f64 - centre) / stretch);
                }
            }
            let sum: f64 = row.iter().sum();
            row.into_iter().map(move |weight| weight / sum)
        };
        let rows: Vec<f64> = (0..output).flat_map(row).collect();
        Tensor::from_slice(&rows).reshape([output, input])
    }

    /// Needed beside the golden case: there the CLS token hardly depends on which cubic it is (5e-6 of it).
    #[test]
    fn positions_are_resampled_by_the_cubic_of_each_family() {
        let (side, width) = (5, 3);
        let wave = Tensor::arange(side * side * width, (Kind::Double, Device::Cpu)) * 1.7;
        let square = wave.sin().reshape([side, side, width]);
        let class = Tensor::ones([1, 1, width], (Kind::Double, Device::Cpu));
        let positions = Tensor::cat(&[&class, &square.reshape([1, -1, width])], 1);
        for (rows, columns) in [(7, 9), (3, 4), (5, 8)] {
            let wanted = [false, true].map(|antialias| {
                let [by_row, by_column] = [rows, columns].map(|output| weights(side, output, antialias));
                Tensor::einsum("rh,cw,hwd->rcd", &[by_row, by_column, square.shallow_clone()], None::<i64>)
            });
            assert!((&wanted[0] - &wanted[1]).abs().max().double_value(&[]) > 0.01, "the two can be told apart");
            for (antialias, wanted) in [false, true].into_iter().zip(&wanted) {
                let got = resample(&positions, rows, columns, antialias);
                assert_eq!(got.narrow(1, 0, 1), class);
                let got = got.narrow(1, 1, rows * columns).reshape(wanted.size());
                let error = (got - wanted).abs().max().double_value(&[]);
                assert!(error < 1e-5, "{rows} x {columns}, antialias {antialias}: off by {error:e}");
            }
        }
        assert_eq!(resample(&positions, side, side, false), positions);
    }
}
