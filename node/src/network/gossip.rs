//! Announcements out and in. Each message that arrives gets exactly one verdict, from [`super::intake`].

use super::{
    behaviour::topic,
    event_loop::{Done, EventLoop},
    sync,
};
use hdd_protocol::{Announcement, encode};
use libp2p::{
    PeerId,
    gossipsub::{self, MessageAcceptance, MessageId, PublishError},
};
use std::time::Duration;
use tokio::time::Instant;

/// Records that wait for a first gossiping peer; older ones are found by reconciliation.
const UNSENT: usize = 64;
/// Records of one reconciliation that are passed on; a node that catches up on more has peers that know them.
const PASSED_ON: usize = 64;
/// What there was no room for is tried again after this.
const ROOM: Duration = Duration::from_secs(1);

impl EventLoop {
    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.judge(propagation_source, message_id, message.data);
            }
            gossipsub::Event::Subscribed { peer_id, topic: subscribed } if subscribed == topic().hash() => {
                for record in std::mem::take(&mut self.unsent) {
                    self.publish(record);
                }
                self.reconcile(peer_id);
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => tracing::debug!(peer = %peer_id, "peer reads gossip slowly"),
            gossipsub::Event::Subscribed { .. }
            | gossipsub::Event::Unsubscribed { .. }
            | gossipsub::Event::GossipsubNotSupported { .. } => {}
        }
    }

    fn judge(&mut self, source: PeerId, message: MessageId, bytes: Vec<u8>) {
        let room = self.work.len() < self.client.limits().work;
        let Some(slot) = room.then(|| self.judging.take(source)).flatten() else {
            self.reconcile_soon(source); // gossip does not bring it again
            return self.on_judged(source, &message, MessageAcceptance::Ignore);
        };
        let intake = self.client.intake();
        self.work.spawn(async move {
            let acceptance = match intake.take_bytes(&bytes, source).await {
                Ok(_) => MessageAcceptance::Accept,
                Err(refusal) => {
                    tracing::debug!(peer = %source, %refusal, "gossip not taken");
                    refusal.verdict()
                }
            };
            Done::Judged { source, message, acceptance, slot }
        });
    }

    pub(super) fn on_judged(&mut self, source: PeerId, message: &MessageId, acceptance: MessageAcceptance) {
        if matches!(acceptance, MessageAcceptance::Reject) {
            tracing::warn!(peer = %source, "peer sent an invalid announcement");
        }
        self.swarm.behaviour_mut().gossip.report_message_validation_result(message, &source, acceptance);
    }

    /// Gossips an accepted record. Returns the number of peers that take part.
    pub(super) fn publish(&mut self, record: Announcement) -> usize {
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        let hash = topic().hash();
        let peers = gossip.all_peers().filter(|(_, topics)| topics.contains(&&hash)).count();
        match encode(&record).map(|bytes| gossip.publish(hash, bytes)) {
            Ok(Ok(_) | Err(PublishError::Duplicate)) => {}
            Ok(Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_))) => {
                self.unsent.truncate(UNSENT - 1);
                self.unsent.push_front(record);
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot gossip a record"),
            Err(error) => tracing::warn!(%error, "cannot encode a record"),
        }
        peers
    }

    /// Begins to reconcile with `peer`, unless that is under way.
    pub(super) fn reconcile(&mut self, peer: PeerId) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        if state.reconciling {
            return;
        }
        if self.work.len() >= self.client.limits().work {
            return self.reconcile_soon(peer);
        }
        state.reconciling = true;
        let intake = self.client.intake();
        self.work.spawn(async move { Done::Reconciled { peer, fresh: sync::reconcile(&intake, peer).await } });
    }

    fn reconcile_soon(&mut self, peer: PeerId) {
        if let Some(state) = self.peers.get_mut(&peer) {
            let soon = Instant::now() + ROOM;
            // A time that has passed has had its turn.
            state.next_sync = Some(state.next_sync.filter(|at| *at > Instant::now()).map_or(soon, |at| at.min(soon)));
        }
    }

    pub(super) fn on_reconciled(&mut self, peer: PeerId, fresh: super::Result<Vec<Announcement>>) {
        let limits = self.client.limits();
        let lost = matches!(fresh, Err(super::Error::ConnectionLost { .. }));
        let next = Instant::now() + if lost { limits.idle } else { limits.sync_interval };
        if let Some(state) = self.peers.get_mut(&peer) {
            // Sooner if gossip has been turned away meanwhile.
            let next = state.next_sync.filter(|at| *at > Instant::now()).map_or(next, |at| at.min(next));
            (state.reconciling, state.next_sync) = (false, Some(next));
        }
        match fresh {
            Ok(fresh) => {
                tracing::debug!(%peer, records = fresh.len(), "reconciled");
                if fresh.len() <= PASSED_ON {
                    for record in fresh {
                        self.publish(record);
                    }
                }
            }
            Err(error) => tracing::debug!(%peer, %error, "cannot reconcile"),
        }
    }
}
