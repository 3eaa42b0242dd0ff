//! Who is there, where, and who provides what: identify, Kademlia and multicast DNS.

use super::{Error, Event, Result, behaviour::PROVIDER_LIFE, event_loop::EventLoop};
use hdd_protocol::protocols;
use libp2p::{
    Multiaddr, PeerId, identify,
    kad::{self, QueryId, RecordKey, store::RecordStore as _},
    mdns,
    multiaddr::Protocol,
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use std::{collections::HashSet, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Addresses kept of one peer.
const ADDRESSES: usize = 16;
/// Providers collected in one lookup.
const PROVIDERS: usize = 64;
/// Wait between two announcements of all provided keys to a routing table that grows; doubles up to the last.
const ANNOUNCE_FIRST: Duration = Duration::from_secs(1);
const ANNOUNCE_LAST: Duration = Duration::from_secs(600);

/// A lookup of providers under way.
pub(super) struct Lookup {
    found: Vec<PeerId>,
    reply: oneshot::Sender<Vec<PeerId>>,
}

/// What this node provides, and when it says so again: its first announcements reach an empty routing table.
pub(super) struct Provided {
    keys: HashSet<RecordKey>,
    stale: bool,
    next: Instant,
    gap: Duration,
}

impl Default for Provided {
    fn default() -> Self {
        Self { keys: HashSet::new(), stale: false, next: Instant::now(), gap: ANNOUNCE_FIRST }
    }
}

impl EventLoop {
    pub(super) fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, .. } = event else { return };
        let Some(state) = self.peers.get_mut(&peer_id) else { return };
        let near = state.connections.iter().any(|(_, address)| is_loopback(address));
        let addresses: Vec<_> =
            info.listen_addrs.iter().filter(|a| near || !is_loopback(a)).take(ADDRESSES).cloned().collect();
        let speaks = info.protocols.iter().any(|p| *p == protocols::KADEMLIA);
        let dialled = state.dialled;
        let introduced = state.info.replace(info).is_none();
        if speaks {
            for address in &addresses {
                self.swarm.behaviour_mut().kademlia.add_address(&peer_id, address.clone());
            }
        }
        // Visitors and whoever else calls would push out those that can be called.
        if dialled && self.remembered.insert(peer_id, addresses) {
            self.unsaved = true;
        }
        if introduced {
            self.emit(Event::PeerConnected(peer_id));
        }
    }

    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else { return };
        for (peer, address) in found.into_iter().take(PROVIDERS) {
            self.dial(peer, vec![address]);
        }
    }

    pub(super) fn on_kademlia(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } } => {
                self.keep_provider(record);
            }
            kad::Event::OutboundQueryProgressed { id, result: kad::QueryResult::GetProviders(found), step, .. } => {
                if let Ok(kad::GetProvidersOk::FoundProviders { key, providers }) = found {
                    self.on_providers(id, &key, providers);
                }
                if let Some(lookup) = step.last.then(|| self.lookups.remove(&id)).flatten() {
                    let _ = lookup.reply.send(lookup.found); // who asked may have gone
                }
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => self.provided.stale = true,
            _ => {} // nothing else here concerns this node; it stores no values
        }
    }

    /// Keys are digests; Kademlia has made sure that the record names its sender.
    fn keep_provider(&mut self, mut record: kad::ProviderRecord) {
        let expires = *record.expires.get_or_insert_with(|| std::time::Instant::now() + PROVIDER_LIFE);
        if !self.quota.admit(record.provider, &record.key, expires) {
            tracing::debug!(peer = %record.provider, "provider record not kept: no digest, or no room");
            return;
        }
        record.addresses.truncate(ADDRESSES);
        if let Err(error) = self.swarm.behaviour_mut().kademlia.store_mut().add_provider(record) {
            tracing::debug!(%error, "provider record not kept");
        }
    }

    /// Removes strangers' provider records whose time is over.
    pub(super) fn forget_providers(&mut self) {
        for (provider, key) in self.quota.expired(std::time::Instant::now()) {
            self.swarm.behaviour_mut().kademlia.store_mut().remove_provider(&key, &provider);
        }
    }

    pub(super) fn provide(&mut self, key: RecordKey) -> Result<()> {
        let me = *self.swarm.local_peer_id();
        let kademlia = &mut self.swarm.behaviour_mut().kademlia;
        // A full list would silently leave this node out of its own store.
        let listed = kademlia.store_mut().providers(&key);
        if listed.len() >= kad::K_VALUE.get() && listed.iter().all(|record| record.provider != me) {
            kademlia.store_mut().remove_provider(&key, &listed[0].provider);
        }
        let started = kademlia.start_providing(key.clone());
        started.map_err(|error| Error::Setup { what: "a provider record", cause: error.to_string() })?;
        self.provided.keys.insert(key);
        Ok(())
    }

    /// Announces what is provided to peers that have come since the last time.
    pub(super) fn provide_again(&mut self, now: Instant) {
        let provided = &mut self.provided;
        if !provided.stale || provided.keys.is_empty() || now < provided.next {
            return;
        }
        (provided.stale, provided.next) = (false, now + provided.gap);
        provided.gap = (provided.gap * 2).min(ANNOUNCE_LAST);
        for key in provided.keys.iter().cloned() {
            if let Err(error) = self.swarm.behaviour_mut().kademlia.start_providing(key) {
                tracing::warn!(%error, "cannot announce a provider record");
            }
        }
    }

    pub(super) fn look_up(&mut self, key: RecordKey, reply: oneshot::Sender<Vec<PeerId>>) {
        let id = self.swarm.behaviour_mut().kademlia.get_providers(key);
        self.lookups.insert(id, Lookup { found: Vec::new(), reply });
    }

    /// Dials what is found while the lookup still knows the addresses.
    fn on_providers(&mut self, id: QueryId, key: &RecordKey, providers: HashSet<PeerId>) {
        let me = *self.swarm.local_peer_id();
        let stored = self.swarm.behaviour_mut().kademlia.store_mut().providers(key);
        let Some(lookup) = self.lookups.get_mut(&id) else { return };
        let known: HashSet<_> = lookup.found.iter().copied().collect();
        let room = PROVIDERS.saturating_sub(known.len());
        let fresh: Vec<_> = providers.into_iter().filter(|p| *p != me && !known.contains(p)).take(room).collect();
        lookup.found.extend(&fresh);
        for peer in fresh {
            let addresses = stored.iter().filter(|r| r.provider == peer).flat_map(|r| r.addresses.clone()).collect();
            self.dial(peer, addresses);
        }
    }

    /// Dials `peer` unless it is connected or being dialled.
    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
        let dial = dial.addresses(addresses).extend_addresses_through_behaviour().build();
        if let Err(error) = self.swarm.dial(dial) {
            tracing::debug!(%peer, %error, "not dialled");
        }
    }
}

/// A node on another machine cannot mean this machine's loopback.
fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}
