//! How a batch is computed changes memory and speed, not what is learned; and a run that stops goes on as if it had not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    Error,
    train::{Compute, Examples, Progress, Trainer},
};
use hdd_protocol::{Architecture, Digest, ExpertSpec, Objective, Precision, Recipe, Schedule, TimestepMap};
use tch::{Device, Kind, Tensor};

const STEPS: u64 = 12;

fn recipe(precision: Precision) -> Recipe {
    Recipe { steps: STEPS, batch: 6, learning_rate: 2e-3, warmup: 3, ema_decay: 0.5, precision, ..Recipe::default() }
}

fn trainer(recipe: &Recipe, compute: Compute) -> Trainer {
    tch::set_num_threads(1); // tests run beside each other
    let architecture =
        Architecture { channels: 3, size: 16, text_width: 8, text_length: 4, ..Architecture::new(32, 2, 4, 4) };
    let (objective, schedule) = (Objective::Velocity, Schedule::Linear);
    let spec = ExpertSpec {
        architecture,
        objective,
        schedule,
        cluster: 0,
        timestep_map: TimestepMap::Paper,
        preconditioning: None,
    };
    let mut trainer = Trainer::new(Digest::of(b""), &spec, recipe, 1, Device::Cpu).unwrap();
    trainer.set_compute(compute);
    trainer
}

/// Smooth pictures: something that can be learned.
fn examples(scale: f64) -> Examples {
    let ramp = Tensor::linspace(-1.0, 1.0, 16, (Kind::Float, Device::Cpu));
    let picture = |i: i64| (&ramp * i as f64).sin().outer(&(&ramp * (i + 1) as f64).cos()).expand([3, 16, 16], false);
    let latents = Tensor::stack(&(0..10).map(picture).collect::<Vec<_>>(), 0) * scale;
    let text = Tensor::arange(10 * 32, (Kind::Float, Device::Cpu)).sin().reshape([10, 4, 8]);
    Examples::new(&latents, &text).unwrap()
}

fn losses(trainer: &mut Trainer, examples: &Examples) -> Vec<Progress> {
    let mut seen = Vec::new();
    let keep = |_: &Trainer, p| {
        seen.push(p);
        Ok(true)
    };
    trainer.run(examples, keep).unwrap();
    seen
}

/// Largest difference of two runs' averaged weights.
fn distance(a: &Trainer, b: &Trainer) -> f64 {
    let (a, b) = (a.average().parameters(), b.average().parameters());
    a.iter().map(|(name, a)| (a - &b[name]).abs().max().double_value(&[])).fold(0.0, f64::max)
}

#[test]
fn parts_and_recomputation_learn_what_the_whole_batch_does() {
    let recipe = recipe(Precision::Float32);
    let examples = examples(1.0);
    let mut whole = trainer(&recipe, Compute::whole(&recipe));
    let untouched = whole.average().parameters()["blocks.0.attn.qkv.weight"].copy();
    let wanted = losses(&mut whole, &examples);
    assert_ne!(whole.average().parameters()["blocks.0.attn.qkv.weight"], untouched);
    for (micro_batch, recompute) in [(6, true), (4, false), (1, true)] {
        let mut other = trainer(&recipe, Compute { micro_batch, recompute });
        let got = losses(&mut other, &examples);
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!(
                (got.loss.unwrap() - wanted.loss.unwrap()).abs() < 1e-5,
                "{micro_batch} {recompute}: {got:?} {wanted:?}"
            );
        }
        let distance = distance(&whole, &other);
        println!("{micro_batch} at a time, recomputed {recompute}: weights differ by {distance:.1e}");
        // Recomputing the whole batch repeats the same sums in the same order.
        assert!(distance == 0.0 || micro_batch < 6 && distance < 2e-4, "{micro_batch} {recompute}: {distance}");
    }
}

#[test]
fn half_precision_follows_float32() {
    let (examples, recipe) = (examples(1.0), |precision| Recipe { steps: 60, ..recipe(precision) });
    let run = |precision| {
        let seen = losses(&mut trainer(&recipe(precision), Compute::whole(&recipe(precision))), &examples);
        assert_eq!(seen[59].skipped, 0);
        seen.iter().map(|p| p.loss.unwrap()).collect::<Vec<_>>()
    };
    let wanted = run(Precision::Float32);
    let (first, last) = (wanted[0], wanted[59]);
    assert!(last < 0.8 * first, "it learns: {first} to {last}");
    for precision in [Precision::Bf16, Precision::Fp16] {
        let got = run(precision);
        let worst = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / b).fold(0.0, f32::max);
        println!("{precision:?}: mean loss off by at most {worst:.1e} of float32's");
        assert!(worst > 0.0 && worst < 5e-3, "{precision:?}: {worst}");
    }
}

