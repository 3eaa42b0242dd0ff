//! Bounds on how many streams are served at once, in all and for one peer.

use libp2p::PeerId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts what is served.
#[derive(Clone)]
pub(super) struct Slots {
    taken: Arc<Mutex<HashMap<PeerId, usize>>>,
    total: usize,
    per_peer: usize,
}

/// A place; free again when dropped.
pub(super) struct Slot {
    slots: Slots,
    peer: PeerId,
}

impl Slots {
    pub(super) fn new(total: usize, per_peer: usize) -> Self {
        Self { taken: Arc::default(), total, per_peer }
    }

    /// A place for `peer`, if one is free.
    pub(super) fn take(&self, peer: PeerId) -> Option<Slot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&peer).copied().unwrap_or(0);
        if own >= self.per_peer || taken.values().sum::<usize>() >= self.total {
            return None;
        }
        taken.insert(peer, own + 1);
        Some(Slot { slots: self.clone(), peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_all_places_and_places_come_back() {
        let slots = Slots::new(3, 2);
        let [greedy, modest, late] = std::array::from_fn(|_| PeerId::random());
        let held = [slots.take(greedy), slots.take(greedy)];
        assert!(held.iter().all(Option::is_some));
        assert!(slots.take(greedy).is_none(), "over its own bound");
        let third = slots.take(modest);
        assert!(third.is_some());
        assert!(slots.take(late).is_none(), "over the bound in all");
        drop(held);
        assert!(slots.take(late).is_some());
    }
}
