use super::{Error, NetworkConfig, Result, quota, sync::SyncCodec};
use hdd_protocol::{Announcement, Digest, protocols};
use libp2p::{
    PeerId, StreamProtocol,
    connection_limits::{self, ConnectionLimits},
    gossipsub, identify,
    identity::Keypair,
    kad, mdns, ping, relay,
    request_response::{self, ProtocolSupport},
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Keys that this node provides itself; room for them is never a stranger's.
const OWN_KEYS: usize = 1 << 16;
/// A provider record lives this long; its provider sends it again several times meanwhile.
pub(super) const PROVIDER_LIFE: Duration = Duration::from_secs(3 * 3600);
const PROVIDER_INTERVAL: Duration = Duration::from_secs(45 * 60);
/// Sync streams a connection carries at once.
const SYNC_STREAMS: usize = 8;

/// The protocols that a node speaks.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// Refuses connections over the configured bounds before anything else sees them.
    limits: connection_limits::Behaviour,
    /// Spreads manifests and revocations; forwards only what this node has accepted.
    pub gossip: gossipsub::Behaviour,
    /// Finds peers, and who provides a blob or a service.
    pub kademlia: kad::Behaviour<kad::store::MemoryStore>,
    /// Exchanges addresses, protocols and versions.
    identify: identify::Behaviour,
    /// Measures round trips and notices dead connections.
    ping: ping::Behaviour,
    /// Asks peers for the records that they hold.
    pub sync: request_response::Behaviour<SyncCodec>,
    /// Streams for blobs and for aggregators' services.
    pub streams: libp2p_stream::Behaviour,
    /// Finds peers on the local network, if asked to.
    mdns: Toggle<mdns::tokio::Behaviour>,
    /// Carries connections between peers that cannot reach each other, if asked to.
    relay: Toggle<relay::Behaviour>,
}

/// The topic of announcements.
pub(super) fn topic() -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(protocols::ANNOUNCEMENTS)
}

impl Behaviour {
    pub(super) fn new(config: &NetworkConfig, key: &Keypair) -> Result<Self> {
        let me = key.public().to_peer_id();
        let mdns = if config.lan {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), me);
            Some(behaviour.map_err(|e| setup("multicast DNS", e))?)
        } else {
            None
        };
        let limits = &config.limits;
        let identity = identify::Config::new(protocols::IDENTIFY.into(), key.public())
            .with_agent_version(concat!("hdd-node/", env!("CARGO_PKG_VERSION")).into());
        Ok(Self {
            limits: connection_limits::Behaviour::new(
                ConnectionLimits::default()
                    .with_max_pending_incoming(Some(limits.inbound / 4))
                    .with_max_pending_outgoing(Some(limits.outbound))
                    .with_max_established_incoming(Some(limits.inbound))
                    .with_max_established_outgoing(Some(limits.outbound))
                    .with_max_established_per_peer(Some(limits.per_peer)),
            ),
            gossip: gossip()?,
            kademlia: kademlia(me),
            identify: identify::Behaviour::new(identity),
            ping: ping::Behaviour::default(),
            sync: request_response::Behaviour::new(
                [(StreamProtocol::new(protocols::SYNC), ProtocolSupport::Full)],
                request_response::Config::default()
                    .with_request_timeout(limits.idle)
                    .with_max_concurrent_streams(SYNC_STREAMS),
            ),
            streams: libp2p_stream::Behaviour::new(),
            mdns: mdns.into(),
            relay: config.serve_relay.then(|| relay::Behaviour::new(me, relay::Config::default())).into(),
        })
    }
}

/// Announcements are signed by their authors: gossip adds no signature of its own, and names a message by its content.
fn gossip() -> Result<gossipsub::Behaviour> {
    let config = gossipsub::ConfigBuilder::default()
        .validate_messages()
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .message_id_fn(|message| gossipsub::MessageId::new(Digest::of(&message.data).as_bytes()))
        .max_transmit_size(Announcement::LIMIT + 1024)
        .build()
        .map_err(|e| setup("gossip", e))?;
    let mut gossip =
        gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config).map_err(|e| setup("gossip", e))?;
    gossip.with_peer_score(scores(), gossipsub::PeerScoreThresholds::default()).map_err(|e| setup("gossip", e))?;
    gossip.subscribe(&topic()).map_err(|e| setup("gossip", e))?;
    Ok(gossip)
}

/// Good conduct earns at most 10 points, an invalid message costs 30 and its square with repetition: the second within
/// minutes puts its sender under the threshold (-80) below which nothing of it is read.
fn scores() -> gossipsub::PeerScoreParams {
    let announcements = gossipsub::TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 500.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_cap: 10.0,
        // Traffic is a manifest now and then: its absence is no fault.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -30.0,
        invalid_message_deliveries_decay: gossipsub::score_parameter_decay(Duration::from_secs(600)),
        ..Default::default()
    };
    gossipsub::PeerScoreParams {
        topics: [(topic().hash(), announcements)].into(),
        topic_score_cap: 10.0,
        // Many nodes may share one machine.
        ip_colocation_factor_whitelist: [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into(),
        ..Default::default()
    }
}

/// Every node answers lookups. Records from others pass `EventLoop::on_kademlia` before they are stored.
fn kademlia(me: PeerId) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(StreamProtocol::new(protocols::KADEMLIA));
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .disjoint_query_paths(true)
        .set_query_timeout(Duration::from_secs(20))
        .set_provider_record_ttl(Some(PROVIDER_LIFE))
        .set_provider_publication_interval(Some(PROVIDER_INTERVAL));
    let store = kad::store::MemoryStoreConfig { max_provided_keys: quota::STRANGERS + OWN_KEYS, ..Default::default() };
    let mut kademlia = kad::Behaviour::with_config(me, kad::store::MemoryStore::with_config(me, store), config);
    kademlia.set_mode(Some(kad::Mode::Server));
    kademlia
}

fn setup(what: &'static str, error: impl ToString) -> Error {
    Error::Setup { what, cause: error.to_string() }
}
