use crate::{
    fixtures::{NOW, Node, PATIENCE, charter, config, eventually, key, listening},
    stranger::Stranger,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use hdd_node::network::{Error, Service};
use hdd_protocol::{
    ErrorCode, Offer, Picture, Provenance, SampleEvent, SampleLimits, SampleRequest, ServiceResponse, Signed, encode,
    protocols,
};
use libp2p::Stream;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Does what the prompt says.
#[derive(Default)]
struct Painter {
    offer: Option<Vec<u8>>,
    abandoned: Arc<AtomicBool>,
}

impl Service for Painter {
    fn offer(&self) -> Option<Vec<u8>> {
        self.offer.clone()
    }

    fn sample(&self, request: SampleRequest, events: mpsc::Sender<ServiceResponse>) {
        let abandoned = self.abandoned.clone();
        let size = if request.prompt == "half" { 47 } else { 48 };
        let picture = Picture { width: 4, height: 4, rgb: vec![7; size] };
        let provenance = Provenance { charter: charter().digest(), router: None, seed: 0, experts: Vec::new() };
        tokio::spawn(async move {
            let event = |event| events.send(ServiceResponse::Event(event));
            match request.prompt.as_str() {
                "refuse" => {
                    let message = "count is 0".into();
                    events.send(ServiceResponse::Refused { code: ErrorCode::Invalid, message }).await.unwrap();
                }
                "vanish" => event(SampleEvent::Queued { ahead: 1 }).await.unwrap(),
                "endless" => {
                    while event(SampleEvent::Step { done: 1, of: 2 }).await.is_ok() {}
                    abandoned.store(true, Ordering::SeqCst);
                }
                _ => {
                    event(SampleEvent::Queued { ahead: 0 }).await.unwrap();
                    event(SampleEvent::Picture { picture, provenance }).await.unwrap();
                    let _ = event(SampleEvent::Done).await;
                }
            }
        });
    }
}

fn offer(by: u8) -> Vec<u8> {
    let offer = Offer {
        aggregator: key(by).public(),
        charter: charter().digest(),
        experts: Vec::new(),
        router: None,
        limits: SampleLimits::default(),
        issued_at: NOW,
    };
    Signed::sign(offer, &key(by)).unwrap().bytes().to_vec()
}

fn prompt(text: &str) -> SampleRequest {
    SampleRequest { prompt: text.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_is_found_through_the_dht_and_answers() {
    let bootstrap = Node::start(1, &[]).await;
    let painter = Painter { offer: Some(offer(2)), ..Default::default() };
    let abandoned = painter.abandoned.clone();
    let service: Arc<dyn Service> = Arc::new(painter);
    let aggregator = Node::with(2, TempDir::new().unwrap(), listening(&[&bootstrap]), Some(service)).await;
    aggregator.client.provide_service(charter().digest()).await.unwrap(); // perhaps before anybody is connected
    let client = Node::hidden(3, &[&bootstrap]).await;
    client.client.wait_connected(PATIENCE).await.unwrap();
    let start = std::time::Instant::now();
    let found = loop {
        match client.client.aggregators(charter().digest()).await.unwrap() {
            found if found.is_empty() => assert!(start.elapsed() < PATIENCE, "no aggregator"),
            found => break found,
        }
    };
    let peer = aggregator.client.peer_id();
    assert_eq!(found, [peer]);
    assert_eq!(client.client.offer(peer).await.unwrap().charter, charter().digest());

    let mut events = client.client.sample(peer, prompt("a cat")).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        seen.push(event.unwrap());
    }
    assert!(
        matches!(&seen[..], [SampleEvent::Queued { ahead: 0 }, SampleEvent::Picture { .. }, SampleEvent::Done]),
        "{seen:?}"
    );

    let mut events = client.client.sample(peer, prompt("endless")).await.unwrap();
    events.recv().await.unwrap().unwrap();
    assert!(!abandoned.load(Ordering::SeqCst));
    drop(events);
    eventually("the aggregator learns that its client has left", || abandoned.load(Ordering::SeqCst)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_losses_and_impostors_are_different_errors() {
    let impostor = Painter { offer: Some(offer(9)), ..Default::default() };
    let aggregator = Node::with(1, TempDir::new().unwrap(), listening(&[]), Some(Arc::new(impostor))).await;
    let client = Node::with(2, TempDir::new().unwrap(), config(&[&aggregator]), None).await;
    client.client.wait_connected(PATIENCE).await.unwrap();
    let peer = aggregator.client.peer_id();
    let error = client.client.offer(peer).await.unwrap_err();
    assert!(matches!(&error, Error::WrongAggregator { signer, .. } if *signer == key(9).public()), "{error}");

    let check = async |text: &str, expected: fn(&Error) -> bool| {
        let mut events = client.client.sample(peer, prompt(text)).await.unwrap();
        let error = loop {
            match events.recv().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("{text}: ended without an error"),
            }
        };
        assert!(expected(&error), "{text}: {error}");
        assert!(events.recv().await.is_none(), "nothing follows an error");
    };
    check("refuse", |e| matches!(e, Error::Refused { code: ErrorCode::Invalid, message } if message == "count is 0"))
        .await;
    check("vanish", |e| matches!(e, Error::ConnectionLost { .. })).await;
    check("half", |e| matches!(e, Error::BadAnswer { .. })).await;

    let mut events = client.client.sample(peer, prompt("endless")).await.unwrap();
    events.recv().await.unwrap().unwrap();
    aggregator.stop().await;
    let last = loop {
        match events.recv().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(last, Some(Err(Error::ConnectionLost { .. }))), "{last:?}");
    let error = client.client.offer(peer).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_without_experts_says_so() {
    let aggregator = Node::with(1, TempDir::new().unwrap(), listening(&[]), Some(Arc::new(Painter::default()))).await;
    let client = Node::hidden(2, &[&aggregator]).await;
    client.client.wait_connected(PATIENCE).await.unwrap();
    let error = client.client.offer(aggregator.client.peer_id()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { code: ErrorCode::NotReady, .. }), "{error}");
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// Drops two streams unseen, as a full accept queue does, and answers the third.
fn answer_the_third(mut stream: Stream) -> BoxFuture<'static, ()> {
    async move {
        if DROPPED.fetch_add(1, Ordering::SeqCst) < 2 {
            return;
        }
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        let bytes = encode(&ServiceResponse::Event(SampleEvent::Done)).unwrap();
        stream.write_all(&(bytes.len() as u32).to_le_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.close().await.unwrap();
    }
    .boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_before_its_first_response_is_opened_again() {
    let client = Node::start(1, &[]).await;
    let _stranger =
        Stranger::meet(client.address.as_ref().unwrap(), Some((protocols::SERVICE, answer_the_third))).await;
    client.client.wait_connected(PATIENCE).await.unwrap();
    let peer = client.client.peers().await.unwrap()[0].id;
    let mut events = client.client.sample(peer, prompt("a cat")).await.unwrap();
    assert!(matches!(events.recv().await, Some(Ok(SampleEvent::Done))));
}
