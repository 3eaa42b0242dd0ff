//! Reconciliation: what gossip missed. Two peers that meet each ask the other which records it holds and fetch those that
//! they lack, so that a late joiner and a node that was away catch up. What arrives is judged as gossip is.

use super::{Error, Result, frames, intake::Intake, task::blocking};
use futures::{AsyncRead, AsyncWrite};
use hdd_protocol::{Announcement, Digest, SyncRequest, SyncResponse};
use hdd_registry::Registry;
use libp2p::{PeerId, StreamProtocol, gossipsub::MessageAcceptance, request_response};
use std::{collections::HashSet, io, sync::Arc};

/// Records asked for at once.
const BATCH: usize = 64;
/// Invalid records in one reconciliation after which a peer is not listened to; fewer may be a mistake, or other rules.
const INVALID: usize = 8;

/// Frames of requests and answers.
#[derive(Debug, Clone, Default)]
pub(super) struct SyncCodec;

impl request_response::Codec for SyncCodec {
    type Protocol = StreamProtocol;
    type Request = SyncRequest;
    type Response = SyncResponse;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<SyncRequest> {
        frames::receive(io, "sync request", SyncRequest::LIMIT).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<SyncResponse> {
        frames::receive(io, "sync response", SyncResponse::LIMIT).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: SyncRequest,
    ) -> io::Result<()> {
        frames::send(io, &request).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: SyncResponse,
    ) -> io::Result<()> {
        frames::send(io, &response).await
    }
}

/// What this node answers; blocks on the registry.
pub(super) fn answer(registry: &Registry, request: SyncRequest) -> Result<SyncResponse, hdd_registry::Error> {
    Ok(match request {
        SyncRequest::Digests { after } => SyncResponse::Digests(registry.record_digests(after, SyncRequest::PAGE)?),
        SyncRequest::Records(digests) => {
            let held = digests.into_iter().take(SyncRequest::PAGE).map(|d| registry.record(d));
            SyncResponse::Records(held.filter_map(Result::transpose).collect::<Result<_, _>>()?)
        }
        SyncRequest::Charter(digest) => {
            SyncResponse::Charter(registry.charter(digest)?.map(|charter| charter.bytes().to_vec()))
        }
    })
}

/// Fetches the records that `peer` holds and this node lacks. Returns those that were new and acceptable.
///
/// # Errors
/// [`Error::ConnectionLost`], [`Error::BadAnswer`], [`Error::Registry`]; what was accepted before is kept.
pub(super) async fn reconcile(intake: &Intake, peer: PeerId) -> Result<Vec<Announcement>> {
    let mut fresh = Vec::new();
    let (mut after, mut invalid) = (None, 0);
    for _ in 0..intake.client.limits().sync_pages {
        let page = match intake.client.ask(peer, SyncRequest::Digests { after }).await? {
            SyncResponse::Digests(page) if is_page(&page, after) => page,
            other => return Err(wrong(peer, "digests in ascending order", &other)),
        };
        for batch in missing(intake.client.registry(), page.clone()).await?.chunks(BATCH) {
            let asked: HashSet<Digest> = batch.iter().copied().collect();
            let records = match intake.client.ask(peer, SyncRequest::Records(batch.to_vec())).await? {
                SyncResponse::Records(records) if records.len() <= asked.len() => records,
                other => return Err(wrong(peer, "the records that were asked for", &other)),
            };
            for record in records {
                match intake.take(record.clone(), Some(peer)).await {
                    Ok(_) => fresh.push(record),
                    Err(refusal) => {
                        tracing::debug!(%peer, %refusal, "record left aside");
                        // Gossip's verdict: what a later build wrote is nobody's fault.
                        invalid += usize::from(matches!(refusal.verdict(), MessageAcceptance::Reject));
                        if invalid >= INVALID {
                            return Err(Error::BadAnswer { peer, why: refusal.to_string() });
                        }
                    }
                }
            }
        }
        if page.len() < SyncRequest::PAGE {
            break;
        }
        after = page.last().copied();
    }
    Ok(fresh)
}

fn is_page(page: &[Digest], after: Option<Digest>) -> bool {
    page.len() <= SyncRequest::PAGE
        && page.windows(2).all(|pair| pair[0] < pair[1])
        && page.first().is_none_or(|first| after.is_none_or(|after| after < *first))
}

async fn missing(registry: &Arc<Registry>, page: Vec<Digest>) -> Result<Vec<Digest>> {
    let registry = registry.clone();
    let missing = move || {
        let mut missing = Vec::new();
        for digest in page {
            if registry.record(digest)?.is_none() {
                missing.push(digest);
            }
        }
        Ok(missing)
    };
    blocking(missing).await
}

fn wrong(peer: PeerId, expected: &str, answer: &SyncResponse) -> Error {
    let got = match answer {
        SyncResponse::Digests(_) => "digests",
        SyncResponse::Records(_) => "records",
        SyncResponse::Charter(_) => "a charter",
    };
    Error::BadAnswer { peer, why: format!("expected {expected}, got other {got}") }
}
