//! Connections: opened, kept, lost.

use super::{
    Error, Event, PeerInfo, Result,
    bootstrap::{self, Goal},
    command::Direction,
    event_loop::EventLoop,
};
use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    identify,
    multiaddr::Protocol,
    ping,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use std::time::Duration;
use tokio::{sync::oneshot, time::Instant};

/// What is known of a connected peer.
pub(super) struct Peer {
    pub connections: Vec<(ConnectionId, Multiaddr)>,
    pub direction: Direction,
    /// Whether this node opened one of its connections.
    pub dialled: bool,
    pub rtt: Option<Duration>,
    /// What it says of itself, once it has.
    pub info: Option<identify::Info>,
    pub reconciling: bool,
    /// When to reconcile again, after the first time.
    pub next_sync: Option<Instant>,
}

impl EventLoop {
    pub(super) fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.dialer.connected(connection, peer);
        let direction = if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound };
        let state = self.peers.entry(peer).or_insert_with(|| Peer {
            connections: Vec::new(),
            direction,
            dialled: false,
            rtt: None,
            info: None,
            reconciling: false,
            next_sync: None,
        });
        state.dialled |= endpoint.is_dialer();
        state.connections.push((connection, endpoint.get_remote_address().clone()));
        self.answer_connects(peer, || Ok(()));
    }

    pub(super) fn on_disconnected(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.connections.retain(|(id, _)| *id != connection);
        if state.connections.is_empty() {
            let introduced = self.peers.remove(&peer).is_some_and(|state| state.info.is_some());
            self.dialer.disconnected(peer, Instant::now());
            if introduced {
                self.emit(Event::PeerDisconnected(peer));
            }
        }
    }

    pub(super) fn on_dial_failed(&mut self, peer: Option<PeerId>, connection: ConnectionId, error: &DialError) {
        let cause = bootstrap::cause(error);
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.dialer.is_self(connection);
        } else if let Some(addr) = self.dialer.failed(connection, &cause, Instant::now()) {
            tracing::warn!(bootstrap = %addr, cause, "bootstrap cannot be reached; trying again");
            self.emit(Event::BootstrapFailed { addr, cause: cause.clone() });
        }
        if let Some(peer) = peer.filter(|peer| !self.swarm.is_connected(peer)) {
            self.answer_connects(peer, || Err(Error::Unreachable { peer, cause: cause.clone() }));
        }
    }

    pub(super) fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                if let Some(state) = self.peers.get_mut(&event.peer) {
                    state.rtt = Some(rtt);
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "connection is dead");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    /// Answers once `peer` is connected, or cannot be.
    pub(super) fn connect(&mut self, peer: PeerId, reply: oneshot::Sender<Result<()>>) {
        if self.swarm.is_connected(&peer) {
            let _ = reply.send(Ok(())); // who asked may have gone
            return;
        }
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(dial) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => self.connects.entry(peer).or_default().push(reply),
            Err(error) => {
                let _ = reply.send(Err(Error::Unreachable { peer, cause: bootstrap::cause(&error) }));
            }
        }
    }

    /// Dials bootstraps and remembered peers that are due.
    pub(super) fn dial_due(&mut self, now: Instant) {
        let alone = self.peers.is_empty();
        for goal in self.dialer.due(now, alone) {
            let (peer, dial) = match &goal {
                Goal::Bootstrap(addr) => (named(addr), DialOpts::from(addr.clone())),
                Goal::Remembered(peer, addresses) => {
                    let dial = DialOpts::peer_id(*peer).condition(PeerCondition::Always);
                    (Some(*peer), dial.addresses(addresses.clone()).build())
                }
            };
            if let Some(peer) = peer.filter(|peer| self.swarm.is_connected(peer)) {
                self.dialer.reached(&goal, peer);
                continue;
            }
            let connection = dial.connection_id();
            self.dialer.dialling(&goal, connection);
            if let Err(error) = self.swarm.dial(dial) {
                self.on_dial_failed(peer, connection, &error);
            }
        }
    }

    pub(super) fn peer_list(&self) -> Vec<PeerInfo> {
        let describe = |(id, state): (&PeerId, &Peer)| {
            let info = state.info.as_ref()?;
            Some(PeerInfo {
                id: *id,
                addresses: state.connections.iter().map(|(_, address)| address.clone()).collect(),
                agent: info.agent_version.clone(),
                protocols: info.protocols.iter().map(ToString::to_string).collect(),
                direction: state.direction,
                rtt: state.rtt,
            })
        };
        self.peers.iter().filter_map(describe).collect()
    }

    fn answer_connects(&mut self, peer: PeerId, answer: impl Fn() -> Result<()>) {
        for reply in self.connects.remove(&peer).into_iter().flatten() {
            let _ = reply.send(answer()); // who asked may have gone
        }
    }
}

fn named(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None })
}
