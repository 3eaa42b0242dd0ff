//! Fusion and admission of real (small, random) networks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{ClusterPosterior, Condition, Expert, Guidance, VelocityField, normal, sampler};
use hdd_protocol::{
    Architecture, Conversion, Digest, ExpertSelection, ExpertSpec, Objective, RouterRecipe, Schedule, Solver,
    TimestepMap,
};
use hdd_router_service::{Ensemble, HeldOut, Member, Router, test_expert};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

const SHAPE: [i64; 3] = [3, 8, 8];

fn spec(objective: Objective, schedule: Schedule, cluster: u16) -> ExpertSpec {
    let architecture =
        Architecture { channels: 3, size: 8, text_width: 6, text_length: 3, ..Architecture::new(16, 2, 2, 2) };
    ExpertSpec { architecture, objective, schedule, cluster, timestep_map: TimestepMap::Paper, preconditioning: None }
}

/// Redraws every parameter, so that no zero-initialised branch hides a mistake.
fn liven(tensors: impl IntoIterator<Item = Tensor>) {
    let _guard = tch::no_grad_guard();
    for mut tensor in tensors {
        let _ = tensor.normal_(0.0, 0.2);
    }
}

fn ensemble() -> Ensemble {
    let specs = [
        spec(Objective::Velocity, Schedule::Linear, 0),
        spec(Objective::Epsilon, Schedule::Cosine, 1),
        spec(Objective::V, Schedule::Cosine, 2),
    ];
    let member = |(i, spec): (usize, &ExpertSpec)| {
        let expert = Expert::new(spec, i as u64, Device::Cpu).unwrap();
        liven(expert.parameters().into_values());
        Member { manifest: Digest::of(&[i as u8]), expert }
    };
    let recipe = RouterRecipe { width: 16, depth: 1, heads: 2, patch: 2, text: true, ..RouterRecipe::default() };
    let router = Router::new(&recipe, [3, 8], 6, 3, 9, Device::Cpu);
    liven(router.parameters().into_values());
    Ensemble { router, members: specs.iter().enumerate().map(member).collect(), clamp: 1.5, paper_clamp: 5.0 }
}

