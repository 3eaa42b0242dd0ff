//! Whose experts an aggregator takes, and how many.

use hdd_protocol::{Manifest, PublicKey, Verified};
use std::collections::HashMap;

/// What an aggregator accepts before it spends a byte of transfer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// If not empty, only these authors.
    pub allowed: Vec<PublicKey>,
    /// Never these.
    pub blocked: Vec<PublicKey>,
    /// Most experts a cluster; 0 is no limit.
    pub per_cluster: usize,
}

/// What a policy says of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Fetch and test it.
    Wanted,
    /// Leave it, for this reason.
    Declined(String),
}

impl Policy {
    /// Decides on a current manifest; `serving` counts experts in service by cluster.
    pub fn decide(&self, m: &Verified<Manifest>, serving: &HashMap<u16, usize>) -> Decision {
        if let Decision::Declined(why) = self.decide_on_author(m.author) {
            return Decision::Declined(why);
        }
        let count = serving.get(&m.spec.cluster).copied().unwrap_or(0);
        if self.per_cluster > 0 && count >= self.per_cluster {
            return Decision::Declined(format!("cluster {} has its {} experts", m.spec.cluster, self.per_cluster));
        }
        Decision::Wanted
    }

    /// Decides on what somebody published, whatever it is.
    pub fn decide_on_author(&self, author: PublicKey) -> Decision {
        if self.blocked.contains(&author) {
            return Decision::Declined(format!("author {} is blocked here", author.short()));
        }
        if !self.allowed.is_empty() && !self.allowed.contains(&author) {
            return Decision::Declined(format!(
                "author {} is unknown here; only listed authors are taken",
                author.short()
            ));
        }
        Decision::Wanted
    }
}