#[test]
fn an_overflow_leaves_out_its_step_and_halves_the_scale() {
    let recipe = recipe(Precision::Fp16);
    let loud = examples(2e4); // gradients beyond half precision's 65,504 once scaled
    let mut trainer = trainer(&recipe, Compute { micro_batch: 4, recompute: true });
    let before = trainer.average().parameters()["final_layer.linear.weight"].copy();
    let mut seen: Vec<(Progress, bool)> = Vec::new();
    let keep = |trainer: &Trainer, p: Progress| {
        let now = &trainer.average().parameters()["final_layer.linear.weight"];
        seen.push((p, *now == before));
        Ok(true)
    };
    trainer.run(&loud, keep).unwrap();
    let skipped = seen.iter().take_while(|(p, _)| !p.gradient_norm.is_finite()).count();
    assert!((1..10).contains(&skipped), "{skipped}");
    for (i, (p, unchanged)) in seen.iter().enumerate() {
        let left_out = (i + 1).min(skipped);
        assert_eq!((p.step, p.skipped), (i as u64 + 1, left_out as u64));
        assert_eq!(p.loss_scale, 65_536.0 / f64::powi(2.0, left_out as i32));
        assert_eq!(*unchanged, i < skipped, "step {}", p.step);
        assert_eq!(p.loss.is_none(), i < skipped, "step {}", p.step);
    }

    // What no scale can help ends the run.
    let broken = examples(f64::NAN);
    let recipe = Recipe { steps: 100, ..recipe };
    let error = self::trainer(&recipe, Compute::whole(&recipe)).run(&broken, |_, _| Ok(true)).unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 16, .. }), "{error}");
}

#[test]
fn a_run_that_stops_goes_on_bit_for_bit() {
    for (precision, scale) in [(Precision::Float32, 1.0), (Precision::Bf16, 1.0), (Precision::Fp16, 2e4)] {
        let (recipe, examples) = (recipe(precision), examples(scale));
        let compute = Compute { micro_batch: 4, recompute: precision != Precision::Float32 };
        let mut whole = trainer(&recipe, compute);
        let wanted = losses(&mut whole, &examples);

        let folder = tempfile::tempdir().unwrap();
        let mut first = trainer(&recipe, compute);
        let mut got = Vec::new();
        let mut upto = |last: u64| {
            let mut keep = Vec::new();
            let mut trainer = match hdd_expert_runtime::latest_checkpoint(folder.path()).unwrap() {
                Some(checkpoint) => Trainer::resume(&checkpoint, Device::Cpu).unwrap(),
                None => std::mem::replace(&mut first, self::trainer(&recipe, compute)),
            };
            assert_eq!(trainer.config().compute, compute);
            trainer.speed(&examples).unwrap().unwrap(); // changes nothing
            let each = |_: &Trainer, p: Progress| {
                keep.push(p);
                Ok(p.step < last)
            };
            trainer.run(&examples, each).unwrap();
            trainer.save(folder.path()).unwrap();
            got.append(&mut keep);
            trainer
        };
        upto(1);
        upto(5);
        let last = upto(STEPS);
        assert_eq!(format!("{got:?}"), format!("{wanted:?}"), "{precision:?}");
        assert_eq!(distance(&whole, &last), 0.0);
    }
}

#[test]
fn a_description_changed_by_hand_cannot_ask_for_no_image_at_a_time() {
    let (recipe, folder) = (recipe(Precision::Float32), tempfile::tempdir().unwrap());
    for (written, wanted) in [(0, 1), (1_000_000, 6), (4, 4)] {
        let mut checkpoint = trainer(&recipe, Compute::whole(&recipe)).save(folder.path()).unwrap();
        checkpoint.config.compute.micro_batch = written;
        let resumed = Trainer::resume(&checkpoint, Device::Cpu).unwrap();
        assert_eq!(resumed.config().compute.micro_batch, wanted);
    }
}

#[test]
fn a_run_may_begin_without_shared_modulation() {
    let (recipe, folder) = (recipe(Precision::Float32), tempfile::tempdir().unwrap());
    let mut trainer = trainer(&recipe, Compute::whole(&recipe));
    let largest = |trainer: &Trainer| trainer.average().parameters()["t_block.1.weight"].abs().max().double_value(&[]);
    assert!(largest(&trainer) > 0.02);
    trainer.zero_modulation();
    assert_eq!(largest(&trainer), 0.0);
    losses(&mut trainer, &examples(1.0));
    assert!(largest(&trainer) > 0.0, "it learns");
    let saved = trainer.save(folder.path()).unwrap();
    assert!(Trainer::resume(&saved, Device::Cpu).unwrap().config().zero_modulation);
}
