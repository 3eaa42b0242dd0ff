//! `predict` and `import` as a person types them. `HDD_GOLDEN` points at another folder of golden vectors of the same form for
//! the tests that hold the numbers of a reference; what is refused and how is tried on those of this repository.
#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    Expert,
    import::Record,
    weights::{self, Named},
};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tch::{Device, Kind, Tensor};

fn golden(case: &str) -> PathBuf {
    std::env::var_os("HDD_GOLDEN").map_or_else(|| committed(case), |folder| PathBuf::from(folder).join(case))
}

fn committed(case: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(case)
}

/// Exit code, standard output and standard error.
fn hdd_node(data: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hdd-node"));
    command.args(words).arg("--data").arg(data.join("data")).env_remove("HDD_BOOTSTRAP").env("HDD_THREADS", "1");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// `predict` of a network on `inputs` with more flags, its tensors or what it says.
fn predict(checkpoint: &Path, inputs: &Path, flags: &[&str]) -> Result<Named, String> {
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("out.safetensors");
    let paths = [checkpoint, inputs, &output].map(|path| path.to_str().unwrap());
    let line = ["predict", "--checkpoint", paths[0], "--inputs", paths[1], "--output", paths[2]];
    let (code, _, error) = hdd_node(work.path(), &[&line[..], flags].concat());
    if code == 0 { Ok(weights::read(&output).unwrap()) } else { Err(error) }
}

fn assert_close(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.size(), wanted.size(), "{what}");
    let scale = wanted.abs().max().double_value(&[]);
    let error = (got - wanted).abs().max().double_value(&[]);
    assert!(error <= 1e-5 * scale, "{what}: off by {error:e} of {scale:e}");
}

#[test]
fn predictions_are_the_references() {
    for case in ["expert_text", "expert_pixels", "paris_expert"] {
        let (folder, io) = (golden(case), golden(case).join("io.safetensors"));
        let wanted = weights::read(&io).unwrap();
        let got = predict(&folder, &io, &[]).unwrap();
        assert_close(case, &got["prediction"], &wanted["prediction"]);
        assert_eq!(got["velocity"], got["prediction"], "a velocity on the linear path needs no conversion");
        let null = predict(&folder, &io, &["--null-text"]);
        match wanted.get("prediction_null") {
            Some(wanted) => assert_close(case, &null.unwrap()["prediction"], wanted),
            None => assert!(null.unwrap_err().contains("holds no null text")),
        }
    }
}

