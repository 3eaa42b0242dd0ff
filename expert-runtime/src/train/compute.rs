use super::Footprint;
use hdd_protocol::{Architecture, Recipe};
use serde::{Deserialize, Serialize};
use std::iter::successors;
use tch::Device;

/// Share of the free memory that a run plans with; the rest is for what fragments and for others.
const USABLE: f64 = 0.9;
/// Fewer images at a time than this leave a device idle: recomputing a larger part is faster.
const FEW: u32 = 4;

/// How a step's batch is computed. Changes memory and speed, and results by rounding only; kept with a run, so that it
/// goes on exactly as it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Images at a time; gradients of a batch accumulate over its parts.
    pub micro_batch: u32,
    /// Whether blocks are computed again in the backward pass instead of kept.
    pub recompute: bool,
}

impl Compute {
    /// The whole batch at once, everything kept.
    pub fn whole(recipe: &Recipe) -> Self {
        Self { micro_batch: recipe.batch, recompute: false }
    }

    /// The fastest way that fits `available` bytes of `device`: the largest halving of the batch, with everything kept
    /// if that leaves a few images at a time and `recompute` does not ask otherwise. One image, recomputed, where nothing fits.
    /// `images` is the number of images trained on.
    pub fn choose(
        a: &Architecture,
        recipe: &Recipe,
        images: u64,
        device: Device,
        available: u64,
        recompute: bool,
    ) -> Self {
        let budget = (available as f64 * USABLE) as u64;
        let largest = |recompute| {
            let footprint = Footprint::of(a, recipe, images, recompute, device);
            successors(Some(recipe.batch), |n| Some(n / 2))
                .take_while(|&n| n > 0)
                .find(|&n| footprint.bytes(n) <= budget)
        };
        match largest(false) {
            Some(micro_batch) if !recompute && micro_batch >= FEW.min(recipe.batch) => Self { micro_batch, recompute },
            _ => Self { micro_batch: largest(true).unwrap_or(1), recompute: true },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_is_divided_to_fit_and_recomputed_where_that_leaves_too_little() {
        let xl = Architecture::named("XL/2").unwrap();
        let recipe = Recipe::default();
        let choose = |gigabytes: u64, recompute| {
            let c = Compute::choose(&xl, &recipe, 1_000, Device::Cuda(0), gigabytes * 1_000_000_000, recompute);
            (c.micro_batch, c.recompute)
        };
        assert_eq!(choose(1_000, false), (128, false));
        assert_eq!(choose(1_000, true), (128, true));
        let (half, recompute) = choose(80, false);
        assert!((8..128).contains(&half) && !recompute, "{half}");
        let (small, recompute) = choose(16, false);
        assert!(small < half && recompute, "{small}");
        assert_eq!(choose(1, false), (1, true));
    }
}
