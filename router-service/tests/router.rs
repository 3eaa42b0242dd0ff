//! The router's training and the tests that another's router must pass, on a small world with an answer: the colour of an
//! image is its cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

use hdd_expert_runtime::{ClusterPosterior as _, sampler, seeded, train::Stop, weights};
use hdd_protocol::{
    Architecture, Charter, Codec, FeatureExtractor, Latent, Limits, Recipe, RouterRecipe, SampleLimits, SecretKey,
    Signed, Text, TextEncoder, Verified,
};
use hdd_router_service::{Error, Router, RouterCheck, RouterExamples, RouterParent, RouterTrainer, test_router};
use std::{collections::HashMap, path::Path};
use tch::{Device, Kind, Tensor};
use zeroize::Zeroizing;

const CLUSTERS: i64 = 3;
const SEED: u64 = 7;

fn charter(text: bool, learning_rate: f64) -> Verified<Charter> {
    let key = SecretKey::from_seed(&Zeroizing::new([1; 32]));
    let architecture =
        Architecture { channels: 3, size: 8, text_width: 8, text_length: 2, ..Architecture::new(16, 1, 2, 2) };
    let centroid = |k: usize| (0..3).map(|i| f32::from(u8::from(i == k))).collect();
    let charter = Charter {
        name: "colours".into(),
        founder: key.public(),
        issued_at: 1,
        successor_of: None,
        latent: Latent { codec: Codec::Pixels, channels: 3, size: 8, clamp: 1.2 },
        text: Text { encoder: TextEncoder::HashedWords, width: 8, length: 2 },
        extractor: FeatureExtractor::CellMeans { grid: 1 },
        centroids: (0..CLUSTERS as usize).map(centroid).collect(),
        limits: Limits {
            weights_bytes: 1 << 20,
            parameters: 1 << 20,
            manifest_seconds: 1000,
            sample: SampleLimits::default(),
        },
        architecture,
        recipe: Recipe::default(),
        router: RouterRecipe {
            width: 16,
            depth: 1,
            heads: 2,
            patch: 4,
            text,
            steps: 60,
            batch: 32,
            learning_rate,
            weight_decay: 1e-2,
        },
        held_out: None,
        licence: "CC0-1.0".into(),
        data_terms: String::new(),
    };
    Signed::sign(charter, &key).unwrap()
}

/// `n` images, half of them of cluster 0; each is its cluster's channel at 0.8 with some noise. Texts say nothing.
fn examples(n: i64, seed: u64) -> RouterExamples {
    let labels: Vec<i64> = (0..n).map(|i| if i % 2 == 0 { 0 } else { 1 + i / 2 % 2 }).collect();
    let labels = Tensor::from_slice(&labels);
    let colour = labels.one_hot(CLUSTERS).to_kind(Kind::Float) * 1.6 - 0.8; // (N, 3)
    let seeds: Vec<u64> = (0..n as u64).map(|i| seed * 1000 + i).collect();
    let latents = colour.reshape([n, 3, 1, 1]) + sampler::noise(&seeds, [3, 8, 8], Device::Cpu) * 0.2;
    RouterExamples { latents, text: Tensor::zeros([n, 2, 8], (Kind::Float, Device::Cpu)), labels }
}

fn trainer(charter: &Verified<Charter>, parent: Option<&RouterParent>) -> RouterTrainer {
    RouterTrainer::new(charter, &charter.router, &examples(96, 1), SEED, parent, Device::Cpu).unwrap()
}

fn trained(charter: &Verified<Charter>) -> RouterTrainer {
    let mut trainer = trainer(charter, None);
    assert_eq!(trainer.run(&examples(96, 1), |_, _| Ok(true)).unwrap(), Stop::Finished);
    trainer
}

