//! What a router may say of itself, and what a charter lets in.
#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod fixtures;

use fixtures::{ISSUED, LIFE, charter, key, router};
use hdd_protocol::{
    ACCURACY_BINS, Charter, Digest, Error, RouterManifest, RouterRecipe, RouterTraining, Signed, Verified,
};

fn signed() -> (Verified<Charter>, Verified<RouterManifest>) {
    let charter = Signed::sign(charter(), &key(1)).unwrap();
    let router = Signed::sign(router(&charter), &key(3)).unwrap();
    (charter, router)
}

#[test]
fn a_router_that_cannot_cut_the_latents_into_patches_is_refused() {
    let mut bad = charter();
    bad.router.patch = 3;
    let error = Signed::sign(bad, &key(1)).unwrap_err();
    assert!(matches!(&error, Error::OutOfRange { field: "router", .. }), "{error:?}");
}

#[test]
fn a_charter_excludes_routers_that_do_not_fit_it() {
    let (charter, router) = signed();
    router.check_against(&charter, ISSUED).unwrap();
    router.check_against(&charter, ISSUED + LIFE - 1).unwrap();
    let other = Signed::sign(Charter { name: "other".into(), ..(*charter).clone() }, &key(1)).unwrap();
    let error = router.check_against(&other, ISSUED).unwrap_err();
    assert_eq!(error, Error::WrongCharter { found: charter.digest(), expected: other.digest() });

    type Change = fn(&mut RouterManifest);
    let table: [(&str, u64, Change); 12] = [
        ("recipe", ISSUED, |r| r.training.recipe.width = 384),
        ("recipe", ISSUED, |r| r.training.recipe.depth += 1),
        ("recipe", ISSUED, |r| r.training.recipe.patch = 4),
        ("recipe", ISSUED, |r| r.training.recipe.text = true),
        ("prior", ISSUED, |r| r.training.prior = vec![0.5, 0.25, 0.25]),
        ("weights", ISSUED, |r| r.weights.size = 600 << 20),
        ("licence", ISSUED, |r| r.licence = "proprietary".into()),
        ("expires_at", ISSUED, |r| r.expires_at += 1),
        ("expires_at", ISSUED + LIFE, |_| {}),
        ("issued_at", ISSUED - 601, |_| {}),
        ("expires_at", u64::MAX, |_| {}),
        ("expires_at", 2 * ISSUED, |r| (r.issued_at, r.expires_at) = (ISSUED, ISSUED + 1)),
    ];
    for (expected, now, change) in table {
        let mut changed = (*router).clone();
        change(&mut changed);
        let signed = Signed::sign(changed, &key(3)).unwrap();
        let error = signed.check_against(&charter, now).unwrap_err();
        assert!(matches!(&error, Error::OutOfRange { field, .. } if *field == expected), "{expected}: {error:?}");
    }
    // Another length of training, seed and parent is its author's affair; the largest weights are the shape's in float32.
    let mut fits = (*router).clone();
    fits.training = RouterTraining { steps: 1, seed: 9, parent: Some(Digest::of(b"parent")), ..fits.training };
    fits.training.recipe.steps = 1;
    fits.weights.size = 4 * charter.router.parameters(&charter);
    Signed::sign(fits, &key(3)).unwrap().check_against(&charter, ISSUED).unwrap();
}

#[test]
fn a_router_states_shares_and_counts_that_can_be() {
    let good = (*signed().1).clone();
    type Change = fn(&mut RouterManifest);
    let table: [(&str, Change); 11] = [
        ("expires_at", |r| r.expires_at = r.issued_at),
        ("weights", |r| r.weights.size = 0),
        ("shape", |r| r.training.recipe.heads = 5),
        ("steps", |r| r.training.steps = r.training.recipe.steps + 1),
        ("accuracy", |r| r.training.accuracy = Some([1.5; ACCURACY_BINS])),
        ("accuracy", |r| r.training.accuracy = Some([f32::NAN; ACCURACY_BINS])),
        ("accuracy", |r| r.training.accuracy = None),
        ("prior", |r| r.training.prior = vec![0.5, 0.25]),
        ("prior", |r| r.training.prior = vec![1.25, -0.25]),
        ("prior", |r| r.training.prior = vec![]),
        ("licence", |r| r.licence = String::new()),
    ];
    for (expected, change) in table {
        let mut changed = good.clone();
        change(&mut changed);
        let error = Signed::sign(changed, &key(3)).unwrap_err();
        assert!(matches!(&error, Error::OutOfRange { field, .. } if *field == expected), "{expected}: {error:?}");
    }
    let mut unmeasured = good.clone();
    (unmeasured.training.held_out, unmeasured.training.accuracy) = (0, None);
    assert_eq!(Signed::sign(unmeasured, &key(3)).unwrap().low_noise_accuracy(), None);
    // Of the most clusters that a charter may have it is still within its limit.
    let mut large = good;
    large.training.prior = vec![1.0 / 1024.0; 1024];
    Signed::sign(large, &key(3)).unwrap();
}

#[test]
fn the_papers_router_has_its_parameters() {
    let mut paper = charter();
    (paper.latent.channels, paper.centroids) = (4, vec![vec![1.0]; 8]);
    assert_eq!(RouterRecipe::default().parameters(&paper), 128_940_296);
}
