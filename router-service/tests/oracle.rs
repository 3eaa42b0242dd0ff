//! Fusion of exact experts under an exact router, in float64: Eq. 1, and what the conversions do to a Gaussian.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{
    ClusterPosterior, Condition, VelocityField, normal,
    oracle::{Component, ExactExpert, Mixture},
    sampler,
};
use hdd_protocol::{Conversion, Digest, ExpertSelection, Objective, Schedule, Solver};
use hdd_router_service::{Ensemble, Fusion, Member};
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

const NOTHING: Condition = Condition { text: None, guidance: None };
const FM: (Objective, Schedule) = (Objective::Velocity, Schedule::Linear);
const DDPM: (Objective, Schedule) = (Objective::Epsilon, Schedule::Cosine);
const PAPER: Conversion = Conversion::Paper { damping: true };
const SWITCH: ExpertSelection = ExpertSelection::Threshold { time: 0.5, reversed: false };

type Exact = Ensemble<Mixture, ExactExpert>;

/// The exact router of `world` with exact experts of its clusters.
fn ensemble(world: Mixture, experts: &[(u16, (Objective, Schedule))]) -> Exact {
    let member = |(i, &(cluster, (objective, schedule))): (usize, &(u16, (Objective, Schedule)))| Member {
        manifest: Digest::of(&[i as u8]),
        expert: ExactExpert::new(&world, cluster, objective, schedule).unwrap(),
    };
    let members = experts.iter().enumerate().map(member).collect();
    // Paper's clamp of VAE latents; none for ours.
    Ensemble { members, router: world, clamp: f64::INFINITY, paper_clamp: 20.0 }
}

/// Four clusters in space, of one to three Gaussians each.
fn space() -> Mixture {
    let part = |cluster, weight, mean: [f64; 3], variance: [f64; 3]| Component {
        cluster,
        weight,
        mean: mean.to_vec(),
        variance: variance.to_vec(),
    };
    let parts = vec![
        part(0, 0.3, [-1.0, 0.5, 0.2], [0.09, 0.16, 0.25]),
        part(1, 0.1, [1.0, 1.0, -0.4], [0.25, 0.04, 0.09]),
        part(1, 0.2, [0.6, 1.4, 0.4], [0.04, 0.09, 0.04]),
        part(2, 0.1, [0.3, -1.2, 0.0], [0.04, 0.25, 0.01]),
        part(3, 0.1, [0.0, 0.0, 1.0], [0.16, 0.16, 0.16]),
        part(3, 0.1, [0.2, 0.1, -1.0], [0.09, 0.01, 0.09]),
        part(3, 0.1, [1.5, -0.5, 0.5], [0.01, 0.09, 0.25]),
    ];
    Mixture::new(parts).unwrap()
}

#[test]
fn eq_1_is_the_exact_marginal_field() {
    let x = normal(&[256, 3], 3).unwrap().to_kind(Kind::Double) * 1.2;
    // The linear experts hold up to both ends, converted ones between the floors of linear-beta and of alignment.
    let linear = [0, 1, 2, 3].map(|cluster| (cluster, FM));
    let mixed = [
        (0, FM),
        (1, DDPM),
        (2, (Objective::X0, Schedule::CosineOffset { offset: 0.008 })),
        (3, (Objective::V, Schedule::DDPM)),
        (3, (Objective::Velocity, Schedule::Cosine)),
    ];
    for (experts, low, high) in [(&linear[..], 0.0, 1.0), (&mixed[..], 0.011, 0.989)] {
        let t: Vec<f64> = (0..256).map(|i| low + (high - low) * f64::from(i) / 255.0).collect();
        let ensemble = ensemble(space(), experts);
        let fused = ensemble.fusion(ExpertSelection::Full, Conversion::DEFAULT, None, 256);
        let exact = ensemble.router.velocity(&x, &t, &NOTHING).unwrap();
        let error = (fused.velocity(&x, &t, &NOTHING).unwrap() - exact).abs().max().double_value(&[]);
        println!("{} experts: {error:.1e}", experts.len());
        assert!(error < 1e-10, "{} experts: off by {error:e}", experts.len());
        // Shares are the mean posterior, spread over a cluster's experts.
        let posterior = ensemble.router.posterior(&x, &t, None).unwrap();
        for (shares, p) in fused.shares().iter().zip(posterior) {
            for (k, p) in (0u16..).zip(p) {
                let share: f32 = shares.iter().filter(|s| s.cluster == k).map(|s| s.weight).sum();
                assert!((f64::from(share) - p).abs() < 1e-6);
            }
        }
    }
}

