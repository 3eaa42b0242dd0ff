use crate::{Digest, Objective, PublicKey, Result, SampleLimits, SignedPayload, error::ensure};
use serde::{Deserialize, Serialize};

/// An expert that an aggregator serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedExpert {
    /// Its manifest.
    pub manifest: Digest,
    /// Its cluster.
    pub cluster: u16,
    /// Its objective.
    pub objective: Objective,
}

/// What an aggregator serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The aggregator's key.
    pub aggregator: PublicKey,
    /// The network that it serves.
    pub charter: Digest,
    /// Experts in the ensemble.
    pub experts: Vec<OfferedExpert>,
    /// The router's weights.
    pub router: Option<Digest>,
    /// Bounds of a request.
    pub limits: SampleLimits,
    /// Unix seconds.
    pub issued_at: u64,
}

impl SignedPayload for Offer {
    const DOMAIN: &'static str = "hdd offer";
    const NAME: &'static str = "offer";
    const LIMIT: usize = 256 << 10;

    fn author(&self) -> PublicKey {
        self.aggregator
    }

    fn check(&self) -> Result<()> {
        ensure(self.experts.len() <= 4096, Self::NAME, "experts", || "are more than 4,096".into())?;
        self.limits.check()
    }
}
