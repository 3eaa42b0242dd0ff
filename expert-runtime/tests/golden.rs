//! The network and the conversions against an independent reference in PyTorch.
//!
//! `HDD_GOLDEN` points these tests at another folder of the same form; shapes come from each case's `config.json`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    Coefficients, Expert, NoisePath, PIXEL_CLAMP, VAE_CLAMP, aligned_point, aligned_velocity, column, paper_velocity,
    to_pair,
    weights::{self, Named},
};
use hdd_protocol::{Architecture, ExpertSpec, Objective, Schedule, TimestepMap};
use std::path::PathBuf;
use tch::{Device, Tensor};

fn case(name: &str) -> (PathBuf, serde_json::Value, Named) {
    let root = std::env::var_os("HDD_GOLDEN")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")), PathBuf::from);
    let folder = root.join(name);
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let io = weights::read(&folder.join("io.safetensors")).unwrap();
    (folder, config, io)
}

/// Largest difference, as a share of the largest wanted value.
fn assert_close(what: &str, got: &Tensor, wanted: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), wanted.size(), "{what}");
    let scale = wanted.abs().max().double_value(&[]);
    let error = (got - wanted).abs().max().double_value(&[]);
    assert!(error <= tolerance * scale, "{what}: off by {error:e} of {scale:e}");
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(tch::Kind::Double)).unwrap()
}

fn architecture(config: &serde_json::Value) -> Architecture {
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    Architecture {
        width: number("d"),
        depth: number("depth"),
        heads: number("heads"),
        patch: number("patch"),
        channels: number("ch"),
        size: number("size"),
        text_width: number("ctx"),
        text_length: number("ctx_len"),
        cross_norm: config["cross_norm"].as_bool().unwrap(),
        norm_epsilon: config["eps"].as_f64().unwrap() as f32,
        time_scale: config.get("time_scale").map_or(999.0, |s| s.as_f64().unwrap() as f32),
        round_time: false,
    }
}

#[test]
fn experts_agree_with_the_reference() {
    let _guard = tch::no_grad_guard();
    for name in ["expert_text", "expert_pixels"] {
        let (folder, config, io) = case(name);
        let run = |round_time: bool, null: bool| {
            let architecture = Architecture { round_time, ..architecture(&config) };
            let spec = ExpertSpec {
                architecture,
                objective: Objective::Velocity,
                schedule: Schedule::Linear,
                cluster: 0,
                timestep_map: TimestepMap::Paper,
                preconditioning: None,
            };
            let expert = Expert::load(&spec, &folder.join("weights.safetensors"), Device::Cpu).unwrap();
            assert_eq!(expert.parameter_count(), spec.architecture.parameters());
            let network = expert.network();
            let text = if null { network.null_text(io["x"].size()[0]) } else { io["context"].shallow_clone() };
            network.forward(&io["x"], &numbers(&io["t"]), &text)
        };
        assert_close(name, &run(false, false), &io["prediction"], 1e-5);
        assert_close(name, &run(true, false), &io["prediction_rounded_t"], 1e-5);
        assert_close(name, &run(false, true), &io["prediction_null"], 1e-5);
    }
}

#[test]
fn conversions_agree_with_the_reference() {
    let (_, config, io) = case("conversion");
    let floor = config["floor"].as_f64().unwrap();
    let (x, eps) = (&io["x"], &io["epsilon"]);
    let t = numbers(&io["t"]);
    let cosine = NoisePath::new(&Schedule::Cosine);
    let linear = NoisePath::new(&Schedule::Linear);

    for (name, path, clamp, damping) in [
        ("paper_cosine_latent", &cosine, VAE_CLAMP, true),
        ("paper_cosine_pixel", &cosine, PIXEL_CLAMP, true),
        ("paper_cosine_undamped", &cosine, VAE_CLAMP, false),
        ("paper_linear", &linear, VAE_CLAMP, false),
    ] {
        let got = paper_velocity((Objective::Epsilon, path), eps, (x, &t), clamp, damping);
        assert_close(name, &got, &io[name], 1e-12);
    }

    let (own_t, factor) = aligned_point(&cosine, &t, floor);
    let own_x = x * column(factor, x);
    assert_close("aligned_x", &own_x, &io["aligned_x"], 1e-12);
    assert_close("aligned_t", &Tensor::from_slice(&own_t), &io["aligned_t"], 1e-12);

    // Rows of the inner times, where every objective's pair is finite.
    let inner = io["inner_t"].size()[0];
    let (x, u, own_x) = (x.narrow(0, 2, inner), eps.narrow(0, 2, inner), own_x.narrow(0, 2, inner));
    let (t, own_t) = (&t[2..t.len() - 2], &own_t[2..own_t.len() - 2]);
    let got = aligned_velocity((Objective::Epsilon, &cosine), &u, (&own_x, own_t), (&x, t), VAE_CLAMP);
    assert_close("aligned_velocity", &got, &io["aligned_velocity_inner"], 1e-12);

    for (path_name, path) in [("cosine", &cosine), ("linear", &linear)] {
        let at: Vec<Coefficients> = t.iter().map(|&t| path.at(t)).collect();
        for objective in [Objective::Epsilon, Objective::X0, Objective::V, Objective::Velocity] {
            let pair = to_pair(objective, &u, &x, &at);
            assert_close("x0", &pair.x0, &io[&format!("{path_name}_{objective}_x0")], 1e-12);
            assert_close("eps", &pair.eps, &io[&format!("{path_name}_{objective}_eps")], 1e-12);
        }
    }

    let t = numbers(&io["t"]);
    for (name, schedule) in [
        ("linear", Schedule::Linear),
        ("cosine", Schedule::Cosine),
        ("offset_cosine", Schedule::CosineOffset { offset: 0.008 }),
        ("linear_beta", Schedule::DDPM),
    ] {
        let path = NoisePath::new(&schedule);
        let values =
            |f: fn(Coefficients) -> f64| Tensor::from_slice(&t.iter().map(|&t| f(path.at(t))).collect::<Vec<_>>());
        assert_close(name, &values(|c| c.alpha), &io[&format!("schedule_{name}_alpha")], 1e-12);
        assert_close(name, &values(|c| c.sigma), &io[&format!("schedule_{name}_sigma")], 1e-12);
    }
}
