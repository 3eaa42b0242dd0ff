//! The estimate of a run's memory against what a process takes: each run in a process of its own, since a peak is one's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    keep_pages,
    train::{Compute, Examples, Footprint, Trainer},
    weights,
};
use hdd_protocol::{Architecture, Digest, ExpertSpec, Objective, Precision, Recipe, Schedule, TimestepMap};
use std::{collections::HashMap, env, fs, process::Command};
use tch::{Device, Kind, Tensor};

/// Width, depth, patch, images at a time, recomputation and precision.
const RUNS: [(u32, u32, u32, u32, bool, Precision); 5] = [
    (256, 6, 4, 16, false, Precision::Float32),
    (256, 6, 4, 16, true, Precision::Float32),
    (256, 6, 4, 4, false, Precision::Float32),
    (128, 3, 2, 16, false, Precision::Float32),
    (256, 6, 4, 32, false, Precision::Bf16),
];
const RUN: &str = "HDD_MEMORY_TEST_RUN";

/// Peak of the process's memory, bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Trains two steps and returns the estimate over the measured peak.
fn ratio(run: usize) -> f64 {
    keep_pages();
    tch::set_num_threads(1);
    let (width, depth, patch, micro_batch, recompute, precision) = RUNS[run];
    let options = (Kind::Float, Device::Cpu);
    let architecture =
        Architecture { channels: 3, text_width: 64, text_length: 8, ..Architecture::new(width, depth, 4, patch) };
    let recipe = Recipe { steps: 2, batch: 32, precision, ..Recipe::default() };
    let spec = ExpertSpec {
        architecture: architecture.clone(),
        objective: Objective::Velocity,
        schedule: Schedule::Linear,
        cluster: 0,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    };
    let examples = Examples::new(&Tensor::ones([32, 3, 32, 32], options), &Tensor::ones([32, 8, 64], options)).unwrap();
    let mut trainer = Trainer::new(Digest::of(b""), &spec, &recipe, 1, Device::Cpu).unwrap();
    trainer.set_compute(Compute { micro_batch, recompute });
    trainer.run(&examples, |_, _| Ok(true)).unwrap();
    let estimate = Footprint::of(&architecture, &recipe, 32, recompute, Device::Cpu).bytes(micro_batch);
    let ratio = estimate as f64 / peak() as f64;
    println!("{:?}: {} MB estimated, {ratio:.2} of the peak", RUNS[run], estimate / 1_000_000);
    ratio
}

#[test]
fn the_estimate_is_near_the_measured_peak() {
    if let Some(run) = env::var(RUN).ok().and_then(|run| run.parse().ok()) {
        let ratio = ratio(run);
        assert!((0.8..1.25).contains(&ratio), "{ratio}");
        return;
    }
    for (index, run) in RUNS.iter().enumerate() {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_estimate_is_near_the_measured_peak", "--nocapture"]).env(RUN, index.to_string());
        // The system takes pages back and gives larger ones as it likes: one run of three must be near.
        assert!((0..3).any(|_| command.status().unwrap().success()), "{run:?}");
    }
}

#[test]
fn weights_are_written_one_tensor_at_a_time() {
    const MEBIBYTE: u64 = 1 << 20;
    let tensor = |i: i64| (i.to_string(), Tensor::ones([4, MEBIBYTE as i64], (Kind::Float, Device::Cpu)));
    let (tensors, folder) = ((0..8).map(tensor).collect(), tempfile::tempdir().unwrap());
    let before = peak();
    weights::write(&folder.path().join("weights"), &tensors, HashMap::new()).unwrap();
    let more = peak() - before;
    assert!(more < 32 * MEBIBYTE, "{more} bytes beside the 128 MiB that are written");
}