fn condition(images: i64) -> Condition {
    let text = normal(&[4, 3, 6], 5).unwrap().narrow(0, 0, images);
    Condition { text: Some(text), guidance: Some(Guidance { scale: vec![2.0; images as usize], negative: None }) }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn the_full_ensemble_is_the_routers_weighted_sum() {
    let _guard = tch::no_grad_guard();
    let ensemble = ensemble();
    let (x, t, condition) = (sampler::noise(&[1, 2, 3, 4], SHAPE, Device::Cpu), [0.9, 0.6, 0.4, 0.1], condition(4));
    let fusion = ensemble.fusion(ExpertSelection::Full, Conversion::DEFAULT, None, 4);
    let fused = fusion.velocity(&x, &t, &condition).unwrap();
    let posterior = ensemble.router.posterior(&x, &t, condition.text.as_ref()).unwrap();
    let mut sum = x.zeros_like();
    for (k, member) in ensemble.members.iter().enumerate() {
        let weights: Vec<f64> = posterior.iter().map(|p| p[k]).collect();
        let velocity = member.expert.field(Conversion::DEFAULT, 1.5).velocity(&x, &t, &condition).unwrap();
        sum += velocity * hdd_expert_runtime::column(weights, &x);
    }
    assert!(distance(&fused, &sum) < 1e-4 * sum.abs().max().double_value(&[]));
    for shares in fusion.shares() {
        assert_eq!(shares.len(), 3);
        assert!((shares.iter().map(|s| s.weight).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

/// Images of these seeds, on a shifted grid, through the whole of fusion.
fn draw(
    ensemble: &Ensemble,
    selection: ExpertSelection,
    solver: Solver,
    seeds: &[u64],
    condition: &Condition,
) -> Tensor {
    let fusion = ensemble.fusion(selection, Conversion::DEFAULT, None, seeds.len());
    let noise = sampler::noise(seeds, SHAPE, Device::Cpu);
    let go_on = |_| ControlFlow::Continue(());
    sampler::sample(&fusion, noise, condition, &sampler::time_grid(4, 2.0), solver, go_on).unwrap().unwrap()
}

#[test]
fn a_picture_sampled_beside_others_is_the_one_sampled_alone() {
    let _guard = tch::no_grad_guard();
    let ensemble = ensemble();
    for selection in [ExpertSelection::Top1, ExpertSelection::TopK(2), ExpertSelection::Full] {
        for solver in [Solver::Euler, Solver::Heun, Solver::Multistep] {
            let run = |seeds: &[u64]| draw(&ensemble, selection, solver, seeds, &condition(seeds.len() as i64));
            let together = run(&[7, 8, 9, 10]);
            assert!(distance(&together.narrow(0, 0, 1), &run(&[7])) < 1e-4, "{selection:?}, {solver:?}");
            assert_eq!(together, run(&[7, 8, 9, 10]), "{selection:?}, {solver:?}");
            assert!(distance(&together, &run(&[11, 8, 9, 10])) > 1e-2, "{selection:?}, {solver:?}");
        }
    }
}

#[test]
fn negative_prompts_act_through_guidance_alone() {
    let _guard = tch::no_grad_guard();
    let ensemble = ensemble();
    let draw = |scale: f64, negative: Option<&Tensor>| {
        let Condition { text, .. } = condition(2);
        let guidance = Guidance { scale: vec![scale; 2], negative: negative.map(Tensor::shallow_clone) };
        let condition = Condition { text, guidance: Some(guidance) };
        draw(&ensemble, ExpertSelection::TopK(2), Solver::Euler, &[1, 2], &condition)
    };
    let negative = Tensor::ones([2, 3, 6], (Kind::Float, Device::Cpu));
    assert!(distance(&draw(3.0, None), &draw(3.0, Some(&negative))) > 1e-2);
    // u + 1 (c - u) is c, whatever u.
    assert!(distance(&draw(1.0, None), &draw(1.0, Some(&negative))) < 1e-4);
    // Steering away from the prompt itself leaves it as it is.
    let prompt = condition(2).text.unwrap();
    assert!(distance(&draw(3.0, Some(&prompt)), &draw(1.0, None)) < 1e-4);
}

/// An expert trained on nothing, saved after `change`.
fn saved(folder: &tempfile::TempDir, name: &str, change: impl FnOnce(&Expert)) -> std::path::PathBuf {
    let expert = Expert::new(&spec(Objective::Velocity, Schedule::Linear, 0), 1, Device::Cpu).unwrap();
    {
        let _guard = tch::no_grad_guard();
        change(&expert);
    }
    let path = folder.path().join(name);
    expert.save(&path).unwrap();
    path
}

#[test]
fn admission_refuses_what_cannot_serve() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(Objective::Velocity, Schedule::Linear, 0);
    let held_out =
        HeldOut { latents: sampler::noise(&[1, 2, 3, 4, 5, 6, 7, 8], SHAPE, Device::Cpu) * 0.5, labels: vec![0; 8] };
    let test = |path: &std::path::Path, ratio| test_expert(&spec, path, &held_out, 1.5, ratio, Device::Cpu);
    let refused = |path: &std::path::Path, ratio, word: &str| {
        let error = test(path, ratio).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(word), "{}: '{error}' lacks '{word}'", path.display());
    };

    let untrained = saved(&folder, "untrained", |_| {});
    let (_, report) = test(&untrained, 100.0).unwrap();
    let report = report.unwrap();
    assert!(report.loss > report.floor && report.per_time.len() == 5, "{report:?}");
    refused(&untrained, 1.0, "held-out loss");

    refused(
        &saved(&folder, "nan", |e| drop(e.parameters()["final_layer.linear.bias"].shallow_clone().fill_(f64::NAN))),
        1.0,
        "NaN",
    );
    let explode = |e: &Expert| drop(e.parameters()["final_layer.linear.bias"].shallow_clone().fill_(1e9));
    refused(&saved(&folder, "exploding", explode), 1e30, "velocity reaches");

    let bytes = std::fs::read(&untrained).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    refused(&write("truncated", &bytes[..bytes.len() - 100]), 1.0, "not usable as weights");
    refused(&write("pickle.safetensors", &[b"PK\x03\x04", bytes.as_slice()].concat()), 1.0, "pickle");
    let other = ExpertSpec { architecture: Architecture { depth: 3, ..spec.architecture.clone() }, ..spec.clone() };
    let error = test_expert(&other, &untrained, &held_out, 1.5, 1.0, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("is missing"), "{error}");

    // No held-out image of the cluster: nothing to measure, and the report says so by its absence.
    let elsewhere = HeldOut { latents: held_out.latents.shallow_clone(), labels: vec![1; 8] };
    let (_, report) = test_expert(&spec, &untrained, &elsewhere, 1.5, 1.0, Device::Cpu).unwrap();
    assert!(report.is_none());
}
