//! The router as an artefact: trained weights that any aggregator of the charter may use after testing them, or train on.

use crate::{
    Blob, Charter, Digest, Error, PublicKey, Result, RouterRecipe, SignedPayload, Verified,
    error::ensure,
    manifest::{check_licence, check_life},
};
use serde::{Deserialize, Serialize};

/// Equal bins of time, from data to noise, that a router's accuracy is told for.
pub const ACCURACY_BINS: usize = 10;
/// Most bytes of a weights file before its tensors.
const HEADER: u64 = (1 << 20) + 8;

/// How a router's weights came to be. Counts and shares only: images never leave the aggregator's machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterTraining {
    /// Shape and training, every number of it.
    pub recipe: RouterRecipe,
    /// Optimiser steps done, at most the recipe's.
    pub steps: u64,
    /// Distinct images trained on.
    pub images: u64,
    /// Images of names that nobody trains on, on which the accuracy was measured.
    pub held_out: u64,
    /// Share of right predictions on those, 0 to 1, one a bin of time from data to noise; none without such images.
    pub accuracy: Option<[f32; ACCURACY_BINS]>,
    /// Share of the training images in each of the charter's K clusters, together 1: all that a router without text can know at
    /// `t = 1`.
    pub prior: Vec<f32>,
    /// Seed of initialisation, order and noise.
    pub seed: u64,
    /// Weights that training started from, if any.
    pub parent: Option<Digest>,
}

/// What an aggregator says of the router that it trained. An author has one router a charter; a later `sequence` replaces
/// the earlier. It is taken back as [`crate::RevocationTarget::Manifest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterManifest {
    /// The network whose clusters it predicts.
    pub charter: Digest,
    /// The key that signs.
    pub author: PublicKey,
    /// Rises with each version.
    pub sequence: u64,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds, after `issued_at` by at most the charter's `manifest_seconds`; aggregators do not take it up afterwards.
    pub expires_at: u64,
    /// The safetensors file: at most four bytes a parameter of the recipe's shape, and a header.
    pub weights: Blob,
    /// How they came to be.
    pub training: RouterTraining,
    /// SPDX expression of the weights' licence, 1 to 100 bytes; the charter's.
    pub licence: String,
}

impl SignedPayload for RouterManifest {
    const DOMAIN: &'static str = "hdd router";
    const NAME: &'static str = "router manifest";
    const LIMIT: usize = 16 << 10;

    fn author(&self) -> PublicKey {
        self.author
    }

    fn check(&self) -> Result<()> {
        let (what, training) = (Self::NAME, &self.training);
        let is_share = |share: &f32| (0.0..=1.0).contains(share);
        ensure(self.issued_at < self.expires_at, what, "expires_at", || "is not after issued_at".into())?;
        ensure(self.weights.size > 0, what, "weights", || "are empty".into())?;
        training.recipe.check()?;
        ensure(training.steps <= training.recipe.steps, what, "steps", || "are more than the recipe's".into())?;
        ensure(training.accuracy.iter().flatten().all(is_share), what, "accuracy", || "must be 0 to 1".into())?;
        ensure(training.accuracy.is_some() == (training.held_out > 0), what, "accuracy", || {
            "must come with the number of held-out images".into()
        })?;
        let total: f32 = training.prior.iter().sum();
        let is_prior = (1..=1024).contains(&training.prior.len()) && training.prior.iter().all(is_share);
        ensure(is_prior && (total - 1.0).abs() < 1e-3, what, "prior", || {
            "must be one share a cluster that together make 1".into()
        })?;
        check_licence(what, &self.licence)
    }
}

impl RouterManifest {
    /// Checks the manifest against the charter that it names, at the Unix time `now`.
    ///
    /// # Errors
    /// [`Error::WrongCharter`]; [`Error::OutOfRange`] for a shape, size, licence or time that the charter excludes.
    pub fn check_against(&self, charter: &Verified<Charter>, now: u64) -> Result<()> {
        let what = Self::NAME;
        if self.charter != charter.digest() {
            return Err(Error::WrongCharter { found: self.charter, expected: charter.digest() });
        }
        let recipe = &self.training.recipe;
        ensure(recipe.has_shape_of(&charter.router), what, "recipe", || "has another shape than the charter's".into())?;
        let clusters = usize::from(charter.clusters());
        ensure(self.training.prior.len() == clusters, what, "prior", || {
            format!("has {} shares, the charter has {clusters} clusters", self.training.prior.len())
        })?;
        let largest = 4 * recipe.parameters(charter) + HEADER;
        ensure(self.weights.size <= largest, what, "weights", || {
            format!("have {} bytes, a router of this charter has at most {largest}", self.weights.size)
        })?;
        ensure(self.licence == charter.licence, what, "licence", || {
            format!("is {}, the charter asks for {}", self.licence, charter.licence)
        })?;
        check_life(what, [self.issued_at, self.expires_at], charter, now)
    }

    /// Mean accuracy over the low-noise half of the bins, 0 to 1, as its author measured it; none if it was not measured.
    pub fn low_noise_accuracy(&self) -> Option<f32> {
        let low = self.training.accuracy?;
        Some(low[..ACCURACY_BINS / 2].iter().sum::<f32>() / (ACCURACY_BINS / 2) as f32)
    }
}

impl RouterRecipe {
    /// True if weights of one fit the other.
    pub fn has_shape_of(&self, other: &Self) -> bool {
        let shape = |r: &Self| (r.width, r.depth, r.heads, r.patch, r.text);
        shape(self) == shape(other)
    }

    /// Trainable parameters of a router of this shape over the charter's clusters, position table excluded.
    pub fn parameters(&self, charter: &Charter) -> u64 {
        let [d, depth, patch] = [self.width, self.depth, self.patch].map(u64::from);
        let [channels, words] = [charter.latent.channels, charter.text.width].map(u64::from);
        let linear = |input: u64, output: u64| input * output + output;
        let block = linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d) + linear(d, 6 * d);
        let text = if self.text { linear(words, 4 * d) + linear(4 * d, d) } else { 0 };
        linear(channels * patch * patch, d) // patches
            + linear(256, d) + linear(d, d) // timestep
            + d // class token
            + text
            + depth * block
            + linear(d, d) + 2 * d + linear(d, u64::from(charter.clusters())) // head
    }
}
