//! Signed records made to measure.

use hdd_protocol::{
    Architecture, Blob, Charter, Codec, Digest, ExpertSpec, FeatureExtractor, Latent, Limits, Manifest, Objective,
    Recipe, Revocation, RevocationTarget, RouterManifest, RouterRecipe, RouterTraining, SampleLimits, Schedule,
    SecretKey, Signed, Text, TextEncoder, TimestepMap, Training, Verified,
};

pub const NOW: u64 = 1_000;

pub fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&zeroize::Zeroizing::new([number; 32]))
}

pub fn charter_digest() -> Digest {
    Digest::of(b"charter")
}

pub fn manifest(key: &SecretKey, name: &str, sequence: u64, variant: u64) -> Verified<Manifest> {
    manifest_until(key, name, sequence, variant, NOW + 100)
}

pub fn manifest_until(key: &SecretKey, name: &str, sequence: u64, seed: u64, expires_at: u64) -> Verified<Manifest> {
    let spec = ExpertSpec {
        architecture: Architecture::new(128, 2, 4, 2),
        objective: Objective::Velocity,
        schedule: Schedule::Linear,
        cluster: 0,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    };
    let training = Training { steps: 1, images: 1, loss: 0.5, seed, recipe: Recipe::default(), parent: None };
    let manifest = Manifest {
        charter: charter_digest(),
        author: key.public(),
        name: name.into(),
        sequence,
        issued_at: 1,
        expires_at,
        spec,
        weights: Blob { digest: Digest::of(&seed.to_le_bytes()), size: 8 },
        training,
        licence: "CC0-1.0".into(),
        next_key: None,
    };
    Signed::sign(manifest, key).unwrap()
}

pub fn router(key: &SecretKey, sequence: u64, seed: u64) -> Verified<RouterManifest> {
    let training = RouterTraining {
        recipe: RouterRecipe::default(),
        steps: 1,
        images: 1,
        held_out: 0,
        accuracy: None,
        prior: vec![1.0],
        seed,
        parent: None,
    };
    let manifest = RouterManifest {
        charter: charter_digest(),
        author: key.public(),
        sequence,
        issued_at: 1,
        expires_at: NOW + 100,
        weights: Blob { digest: Digest::of(&seed.to_le_bytes()), size: 8 },
        training,
        licence: "CC0-1.0".into(),
    };
    Signed::sign(manifest, key).unwrap()
}

pub fn revocation(key: &SecretKey, target: RevocationTarget, issued_at: u64) -> Verified<Revocation> {
    let revocation = Revocation {
        charter: charter_digest(),
        author: key.public(),
        target,
        reason: "trained on the wrong pictures".into(),
        issued_at,
    };
    Signed::sign(revocation, key).unwrap()
}

pub fn charter(key: &SecretKey, name: &str) -> Verified<Charter> {
    let architecture = Architecture { channels: 3, text_width: 64, text_length: 8, ..Architecture::new(128, 2, 4, 4) };
    let charter = Charter {
        name: name.into(),
        founder: key.public(),
        issued_at: 1,
        successor_of: None,
        latent: Latent { codec: Codec::Pixels, channels: 3, size: 32, clamp: 1.0 },
        text: Text { encoder: TextEncoder::HashedWords, width: 64, length: 8 },
        extractor: FeatureExtractor::CellMeans { grid: 1 },
        centroids: vec![vec![1.0], vec![-1.0]],
        limits: Limits {
            weights_bytes: 1 << 30,
            parameters: 1 << 30,
            manifest_seconds: 1 << 30,
            sample: SampleLimits::default(),
        },
        architecture,
        recipe: Recipe::default(),
        router: RouterRecipe::default(),
        held_out: None,
        licence: "CC0-1.0".into(),
        data_terms: String::new(),
    };
    Signed::sign(charter, key).unwrap()
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
