//! A data folder to type commands in, and an aggregator that paints plain squares: what a picture shows is not this crate's
//! business, how it comes and what is said about it is.

use clap::Parser as _;
use hdd_node::{
    Result,
    cli::Cli,
    clock::unix_now,
    keys,
    network::Service,
    node::Node,
    settings::{GlobalArgs, Settings},
    shutdown::Shutdown,
};
use hdd_protocol::{
    Architecture, Blob, Charter, Codec, Digest, ExpertSpec, FeatureExtractor, Latent, Limits, Manifest, Objective,
    Offer, OfferedExpert, Picture, Provenance, Recipe, RouterRecipe, SampleEvent, SampleLimits, SampleRequest,
    Schedule, SecretKey, ServiceResponse, Share, Signed, Text, TextEncoder, TimestepMap, Training, Verified,
};
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::sync::mpsc;

pub fn charter() -> Verified<Charter> {
    let founder = keys::fresh().unwrap();
    let charter = Charter {
        name: "squares".into(),
        founder: founder.public(),
        issued_at: 1,
        successor_of: None,
        latent: Latent { codec: Codec::Pixels, channels: 3, size: 8, clamp: 1.0 },
        text: Text { encoder: TextEncoder::HashedWords, width: 4, length: 2 },
        extractor: FeatureExtractor::CellMeans { grid: 1 },
        centroids: vec![vec![1.0, 0.0], vec![0.0, 1.0]],
        limits: Limits {
            weights_bytes: 1 << 30,
            parameters: 1 << 30,
            manifest_seconds: 86_400,
            sample: SampleLimits::default(),
        },
        architecture: architecture(),
        recipe: Recipe::default(),
        router: RouterRecipe::default(),
        held_out: None,
        licence: "CC0-1.0".into(),
        data_terms: String::new(),
    };
    Signed::sign(charter, &founder).unwrap()
}

fn architecture() -> Architecture {
    Architecture { channels: 3, size: 8, text_width: 4, text_length: 2, ..Architecture::new(16, 1, 2, 2) }
}

pub fn manifest(key: &SecretKey, charter: &Verified<Charter>, name: &str, weights: Blob) -> Verified<Manifest> {
    let manifest = Manifest {
        charter: charter.digest(),
        author: key.public(),
        name: name.into(),
        sequence: 1,
        issued_at: unix_now(),
        expires_at: unix_now() + 3600,
        spec: ExpertSpec {
            architecture: architecture(),
            objective: Objective::Velocity,
            schedule: Schedule::Linear,
            cluster: 1,
            timestep_map: TimestepMap::Paper,
            preconditioning: None,
        },
        weights,
        training: Training { steps: 10, images: 5, loss: 0.5, seed: 0, recipe: Recipe::default(), parent: None },
        licence: "CC0-1.0".into(),
        next_key: None,
    };
    Signed::sign(manifest, key).unwrap()
}

/// How an aggregator may answer.
#[derive(Clone, Copy, PartialEq)]
pub enum Manner {
    Honest,
    WrongSeed,
    TooMany,
    HalfAPicture,
    EndsEarly,
    Vanishes,
    Refuses,
}

struct Painter {
    offer: Verified<Offer>,
    manner: Manner,
}

impl Service for Painter {
    fn offer(&self) -> Option<Vec<u8>> {
        Some(self.offer.bytes().to_vec())
    }

    fn sample(&self, request: SampleRequest, events: mpsc::Sender<ServiceResponse>) {
        let (charter, manner, share) = (self.offer.charter, self.manner, self.offer.experts[0]);
        tokio::spawn(async move {
            let send = async |event| events.send(ServiceResponse::Event(event)).await.is_ok();
            send(SampleEvent::Queued { ahead: 0 }).await;
            send(SampleEvent::Step { done: 1, of: request.steps }).await;
            if manner == Manner::Refuses {
                let code = hdd_protocol::ErrorCode::Busy;
                let _ = events.send(ServiceResponse::Refused { code, message: "come back at noon".into() }).await;
                return;
            }
            let count = match manner {
                Manner::TooMany => request.count + 1,
                Manner::EndsEarly | Manner::Vanishes => request.count - 1,
                _ => request.count,
            };
            for i in 0..u64::from(count) {
                let bytes = if manner == Manner::HalfAPicture { 96 } else { 192 };
                let picture = Picture { width: 8, height: 8, rgb: vec![200 + i as u8; bytes] };
                let seed = request.seed + if manner == Manner::WrongSeed { 7 } else { i };
                let experts = vec![Share {
                    manifest: share.manifest,
                    cluster: share.cluster,
                    objective: share.objective,
                    weight: 1.0,
                }];
                let provenance = Provenance { charter, router: None, seed, experts };
                send(SampleEvent::Picture { picture, provenance }).await;
            }
            if manner != Manner::Vanishes {
                send(SampleEvent::Done).await;
            }
        });
    }
}

/// A data folder and the flags that keep a node in it on loopback.
pub struct Home {
    folder: TempDir,
    charter: Digest,
    bootstrap: Vec<String>,
}

impl Home {
    pub fn new(charter: &Verified<Charter>, bootstrap: &[String]) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), charter: charter.digest(), bootstrap: bootstrap.to_vec() }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parse(&self, words: &[&str]) -> Cli {
        let (data, charter) = (self.data().display().to_string(), self.charter.to_string());
        let mut line = vec!["hdd-node", "--data", &data, "--charter", &charter, "--listen", "/ip4/127.0.0.1/tcp/0"];
        line.extend(self.bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
        line.extend(words);
        Cli::try_parse_from(line).unwrap()
    }

    pub fn settings(&self) -> Settings {
        settings(self.parse(&[]).global)
    }

    pub async fn run(&self, words: &[&str]) -> Result<()> {
        let cli = self.parse(words);
        cli.command.unwrap().run(settings(cli.global)).await
    }

    pub async fn host(&self, charter: &Verified<Charter>) -> Node {
        let registry = self.settings().registry().unwrap();
        registry.insert_charter(charter).unwrap();
        Node::host(&self.settings(), "seed", registry, None, false).await.unwrap()
    }

    pub async fn aggregator(&self, charter: &Verified<Charter>, manner: Manner) -> Node {
        let registry = self.settings().registry().unwrap();
        registry.insert_charter(charter).unwrap();
        let key = self.settings().key().unwrap();
        let expert = OfferedExpert { manifest: Digest::of(b"expert"), cluster: 1, objective: Objective::Epsilon };
        let offer = Offer {
            aggregator: key.public(),
            charter: charter.digest(),
            experts: vec![expert],
            router: None,
            limits: SampleLimits { count: 8, ..SampleLimits::default() },
            issued_at: unix_now(),
        };
        let service = Painter { offer: Signed::sign(offer, &key).unwrap(), manner };
        let node = Node::host(&self.settings(), "assemble", registry, Some(Arc::new(service)), false).await.unwrap();
        node.client.provide_service(charter.digest()).await.unwrap();
        node
    }
}

fn settings(global: GlobalArgs) -> Settings {
    Settings::new(global, Shutdown::manual().1)
}

pub async fn addresses(node: &Node) -> Vec<String> {
    node.client.listening().await.unwrap().iter().map(ToString::to_string).collect()
}

pub fn hdd_node(words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hdd-node"));
    command.args(words).env_remove("HDD_BOOTSTRAP").env_remove("HDD_DATA");
    command
}
