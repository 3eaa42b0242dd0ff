//! Routers that travel: one aggregator trains and publishes, others use what passes their tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_tests::{Node, binary, light_binary, run};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const MINUTE: Duration = Duration::from_secs(60);

fn aggregator(data: &Path, bootstrap: &str, more: &[&str]) -> Node {
    Node::start(&binary(), data, &[&["assemble", "--bootstrap", bootstrap], more].concat()).unwrap()
}

/// Those routers, once they are as wanted.
fn routers_when(data: &Path, bootstrap: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let known = routers(data, bootstrap);
        if wanted(&known) {
            return known;
        }
        assert!(start.elapsed() < MINUTE, "{known:?}");
    }
}

/// `hdd-node routers --json` in a network.
fn routers(data: &Path, bootstrap: &str) -> Vec<Value> {
    let output = run(data, &["routers", "--json", "--bootstrap", bootstrap]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A copy of a safetensors file whose numbers went through `change`.
fn altered(file: &Path, copy: PathBuf, change: impl FnOnce(&mut [u8])) -> String {
    let mut bytes = std::fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    change(&mut bytes[8 + header..]);
    std::fs::write(&copy, bytes).unwrap();
    copy.to_str().unwrap().to_owned()
}

#[test]
fn others_use_a_published_router_and_refuse_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut relay = Node::start(&light_binary(), &at("relay"), &["relay"]).unwrap();
    let bootstrap = relay.address().unwrap();
    let mut first = aggregator(&at("first"), &bootstrap, &["--router-steps", "150"]);
    first.wait_for("published router", 2 * MINUTE).unwrap();
    // Another's has learnt nothing.
    let mut idle = aggregator(&at("idle"), &bootstrap, &["--router-steps", "1", "--seed", "5"]);
    idle.wait_for("published router", MINUTE).unwrap();

    let known = routers_when(&at("client"), &bootstrap, |known| known.len() == 2);
    let by_steps = |steps: u64| known.iter().find(|r| r["training"]["steps"] == steps).unwrap();
    let (good, bad) = (by_steps(150), by_steps(1));
    let bins: Vec<f64> = serde_json::from_value(good["training"]["accuracy"].clone()).unwrap();
    assert!(bins.len() == 10 && bins[..5].iter().all(|share| *share > 0.6), "{bins:?}");
    assert!(good["training"]["held_out"].as_u64().unwrap() > 100);
    let table = run(&at("client"), &["routers", "--bootstrap", &bootstrap]).unwrap();
    assert!(String::from_utf8_lossy(&table.stdout).contains("right, data to noise"));

    // With images it is measured, without them it is only seen to behave; nobody trains again.
    let mut second = aggregator(&at("second"), &bootstrap, &["--router", "any"]);
    second.wait_for("in service; right for", MINUTE).unwrap();
    let mut blind =
        aggregator(&at("blind"), &bootstrap, &["--no-images", "--router", good["manifest"].as_str().unwrap()]);
    blind.wait_for("was not measured", MINUTE).unwrap();
    for node in [&mut second, &mut blind] {
        node.wait_for("collecting experts", MINUTE).unwrap();
        assert!(!node.said().contains("training the router"), "{}", node.said());
    }
    assert_eq!(second.stop().unwrap(), 0);
    let verdicts = routers(&at("second"), &bootstrap);
    let verdict = verdicts.iter().find(|r| r["manifest"] == good["manifest"]).unwrap()["verdict"].clone();
    assert!(verdict["state"] == "admitted" && verdict["reason"].as_str().unwrap().contains("right for"), "{verdict}");

    // One may train on from it.
    let mut next = aggregator(&at("next"), &bootstrap, &["--router-from", "any", "--router-steps", "2"]);
    next.wait_for("trained on from router", MINUTE).unwrap();
    next.wait_for("published router", MINUTE).unwrap();
    let is_child = |r: &&Value| !r["training"]["parent"].is_null();
    let known = routers_when(&at("client"), &bootstrap, |known| known.iter().any(|r| is_child(&r)));
    let child = known.iter().find(is_child).unwrap();
    assert_eq!(child["training"]["parent"], good["weights"]["digest"]);

    // The same beginning is no reason to train again, another is.
    assert_eq!(next.stop().unwrap(), 0);
    for (from, word) in [(good, "trained here before"), (bad, "published router")] {
        let flags = ["--router-from", from["manifest"].as_str().unwrap(), "--router-steps", "2"];
        let mut again = aggregator(&at("next"), &bootstrap, &flags);
        again.wait_for(word, MINUTE).unwrap();
        assert_eq!(again.stop().unwrap(), 0);
    }

    // What learnt nothing, what is shuffled and what holds no numbers is refused, with the reason.
    let file = at("router.safetensors");
    let fetch =
        ["fetch", good["manifest"].as_str().unwrap(), "--out", file.to_str().unwrap(), "--bootstrap", &bootstrap];
    assert!(run(&at("client"), &fetch).unwrap().status.success());
    let shuffled = altered(&file, at("shuffled.safetensors"), |bytes| bytes.rotate_left(bytes.len() / 8 * 4));
    let nan = altered(&file, at("nan.safetensors"), |bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    for (router, word) in [
        (bad["manifest"].as_str().unwrap(), "a guess is right for"),
        (shuffled.as_str(), "a guess is right for"),
        (nan.as_str(), "NaN"),
        ("00000000", "no manifest or blob"),
    ] {
        let output = run(&at("third"), &["assemble", "--router", router, "--bootstrap", &bootstrap]).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(word), "{router}: {text}");
    }

    // Taken back by its author, it is out of service everywhere; who named it has no other, its author begins anew.
    let revoke = ["revoke", good["manifest"].as_str().unwrap(), "--reason", "a test", "--bootstrap", &bootstrap];
    let output = run(&at("first"), &revoke).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (node, word) in [(&mut blind, "no manifest or blob"), (&mut first, "start again with another --seed")] {
        node.wait_for("out of service: it was revoked", MINUTE).unwrap();
        node.wait_for(word, MINUTE).unwrap();
    }
}

#[test]
fn a_routers_training_that_is_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("aggregator");
    let start = |steps: &str| Node::start(&binary(), &data, &["assemble", "--router-steps", steps]).unwrap();
    let mut node = start("100000");
    node.wait_for("training the router", MINUTE).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let said = folder.path().join("aggregator.log");
    assert_eq!(node.stop().unwrap(), 0);
    let text = std::fs::read_to_string(&said).unwrap();
    let step: u64 = text.split("saved at step ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
    assert!(step > 0, "{text}");
    let mut again = start("100000");
    again.wait_for(&format!("goes on after step {step}"), MINUTE).unwrap();
    assert_eq!(again.stop().unwrap(), 0);
    // Other flags are another training.
    let mut other = start("5");
    other.wait_for("collecting experts", MINUTE).unwrap();
    let said = other.said();
    assert!(!said.contains("goes on") && said.contains("published router"), "{said}");
    assert_eq!(other.stop().unwrap(), 0);
    // They leave what was stopped as it was.
    let mut last = start("100000");
    last.wait_for("goes on after step", MINUTE).unwrap();
    assert_eq!(last.stop().unwrap(), 0);
}
