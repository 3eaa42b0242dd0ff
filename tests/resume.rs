//! Training that is killed or stopped goes on where it was, and ends as if it had not been.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_tests::{Node, binary, run};
use std::{path::Path, time::Duration};

const MINUTE: Duration = Duration::from_secs(60);
const TINY: [&str; 20] = [
    "contribute",
    "--no-publish",
    "--cluster",
    "3",
    "--width",
    "32",
    "--depth",
    "1",
    "--heads",
    "2",
    "--limit",
    "48",
    "--steps",
    "60",
    "--batch",
    "8",
    "--save-every=10",
    "--precision=bf16",
    "--micro-batch=3",
    "--recompute",
];

fn metrics(data: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(data.join("experts/expert/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_interrupted_run_gives_the_losses_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let output = run(&whole, &TINY).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let estimate = said.lines().find(|line| line.starts_with("estimate: ")).expect(&said);
    assert!(estimate.contains(" GB, ") && estimate.contains("3 of 8 at a time, activations recomputed"), "{estimate}");

    // Killed once a checkpoint is there, then stopped politely, then left to finish.
    let checkpoint = |step: u64| broken.join(format!("experts/expert/checkpoints/step-{step:08}"));
    let first = Node::start(&binary(), &broken, &TINY).unwrap();
    let start = std::time::Instant::now();
    while ![10, 20, 30, 40, 50].into_iter().any(|step| checkpoint(step).exists()) {
        assert!(start.elapsed() < MINUTE, "{}", first.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    let mut second = Node::start(&binary(), &broken, &TINY).unwrap();
    let line = second.wait_for("images, step ", MINUTE).unwrap();
    assert!(!line.contains("step 0 of"), "{line}");
    let code = second.stop().unwrap();
    assert_eq!(code, 0);
    let third = run(&broken, &TINY).unwrap();
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));

    let (whole_metrics, broken_metrics) = (metrics(&whole), metrics(&broken));
    assert_eq!((whole_metrics.len(), broken_metrics.len()), (6, 6));
    for (a, b) in whole_metrics.iter().zip(&broken_metrics) {
        assert_eq!((&a["step"], &a["loss"]), (&b["step"], &b["loss"]));
    }
    let model =
        |data: &Path| std::fs::read(data.join("experts/expert/checkpoints/step-00000060/model.safetensors")).unwrap();
    assert_eq!(model(&whole), model(&broken), "the weights differ");
    assert!(whole.join("experts/expert/samples/step-00000060.png").exists());

    // Other flags under the same name are refused, and nothing is lost.
    let other = [&TINY[..], &["--objective", "epsilon"]].concat();
    let refused = run(&broken, &other).unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && text.contains("begun with other flags"), "{text}");
    assert_eq!(model(&whole), model(&broken));

    // A damaged checkpoint is named with its remedy, and the one before it takes its place.
    let last = checkpoint(60);
    let damaged = last.join("training.safetensors");
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let longer = TINY.map(|word| if word == "60" { "70" } else { word });
    let refused = run(&broken, &longer).unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && text.contains("remove this folder"), "{text}");
    std::fs::remove_dir_all(&last).unwrap();
    let repaired = run(&broken, &longer).unwrap();
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stderr));
    assert!(checkpoint(70).exists());
}
