use super::{Error, Event, Intake, Limits, PeerInfo, Progress, Result, command::Command, fetch, identity, service};
use hdd_protocol::{
    Announcement, Blob, Charter, Digest, Offer, SampleEvent, SampleRequest, SyncRequest, SyncResponse, Verified,
};
use hdd_registry::Registry;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, kad::RecordKey};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

/// A handle to this node's network; clones share it.
#[derive(Clone)]
pub struct Client {
    pub(super) me: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) streams: libp2p_stream::Control,
    pub(super) shared: Arc<Shared>,
}

/// What clients and the event loop have in common.
pub(super) struct Shared {
    pub registry: Arc<Registry>,
    pub limits: Arc<Limits>,
    pub events: broadcast::Sender<Event>,
    pub now: super::Clock,
}

impl Client {
    /// This node's identity.
    pub fn peer_id(&self) -> PeerId {
        self.me
    }

    /// Events from now on. A receiver that falls behind by more than a thousand loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The addresses that this node listens on, `/p2p/ID` included; waits until each listener has one.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn listening(&self) -> Result<Vec<Multiaddr>> {
        self.call(Command::Listening).await
    }

    /// Checks a record as if it had come from a peer, stores it and gossips it. Returns the number of peers that gossip
    /// with this node; with none it is not lost: peers get it when they connect.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it breaks a rule, [`Error::UnknownCharter`] if the registry has no such charter,
    /// [`Error::Registry`] if it is superseded or revoked or cannot be stored.
    pub async fn announce(&self, record: Announcement) -> Result<usize> {
        let taken = self.intake().take(record.clone(), None).await;
        if let Some(error) = taken.err().and_then(super::intake::Refusal::into_error) {
            return Err(error);
        }
        self.call(|reply| Command::Publish(record, reply)).await
    }

    /// Tells the DHT that this node has a blob, again and again while it runs.
    ///
    /// # Errors
    /// [`Error::Stopped`]; [`Error::Setup`] if more is provided than a node may.
    pub async fn provide_blob(&self, digest: Digest) -> Result<()> {
        self.call(|reply| Command::Provide(super::provider_key(digest), reply)).await?
    }

    /// Tells the DHT that this node is an aggregator of `charter`, again and again while it runs.
    ///
    /// # Errors
    /// As [`Client::provide_blob`].
    pub async fn provide_service(&self, charter: Digest) -> Result<()> {
        self.call(|reply| Command::Provide(super::service_key(charter), reply)).await?
    }

    /// Nodes that claim to be aggregators of `charter`, this one excluded; their offers tell.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn aggregators(&self, charter: Digest) -> Result<Vec<PeerId>> {
        self.providers(super::service_key(charter)).await
    }

    /// The file of a blob: at once if the registry has it, else from peers, verified while it arrives. What arrived is
    /// kept if the fetch fails or is dropped, and the next one goes on there.
    ///
    /// # Errors
    /// [`Error::NoProvider`], [`Error::ProviderFailed`], [`Error::WrongBytes`], [`Error::NoSpace`], [`Error::Registry`].
    pub async fn fetch(&self, blob: Blob, progress: impl Fn(Progress) + Send) -> Result<PathBuf> {
        fetch::fetch(self, blob, progress).await
    }

    /// A charter from the registry, else from the first connected peer that has it.
    ///
    /// # Errors
    /// [`Error::UnknownCharter`], [`Error::Registry`].
    pub async fn charter(&self, digest: Digest) -> Result<Verified<Charter>> {
        let intake = self.intake();
        if let Some(charter) = intake.known_charter(digest).await? {
            return Ok(charter);
        }
        let peers = self.peers().await?;
        for peer in &peers {
            match intake.fetch_charter(digest, peer.id).await {
                Ok(Some(charter)) => return Ok(charter),
                Ok(None) => {}
                Err(error) => tracing::debug!(peer = %peer.id, %error, "no charter from peer"),
            }
        }
        Err(Error::UnknownCharter { digest, asked: peers.len() })
    }

    /// What an aggregator serves.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::ConnectionLost`], [`Error::Refused`] if it serves nothing yet,
    /// [`Error::WrongAggregator`], [`Error::Protocol`].
    pub async fn offer(&self, peer: PeerId) -> Result<Verified<Offer>> {
        let offer = service::offer(self, peer).await?;
        if identity::public_key(peer) == Some(offer.aggregator) {
            Ok(offer)
        } else {
            Err(Error::WrongAggregator { peer, signer: offer.aggregator })
        }
    }

    /// Asks an aggregator for pictures. The receiver yields events up to [`SampleEvent::Done`], or one error:
    /// [`Error::Refused`] or [`Error::ConnectionLost`]. Dropping it tells the aggregator to stop.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::ConnectionLost`] if the request cannot be sent or gets no
    /// first response.
    pub async fn sample(&self, peer: PeerId, request: SampleRequest) -> Result<mpsc::Receiver<Result<SampleEvent>>> {
        service::sample(self, peer, request).await
    }

    /// Connected peers that have introduced themselves.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn peers(&self) -> Result<Vec<PeerInfo>> {
        self.call(Command::Peers).await
    }

    /// Waits for the first peer. Returns the number of peers.
    ///
    /// # Errors
    /// [`Error::NoPeers`] after `patience`, with each bootstrap and why it cannot be reached.
    pub async fn wait_connected(&self, patience: Duration) -> Result<usize> {
        let deadline = Instant::now() + patience;
        let mut events = self.events();
        loop {
            let count = self.peers().await?.len();
            if count > 0 {
                return Ok(count);
            }
            if timeout_at(deadline, events.recv()).await.is_err() {
                break;
            }
        }
        let unreached = self.call(Command::Unreached).await?;
        let cause = |(addr, cause): &(Multiaddr, Option<String>)| {
            format!("{addr} ({})", cause.as_deref().unwrap_or("no answer yet"))
        };
        let causes = if unreached.is_empty() {
            "no bootstrap is set; name one with --bootstrap".into()
        } else {
            unreached.iter().map(cause).collect::<Vec<_>>().join(", ")
        };
        Err(Error::NoPeers { waited: patience, causes })
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    pub(super) fn limits(&self) -> &Arc<Limits> {
        &self.shared.limits
    }

    pub(super) fn intake(&self) -> Intake {
        Intake { client: self.clone() }
    }

    pub(super) async fn providers(&self, key: RecordKey) -> Result<Vec<PeerId>> {
        self.call(|reply| Command::Providers(key, reply)).await
    }

    pub(super) async fn ask(&self, peer: PeerId, request: SyncRequest) -> Result<SyncResponse> {
        self.call(|reply| Command::Ask(peer, request, reply)).await?
    }

    /// A stream to `peer`, which is dialled if need be.
    pub(super) async fn open(&self, peer: PeerId, protocol: &'static str) -> Result<Stream> {
        self.call(|reply| Command::Connect(peer, reply)).await??;
        let mut control = self.streams.clone();
        let opening = control.open_stream(peer, StreamProtocol::new(protocol));
        let unreachable = |cause: String| Error::Unreachable { peer, cause };
        match timeout(self.limits().handshake, opening).await {
            Ok(opened) => opened.map_err(|error| unreachable(error.to_string())),
            Err(_) => Err(unreachable("no answer in time".into())),
        }
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}
