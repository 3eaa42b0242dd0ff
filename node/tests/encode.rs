//! `encode` as a person types it. `HDD_GOLDEN` points at another folder of golden vectors of the same form.
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::weights::{self, Named};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tch::Tensor;

fn golden(case: &str) -> PathBuf {
    std::env::var_os("HDD_GOLDEN")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")), PathBuf::from)
        .join(case)
}

/// What `encode` writes, or what it says instead.
fn encode(what: &str, model: &Path, flags: &[&str]) -> Result<Named, String> {
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("out.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hdd-node"));
    command.args(["encode", what, "--device", "cpu", "--model"]).arg(model).arg("--output").arg(&output).args(flags);
    let run = command.arg("--data").arg(work.path()).env("HDD_THREADS", "1").output().unwrap();
    if run.status.success() {
        Ok(weights::read(&output).unwrap())
    } else {
        assert!(!output.exists());
        Err(String::from_utf8(run.stderr).unwrap())
    }
}

fn assert_close(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.size(), wanted.size(), "{what}");
    let scale = wanted.abs().max().double_value(&[]);
    let error = (got - wanted).abs().max().double_value(&[]);
    assert!(error <= 1e-4 * scale, "{what}: off by {error:e} of {scale:e}");
}

#[test]
fn encoders_write_what_the_references_give() {
    for (what, case, names) in [
        ("text", "clip_text", &["input_ids", "last_hidden_state"][..]),
        ("image", "dinov2", &["pixels", "cls"]),
        ("image", "vae", &["image", "latent_mean", "latent_logvar", "decoded"]),
    ] {
        let io = golden(case).join("io.safetensors");
        let got = encode(what, &golden(case), &["--inputs", io.to_str().unwrap()]).unwrap();
        let wanted = weights::read(&io).unwrap();
        for name in names {
            assert_close(name, &got[*name], &wanted[*name]);
        }
    }
}

/// A PNG file of one colour.
fn png(path: &Path, side: u32, colour: [u8; 3]) {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), side, side);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&colour.repeat((side * side) as usize)).unwrap();
}

#[test]
fn images_are_read_scaled_and_normalised() {
    let folder = tempfile::tempdir().unwrap();
    let [red, white] = ["red.png", "white.png"].map(|name| folder.path().join(name));
    png(&red, 50, [255, 0, 0]);
    png(&white, 90, [255; 3]);
    let files = ["--image", red.to_str().unwrap(), "--image", white.to_str().unwrap()];
    let got = encode("image", &golden("vae"), &[&files[..], &["--size", "16"]].concat()).unwrap();
    assert_eq!(got["image"].size(), [2, 3, 16, 16]);
    let corner = got["image"].select(3, 0).select(2, 0);
    assert_eq!(Vec::<f64>::try_from(corner.reshape([6])).unwrap(), [1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
    let got = encode("image", &golden("dinov2"), &files).unwrap();
    let own: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("dinov2").join("config.json")).unwrap()).unwrap();
    assert_eq!(got["pixels"].size()[3], own["image_size"].as_i64().unwrap());
    let green = got["pixels"].get(0).get(1).mean(tch::Kind::Float).double_value(&[]);
    assert!((green + 0.456 / 0.224).abs() < 1e-5, "{green}");
}

#[test]
fn what_cannot_be_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.png");
    fs::write(&broken, b"no picture").unwrap();
    let io = golden("vae").join("io.safetensors");
    let [broken, io] = [&broken, &io].map(|path| path.to_str().unwrap());
    for (what, case, flags, word) in [
        ("text", "vae", &["--prompt", "x"][..], "holds no text encoder"),
        ("image", "clip_text", &["--image", broken], "holds a text encoder"),
        ("text", "clip_text", &["--prompt", "x"], "lacks its tokenizer"),
        ("text", "clip_text", &[], "--prompt"),
        ("text", "clip_text", &["--inputs", io], "tensor input_ids is missing"),
        ("image", "vae", &["--image", broken], "no readable PNG"),
        ("image", "vae", &["--image", broken, "--size", "0"], "--size"),
        ("image", "expert_text", &["--image", broken], "names the model ''"),
        ("image", "nothing", &["--image", broken], "config.json"),
    ] {
        let error = encode(what, &golden(case), flags).unwrap_err();
        assert!(error.contains(word), "{what} {case} {flags:?}: {error}");
    }
}
