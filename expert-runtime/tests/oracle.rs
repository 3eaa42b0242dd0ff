//! Exact experts, conversions and samplers against the closed-form fields of Gaussian worlds, in float64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    ClusterExpert, Condition, NoisePath, Result, VelocityField, column, normal,
    oracle::{Component, ExactExpert, Mixture},
    sampler, target, to_pair,
};
use hdd_protocol::{Conversion, Objective, SampleRequest, Schedule, Solver};
use std::{cell::Cell, ops::ControlFlow};
use tch::{Device, Kind, Tensor};

const OBJECTIVES: [Objective; 4] = [Objective::Epsilon, Objective::X0, Objective::V, Objective::Velocity];
const SCHEDULES: [Schedule; 4] =
    [Schedule::Linear, Schedule::Cosine, Schedule::CosineOffset { offset: 0.008 }, Schedule::DDPM];
const SOLVERS: [Solver; 3] = [Solver::Euler, Solver::Heun, Solver::Multistep];
const NOTHING: Condition = Condition { text: None, guidance: None };
/// No clamp: a Gaussian has no bounds.
const FREE: f64 = f64::INFINITY;

/// Mean 1, standard deviation 0.5.
fn gaussian() -> Mixture {
    Mixture::gaussian(vec![1.0], vec![0.25]).unwrap()
}

/// Three unequal Gaussians in the plane, one of them correlated with nothing but its place.
fn plane() -> Mixture {
    let part = |weight, mean: [f64; 2], variance: [f64; 2]| Component {
        cluster: 0,
        weight,
        mean: mean.to_vec(),
        variance: variance.to_vec(),
    };
    let parts = vec![
        part(0.5, [-1.0, 0.5], [0.09, 0.16]),
        part(0.3, [1.0, 1.0], [0.25, 0.04]),
        part(0.2, [0.3, -1.2], [0.04, 0.25]),
    ];
    Mixture::new(parts).unwrap()
}

/// The normal distribution by its quantiles: `side^2` points of the plane, `(side^2, 2)`.
fn normal_points(side: i64) -> Tensor {
    let probability = (Tensor::arange(side, (Kind::Double, Device::Cpu)) + 0.5) / side;
    let quantile = (probability * 2.0 - 1.0).erfinv() * std::f64::consts::SQRT_2;
    Tensor::cartesian_prod(&[&quantile, &quantile])
}

fn integrate(field: &dyn VelocityField, x: &Tensor, times: &[f64], solver: Solver) -> Tensor {
    sampler::sample(field, x.shallow_clone(), &NOTHING, times, solver, |_| ControlFlow::Continue(())).unwrap().unwrap()
}

/// Mean and standard deviation of what comes out of `field`, exactly: a Gaussian's field and every step along it are
/// affine in x, so two points tell all.
fn moments(field: &dyn VelocityField, steps: u32, solver: Solver) -> (f64, f64) {
    let ends =
        integrate(field, &Tensor::from_slice(&[0.0, 1.0]).reshape([2, 1]), &sampler::time_grid(steps, 1.0), solver);
    let (mean, one) = (ends.double_value(&[0, 0]), ends.double_value(&[1, 0]));
    (mean, (one - mean).abs())
}

fn largest(t: &Tensor) -> f64 {
    t.abs().max().double_value(&[])
}

#[test]
fn aligned_experts_are_the_exact_field_wherever_their_schedule_reaches() {
    let world = plane();
    let x = normal_points(8);
    // Within the floor, and within linear-beta's signal-to-noise ratios.
    for t in [0.011, 0.1, 0.37, 0.5, 0.82, 0.989] {
        let t = vec![t; 64];
        let exact = world.velocity(&x, &t, &NOTHING).unwrap();
        for objective in OBJECTIVES {
            for schedule in SCHEDULES {
                let expert = ExactExpert::new(&world, 0, objective, schedule).unwrap();
                let v = expert.velocity_field(Conversion::DEFAULT, FREE).velocity(&x, &t, &NOTHING).unwrap();
                let error = largest(&(v - &exact));
                assert!(error < 1e-10, "{objective} on {schedule} at {}: {error:e}", t[0]);
            }
        }
    }
}

#[test]
fn every_objective_on_every_schedule_draws_the_same_distribution() {
    let (noise, times) = (normal_points(24), sampler::time_grid(50, 1.0));
    let covariance = |x: &Tensor| x.transpose(0, 1).cov(1, None::<&Tensor>, None::<&Tensor>);
    let means = |x: &Tensor| x.mean_dim([0i64].as_slice(), false, Kind::Double);
    let round = Mixture::gaussian(vec![1.0, -0.5], vec![0.25, 0.04]).unwrap();
    // At t = 1 an aligned expert is asked as if at 1 - floor: an error in proportion to the floor, and to the spread of the
    // world's components.
    for (world, floor, tolerance) in [(round, 1e-2, 1e-4), (plane(), 1e-2, 3e-4), (plane(), 1e-3, 1e-4)] {
        let exact = integrate(&world, &noise, &times, Solver::Euler);
        for schedule in SCHEDULES {
            let tolerance = if schedule == Schedule::DDPM { 1e-2 } else { tolerance };
            let (mut mean, mut spread) = (0f64, 0f64);
            for objective in OBJECTIVES {
                let expert = ExactExpert::new(&world, 0, objective, schedule).unwrap();
                let field = expert.velocity_field(Conversion::Aligned { floor }, FREE);
                let drawn = integrate(&field, &noise, &times, Solver::Euler);
                mean = mean.max(largest(&(means(&drawn) - means(&exact))));
                spread = spread.max(largest(&(covariance(&drawn) - covariance(&exact))));
            }
            println!("{schedule}, floor {floor}: mean off by {mean:.1e}, covariance by {spread:.1e}");
            assert!(mean < tolerance && spread < tolerance, "{schedule}: off by {mean:e}, {spread:e}");
        }
    }
}

