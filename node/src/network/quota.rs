//! Provider records kept for strangers, counted, so that no peer fills the store and that what has expired makes room.

use hdd_protocol::Digest;
use libp2p::{PeerId, kad::RecordKey};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Records kept for others in all.
pub(super) const STRANGERS: usize = 1 << 16;
/// Records kept for one provider.
const PER_PROVIDER: usize = 1000;
/// A look at everything that may have expired is taken this often.
const SWEEP: Duration = Duration::from_secs(60);

/// What is kept, for whom, and until when.
pub(super) struct Quota {
    kept: HashMap<PeerId, HashMap<RecordKey, Instant>>,
    count: usize,
    next_sweep: Instant,
}

impl Quota {
    pub(super) fn new(now: Instant) -> Self {
        Self { kept: HashMap::new(), count: 0, next_sweep: now + SWEEP }
    }

    /// Takes one more record in, or renews it. Returns whether there is room.
    pub(super) fn admit(&mut self, provider: PeerId, key: &RecordKey, expires: Instant) -> bool {
        if key.as_ref().len() != size_of::<Digest>() {
            return false;
        }
        let keys = self.kept.get(&provider);
        let known = keys.is_some_and(|keys| keys.contains_key(key));
        let full = self.count >= STRANGERS || keys.is_some_and(|keys| keys.len() >= PER_PROVIDER);
        if full && !known {
            return false;
        }
        self.kept.entry(provider).or_default().insert(key.clone(), expires);
        self.count += usize::from(!known);
        true
    }

    /// What has expired since the last sweep; from now on it does not count. Empty if no sweep is due.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<(PeerId, RecordKey)> {
        let mut expired = Vec::new();
        if now < self.next_sweep {
            return expired;
        }
        self.next_sweep = now + SWEEP;
        for (provider, keys) in &mut self.kept {
            let old = keys.extract_if(|_, expires| *expires <= now);
            expired.extend(old.map(|(key, _)| (*provider, key)));
        }
        self.kept.retain(|_, keys| !keys.is_empty());
        self.count -= expired.len();
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_provider_cannot_take_all_room_and_what_expires_makes_room() {
        let now = Instant::now();
        let [soon, late] = [now + SWEEP, now + 3 * SWEEP];
        let key = |number: usize| RecordKey::new(Digest::of(&number.to_le_bytes()).as_bytes());
        let [greedy, modest] = std::array::from_fn(|_| PeerId::random());
        let mut quota = Quota::new(now);
        assert!(!quota.admit(modest, &RecordKey::new(b"no digest"), soon));
        assert!((0..PER_PROVIDER).all(|number| quota.admit(greedy, &key(number), soon)));
        assert!(!quota.admit(greedy, &key(PER_PROVIDER), soon), "over its own bound");
        assert!(quota.admit(greedy, &key(0), late), "renewed");
        assert!(quota.admit(modest, &key(PER_PROVIDER), late));
        assert!(quota.expired(now).is_empty(), "no sweep is due");
        assert_eq!(quota.expired(soon).len(), PER_PROVIDER - 1);
        assert!(quota.admit(greedy, &key(PER_PROVIDER), late));
        let mut number = PER_PROVIDER;
        while quota.count < STRANGERS {
            number += 1;
            assert!(quota.admit(PeerId::random(), &key(number), late));
        }
        assert!(!quota.admit(modest, &key(0), late), "over the bound in all");
    }
}
