//! What training will take, before it begins.

use crate::fused::keeps_probabilities;
use hdd_protocol::{Architecture, Precision, Recipe};
use tch::Device;

/// Bytes a parameter: weight, gradient, two moments and average in float32.
const PARAMETER: u64 = 5 * 4;
/// Float32 numbers that a block keeps for each token and channel: outputs of the first and third norm, both gates'
/// inputs, and the three sums along the residual stream.
const WIDE: u64 = 7;
/// Those in the precision of the products: three modulated inputs, qkv, cross queries, two attention outputs, MLP (4 + 4).
const NARROW: u64 = 17;
/// Numbers that the backward pass of one block holds at its peak beside those: gradients of the MLP, in the main.
const GRADIENT: u64 = 10;
/// Batches that the loader and the step hold, in the host's memory.
const BATCHES: u64 = 3;
/// Driver's context, code and workspaces of the products.
const CUDA_RUNTIME: u64 = 800 << 20;
/// libtorch and its workspaces on the CPU.
const CPU_RUNTIME: u64 = 160 << 20;

/// Memory of training, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Whatever the number of images at a time.
    pub fixed: u64,
    /// For each image at a time.
    pub per_image: u64,
}

impl Footprint {
    /// Memory of `device` for training on `images` images: what the passes keep, layer by layer. The data count where they
    /// lie, with the host.
    pub fn of(a: &Architecture, recipe: &Recipe, images: u64, recompute: bool, device: Device) -> Self {
        let half = matches!(recipe.precision, Precision::Bf16 | Precision::Fp16);
        let narrow = if half { 2 } else { 4 };
        let [width, depth, heads] = [a.width, a.depth, a.heads].map(u64::from);
        let (tokens, words) = (u64::from(a.tokens()), u64::from(a.text_length));
        let pixels = u64::from(a.channels * a.size * a.size);
        let kept = if recompute { 1 } else { depth }; // blocks whose numbers exist at once

        // Attention in float32 on the CPU keeps its probabilities.
        let kept_for =
            |words: u64| if !half && keeps_probabilities(tokens as i64, words as i64, device) { words } else { 0 };
        let probabilities = heads * tokens * (kept_for(tokens) + kept_for(words)) * 4;
        let block = tokens * width * (WIDE * 4 + NARROW * narrow) + words * width * 2 * narrow + probabilities;
        let gradient = tokens * width * GRADIENT * narrow;
        let inputs = if recompute { depth * tokens * width * 4 } else { 0 };

        let text = words * u64::from(a.text_width);
        let casts = if half { a.parameters() * narrow * kept / depth } else { 0 };
        let prepared = (2 * pixels + text) * 4; // an image with its noise
        // A card is given a part of the batch at a time; on the host parts share the whole one's memory.
        let (runtime, data, brought) = match device {
            Device::Cpu => {
                (CPU_RUNTIME, 4 * images * (pixels + text) + BATCHES * u64::from(recipe.batch) * prepared, 0)
            }
            _ => (CUDA_RUNTIME, 0, prepared),
        };
        Self {
            fixed: a.parameters() * PARAMETER + casts + data + runtime,
            per_image: kept * block + inputs + gradient + 8 * pixels * 4 + brought,
        }
    }

    /// With `micro_batch` images at a time.
    pub fn bytes(&self, micro_batch: u32) -> u64 {
        self.fixed + self.per_image * u64::from(micro_batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 6.2's batch of 128 on the cards of the issue. A card of "24 GB" has at least 24e9 bytes, of which 23.5e9 are
    /// free to a program.
    #[test]
    fn the_papers_networks_fit_the_cards_that_they_should() {
        let gigabytes = |name: &str, precision, micro_batch, recompute| {
            let recipe = Recipe { precision, ..Recipe::default() };
            let footprint =
                Footprint::of(&Architecture::named(name).unwrap(), &recipe, 1_000, recompute, Device::Cuda(0));
            footprint.bytes(micro_batch) as f64 / 1e9
        };
        for precision in [Precision::Bf16, Precision::Fp16] {
            let xl_whole = gigabytes("XL/2", precision, 128, true);
            assert!((18.0..23.5).contains(&xl_whole), "XL/2, 128 at a time, recomputed: {xl_whole} GB");
            let xl_parts = gigabytes("XL/2", precision, 32, true);
            assert!((12.1..15.5).contains(&xl_parts), "XL/2, 32 at a time, recomputed: {xl_parts} GB");
            let b_parts = gigabytes("B/2", precision, 16, false);
            assert!((2.4..7.5).contains(&b_parts), "B/2, 16 at a time: {b_parts} GB");
        }
        // Data count in the host's memory: a latent and its text, 77 x 768, in float32.
        let (a, recipe) = (Architecture::named("B/2").unwrap(), Recipe::default());
        let [host, card] = [Device::Cpu, Device::Cuda(0)].map(|device| {
            let of = |images| Footprint::of(&a, &recipe, images, false, device).bytes(1);
            of(1_000) - of(0)
        });
        assert_eq!((host, card), (1_000 * 4 * (4 * 32 * 32 + 77 * 768), 0));
        // Without these means it would not.
        assert!(gigabytes("XL/2", Precision::Bf16, 128, false) > 24.0);
        assert!(gigabytes("XL/2", Precision::Float32, 128, true) > gigabytes("XL/2", Precision::Bf16, 128, true));
    }
}
