//! The charter of the network that needs no downloads: the embedded emoji.

use super::{emoji32, features, kmeans};
use crate::Result;
use hdd_protocol::{
    Architecture, Charter, Codec, FeatureExtractor, Latent, Limits, PublicKey, Recipe, RouterRecipe, SampleLimits,
    Text, TextEncoder, TimeSampling,
};

const CLUSTERS: u16 = 4;
/// Of seeds 0 to 39, the one whose smallest cluster is largest.
const SEED: u64 = 0;
const ROUNDS: usize = 200;

/// The charter that `hdd-node` carries, unsigned: pixels, hashed words, and 4 clusters of [`emoji32`] by cell means.
///
/// The paper's recipe would leave noise after the few hundred steps that a first trial takes; this one is for such trials.
///
/// # Errors
/// As [`emoji32`], [`features()`] and [`kmeans()`].
pub fn emoji_charter(founder: PublicKey, issued_at: u64) -> Result<Charter> {
    let images = emoji32()?;
    let extractor = FeatureExtractor::CellMeans { grid: 8 };
    let centroids = kmeans(&features(&extractor, &images)?, CLUSTERS, SEED, ROUNDS)?.centroids;
    let latent = Latent { codec: Codec::Pixels, channels: 3, size: images.size, clamp: 1.2 };
    let text = Text { encoder: TextEncoder::HashedWords, width: 64, length: 8 };
    Ok(Charter {
        name: "emoji32".into(),
        founder,
        issued_at,
        successor_of: None,
        extractor,
        centroids,
        limits: Limits {
            weights_bytes: 256 << 20,
            parameters: 50_000_000,
            manifest_seconds: 90 * 24 * 60 * 60,
            sample: SampleLimits { evaluations: 200_000, ..SampleLimits::default() },
        },
        architecture: Architecture {
            channels: latent.channels,
            size: latent.size,
            text_width: text.width,
            text_length: text.length,
            ..Architecture::new(128, 4, 4, 4)
        },
        recipe: Recipe {
            steps: 1_000,
            batch: 32,
            learning_rate: 1e-3,
            warmup: 50,
            ema_decay: 0.99,
            // Shapes are decided at high noise; so short a training has to spend itself there.
            times: TimeSampling::LogitNormal { mean: 1.0, std: 1.0 },
            ..Recipe::default()
        },
        router: RouterRecipe {
            width: 96,
            depth: 2,
            heads: 4,
            patch: 8,
            text: true,
            steps: 1_000,
            batch: 128,
            learning_rate: 1e-3,
            weight_decay: 1e-2,
        },
        held_out: None,
        licence: "CC-BY-4.0".into(),
        data_terms:
            "I may use the images that my expert was trained on for this purpose, and I may license its weights as the \
                     charter says. The embedded emoji may be used: their notices are in data/emoji32 of the source."
                .into(),
        latent,
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::assign;
    use hdd_protocol::{Signed, SignedPayload};

    #[test]
    fn the_shipped_charter_is_the_one_that_is_computed_here() {
        let bytes = include_bytes!("../../../node/charters/emoji32.charter");
        let shipped = Signed::<Charter>::from_bytes(bytes).unwrap().verify().unwrap();
        let computed = emoji_charter(shipped.founder, shipped.issued_at).unwrap();
        computed.check().unwrap();
        assert_eq!(*shipped, computed);
    }

    #[test]
    fn clusters_are_balanced() {
        let charter = emoji_charter(PublicKey::from_bytes([0; 32]), 0).unwrap();
        let assignments = assign(&features(&charter.extractor, &emoji32().unwrap()).unwrap(), &charter.centroids);
        for k in 0..charter.clusters() {
            let size = assignments.iter().filter(|&&a| a == k).count();
            assert!(size >= 500, "cluster {k} has {size}");
        }
    }
}
