//! A small expert learns, and training stops where it cannot go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    Checkpoint, Condition, Error,
    data::{self, emoji32},
    last_good_checkpoint, sampler,
    train::{Examples, Trainer},
};
use hdd_protocol::{
    Architecture, Conversion, Digest, ExpertSpec, LossWeighting, Objective, Recipe, Schedule, Solver, Text,
    TextEncoder, TimeSampling, TimestepMap,
};
use std::ops::ControlFlow;
use tch::{Device, Tensor};

fn recipe(steps: u64) -> Recipe {
    Recipe { steps, batch: 8, learning_rate: 3e-3, warmup: 10, ema_decay: 0.9, ..Recipe::default() }
}

fn spec(objective: Objective, schedule: Schedule) -> ExpertSpec {
    let architecture = Architecture { channels: 3, text_width: 16, text_length: 4, ..Architecture::new(64, 2, 4, 4) };
    ExpertSpec {
        architecture,
        objective,
        schedule,
        cluster: 0,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    }
}

fn examples(n: usize) -> (Examples, Tensor) {
    tch::set_num_threads(1); // tests run beside each other
    let images = emoji32().unwrap().select(&(0..n).collect::<Vec<_>>());
    let pixels = images.tensor(Device::Cpu).unwrap();
    let text = Text { encoder: TextEncoder::HashedWords, width: 16, length: 4 };
    let text = data::encode(&text, &images.captions, Device::Cpu).unwrap();
    (Examples::new(&pixels, &text).unwrap(), pixels)
}

#[test]
fn every_objective_learns_one_picture() {
    let (examples, pixels) = examples(1);
    for (objective, schedule, weighting) in [
        (Objective::Velocity, Schedule::Linear, LossWeighting::Uniform),
        (Objective::Epsilon, Schedule::Cosine, LossWeighting::InverseAlpha { limit: 20.0 }),
        (Objective::X0, Schedule::Cosine, LossWeighting::Uniform),
        (Objective::V, Schedule::CosineOffset { offset: 0.008 }, LossWeighting::Uniform),
    ] {
        let recipe = Recipe { weighting, times: TimeSampling::Uniform, ..recipe(250) };
        let mut trainer = Trainer::new(Digest::of(b""), &spec(objective, schedule), &recipe, 1, Device::Cpu).unwrap();
        trainer.run(&examples, |_, _| Ok(true)).unwrap();
        let field = trainer.average().field(Conversion::DEFAULT, 1.2);
        let nothing = Condition { text: None, guidance: None };
        let noise = sampler::noise(&[3], [3, 32, 32], Device::Cpu);
        let go_on = |_| ControlFlow::Continue(());
        let x0 = sampler::sample(
            &field,
            noise.shallow_clone(),
            &nothing,
            &sampler::time_grid(20, 1.0),
            Solver::Euler,
            go_on,
        )
        .unwrap()
        .unwrap();
        let error = (x0 - &pixels).square().mean(None).double_value(&[]);
        let spread = (noise - &pixels).square().mean(None).double_value(&[]);
        assert!(error < 0.3 * spread, "{objective} on {schedule}: {error} of {spread}");
    }
}

#[test]
fn divergence_stops_training_and_says_so() {
    let (examples, _) = examples(4);
    let mut trainer =
        Trainer::new(Digest::of(b""), &spec(Objective::Velocity, Schedule::Linear), &recipe(5), 1, Device::Cpu)
            .unwrap();
    trainer.run(&examples, |_, _| Ok(false)).unwrap(); // one good step
    let broken = Examples::new(
        &Tensor::full([4, 3, 32, 32], f64::NAN, (tch::Kind::Float, Device::Cpu)),
        &Tensor::zeros([4, 4, 16], (tch::Kind::Float, Device::Cpu)),
    )
    .unwrap();
    let error = trainer.run(&broken, |_, _| Ok(true)).unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 1, .. }), "{error}");
}

#[test]
fn a_loss_that_stays_high_stops_training_at_the_same_step_after_a_break() {
    let (examples, pixels) = examples(4);
    let loud = Examples::new(&(pixels * 8.0), &Tensor::zeros([4, 4, 16], (tch::Kind::Float, Device::Cpu))).unwrap();
    let mut spec = spec(Objective::Velocity, Schedule::Linear);
    (spec.architecture.depth, spec.architecture.patch) = (1, 8);
    let recipe = Recipe { batch: 2, ..recipe(300) };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(Digest::of(b""), &spec, &recipe, 1, Device::Cpu).unwrap();
    trainer.run(&examples, |_, p| Ok(p.step < 120)).unwrap();
    // Another world: no step size is small enough for it at once.
    trainer.run(&loud, |_, p| Ok(p.step < 140)).unwrap();
    let middle = trainer.save(folder.path()).unwrap();
    let stopped = |trainer: &mut Trainer| match trainer.run(&loud, |_, _| Ok(true)).unwrap_err() {
        Error::Diverged { step, why } => (step, why),
        other => panic!("{other}"),
    };
    let whole = stopped(&mut trainer);
    assert!((141..=170).contains(&whole.0), "when half of the last hundred losses are high: {whole:?}");
    assert!(whole.1.contains("times the"), "{whole:?}");
    assert!(!trainer.config().good);
    assert_eq!(stopped(&mut Trainer::resume(&middle, Device::Cpu).unwrap()), whole);
    trainer.save(folder.path()).unwrap();
    let good: Checkpoint = last_good_checkpoint(folder.path()).unwrap().unwrap();
    assert_eq!(good.config, middle.config);

    // In warmup a loss may still rise.
    let patient = Recipe { warmup: 190, learning_rate: 1e-6, ..recipe };
    let mut trainer = Trainer::new(Digest::of(b""), &spec, &patient, 1, Device::Cpu).unwrap();
    trainer.run(&examples, |_, p| Ok(p.step < 120)).unwrap();
    assert_eq!(stopped(&mut trainer).0, 191);
}
