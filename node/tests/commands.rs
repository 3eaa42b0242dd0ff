//! Commands as a person types them, against real nodes on loopback. The aggregator here paints plain squares: what a
//! picture shows is not this crate's business, how it comes and what is said about it is.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests are tests

use clap::Parser as _;
use hdd_node::{
    Error, Result,
    cli::Cli,
    clock::unix_now,
    control::{self, Reply, Request},
    keys,
    network::Service,
    node::Node,
    settings::{GlobalArgs, Settings},
    shutdown::Shutdown,
};
use hdd_protocol::{
    Announcement, Architecture, Blob, Charter, Codec, Digest, ExpertSpec, FeatureExtractor, Latent, Limits, Manifest,
    Objective, Offer, OfferedExpert, Picture, Provenance, Recipe, RouterRecipe, SampleEvent, SampleLimits,
    SampleRequest, Schedule, SecretKey, ServiceResponse, Share, Signed, Text, TextEncoder, TimestepMap, Training,
    Verified,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

fn charter() -> Verified<Charter> {
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

fn manifest(key: &SecretKey, charter: &Verified<Charter>, name: &str, weights: Blob) -> Verified<Manifest> {
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
enum Manner {
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
struct Home {
    folder: TempDir,
    charter: Digest,
    bootstrap: Vec<String>,
}

impl Home {
    fn new(charter: &Verified<Charter>, bootstrap: &[String]) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), charter: charter.digest(), bootstrap: bootstrap.to_vec() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parse(&self, words: &[&str]) -> Cli {
        let (data, charter) = (self.data().display().to_string(), self.charter.to_string());
        let mut line = vec!["hdd-node", "--data", &data, "--charter", &charter, "--listen", "/ip4/127.0.0.1/tcp/0"];
        line.extend(self.bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
        line.extend(words);
        Cli::try_parse_from(line).unwrap()
    }

    fn settings(&self) -> Settings {
        settings(self.parse(&[]).global)
    }

    async fn run(&self, words: &[&str]) -> Result<()> {
        let cli = self.parse(words);
        cli.command.unwrap().run(settings(cli.global)).await
    }

    async fn host(&self, charter: &Verified<Charter>) -> Node {
        let registry = self.settings().registry().unwrap();
        registry.insert_charter(charter).unwrap();
        Node::host(&self.settings(), "seed", registry, None, false).await.unwrap()
    }

    async fn aggregator(&self, charter: &Verified<Charter>, manner: Manner) -> Node {
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

async fn addresses(node: &Node) -> Vec<String> {
    node.client.listening().await.unwrap().iter().map(ToString::to_string).collect()
}

fn png_text(path: &Path, keyword: &str) -> String {
    let file = std::io::BufReader::new(fs::File::open(path).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == keyword).unwrap();
    chunk.get_text().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_finds_an_aggregator_and_writes_pictures_that_say_how_they_came_to_be() {
    let charter = charter();
    let served = Home::new(&charter, &[]);
    let aggregator = served.aggregator(&charter, Manner::Honest).await;
    let client = Home::new(&charter, &addresses(&aggregator).await);
    let (out, json) = (client.path("a.png"), client.path("a.json"));
    let (out_text, json_text) = (out.display().to_string(), json.display().to_string());
    let line = ["sample", "--prompt", "red apple", "--prompt", "blue car", "--count", "2", "--seed", "40"];
    client.run(&[&line[..], &["--out", &out_text, "--samples-json", &json_text]].concat()).await.unwrap();

    let records: serde_json::Value = serde_json::from_str(&png_text(&out, "hdd-provenance")).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(records, text);
    let records = records.as_array().unwrap();
    let field = |name: &str| records.iter().map(|r| r[name].to_string().replace('"', "")).collect::<Vec<_>>();
    assert_eq!(field("seed"), ["40", "41", "40", "41"]);
    assert_eq!(field("prompt"), ["red apple", "red apple", "blue car", "blue car"]);
    assert_eq!(field("aggregator")[3], aggregator.client.peer_id().to_string());
    assert_eq!(records[0]["experts"][0]["manifest"], Digest::of(b"expert").to_string());
    assert_eq!(png_text(&out, "Description"), "red apple\nblue car");

    client.run(&[&line[..], &["--out", &out_text, "--separate"]].concat()).await.unwrap();
    for name in ["a-1-1.png", "a-1-2.png", "a-2-1.png", "a-2-2.png"] {
        assert!(png_text(&client.path(name), "hdd-provenance").contains("\"seed\":4"), "{name}");
    }
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_fails_or_lies_leaves_an_error_and_no_file() {
    let charter = charter();
    for (manner, word) in [
        (Manner::WrongSeed, "seed 7 where 0"),
        (Manner::TooMany, "more pictures"),
        (Manner::HalfAPicture, "do not fit its sides"),
        (Manner::EndsEarly, "1 of 2 pictures"),
        (Manner::Vanishes, "lost the connection"),
        (Manner::Refuses, "come back at noon"),
    ] {
        let served = Home::new(&charter, &[]);
        let aggregator = served.aggregator(&charter, manner).await;
        let client = Home::new(&charter, &addresses(&aggregator).await);
        let out = client.path("a.png").display().to_string();
        let error = client.run(&["sample", "--prompt", "x", "--count", "2", "--out", &out]).await.unwrap_err();
        assert!(error.chain().contains(word), "{word}: {}", error.chain());
        assert!(!client.path("a.png").exists());
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_checked_against_the_offer_and_the_waiting_for_an_aggregator_ends() {
    let charter = charter();
    let served = Home::new(&charter, &[]);
    let aggregator = served.aggregator(&charter, Manner::Honest).await;
    let client = Home::new(&charter, &addresses(&aggregator).await);
    let error = client.run(&["sample", "--prompt", "x", "--count", "9"]).await.unwrap_err();
    assert!(error.chain().contains("count is 9, must be 1 to 8"), "{}", error.chain());
    aggregator.stop().await;

    let quiet = Home::new(&charter, &[]);
    let host = quiet.host(&charter).await;
    let client = Home::new(&charter, &addresses(&host).await);
    let error = client.run(&["sample", "--prompt", "x", "--wait", "1"]).await.unwrap_err();
    assert!(matches!(error, Error::NoAggregator { .. }), "{error}");
    assert!(error.to_string().contains("hdd-node assemble"), "{error}");
    host.stop().await;

    let alone = Home::new(&charter, &[]);
    let error = alone.run(&["sample", "--prompt", "x"]).await.unwrap_err();
    assert!(matches!(error, Error::NoPeers), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_work_beside_a_running_node_and_through_it() {
    let charter = charter();
    let served = Home::new(&charter, &[]);
    let aggregator = served.aggregator(&charter, Manner::Honest).await;
    let home = Home::new(&charter, &addresses(&aggregator).await);
    let host = home.host(&charter).await;
    host.connected().await.unwrap();

    let socket = home.data().join("control.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let Reply::Status(status) = control::ask(&home.data(), &Request::Status).await.unwrap() else { panic!() };
    assert_eq!((status.role.as_str(), status.peers), ("seed", 1));
    assert_eq!(status.charter.unwrap().clusters, 2);
    for line in [&["status"][..], &["experts", "--json"], &["peers"]] {
        home.run(line).await.unwrap();
    }
    let refused = control::ask(&home.data(), &Request::Announce { record: "zz".into() }).await.unwrap_err();
    assert!(refused.to_string().contains("hexadecimal"), "{refused}");
    let forged = hdd_protocol::encode(&Announcement::Manifest(vec![1, 2, 3])).unwrap();
    let refused = control::ask(&home.data(), &Request::Announce { record: hex::encode(forged) }).await.unwrap_err();
    assert!(matches!(refused, Error::ControlRefused(_)), "{refused}");

    let in_use = home.run(&["seed"]).await.unwrap_err();
    assert!(matches!(in_use, Error::Registry(hdd_registry::Error::InUse { .. })), "{in_use}");
    let out = home.path("a.png").display().to_string();
    home.run(&["sample", "--prompt", "x", "--out", &out]).await.unwrap();
    assert!(home.path("a.png").exists());

    host.stop().await;
    assert!(!socket.exists());
    aggregator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expert_is_fetched_by_its_short_name_and_revoked_everywhere() {
    let charter = charter();
    let home = Home::new(&charter, &[]);
    let host = home.host(&charter).await;
    let weights = (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>();
    let blob = host.registry.import_bytes(&weights).unwrap();
    let signed = manifest(&host.key, &charter, "apples", blob);
    host.client.announce(Announcement::Manifest(signed.bytes().to_vec())).await.unwrap();

    let other = Home::new(&charter, &addresses(&host).await);
    let out = other.path("w").display().to_string();
    let id = signed.digest().to_string();
    other.run(&["fetch", &id[..10], "--out", &out]).await.unwrap();
    assert_eq!(fs::read(other.path("w")).unwrap(), weights);
    let unknown = other.run(&["fetch", "0123456789"]).await.unwrap_err();
    assert!(matches!(unknown, Error::Unknown { peers: 1, .. }), "{unknown}");

    let stranger = other.run(&["revoke", "apples", "--reason", "mine now"]).await.unwrap_err();
    assert!(stranger.to_string().contains("no expert of yours"), "{stranger}");
    let mistyped = home.run(&["revoke", "pears", "--reason", "x"]).await.unwrap_err();
    assert!(mistyped.to_string().contains("'pears'"), "{mistyped}");
    assert!(home.run(&["revoke", "apples", "--reason", &"x".repeat(201)]).await.is_err());
    assert_eq!(host.registry.manifests(None).unwrap().len(), 1);

    home.run(&["revoke", "apples", "--reason", "wrong pictures"]).await.unwrap();
    assert_eq!(host.registry.manifests(None).unwrap().len(), 0);
    other.run(&["experts"]).await.unwrap(); // takes in what it missed
    let registry = other.settings().registry().unwrap();
    assert_eq!(registry.manifests(None).unwrap().len(), 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_cannot_be_written_are_refused_before_any_waiting() {
    let charter = charter();
    let home = Home::new(&charter, &[]);
    for out in ["a.jpg", "no/such/folder/a.png"] {
        let out = home.path(out).display().to_string();
        let error = home.run(&["sample", "--prompt", "x", "--out", &out]).await.unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(!home.data().exists());
    }
}

fn hdd_node(words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hdd-node"));
    command.args(words).env_remove("HDD_BOOTSTRAP").env_remove("HDD_DATA");
    command
}

#[test]
fn the_process_reports_errors_on_standard_error_and_in_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let run = |words: &[&str]| {
        let output = hdd_node(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = run(&[]);
    assert!(code == 0 && out.contains("Three roles"), "{out}");
    let (code, out, _) = run(&["--version"]);
    assert!(code == 0 && out.contains("wire version 1") && out.contains("libtorch"), "{out}");
    let (code, out, _) = run(&["key", "show", "--data", &data]);
    assert!(code == 0 && out.contains("peer id  12D3Koo"), "{out}");

    let key = keys::path(folder.path());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, out, err) = run(&["key", "show", "--data", &data]);
    assert!(code == 1 && out.is_empty() && err.starts_with("error: ") && err.contains("chmod 600"), "{err}");
    let (code, _, err) = run(&["key", "import", "/no/such/file", "--data", &data]);
    assert!(code == 1 && err.contains("\n  caused by: "), "{err}");
    let (code, _, err) = run(&["sample", "--prompt", "x", "--mode", "full", "--k", "3", "--data", &data]);
    assert!(code == 2 && err.contains("--mode topk"), "{err}");
}

#[test]
fn a_signal_ends_a_host_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let mut host = hdd_node(&["relay", "--data", &data, "--listen", "/ip4/127.0.0.1/tcp/0"]);
    let mut host = host.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let socket = folder.path().join("data/control.sock");
    let mut stderr = std::io::BufReader::new(host.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("--bootstrap /ip4/127.0.0.1/tcp/") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "the host ended");
    }
    assert!(socket.exists());
    let status = hdd_node(&["status", "--json", "--data", &data]).output().unwrap();
    assert!(String::from_utf8(status.stdout).unwrap().contains("\"role\": \"relay\""));
    let kill = std::process::Command::new("kill").arg(host.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(host.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}
