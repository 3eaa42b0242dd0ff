use crate::{
    Digest, PublicKey, Result, SignedPayload,
    charter::{NAME_RULE, is_name},
    error::ensure,
};
use serde::{Deserialize, Serialize};

/// What is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationTarget {
    /// One manifest, of an expert or of a router. A router has no name, so that this is how one is taken back; another version of
    /// it, published later, is not affected.
    Manifest(Digest),
    /// Every version of the expert with this name, earlier and later.
    Expert(String),
}

/// An author takes an expert or a router back. It wins over every manifest that it names, for ever, whichever of the two
/// arrives first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// The network.
    pub charter: Digest,
    /// The key that signs; only manifests by this key are affected.
    pub author: PublicKey,
    /// What is taken back.
    pub target: RevocationTarget,
    /// Why, for people; at most 200 bytes.
    pub reason: String,
    /// Unix seconds.
    pub issued_at: u64,
}

impl SignedPayload for Revocation {
    const DOMAIN: &'static str = "hdd revocation";
    const NAME: &'static str = "revocation";
    const LIMIT: usize = 2 << 10;

    fn author(&self) -> PublicKey {
        self.author
    }

    fn check(&self) -> Result<()> {
        if let RevocationTarget::Expert(name) = &self.target {
            ensure(is_name(name), Self::NAME, "target", || NAME_RULE.into())?;
        }
        ensure(self.reason.len() <= 200, Self::NAME, "reason", || "is longer than 200 bytes".into())
    }
}

impl Revocation {
    /// True if this takes back the manifest with digest `id`, by `author`, named `name`, of `charter`. A router's `name` is
    /// anything that no expert can have, such as the empty one.
    pub fn covers(&self, charter: Digest, author: PublicKey, name: &str, id: Digest) -> bool {
        self.charter == charter
            && self.author == author
            && match &self.target {
                RevocationTarget::Manifest(target) => *target == id,
                RevocationTarget::Expert(target) => target == name,
            }
    }
}
