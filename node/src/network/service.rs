//! An aggregator's service over streams: one request a stream, then frames until the answer is complete. The client keeps
//! its side open; that it closes is how the aggregator learns that the client has left.

use super::{Client, Error, Limits, Result, frames, slots::Slots};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use hdd_protocol::{
    ErrorCode, Offer, SampleEvent, SampleRequest, ServiceRequest, ServiceResponse, Signed, Verified, protocols,
};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::Instrument as _;

/// Responses that may wait for a slow client, and for a slow caller.
const QUEUE: usize = 16;
/// A stream that ends before the first response is opened again so many times,
const REOPENED: u32 = 3;
/// after this long, and twice, three times as long.
const REOPEN: Duration = Duration::from_millis(100);

/// What an aggregator does with requests; implemented where the tensors are.
pub trait Service: Send + Sync {
    /// The current `Signed<Offer>`'s bytes; none before the first expert is admitted.
    fn offer(&self) -> Option<Vec<u8>>;

    /// Takes a request and sends its events, ending with [`SampleEvent::Done`] or [`ServiceResponse::Refused`]. Must not
    /// block. `events` is closed when the client has left.
    fn sample(&self, request: SampleRequest, events: mpsc::Sender<ServiceResponse>);
}

/// Serves streams until the swarm goes.
pub(super) async fn serve(mut streams: IncomingStreams, service: Arc<dyn Service>, limits: Arc<Limits>) {
    let slots = Slots::new(limits.requests, limits.requests_per_peer);
    let mut requests = JoinSet::new();
    // The accept queue holds one stream: nothing here may wait.
    while let Some((peer, mut stream)) = streams.next().await {
        while requests.try_join_next().is_some() {}
        let Some(slot) = slots.take(peer) else {
            if requests.len() < 2 * limits.requests {
                let patience = limits.idle;
                requests.spawn(async move {
                    let busy = refused(ErrorCode::Busy, "as many requests run as this node allows; try again later");
                    let _ = timeout(patience, frames::send(&mut stream, &busy)).await;
                    let _ = timeout(patience, stream.close()).await;
                });
            }
            continue;
        };
        let (service, limits) = (service.clone(), limits.clone());
        let span = tracing::debug_span!("request", %peer);
        let request = async move {
            if let Err(error) = answer(stream, &*service, &limits).await {
                tracing::debug!(%error, "request broke off");
            }
            drop(slot);
        };
        requests.spawn(request.instrument(span));
    }
}

async fn answer(mut stream: Stream, service: &dyn Service, limits: &Limits) -> io::Result<()> {
    let request = frames::receive(&mut stream, "service request", ServiceRequest::LIMIT);
    let request: ServiceRequest = timeout(limits.handshake, request).await??;
    let (events, mut responses) = mpsc::channel(QUEUE);
    match request {
        ServiceRequest::Offer => {
            let response = match service.offer() {
                Some(bytes) => ServiceResponse::Offer(bytes),
                None => refused(ErrorCode::NotReady, "no expert is admitted yet; ask again later"),
            };
            timeout(limits.idle, frames::send(&mut stream, &response)).await??;
            return stream.close().await;
        }
        ServiceRequest::Sample(request) => service.sample(request, events),
    }
    let (mut reading, mut writing) = stream.split();
    let mut surplus = [0];
    let left = reading.read(&mut surplus); // a client says no more; an end or a break means that it has left
    tokio::pin!(left);
    loop {
        tokio::select! {
            _ = &mut left => return Ok(()),
            response = responses.recv() => match response {
                Some(response) => timeout(limits.idle, frames::send(&mut writing, &response)).await??,
                None => return timeout(limits.idle, writing.close()).await?,
            },
        }
    }
}

fn refused(code: ErrorCode, message: &str) -> ServiceResponse {
    ServiceResponse::Refused { code, message: message.into() }
}

/// See [`Client::offer`].
pub(super) async fn offer(client: &Client, peer: PeerId) -> Result<Verified<Offer>> {
    let (_stream, response) = request(client, peer, &ServiceRequest::Offer, client.limits().handshake).await?;
    match response {
        ServiceResponse::Offer(bytes) => Ok(Signed::<Offer>::from_bytes(&bytes)?.verify()?),
        ServiceResponse::Refused { code, message } => Err(Error::Refused { code, message }),
        ServiceResponse::Event(_) => Err(Error::BadAnswer { peer, why: "expected an offer".into() }),
    }
}

/// See [`Client::sample`].
pub(super) async fn sample(
    client: &Client,
    peer: PeerId,
    sample: SampleRequest,
) -> Result<mpsc::Receiver<Result<SampleEvent>>> {
    let patience = client.limits().service_idle;
    let (mut stream, first) = request(client, peer, &ServiceRequest::Sample(sample), patience).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut event = event(first, peer);
        loop {
            let last = matches!(event, Err(_) | Ok(SampleEvent::Done));
            if sender.send(event).await.is_err() || last {
                return;
            }
            event = tokio::select! {
                () = sender.closed() => return,
                response = next(&mut stream, patience) => {
                    response.map_err(|error| lost(peer, error)).and_then(|response| self::event(response, peer))
                }
            };
        }
    });
    Ok(receiver)
}

/// Sends a request and waits for its first response. A peer's accept queue holds one stream: of two that arrive at once
/// one may be dropped unseen, so that it ends without a response; it is opened again.
async fn request(
    client: &Client,
    peer: PeerId,
    request: &ServiceRequest,
    patience: Duration,
) -> Result<(Stream, ServiceResponse)> {
    let mut reopened = 0;
    loop {
        let mut stream = client.open(peer, protocols::SERVICE).await?;
        let sent = timeout(client.limits().handshake, frames::send(&mut stream, request)).await;
        let response = match sent.map_err(io::Error::from).flatten() {
            Ok(()) => next(&mut stream, patience).await,
            Err(error) => Err(error),
        };
        match response {
            Ok(response) => return Ok((stream, response)),
            Err(error) if reopened < REOPENED && has_ended(&error) => {
                tracing::debug!(%peer, %error, "stream ended without a response; opening another");
                reopened += 1;
                sleep(REOPEN * reopened).await;
            }
            Err(error) => return Err(lost(peer, error)),
        }
    }
}

fn has_ended(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::InvalidData)
}

async fn next(stream: &mut Stream, patience: Duration) -> io::Result<ServiceResponse> {
    let response = frames::receive(stream, "service response", ServiceResponse::LIMIT);
    timeout(patience, response).await.map_err(io::Error::from).flatten()
}

fn event(response: ServiceResponse, peer: PeerId) -> Result<SampleEvent> {
    match response {
        ServiceResponse::Event(SampleEvent::Picture { picture, .. }) if !picture.is_whole() => {
            Err(Error::BadAnswer { peer, why: "a picture's bytes do not fit its sides".into() })
        }
        ServiceResponse::Event(event) => Ok(event),
        ServiceResponse::Refused { code, message } => Err(Error::Refused { code, message }),
        ServiceResponse::Offer(_) => Err(Error::BadAnswer { peer, why: "expected events".into() }),
    }
}

fn lost(peer: PeerId, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::BadAnswer { peer, why: error.to_string() },
        _ => Error::ConnectionLost { peer, cause: error.to_string() },
    }
}
