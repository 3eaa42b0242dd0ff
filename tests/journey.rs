//! Contribute -> assemble -> sample, as processes, with tiny experts of both objectives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_tests::{Node, binary, light_binary, run};
use std::{fs::File, io::BufReader, path::Path, time::Duration};

const MINUTE: Duration = Duration::from_secs(60);

/// The text chunks of a PNG and its sides.
fn read_png(path: &Path) -> (Vec<(String, String)>, u32, u32) {
    let reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let info = reader.info();
    let chunks = info.utf8_text.iter().map(|c| (c.keyword.clone(), c.get_text().unwrap())).collect();
    (chunks, info.width, info.height)
}

#[test]
fn strangers_make_a_model_and_a_client_gets_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut relay = Node::start(&light_binary(), &at("relay"), &["relay"]).unwrap();
    let bootstrap = relay.address().unwrap();
    let tiny = ["--width", "32", "--depth", "1", "--heads", "2", "--limit", "64", "--steps", "40", "--batch", "16"];
    let contribute = |name: &str, more: &[&str]| {
        let args = [&["contribute", "--name", name, "--bootstrap", &bootstrap], &tiny[..], more].concat();
        Node::start(&binary(), &at(name), &args).unwrap()
    };
    let mut flow = contribute("flow", &["--cluster", "0"]);
    let mut ddpm = contribute("ddpm", &["--cluster", "1", "--objective", "epsilon"]);
    flow.wait_for("published flow", MINUTE).unwrap();
    ddpm.wait_for("published ddpm", MINUTE).unwrap();

    // The aggregator comes last: it learns of both from peers. These experts have learnt nothing yet, hence the ratio.
    let args = ["assemble", "--router-steps", "20", "--max-loss", "1000", "--bootstrap", &bootstrap];
    let mut aggregator = Node::start(&binary(), &at("aggregator"), &args).unwrap();
    aggregator.wait_for("serving 2 experts for 2 of 4 clusters", MINUTE).unwrap();

    let picture = at("picture.png");
    let sample = |out: &Path, more: &[&str]| {
        let out = out.to_str().unwrap();
        let args = [
            "sample",
            "--prompt",
            "noto red apple",
            "--count",
            "2",
            "--steps",
            "4",
            "--out",
            out,
            "--bootstrap",
            &bootstrap,
        ];
        run(&at("client"), &[&args[..], more].concat()).unwrap()
    };
    let output = sample(&picture, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (chunks, width, height) = read_png(&picture);
    assert!(width >= 2 * 96 && height >= 96, "{width} x {height}");
    let text = |key: &str| chunks.iter().find(|(k, _)| k == key).map(|(_, text)| text.as_str()).unwrap_or_default();
    assert!(text("Description").contains("noto red apple"));

    // Provenance names the manifests that the contributors published.
    let experts = run(&at("client"), &["experts", "--json", "--bootstrap", &bootstrap]).unwrap();
    let experts: serde_json::Value = serde_json::from_slice(&experts.stdout).unwrap();
    let manifests: Vec<&str> = experts.as_array().unwrap().iter().map(|e| e["manifest"].as_str().unwrap()).collect();
    assert_eq!(manifests.len(), 2);
    assert!(manifests.iter().any(|m| text("hdd-provenance").contains(m)), "{}", text("hdd-provenance"));

    // The same seed gives the same picture, in every mode a picture comes.
    let again = at("again.png");
    assert!(sample(&again, &[]).status.success());
    assert_eq!(std::fs::read(&picture).unwrap(), std::fs::read(&again).unwrap());
    for mode in [
        &["--mode", "top1"][..],
        &["--mode", "full", "--negative", "blue"],
        &["--mode", "threshold", "--threshold", "0.5"],
        &["--conversion", "paper"],
    ] {
        let output = sample(&at("mode.png"), mode);
        assert!(output.status.success(), "{mode:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    // An expert that is taken back is out of the next offer.
    let revoked = run(&at("flow"), &["revoke", "flow", "--reason", "a test"]).unwrap();
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    aggregator.wait_for("serving 1 experts for 1 of 4 clusters", MINUTE).unwrap();

    // Killed and started again, the aggregator has its router and serves at once.
    aggregator.kill().unwrap();
    let mut aggregator = Node::start(&binary(), &at("aggregator"), &args).unwrap();
    aggregator.wait_for("serving 1 experts", MINUTE).unwrap();
    assert!(!aggregator.said().contains("training the router"), "{}", aggregator.said());
    assert_eq!(aggregator.stop().unwrap(), 0);
    assert_eq!(relay.stop().unwrap(), 0);
}
