use crate::{
    Charter, Digest, Error, ExpertSpec, PublicKey, Recipe, Result, SignedPayload, Verified,
    charter::{NAME_RULE, is_name},
    error::ensure,
};
use serde::{Deserialize, Serialize};

/// A file named by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// BLAKE3 of the content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// How the weights came to be. Counts only: data, paths and captions never leave the contributor's machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimiser steps done.
    pub steps: u64,
    /// Distinct images trained on.
    pub images: u64,
    /// Mean training loss over the last hundred steps.
    pub loss: f32,
    /// Seed of initialisation, order and noise.
    pub seed: u64,
    /// The recipe, every number of it.
    pub recipe: Recipe,
    /// Weights that training started from, if any.
    pub parent: Option<Digest>,
}

/// What a contributor says of one expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The network that the expert belongs to.
    pub charter: Digest,
    /// The key that signs.
    pub author: PublicKey,
    /// The author's name for this expert. A later `sequence` under the same name replaces the earlier.
    pub name: String,
    /// Rises with each version of the expert.
    pub sequence: u64,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds; not served afterwards.
    pub expires_at: u64,
    /// How to run the weights.
    pub spec: ExpertSpec,
    /// The safetensors file with the averaged weights.
    pub weights: Blob,
    /// How they came to be.
    pub training: Training,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Hash of the key that may take over this identity, published before it is needed.
    pub next_key: Option<Digest>,
}

impl SignedPayload for Manifest {
    const DOMAIN: &'static str = "hdd manifest";
    const NAME: &'static str = "manifest";
    const LIMIT: usize = 16 << 10;

    fn author(&self) -> PublicKey {
        self.author
    }

    fn check(&self) -> Result<()> {
        let what = Self::NAME;
        ensure(is_name(&self.name), what, "name", || NAME_RULE.into())?;
        ensure(self.issued_at < self.expires_at, what, "expires_at", || "is not after issued_at".into())?;
        ensure(self.weights.size > 0, what, "weights", || "are empty".into())?;
        ensure(self.training.loss.is_finite(), what, "loss", || "is not a finite number".into())?;
        check_licence(what, &self.licence)?;
        self.training.recipe.check()?;
        self.spec.check()
    }
}

impl Manifest {
    /// Checks the manifest against the charter that it names, at the Unix time `now`.
    ///
    /// # Errors
    /// [`Error::WrongCharter`]; [`Error::OutOfRange`] for a cluster, shape, size, licence or time that the charter excludes.
    pub fn check_against(&self, charter: &Verified<Charter>, now: u64) -> Result<()> {
        let what = Self::NAME;
        if self.charter != charter.digest() {
            return Err(Error::WrongCharter { found: self.charter, expected: charter.digest() });
        }
        let (a, limits) = (&self.spec.architecture, &charter.limits);
        ensure(self.spec.cluster < charter.clusters(), what, "cluster", || {
            format!("is {}, the charter has clusters 0 to {}", self.spec.cluster, charter.clusters() - 1)
        })?;
        let fits = a.channels == charter.latent.channels
            && a.size == charter.latent.size
            && a.text_width == charter.text.width
            && a.text_length == charter.text.length;
        ensure(fits, what, "architecture", || "does not fit the charter's latent space and text".into())?;
        ensure(a.parameters() <= limits.parameters, what, "architecture", || {
            format!("has {} parameters, the charter allows {}", a.parameters(), limits.parameters)
        })?;
        ensure(self.weights.size <= limits.weights_bytes, what, "weights", || {
            format!("have {} bytes, the charter allows {}", self.weights.size, limits.weights_bytes)
        })?;
        ensure(self.licence == charter.licence, what, "licence", || {
            format!("is {}, the charter asks for {}", self.licence, charter.licence)
        })?;
        check_life(what, [self.issued_at, self.expires_at], charter, now)
    }
}

pub(crate) fn check_licence(what: &'static str, licence: &str) -> Result<()> {
    ensure((1..=100).contains(&licence.len()), what, "licence", || "must be an SPDX expression".into())
}

/// Checks when a record was issued and expires, Unix seconds, against what the charter allows at `now`.
pub(crate) fn check_life(what: &'static str, [issued, expires]: [u64; 2], charter: &Charter, now: u64) -> Result<()> {
    let longest = charter.limits.manifest_seconds;
    ensure(expires.saturating_sub(issued) <= longest, what, "expires_at", || {
        format!("is more than {longest} s after issued_at")
    })?;
    ensure(issued <= now.saturating_add(CLOCK_SKEW), what, "issued_at", || "lies in the future".into())?;
    ensure(now < expires, what, "expires_at", || "has passed; its author must publish it again".into())
}

/// Clocks may differ by this, seconds.
pub(crate) const CLOCK_SKEW: u64 = 600;