fn bytes(router: &Router, folder: &Path, name: &str) -> Vec<u8> {
    router.save(&folder.join(name)).unwrap();
    std::fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let (folder, charter) = (tempfile::tempdir().unwrap(), charter(true, 3e-3));
    let mut losses = Vec::new();
    let mut whole = trainer(&charter, None);
    whole
        .run(&examples(96, 1), |_, progress| {
            losses.push(progress.loss);
            Ok(true)
        })
        .unwrap();

    let runs = folder.path().join("runs");
    let mut broken = Vec::new();
    for stop in [17, 40, 60] {
        let mut part = trainer(&charter, None);
        assert_eq!(part.resume(&runs).unwrap(), !broken.is_empty());
        assert_eq!(part.step(), broken.len() as u64);
        let outcome = part.run(&examples(96, 1), |_, progress| {
            broken.push(progress.loss);
            Ok(progress.step < stop)
        });
        assert_eq!(outcome.unwrap(), if stop == 60 { Stop::Finished } else { Stop::Interrupted });
        part.save(&runs).unwrap();
        if stop == 60 {
            assert_eq!(losses, broken);
            let [a, b] = [(&whole, "a"), (&part, "b")].map(|(t, name)| bytes(t.router(), folder.path(), name));
            assert_eq!(a, b, "the weights differ");
        }
    }
    // Another run does not take it up, and a damaged file is named.
    let recipe = RouterRecipe { steps: 61, ..charter.router.clone() };
    let mut other = RouterTrainer::new(&charter, &recipe, &examples(96, 1), SEED, None, Device::Cpu).unwrap();
    assert!(!other.resume(&runs).unwrap());
    let images = examples(96, 3); // as many of each cluster
    let mut other = RouterTrainer::new(&charter, &charter.router, &images, SEED, None, Device::Cpu).unwrap();
    assert!(!other.resume(&runs).unwrap());
    let file = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, b"damaged").unwrap();
    let error = trainer(&charter, None).resume(&runs).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()) && error.contains("remove it"), "{error}");
}

#[test]
fn parts_of_a_batch_give_its_gradients() {
    let charter = charter(true, 3e-3);
    let run = |micro_batch| {
        let mut trainer = trainer(&charter, None);
        trainer.set_micro_batch(micro_batch);
        let mut losses = Vec::new();
        let step = |_: &_, progress: hdd_router_service::RouterProgress| {
            losses.push(progress.loss);
            Ok(losses.len() < 3)
        };
        trainer.run(&examples(96, 1), step).unwrap();
        losses
    };
    let whole = run(32);
    for micro_batch in [1, 12] {
        for (loss, whole) in run(micro_batch).into_iter().zip(&whole) {
            assert!((loss - whole).abs() < 1e-5 * whole, "{micro_batch}: {loss} for {whole}");
        }
    }
}

#[test]
fn a_posterior_that_is_no_number_is_an_error() {
    let router = Router::of_charter(&charter(false, 3e-3), SEED, Device::Cpu);
    let x = Tensor::zeros([2, 3, 8, 8], (Kind::Float, Device::Cpu));
    router.posterior(&x, &[0.5, 0.25], None).unwrap();
    let _ = x.get(1).fill_(f64::INFINITY);
    let error = router.posterior(&x, &[0.5, 0.25], None).unwrap_err().to_string();
    assert!(error.contains("t = 0.25"), "{error}");
}

#[test]
fn training_on_from_a_parent_begins_where_it_ended() {
    let (folder, charter) = (tempfile::tempdir().unwrap(), charter(false, 3e-3));
    let first_loss = |parent: Option<&RouterParent>| {
        let mut loss = 0.0;
        trainer(&charter, parent)
            .run(&examples(96, 1), |_, progress| {
                loss = progress.loss;
                Ok(false)
            })
            .unwrap();
        loss
    };
    let saved = folder.path().join("parent.safetensors");
    trained(&charter).router().save(&saved).unwrap();
    let parent = RouterParent { weights: saved, digest: hdd_protocol::Digest::of(b"parent") };
    let (scratch, on) = (first_loss(None), first_loss(Some(&parent)));
    assert!(on < 0.7 * scratch, "{on} after {scratch}");
}

#[test]
fn a_loss_that_is_no_number_stops_and_a_run_needs_images() {
    let wild = charter(false, 1.0);
    let poisoned = examples(96, 1);
    let _ = poisoned.latents.get(5).fill_(f64::NAN);
    let mut trainer = trainer(&wild, None);
    let error = trainer.run(&poisoned, |_, _| Ok(true)).unwrap_err();
    assert!(matches!(&error, Error::Router(why) if why.contains("--router-learning-rate")), "{error}");
    assert!(trainer.step() < 60);
    let finite = |t: Tensor| t.isfinite().all().int64_value(&[]) == 1;
    assert!(trainer.router().parameters().into_values().all(finite), "what was there before stays whole");

    let none = RouterTrainer::new(&wild, &wild.router, &examples(0, 1), SEED, None, Device::Cpu);
    assert!(none.err().unwrap().to_string().contains("no image"));
    let wider = RouterRecipe { width: 32, ..wild.router.clone() };
    let other = RouterTrainer::new(&wild, &wider, &examples(8, 1), SEED, None, Device::Cpu);
    assert!(other.err().unwrap().to_string().contains("shape"));
}

