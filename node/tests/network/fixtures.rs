//! Nodes, and records made to measure.

use hdd_node::network::{self, Client, Multiaddr, NetworkConfig, Running, Service};
use hdd_protocol::{
    Announcement, Architecture, Blob, Charter, Codec, Digest, ExpertSpec, FeatureExtractor, Latent, Limits, Manifest,
    Objective, Recipe, RouterManifest, RouterRecipe, RouterTraining, SampleLimits, Schedule, SecretKey, Signed, Text,
    TextEncoder, TimestepMap, Training, Verified,
};
use hdd_registry::Registry;
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use std::{path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

pub const NOW: u64 = 1_000_000;
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&zeroize::Zeroizing::new([number; 32]))
}

pub struct Node {
    pub client: Client,
    pub registry: Arc<Registry>,
    pub running: Running,
    pub address: Option<Multiaddr>,
    pub folder: TempDir,
}

impl Node {
    /// A node that can be dialled.
    pub async fn start(number: u8, bootstrap: &[&Node]) -> Self {
        Self::with(number, TempDir::new().unwrap(), listening(bootstrap), None).await
    }

    /// A node that only dials.
    pub async fn hidden(number: u8, bootstrap: &[&Node]) -> Self {
        Self::with(number, TempDir::new().unwrap(), config(bootstrap), None).await
    }

    pub async fn with(number: u8, folder: TempDir, config: NetworkConfig, service: Option<Arc<dyn Service>>) -> Self {
        let registry = Arc::new(open(folder.path()).await);
        let (client, running) = network::start(config, &key(number), registry.clone(), service).await.unwrap();
        let address = client.listening().await.unwrap().into_iter().next();
        Self { client, registry, running, address, folder }
    }

    /// Stops the node and returns its folder, to be started with again.
    pub async fn stop(self) -> TempDir {
        self.running.stop().await;
        self.folder
    }

    pub fn has(&self, record: Digest) -> bool {
        self.registry.record(record).unwrap().is_some()
    }
}

/// Opens a registry, whose lock a node that has just stopped may hold for a moment.
async fn open(folder: &Path) -> Registry {
    for _ in 0..100 {
        match Registry::open(folder) {
            Err(hdd_registry::Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays locked", folder.display())
}

pub fn config(bootstrap: &[&Node]) -> NetworkConfig {
    NetworkConfig {
        bootstrap: bootstrap.iter().map(|node| node.address.clone().unwrap()).collect(),
        now: Arc::new(|| NOW),
        limits: network::Limits { redial_first: Duration::from_millis(200), ..Default::default() },
        ..NetworkConfig::default()
    }
}

pub fn listening(bootstrap: &[&Node]) -> NetworkConfig {
    NetworkConfig { listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()], ..config(bootstrap) }
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn charter() -> Verified<Charter> {
    let architecture = Architecture { channels: 3, text_width: 64, text_length: 8, ..Architecture::new(128, 2, 4, 4) };
    let charter = Charter {
        name: "test".into(),
        founder: key(200).public(),
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
    Signed::sign(charter, &key(200)).unwrap()
}

pub fn manifest(author: u8, name: &str, change: impl FnOnce(&mut Manifest)) -> Verified<Manifest> {
    let charter = charter();
    let mut manifest = Manifest {
        charter: charter.digest(),
        author: key(author).public(),
        name: name.into(),
        sequence: 1,
        issued_at: NOW - 10,
        expires_at: NOW + 1000,
        spec: ExpertSpec {
            architecture: charter.architecture.clone(),
            objective: Objective::Velocity,
            schedule: Schedule::Linear,
            cluster: 0,
            timestep_map: TimestepMap::Paper,
            preconditioning: None,
        },
        weights: Blob { digest: Digest::of(name.as_bytes()), size: 8 },
        training: Training { steps: 1, images: 1, loss: 0.5, seed: 0, recipe: Recipe::default(), parent: None },
        licence: "CC0-1.0".into(),
        next_key: None,
    };
    change(&mut manifest);
    Signed::sign(manifest, &key(author)).unwrap()
}

pub fn router(author: u8, change: impl FnOnce(&mut RouterManifest)) -> Verified<RouterManifest> {
    let charter = charter();
    let training = RouterTraining {
        recipe: charter.router.clone(),
        steps: 1,
        images: 1,
        held_out: 0,
        accuracy: None,
        prior: vec![0.5, 0.5],
        seed: 0,
        parent: None,
    };
    let mut manifest = RouterManifest {
        charter: charter.digest(),
        author: key(author).public(),
        sequence: 1,
        issued_at: NOW - 10,
        expires_at: NOW + 1000,
        weights: Blob { digest: Digest::of(b"router"), size: 8 },
        training,
        licence: "CC0-1.0".into(),
    };
    change(&mut manifest);
    Signed::sign(manifest, &key(author)).unwrap()
}

pub fn announcement(manifest: &Verified<Manifest>) -> Announcement {
    Announcement::Manifest(manifest.bytes().to_vec())
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
