//! The loop that owns the swarm. It never waits: what takes time is a task of bounded number, whose result comes back as
//! [`Done`].

use super::{
    Client, Error, Event, Result,
    behaviour::{Behaviour, BehaviourEvent},
    bootstrap::Dialer,
    command::Command,
    connections::Peer,
    discovery::{Lookup, Provided},
    quota::Quota,
    remembered::Remembered,
    slots::{Slot, Slots},
    sync,
    task::blocking,
};
use futures::StreamExt as _;
use hdd_protocol::{Announcement, SyncRequest, SyncResponse};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    gossipsub::{MessageAcceptance, MessageId},
    kad::QueryId,
    request_response::{self, OutboundRequestId, ResponseChannel},
    swarm::SwarmEvent,
};
use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How often the loop looks at what is due.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two writes of the peers file, if there is news.
const SAVE_TICKS: u64 = 40;
/// An announcement may still be on its way out for so long; a stop then waits for
const LEAVING: Duration = Duration::from_secs(5);
/// this time.
const GRACE: Duration = Duration::from_millis(500);

/// Owns the swarm and everything that belongs to it.
pub(super) struct EventLoop {
    pub swarm: Swarm<Behaviour>,
    pub client: Client,
    pub peers: HashMap<PeerId, Peer>,
    pub dialer: Dialer,
    pub remembered: Remembered,
    pub peers_file: Option<PathBuf>,
    /// Whether `remembered` has news for its file.
    pub unsaved: bool,
    pub provided: Provided,
    pub quota: Quota,
    pub lookups: HashMap<QueryId, Lookup>,
    pub connects: HashMap<PeerId, Vec<oneshot::Sender<Result<()>>>>,
    pub asks: HashMap<OutboundRequestId, Ask>,
    /// Accepted records that no peer has been there to gossip with.
    pub unsent: VecDeque<Announcement>,
    /// When this node last announced a record of its own.
    pub announced: Option<Instant>,
    /// Places for records that gossip brings.
    pub judging: Slots,
    pub listeners: HashMap<ListenerId, Vec<Multiaddr>>,
    pub listening: Vec<oneshot::Sender<Vec<Multiaddr>>>,
    /// Tasks whose result the loop waits for; bounded by `limits.work`.
    pub work: JoinSet<Done>,
}

/// A request under way, and all who wait for its answer: many records may name one charter.
pub(super) struct Ask {
    peer: PeerId,
    request: SyncRequest,
    replies: Vec<oneshot::Sender<Result<SyncResponse>>>,
}

/// What a task brings back.
pub(super) enum Done {
    Judged { source: PeerId, message: MessageId, acceptance: MessageAcceptance, slot: Slot },
    Reconciled { peer: PeerId, fresh: Result<Vec<Announcement>> },
    Answered { channel: ResponseChannel<SyncResponse>, response: SyncResponse },
    Nothing,
}