#[test]
fn accuracy_falls_with_noise_to_the_prior_and_is_the_same_everywhere() {
    let charter = charter(false, 3e-3);
    let (router, held_out) = (trained(&charter), examples(128, 2));
    let accuracy = router.router().accuracy(&held_out).unwrap();
    assert_eq!(accuracy, router.router().accuracy(&held_out).unwrap());
    println!("accuracy {:?}", accuracy.per_bin);
    assert!(accuracy.low_noise() > 0.95, "{accuracy:?}");
    assert!(accuracy.per_bin[9] < 0.85 && accuracy.per_bin[9] > 0.3, "{accuracy:?}");
    assert_eq!(held_out.prior(3), [0.5, 0.25, 0.25]);
}

/// A copy of `router` after `change`, as a router that somebody sent; with what the tests say of it.
fn judged(
    charter: &Verified<Charter>,
    router: &Router,
    change: impl FnOnce(&mut weights::Named),
    check: &RouterCheck<'_>,
) -> Result<Option<f64>, String> {
    let _guard = tch::no_grad_guard();
    let folder = tempfile::tempdir().unwrap();
    let mut named: weights::Named = router.parameters().into_iter().map(|(n, t)| (n, t.detach().copy())).collect();
    change(&mut named);
    let path = folder.path().join("router.safetensors");
    weights::write(&path, &named, HashMap::new()).unwrap();
    let mut router = Router::of_charter(charter, 0, Device::Cpu);
    router.read(&path).map_err(|e| e.to_string())?;
    let measured = test_router(&router, charter, check).map_err(|e| e.to_string())?;
    Ok(measured.map(|accuracy| accuracy.low_noise()))
}

fn shuffle(named: &mut weights::Named) {
    for tensor in named.values_mut() {
        let order = seeded(3, || Tensor::randperm(tensor.numel() as i64, (Kind::Int64, Device::Cpu)));
        *tensor = tensor.flatten(0, -1).index_select(0, &order).reshape(tensor.size());
    }
}

#[test]
fn another_routers_weights_are_tested_before_they_serve() {
    for text in [false, true] {
        let charter = charter(text, 3e-3);
        let (trainer, held_out) = (trained(&charter), examples(128, 2));
        let (router, prior) = (trainer.router(), examples(96, 1).prior(3));
        let full = RouterCheck { prior: Some(&prior), held_out: Some(&held_out), margin: 0.25 };
        let good = judged(&charter, router, |_| {}, &full).unwrap().unwrap();
        assert!(good > 0.95, "{good}");

        let refused = |what: &str, change: &dyn Fn(&mut weights::Named), check: &RouterCheck<'_>, word: &str| {
            let error = judged(&charter, router, change, check).err().unwrap_or_default();
            assert!(error.contains(word), "{what}, text {text}: '{error}' lacks '{word}'");
        };
        refused("NaN", &|n| drop(n["head.4.bias"].shallow_clone().fill_(f64::NAN)), &full, "NaN");
        refused(
            "overflow",
            &|n| drop(n["head.4.weight"].shallow_clone().fill_(f64::from(f32::MAX))),
            &full,
            "no numbers",
        );
        if text {
            refused(
                "overflow of the text",
                &|n| drop(n["text_mlp.2.weight"].shallow_clone().fill_(f64::from(f32::MAX))),
                &full,
                "with text at t = 1 its probabilities are no numbers",
            );
        }
        refused(
            "shapes",
            &|n| drop(n.insert("head.4.bias".into(), Tensor::zeros([4], (Kind::Float, Device::Cpu)))),
            &full,
            "shape",
        );
        refused("missing", &|n| drop(n.remove("cls_token")), &full, "missing");

        // What knows no image stays below the floor, whatever else it does.
        let no_prior = RouterCheck { prior: None, ..full };
        refused("shuffled", &shuffle, &no_prior, "a guess is right for 50%");
        refused(
            "sign-flipped",
            &|n| drop(n.insert("head.4.weight".into(), -&n["head.4.weight"])),
            &no_prior,
            "a guess",
        );
        let flip = |n: &mut weights::Named| {
            for part in ["head.4.weight", "head.4.bias"] {
                n.insert(part.into(), n[part].flip([0]));
            }
        };
        refused("clusters swapped", &flip, &no_prior, "a guess");
        refused("the constant guess", &|n| drop(n["head.4.weight"].shallow_clone().zero_()), &no_prior, "a guess");

        // Without images only the stated prior is left to hold it against.
        let blind = RouterCheck { held_out: None, ..full };
        assert_eq!(judged(&charter, router, |_| {}, &blind), Ok(None));
        let lie = [0.0, 0.0, 1.0];
        refused("another prior", &|_| {}, &RouterCheck { prior: Some(&lie), ..blind }, "shares that its author states");
        // Of too few images nothing is concluded.
        let few = examples(16, 2);
        assert_eq!(
            judged(&charter, router, shuffle, &RouterCheck { prior: None, held_out: Some(&few), margin: 0.25 }),
            Ok(None)
        );
    }
}
