//! What works: pictures are asked for, experts looked at, fetched and revoked, nodes stopped.

use crate::fixtures::{Home, Manner, addresses, charter, hdd_node, manifest};
use hdd_node::{
    Error,
    control::{self, Reply, Request},
};
use hdd_protocol::{Announcement, Digest};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

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