/// Mean and standard deviation of what `field` makes of noise, exactly: every step is affine in x, so two points tell all.
fn moments(field: &Fusion<'_, Mixture, ExactExpert>, steps: u32, solver: Solver) -> (f64, f64) {
    let x = Tensor::from_slice(&[0.0, 1.0]).reshape([2, 1]);
    let times = sampler::time_grid(steps, 1.0);
    let ends = sampler::sample(field, x, &NOTHING, &times, solver, |_| ControlFlow::Continue(())).unwrap().unwrap();
    let (mean, one) = (ends.double_value(&[0, 0]), ends.double_value(&[1, 0]));
    (mean, (one - mean).abs())
}

/// The table of a Gaussian with mean 1 and standard deviation 0.5, which an independent computation made.
#[test]
fn the_papers_conversion_is_biased_and_the_aligned_one_is_not() {
    let reversed = ExpertSelection::Threshold { time: 0.5, reversed: true };
    let aligned = |floor| Conversion::Aligned { floor };
    let full = ExpertSelection::Full;
    let undamped = Conversion::Paper { damping: false };
    let rows = [
        (&[FM][..], full, PAPER, [(1.000, 0.485), (1.000, 0.499)]),
        (&[DDPM], full, aligned(1e-2), [(1.000, 0.485), (1.000, 0.499)]),
        (&[DDPM], full, aligned(1e-6), [(1.000, 0.485), (1.000, 0.499)]),
        (&[FM, DDPM], SWITCH, Conversion::DEFAULT, [(1.000, 0.485), (1.000, 0.499)]),
        (&[FM, DDPM], reversed, Conversion::DEFAULT, [(1.000, 0.485), (1.000, 0.499)]),
        (&[FM, DDPM], SWITCH, PAPER, [(0.868, 0.354), (0.858, 0.360)]),
        (&[DDPM], full, undamped, [(0.996, 0.497), (0.998, 0.500)]),
        (&[DDPM], full, PAPER, [(0.957, 0.514), (0.958, 0.517)]),
        (&[FM, DDPM], full, PAPER, [(0.980, 0.500), (0.980, 0.508)]),
    ];
    for (experts, selection, conversion, expected) in rows {
        let experts: Vec<_> = experts.iter().map(|&kind| (0, kind)).collect();
        let ensemble = ensemble(Mixture::gaussian(vec![1.0], vec![0.25]).unwrap(), &experts);
        for (steps, (mean, std)) in [50, 1000].into_iter().zip(expected) {
            let got = moments(&ensemble.fusion(selection, conversion, None, 2), steps, Solver::Euler);
            println!("{} experts, {selection:?}, {conversion:?}, {steps}: {:.4} / {:.4}", experts.len(), got.0, got.1);
            let close = (got.0 - mean).abs() < 6e-4 && (got.1 - std).abs() < 6e-4; // the table's rounding
            assert!(close, "{selection:?}, {conversion:?}, {steps} steps: {got:?}, not {mean} / {std}");
        }
    }
}

#[test]
fn a_switch_between_aligned_experts_is_no_seam_for_any_solver() {
    for solver in [Solver::Euler, Solver::Heun, Solver::Multistep] {
        let gaussian = || Mixture::gaussian(vec![1.0], vec![0.25]).unwrap();
        let (alone, both) = (ensemble(gaussian(), &[(0, FM)]), ensemble(gaussian(), &[(0, FM), (0, DDPM)]));
        let (mean, std) = moments(&alone.fusion(ExpertSelection::Top1, Conversion::DEFAULT, None, 2), 50, solver);
        let switched = [
            both.fusion(SWITCH, Conversion::DEFAULT, None, 2),
            both.fusion(ExpertSelection::Full, Conversion::DEFAULT, Some(0.5), 2),
        ];
        for fusion in switched {
            let got = moments(&fusion, 50, solver);
            assert!((got.0 - mean).abs() < 1e-8 && (got.1 - std).abs() < 1e-8, "{solver:?}: {got:?}, {mean} / {std}");
        }
    }
}
