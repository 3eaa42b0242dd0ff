//! An expert that begins from another's weights begins where that one ended, and names it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_tests::run;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Trains `name` for some steps on the embedded pictures with more flags: exit code and what it said.
fn train(data: &Path, name: &str, flags: &[&str]) -> (i32, String) {
    let line = ["contribute", "--no-publish", "--limit", "48", "--batch", "8", "--name", name];
    let output = run(data, &[&line[..], flags].concat()).unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn checkpoint(data: &Path, name: &str, step: u32) -> PathBuf {
    data.join(format!("experts/{name}/checkpoints/step-{step:08}"))
}

fn config(checkpoint: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(checkpoint.join("config.json")).unwrap()).unwrap()
}

/// The weights of a checkpoint, one after the other: after the header, whose length is the file's first number.
fn weights(checkpoint: &Path) -> Vec<f32> {
    let bytes = std::fs::read(checkpoint.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[8 + header..].as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[test]
fn an_expert_begins_from_anothers_weights_and_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let tiny = ["--width", "32", "--depth", "1", "--heads", "2", "--ema-decay", "0.9"];
    let (code, said) = train(&data, "first", &[&tiny[..], &["--steps", "60", "--cluster", "3"]].concat());
    assert_eq!(code, 0, "{said}");
    let first = checkpoint(&data, "first", 60);

    // From the checkpoint itself, with steps too small to lead away from it.
    let init = first.to_str().unwrap();
    let still = ["--learning-rate", "1e-8", "--steps", "10", "--seed", "1"];
    let (code, said) = train(&data, "second", &[&["--init", init][..], &still].concat());
    assert_eq!(code, 0, "{said}");
    let second = checkpoint(&data, "second", 10);
    let (before, after) = (weights(&first), weights(&second));
    assert!(before.len() > 10_000 && before.len() == after.len());
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-6));
    let second = config(&second);
    assert_eq!(second["spec"]["architecture"], config(&first)["spec"]["architecture"]);

    // From an import of it for another objective, which has the same parent and says path and cluster; then on from where it was.
    let import = folder.path().join("import");
    let objective =
        ["--objective", "epsilon", "--timestep-map", "snr", "--schedule", "cosine-offset", "--cluster", "2"];
    let line = ["import", "--from", "hdd", init, "--out", import.to_str().unwrap()];
    let output = run(&data, &[&line[..], &objective].concat()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let import = import.to_str().unwrap();
    for steps in ["10", "20"] {
        let (code, said) = train(&data, "third", &["--init", import, "--objective", "epsilon", "--steps", steps]);
        assert_eq!(code, 0, "{said}");
    }
    let third = config(&checkpoint(&data, "third", 20));
    assert_eq!((&third["spec"]["timestep_map"], &third["spec"]["cluster"]), (&"snr".into(), &2.into()));
    assert_eq!(third["spec"]["schedule"]["cosine-offset"]["offset"], 0.008);
    assert_eq!((&third["parent"], third["parent"].is_string()), (&second["parent"], true));

    for (name, flags, word) in [
        ("fourth", &["--init", import][..], "--objective epsilon"),
        ("second", &["--init", import, "--objective", "epsilon"], "begun with other flags"),
        ("fourth", &["--init", init, "--width", "32"], "cannot be used with"),
        ("fourth", &["--init", "nowhere"], "config.json"),
    ] {
        let (code, said) = train(&data, name, flags);
        assert!(code != 0 && said.contains(word), "{flags:?}: {said}");
    }
}
