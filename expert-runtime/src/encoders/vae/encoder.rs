//! Images to the moments of their latents.

use super::{
    super::weights::Weights,
    Config, Conv, SAME,
    blocks::{HALVE, Head, Mid, Resnet, resnets},
};
use crate::Result;
use tch::Tensor;

/// One level: resnets, then all but the last halve height and width.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    halve: Option<Conv>,
}

#[derive(Debug)]
pub(super) struct Encoder {
    first: Conv,
    levels: Vec<Level>,
    mid: Mid,
    head: Head,
}

impl Encoder {
    pub fn load(w: &mut Weights, c: &Config) -> Result<Self> {
        let (widths, groups) = (&c.block_out_channels, c.norm_num_groups);
        let (outer, inner) = (widths[0], widths[widths.len() - 1]);
        let levels = widths
            .iter()
            .enumerate()
            .map(|(i, &width)| {
                let name = format!("encoder.down_blocks.{i}");
                let input = widths[i.saturating_sub(1)];
                Ok(Level {
                    resnets: resnets(w, &name, [input, width], c.layers_per_block, groups)?,
                    halve: if i + 1 < widths.len() {
                        Some(Conv::load(w, &format!("{name}.downsamplers.0.conv"), [width; 2], HALVE)?)
                    } else {
                        None
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first: Conv::load(w, "encoder.conv_in", [c.in_channels, outer], SAME)?,
            levels,
            mid: Mid::load(w, "encoder", inner, c)?,
            head: Head::load(w, "encoder", [inner, 2 * c.latent_channels], groups)?,
        })
    }

    /// `(B, 3, H, W) -> (B, 2 C, h, w)`.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let x = self.levels.iter().fold(self.first.forward(images), |x, level| {
            let x = level.resnets.iter().fold(x, |x, resnet| resnet.forward(&x));
            match &level.halve {
                Some(conv) => conv.forward(&x.constant_pad_nd([0, 1, 0, 1])),
                None => x,
            }
        });
        self.head.forward(&self.mid.forward(&x))
    }
}
