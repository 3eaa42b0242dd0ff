//! A peer that is no hdd-node: it gossips any bytes, hears what is forwarded, and does what it likes with streams.

use futures::StreamExt as _;
use hdd_node::network::Multiaddr;
use hdd_protocol::protocols;
use libp2p::{
    PeerId, Stream, StreamProtocol, SwarmBuilder, gossipsub, identify, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, task::AbortHandle};

#[derive(NetworkBehaviour)]
struct Behaviour {
    gossip: gossipsub::Behaviour,
    identify: identify::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// What a stranger does with a stream that is opened to it.
pub type Serve = fn(Stream) -> futures::future::BoxFuture<'static, ()>;

pub struct Stranger {
    pub streams: libp2p_stream::Control,
    publish: mpsc::Sender<Vec<u8>>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    task: AbortHandle,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stranger {
    /// Dials `address` and takes part in its gossip. Serves streams of one protocol from then on, if asked to.
    pub async fn meet(address: &Multiaddr, serve: Option<(&'static str, Serve)>) -> Self {
        let config = gossipsub::ConfigBuilder::default()
            .validation_mode(gossipsub::ValidationMode::Anonymous)
            .message_id_fn(|m| gossipsub::MessageId::new(hdd_protocol::Digest::of(&m.data).as_bytes()))
            .max_transmit_size(1 << 20)
            .build()
            .unwrap();
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key| Behaviour {
                gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config).unwrap(),
                identify: identify::Behaviour::new(identify::Config::new(protocols::IDENTIFY.into(), key.public())),
                streams: libp2p_stream::Behaviour::new(),
            })
            .unwrap()
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        let topic = gossipsub::IdentTopic::new(protocols::ANNOUNCEMENTS);
        swarm.behaviour_mut().gossip.subscribe(&topic).unwrap();
        let mut streams = swarm.behaviour().streams.new_control();
        if let Some((protocol, serve)) = serve {
            let mut incoming = streams.accept(StreamProtocol::new(protocol)).unwrap();
            tokio::spawn(async move {
                while let Some((_, stream)) = incoming.next().await {
                    tokio::spawn(serve(stream));
                }
            });
        }
        swarm.dial(address.clone()).unwrap();
        let (publish, mut to_publish) = mpsc::channel::<Vec<u8>>(16);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (hears, (met, meeting)) = (heard.clone(), tokio::sync::oneshot::channel());
        let mut met = Some(met);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(bytes) = to_publish.recv() => {
                        swarm.behaviour_mut().gossip.publish(topic.hash(), bytes).unwrap();
                    }
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message { message, .. })) => {
                            hears.lock().unwrap().push(message.data);
                        }
                        SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. })) => {
                            met.take().map(|met| met.send(()));
                        }
                        _ => {}
                    }
                }
            }
        });
        meeting.await.unwrap();
        Self { streams, publish, heard, task: task.abort_handle() }
    }

    pub async fn say(&self, bytes: Vec<u8>) {
        self.publish.send(bytes).await.unwrap();
    }

    pub fn has_heard(&self, bytes: &[u8]) -> bool {
        self.heard.lock().unwrap().iter().any(|heard| heard == bytes)
    }

    pub async fn open(&self, peer: PeerId, protocol: &'static str) -> Stream {
        self.streams.clone().open_stream(peer, StreamProtocol::new(protocol)).await.unwrap()
    }
}