#[test]
fn velocities_follow_the_conversion() {
    let (folder, io) = (committed("expert_text"), committed("expert_text").join("io.safetensors"));
    let inputs = weights::read(&io).unwrap();
    let column = |f: &dyn Fn(f64) -> f64| {
        let t = Vec::<f64>::try_from(inputs["t"].to_kind(Kind::Double)).unwrap();
        Tensor::from_slice(&t.into_iter().map(f).collect::<Vec<_>>()).to_kind(Kind::Float).reshape([-1, 1, 1, 1])
    };
    // The paper's, undamped: -pi/2 sigma x0 + pi/2 alpha eps on the cosine path, here at the inner time alone.
    let angle = |t: f64| std::f64::consts::FRAC_PI_2 * t;
    let paper = ["--objective", "epsilon", "--conversion", "paper", "--undamped", "--clamp", "3"];
    let got = predict(&folder, &io, &paper).unwrap();
    let (alpha, sigma) = (column(&|t| angle(t).cos()), column(&|t| angle(t).sin()));
    let x0 = ((&inputs["x"] - &sigma * &got["prediction"]) / alpha.clamp_min(0.01)).clamp(-3.0, 3.0);
    let wanted = (&alpha * &got["prediction"] - &sigma * x0) * std::f64::consts::FRAC_PI_2;
    let inner = |t: &Tensor| t.narrow(0, 1, 1);
    let error = (inner(&got["velocity"]) - inner(&wanted)).abs().max().double_value(&[]);
    assert!(error < 1e-4 * wanted.abs().max().double_value(&[]), "{error:e}");

    // Aligned, the network is asked elsewhere: what it says at (x, t) is not what the velocity is made of.
    let aligned = predict(&folder, &io, &["--objective", "epsilon"]).unwrap();
    assert_eq!(aligned["prediction"], got["prediction"]);
    assert!((&aligned["velocity"] - &got["velocity"]).abs().max().double_value(&[]) > 0.1);
    assert!(predict(&folder, &io, &["--undamped"]).unwrap_err().contains("--conversion paper"));
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let (folder, file) = (committed("expert_text"), work.path().join("in.safetensors"));
    let refused = |change: &dyn Fn(&mut Named)| {
        let mut inputs = weights::read(&folder.join("io.safetensors")).unwrap();
        change(&mut inputs);
        let _ = fs::remove_file(&file);
        weights::write(&file, &inputs, HashMap::new()).unwrap();
        predict(&folder, &file, &[]).unwrap_err()
    };
    let replaced = |name: &'static str, shape: &'static [i64], kind| {
        refused(&move |inputs| drop(inputs.insert(name.into(), Tensor::ones(shape, (kind, Device::Cpu)))))
    };
    for (word, error) in [
        ("tensor x is missing", refused(&|inputs| drop(inputs.remove("x")))),
        ("tensor context is missing", refused(&|inputs| drop(inputs.remove("context")))),
        ("tensor x has shape [1, 2]", replaced("x", &[1, 2], Kind::Float)),
        ("tensor t is for 2 images", replaced("t", &[2], Kind::Float)),
        ("tensor t holds Int64", replaced("t", &[3], Kind::Int64)),
        (
            "times lie in 0 to 1",
            refused(&|inputs| drop(inputs.insert("t".into(), Tensor::from_slice(&[0.1f32, f32::NAN, 0.2])))),
        ),
        ("network for velocity", predict_hdd(work.path(), &["--objective", "x0"])),
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(predict(work.path(), &file, &[]).unwrap_err().contains("config.json"));
}

/// What `predict` says of an import of the committed Paris case.
fn predict_hdd(work: &Path, flags: &[&str]) -> String {
    let case = committed("paris_expert");
    predict(&import_paris(work, &case), &case.join("io.safetensors"), flags).unwrap_err()
}

fn import_paris(work: &Path, case: &Path) -> PathBuf {
    let config: serde_json::Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    let source = work.join("paris");
    fs::create_dir_all(source.join("expert_6")).unwrap();
    let file = source.join("expert_6/diffusion_pytorch_model.safetensors");
    fs::copy(case.join("weights.safetensors"), file).unwrap();
    let out = work.join("imported");
    let (heads, length) = (config["heads"].to_string(), config["ctx_len"].to_string());
    let line = ["import", "--from", "paris", source.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let flags = ["--expert", "6", "--heads", &heads, "--text-length", &length];
    let (code, said, error) = hdd_node(work, &[&line[..], &flags].concat());
    assert!(code == 0 && said.contains("drawn: null_embedding\n"), "{said}{error}");
    out
}

#[test]
fn an_imported_paris_expert_predicts_what_it_did() {
    let work = tempfile::tempdir().unwrap();
    let out = import_paris(work.path(), &golden("paris_expert"));
    let io = golden("paris_expert").join("io.safetensors");
    let got = predict(&out, &io, &[]).unwrap();
    assert_close("paris", &got["prediction"], &weights::read(&io).unwrap()["prediction"]);
    let record: Record = serde_json::from_slice(&fs::read(out.join("import.json")).unwrap()).unwrap();
    assert_eq!(record.drawn, ["null_embedding"]);

    // From there to another objective: its trunk stays.
    let next = work.path().join("next");
    let line =
        ["import", "--from", "hdd", out.to_str().unwrap(), "--objective", "epsilon", "--out", next.to_str().unwrap()];
    let (code, said, error) = hdd_node(work.path(), &line);
    assert!(
        code == 0 && said.contains("epsilon on the cosine path") && said.contains("drawn: final_layer"),
        "{said}{error}"
    );
    let refused = hdd_node(work.path(), &line);
    assert!(refused.0 == 2 && refused.2.contains("exists already"), "{}", refused.2);
    let unknown = hdd_node(work.path(), &["import", "--from", "hdd", "0123456789", "--out", "x"]);
    assert!(unknown.2.contains("no manifest or blob '0123456789'"), "{}", unknown.2);
    for (flags, word) in [
        ("--from hdd --heads 4", "--heads goes with"),
        ("--from hdd --keep-final", "--keep-final goes with"),
        ("--from paris --text-width 8", "--text-width goes with"),
        ("--from dit --expert 1", "--expert goes with"),
        ("--from dit --router", "--router goes with"),
        ("--from paris --router --seed 1", "cannot be used with"),
    ] {
        let line =
            [&["import", out.to_str().unwrap(), "--out", "x"][..], &flags.split(' ').collect::<Vec<_>>()].concat();
        let (code, _, error) = hdd_node(work.path(), &line);
        assert!(code == 2 && error.contains(word), "{flags}: {error}");
    }
    let loaded = hdd_expert_runtime::import::open(&next).unwrap();
    assert_eq!(loaded.spec.cluster, 6);
    Expert::load(&loaded.spec, &loaded.model, Device::Cpu).unwrap();
}
