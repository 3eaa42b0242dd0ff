//! Latents to images.

use super::{
    super::weights::Weights,
    Config, Conv, SAME,
    blocks::{Head, Mid, Resnet, resnets},
};
use crate::Result;
use tch::Tensor;

/// One level: resnets, then all but the last double height and width.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    double: Option<Conv>,
}

#[derive(Debug)]
pub(super) struct Decoder {
    first: Conv,
    mid: Mid,
    levels: Vec<Level>,
    head: Head,
}

impl Decoder {
    pub fn load(w: &mut Weights, c: &Config) -> Result<Self> {
        let groups = c.norm_num_groups;
        let widths: Vec<i64> = c.block_out_channels.iter().rev().copied().collect();
        let (inner, outer) = (widths[0], widths[widths.len() - 1]);
        let levels = widths
            .iter()
            .enumerate()
            .map(|(i, &width)| {
                let name = format!("decoder.up_blocks.{i}");
                let input = widths[i.saturating_sub(1)];
                Ok(Level {
                    resnets: resnets(w, &name, [input, width], c.layers_per_block + 1, groups)?,
                    double: if i + 1 < widths.len() {
                        Some(Conv::load(w, &format!("{name}.upsamplers.0.conv"), [width; 2], SAME)?)
                    } else {
                        None
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first: Conv::load(w, "decoder.conv_in", [c.latent_channels, inner], SAME)?,
            mid: Mid::load(w, "decoder", inner, c)?,
            levels,
            head: Head::load(w, "decoder", [outer, c.out_channels], groups)?,
        })
    }

    /// `(B, C, h, w) -> (B, 3, H, W)`.
    pub fn forward(&self, latents: &Tensor) -> Tensor {
        let x = self.mid.forward(&self.first.forward(latents));
        let x = self.levels.iter().fold(x, |x, level| {
            let x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x));
            match &level.double {
                Some(conv) => conv.forward(&x.upsample_nearest2d([2 * x.size()[2], 2 * x.size()[3]], None, None)),
                None => x,
            }
        });
        self.head.forward(&x)
    }
}
