//! What the two halves of the autoencoder share.

use super::{
    super::{transformer::Attention, weights::Weights},
    Config,
};
use crate::Result;
use tch::Tensor;

/// `diffusers`' epsilon of every GroupNorm here.
const EPSILON: f64 = 1e-6;

/// Kernel side, stride and padding of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    kernel: i64,
    stride: i64,
    padding: i64,
}

/// 3 x 3, keeps height and width.
pub const SAME: Shape = Shape { kernel: 3, stride: 1, padding: 1 };
/// 1 x 1: a linear layer at every pixel.
pub const POINT: Shape = Shape { kernel: 1, stride: 1, padding: 0 };
/// 3 x 3, halves; its input is padded below and to the right.
pub const HALVE: Shape = Shape { kernel: 3, stride: 2, padding: 0 };

/// A convolution with bias.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor, // (out, in, k, k)
    bias: Tensor,   // (out)
    shape: Shape,
}

impl Conv {
    pub fn load(weights: &mut Weights, name: &str, [input, output]: [i64; 2], shape: Shape) -> Result<Self> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[output, input, shape.kernel, shape.kernel])?,
            bias: weights.tensor(&format!("{name}.bias"), &[output])?,
            shape,
        })
    }

    /// `(B, in, H, W) -> (B, out, H / stride, W / stride)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [self.shape.stride], [self.shape.padding], [1], 1)
    }
}

/// GroupNorm with scale and shift.
#[derive(Debug)]
pub struct GroupNorm {
    affine: [Tensor; 2], // (C) each
    groups: i64,
}

impl GroupNorm {
    pub fn load(weights: &mut Weights, name: &str, channels: i64, groups: i64) -> Result<Self> {
        Ok(Self { affine: weights.affine(name, channels)?, groups })
    }

    /// `(B, C, H, W) -> (B, C, H, W)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [scale, shift] = &self.affine;
        x.group_norm(self.groups, Some(scale), Some(shift), EPSILON, true)
    }
}

/// Two convolutions beside a shortcut.
#[derive(Debug)]
pub struct Resnet {
    norms: [GroupNorm; 2],
    convs: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Resnet {
    pub fn load(weights: &mut Weights, name: &str, [input, output]: [i64; 2], groups: i64) -> Result<Self> {
        let at = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norms: [
                GroupNorm::load(weights, &at("norm1"), input, groups)?,
                GroupNorm::load(weights, &at("norm2"), output, groups)?,
            ],
            convs: [
                Conv::load(weights, &at("conv1"), [input, output], SAME)?,
                Conv::load(weights, &at("conv2"), [output, output], SAME)?,
            ],
            shortcut: if input == output {
                None
            } else {
                Some(Conv::load(weights, &at("conv_shortcut"), [input, output], POINT)?)
            },
        })
    }

    /// `(B, in, H, W) -> (B, out, H, W)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let half = |i: usize, x: &Tensor| self.convs[i].forward(&self.norms[i].forward(x).silu());
        let y = half(1, &half(0, x));
        match &self.shortcut {
            Some(conv) => conv.forward(x) + y,
            None => x + y,
        }
    }
}

/// `count` resnets, the first of which changes the number of channels.
pub fn resnets(
    weights: &mut Weights,
    name: &str,
    [input, output]: [i64; 2],
    count: i64,
    groups: i64,
) -> Result<Vec<Resnet>> {
    (0..count)
        .map(|i| {
            let input = if i == 0 { input } else { output };
            Resnet::load(weights, &format!("{name}.resnets.{i}"), [input, output], groups)
        })
        .collect()
}

/// The innermost block: resnet, attention between all pixels, resnet.
#[derive(Debug)]
pub struct Mid {
    first: Resnet,
    attention: Option<(GroupNorm, Attention)>,
    second: Resnet,
}

impl Mid {
    pub fn load(weights: &mut Weights, half: &str, channels: i64, c: &Config) -> Result<Self> {
        let at = |part: &str| format!("{half}.mid_block.{part}");
        let attention = if c.mid_block_add_attention {
            let norm = GroupNorm::load(weights, &at("attentions.0.group_norm"), channels, c.norm_num_groups)?;
            let first_names = weights.shape(&at("attentions.0.query.weight")).is_some();
            let names =
                if first_names { ["query", "key", "value", "proj_attn"] } else { ["to_q", "to_k", "to_v", "to_out.0"] };
            let [q, k, v, out] = names.map(|name| at(&format!("attentions.0.{name}")));
            Some((norm, Attention::load(weights, [&q, &k, &v, &out], channels, 1, (true, false))?))
        } else {
            None
        };
        let mut resnet = |i: i64| Resnet::load(weights, &at(&format!("resnets.{i}")), [channels; 2], c.norm_num_groups);
        Ok(Self { first: resnet(0)?, attention, second: resnet(1)? })
    }

    /// `(B, C, H, W) -> (B, C, H, W)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.first.forward(x);
        if let Some((norm, attention)) = &self.attention {
            let tokens = norm.forward(&x).flatten(2, 3).transpose(1, 2); // (B, HW, C)
            x = attention.forward(&tokens).transpose(1, 2).reshape(x.size()) + x;
        }
        self.second.forward(&x)
    }
}

/// Normalisation, nonlinearity and convolution at the end of either half.
#[derive(Debug)]
pub struct Head {
    norm: GroupNorm,
    conv: Conv,
}

impl Head {
    pub fn load(weights: &mut Weights, half: &str, channels: [i64; 2], groups: i64) -> Result<Self> {
        Ok(Self {
            norm: GroupNorm::load(weights, &format!("{half}.conv_norm_out"), channels[0], groups)?,
            conv: Conv::load(weights, &format!("{half}.conv_out"), channels, SAME)?,
        })
    }

    /// `(B, in, H, W) -> (B, out, H, W)`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.conv.forward(&self.norm.forward(x).silu())
    }
}