#[test]
fn doubling_the_steps_halves_eulers_error_and_quarters_the_second_orders() {
    let world = gaussian();
    // A floor so low that what is left is the solver's error.
    let aligned = Conversion::Aligned { floor: 1e-6 };
    for schedule in [Schedule::Linear, Schedule::Cosine] {
        let expert = ExactExpert::new(&world, 0, Objective::Epsilon, schedule).unwrap();
        let field = expert.velocity_field(aligned, FREE);
        for (solver, ratio) in SOLVERS.into_iter().zip([2.0, 4.0, 4.0]) {
            let error = |steps| (moments(&field, steps, solver).1 - 0.5).abs();
            let (coarse, fine) = (error(100), error(200));
            println!("{schedule}, {solver:?}: {coarse:.2e} -> {fine:.2e}");
            assert!((coarse / fine / ratio - 1.0).abs() < 0.1, "{schedule}, {solver:?}: {coarse:e} to {fine:e}");
        }
    }
}

#[test]
fn second_order_holds_on_shifted_grids() {
    let (world, noise) = (plane(), normal_points(8));
    let exact = integrate(&world, &noise, &sampler::time_grid(1600, 1.0), Solver::Heun);
    for (solver, least) in SOLVERS.into_iter().zip([1.8, 3.4, 3.4]) {
        let error = |steps| {
            let drawn = integrate(&world, &noise, &sampler::time_grid(steps, 3.0), solver);
            (drawn - &exact).square().mean(Kind::Double).sqrt().double_value(&[])
        };
        let (coarse, fine) = (error(100), error(200));
        println!("{solver:?}: {coarse:.2e} -> {fine:.2e}");
        assert!(coarse / fine > least, "{solver:?}: {coarse:e} to {fine:e}");
    }
}

#[test]
fn multistep_is_exact_where_the_velocity_is_linear_in_time() {
    /// `v = t`, whatever x.
    struct Clock;
    impl VelocityField for Clock {
        fn velocity(&self, x: &Tensor, t: &[f64], _: &Condition) -> Result<Tensor> {
            Ok(column(t.iter().copied(), x).expand_as(x))
        }
    }
    // The first step is Euler's: off by half its square. All others, however unequal, are exact.
    let times = [1.0, 0.9, 0.85, 0.5, 0.2, 0.0];
    let x = integrate(&Clock, &Tensor::zeros([1, 1], (Kind::Double, Device::Cpu)), &times, Solver::Multistep);
    let expected = -0.5 - 0.1f64.powi(2) / 2.0;
    assert!((x.double_value(&[0, 0]) - expected).abs() < 1e-12, "{x}");
}

#[test]
fn requests_are_charged_for_the_evaluations_that_samplers_make() {
    struct Counted<'a>(&'a Mixture, Cell<u64>);
    impl VelocityField for Counted<'_> {
        fn velocity(&self, x: &Tensor, t: &[f64], condition: &Condition) -> Result<Tensor> {
            self.1.set(self.1.get() + t.len() as u64);
            self.0.velocity(x, t, condition)
        }
    }
    let world = plane();
    for solver in SOLVERS {
        let request = SampleRequest { count: 4, steps: 7, guidance: 1.0, solver, shift: 2.0, ..Default::default() };
        let counted = Counted(&world, Cell::new(0));
        let _ =
            integrate(&counted, &normal_points(2), &sampler::time_grid(request.steps, request.shift.into()), solver);
        assert_eq!(counted.1.get(), request.evaluations(), "{solver:?}");
    }
}

/// Prediction errors in terms of the clean sample's (Proposition 1, Eq. 9 to 11): the squared error of a raw output is
/// `w(t)` times that of the clean sample implied by it.
#[test]
fn proposition_1_weights_hold() {
    let [x0, eps, mistake] = [1, 2, 3].map(|seed| normal(&[64, 3], seed).unwrap().to_kind(Kind::Double));
    let weight = |objective, path: &NoisePath, t: f64| {
        let c = path.at(t);
        let at = vec![c; 64];
        let x = &x0 * c.alpha + &eps * c.sigma;
        let raw = target(objective, &x0, &eps, &at) + &mistake;
        let clean = to_pair(objective, &raw, &x, &at).x0 - &x0;
        mistake.square().mean(Kind::Double).double_value(&[]) / clean.square().mean(Kind::Double).double_value(&[])
    };
    let same = |got: f64, expected: f64, what: &str| {
        assert!((got / expected - 1.0).abs() < 1e-8, "{what}: {got}, not {expected}");
    };
    for schedule in SCHEDULES {
        let path = NoisePath::new(&schedule);
        // On the linear path the velocity is the flow's, elsewhere the variance-preserving v.
        let v = if schedule == Schedule::Linear { Objective::Velocity } else { Objective::V };
        for t in [0.05, 0.3, 0.5, 0.8, 0.95] {
            let c = path.at(t);
            let (w_eps, w_v) = (weight(Objective::Epsilon, &path, t), weight(v, &path, t));
            same(w_eps, (c.alpha / c.sigma).powi(2), "Eq. 9");
            same(w_v, c.sigma.powi(-2), "Eq. 10");
            same(w_v / w_eps, c.alpha.powi(-2), "Eq. 11");
            same(w_eps, path.log_snr(t).exp(), "the weight of epsilon is the signal-to-noise ratio");
        }
    }
}