impl EventLoop {
    /// Runs until `stop` is sent or dropped, and for a moment longer if an announcement is on its way out.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut stop: oneshot::Receiver<()>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        let mut end = None;
        loop {
            tokio::select! {
                _ = &mut stop, if end.is_none() => end = Some(self.end(Instant::now())),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
                event = self.swarm.select_next_some() => self.on_swarm(event),
                Some(command) = commands.recv() => self.on_command(command),
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.on_done(done),
                    Err(error) => tracing::error!(%error, "a network task died"),
                },
                _ = ticks.tick() => {
                    count += 1;
                    self.on_tick(count);
                }
            }
        }
        if let Some(path) = self.peers_file.take().filter(|_| self.unsaved) {
            blocking(move || self.remembered.save(&path)).await;
        }
    }

    /// When to end after a stop at `now`: what is queued for a peer is lost with the swarm.
    fn end(&self, now: Instant) -> Instant {
        let leaving = !self.peers.is_empty() && self.announced.is_some_and(|at| now - at < LEAVING);
        if leaving { now + GRACE } else { now }
    }

    pub(super) fn emit(&self, event: Event) {
        let _ = self.client.shared.events.send(event); // nobody may be listening
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.on_disconnected(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(peer_id, connection_id, &error);
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                tracing::info!(%address, "listening");
                self.listeners.entry(listener_id).or_default().push(address);
                self.answer_listening();
            }
            SwarmEvent::ExpiredListenAddr { listener_id, address } => {
                self.listeners.entry(listener_id).or_default().retain(|a| *a != address);
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                tracing::warn!(?addresses, ?reason, "a listener closed");
                self.listeners.remove(&listener_id);
                self.answer_listening();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed"),
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "connection not accepted");
            }
            _ => {} // progress of dials and address candidates
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Kademlia(event) => self.on_kademlia(event),
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Sync(event) => self.on_sync(event),
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::Relay(event) => tracing::debug!(?event, "relay"),
            BehaviourEvent::Limits(never) => match never {},
            BehaviourEvent::Streams(()) => {}
        }
    }

    fn on_sync(&mut self, event: request_response::Event<SyncRequest, SyncResponse>) {
        match event {
            request_response::Event::Message { message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => self.answer(request, channel),
                request_response::Message::Response { request_id, response } => {
                    self.answer_asks(request_id, || Ok(response.clone()));
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let speaks = !matches!(error, request_response::OutboundFailure::UnsupportedProtocols);
                self.answer_asks(request_id, || match speaks {
                    true => Err(Error::ConnectionLost { peer, cause: error.to_string() }),
                    false => Err(Error::BadAnswer { peer, why: "it does not hand records over".into() }),
                });
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "sync request not answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    /// Over the bound the channel is dropped, which the peer sees as a failure; it asks again later.
    fn answer(&mut self, request: SyncRequest, channel: ResponseChannel<SyncResponse>) {
        if self.work.len() >= 2 * self.client.limits().work {
            return;
        }
        let registry = self.client.registry().clone();
        self.work.spawn(async move {
            match blocking(move || sync::answer(&registry, request)).await {
                Ok(response) => Done::Answered { channel, response },
                Err(error) => {
                    tracing::warn!(%error, "cannot answer a sync request");
                    Done::Nothing
                }
            }
        });
    }

    fn ask(&mut self, peer: PeerId, request: SyncRequest, reply: oneshot::Sender<Result<SyncResponse>>) {
        if let Some(ask) = self.asks.values_mut().find(|ask| ask.peer == peer && ask.request == request) {
            ask.replies.push(reply);
            return;
        }
        let id = self.swarm.behaviour_mut().sync.send_request(&peer, request.clone());
        self.asks.insert(id, Ask { peer, request, replies: vec![reply] });
    }

    fn answer_asks(&mut self, id: OutboundRequestId, answer: impl Fn() -> Result<SyncResponse>) {
        for reply in self.asks.remove(&id).into_iter().flat_map(|ask| ask.replies) {
            let _ = reply.send(answer()); // who asked may have gone
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Listening(reply) => {
                self.listening.push(reply);
                self.answer_listening();
            }
            Command::Publish(record, reply) => {
                self.announced = Some(Instant::now());
                let _ = reply.send(self.publish(record)); // who asked may have gone
            }
            Command::Provide(key, reply) => drop(reply.send(self.provide(key))),
            Command::Providers(key, reply) => self.look_up(key, reply),
            Command::Ask(peer, request, reply) => self.ask(peer, request, reply),
            Command::Connect(peer, reply) => self.connect(peer, reply),
            Command::Peers(reply) => drop(reply.send(self.peer_list())),
            Command::Unreached(reply) => drop(reply.send(self.dialer.unreached())),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Judged { source, message, acceptance, slot } => {
                drop(slot);
                self.on_judged(source, &message, acceptance);
            }
            Done::Reconciled { peer, fresh } => self.on_reconciled(peer, fresh),
            Done::Answered { channel, response } => {
                // Fails if the peer has gone or waited too long.
                let _ = self.swarm.behaviour_mut().sync.send_response(channel, response);
            }
            Done::Nothing => {}
        }
    }

    fn on_tick(&mut self, count: u64) {
        let now = Instant::now();
        self.dial_due(now);
        self.provide_again(now);
        self.forget_providers();
        let due = |(peer, state): (&PeerId, &Peer)| state.next_sync.is_some_and(|at| at <= now).then_some(*peer);
        for peer in self.peers.iter().filter_map(due).collect::<Vec<_>>() {
            self.reconcile(peer);
        }
        if let Some(path) = self.peers_file.clone().filter(|_| self.unsaved && count.is_multiple_of(SAVE_TICKS)) {
            self.unsaved = false;
            let remembered = self.remembered.clone();
            self.work.spawn(async move {
                blocking(move || remembered.save(&path)).await;
                Done::Nothing
            });
        }
    }

    fn answer_listening(&mut self) {
        if self.listeners.values().all(|addresses| !addresses.is_empty()) {
            let me = *self.swarm.local_peer_id();
            let whole = |a: &Multiaddr| a.clone().with_p2p(me).unwrap_or_else(|a| a);
            let addresses: Vec<_> = self.listeners.values().flatten().map(whole).collect();
            for reply in self.listening.drain(..) {
                let _ = reply.send(addresses.clone()); // who asked may have gone
            }
        }
    }
}
