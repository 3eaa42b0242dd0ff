//! Serves ranges of blobs over streams. A stream carries requests one after another; each is answered with a header, then
//! the range's bao encoding in frames, then an empty frame. A stream that ends without it broke off.

use super::{
    Limits, frames,
    pace::Pace,
    pipe::{self, ChunkWriter},
    slots::Slots,
    task::blocking,
};
use futures::{AsyncWriteExt as _, StreamExt as _};
use hdd_protocol::Digest;
use hdd_registry::{BlobReader, Registry};
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write as _},
    sync::Arc,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tracing::Instrument as _;

/// Asks for `length` bytes of a blob from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobRequest {
    pub digest: Digest,
    pub start: u64,
    pub length: u64,
}

/// The header of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum BlobAnswer {
    /// The blob has this many bytes; the range follows.
    Here(u64),
    /// This node does not have it.
    NotHere,
    /// As many transfers run as this node allows; ask again later.
    Busy,
    /// The blob has no such range, or it is larger than one request may ask for.
    BadRange,
}

impl BlobRequest {
    pub(super) const LIMIT: usize = 64;
    /// Bytes of one request at most, whatever the asking node is set to.
    pub(super) const LONGEST: u64 = 64 << 20;
}

impl BlobAnswer {
    pub(super) const LIMIT: usize = 16;
}

/// Serves streams until the swarm goes.
pub(super) async fn serve(mut streams: IncomingStreams, registry: Arc<Registry>, limits: Arc<Limits>) {
    let slots = Slots::new(limits.uploads, limits.uploads_per_peer);
    let mut uploads = JoinSet::new();
    // The accept queue holds one stream: nothing here may wait.
    while let Some((peer, mut stream)) = streams.next().await {
        while uploads.try_join_next().is_some() {}
        let Some(slot) = slots.take(peer) else {
            if uploads.len() < 2 * limits.uploads {
                let patience = limits.idle;
                uploads.spawn(async move {
                    let _ = timeout(patience, frames::send(&mut stream, &BlobAnswer::Busy)).await;
                    let _ = timeout(patience, stream.close()).await;
                });
            }
            continue;
        };
        let (registry, limits) = (registry.clone(), limits.clone());
        let span = tracing::debug_span!("upload", %peer);
        let upload = async move {
            if let Err(error) = upload(stream, peer, &registry, &limits).await {
                tracing::debug!(%error, "upload broke off");
            }
            drop(slot);
        };
        uploads.spawn(upload.instrument(span));
    }
}

async fn upload(mut stream: Stream, peer: PeerId, registry: &Arc<Registry>, limits: &Limits) -> io::Result<()> {
    let mut open: Option<(Digest, Arc<BlobReader>)> = None;
    let mut pace = Pace::new(limits);
    loop {
        let request = frames::receive::<BlobRequest>(&mut stream, "blob request", BlobRequest::LIMIT);
        let request = match timeout(limits.idle, request).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            request => request?,
        };
        if open.as_ref().is_none_or(|(digest, _)| *digest != request.digest) {
            let (registry, digest) = (registry.clone(), request.digest);
            let reader = blocking(move || registry.reader(digest)).await.map_err(io::Error::other)?;
            open = reader.map(|reader| (digest, Arc::new(reader)));
        }
        let Some((_, reader)) = &open else {
            timeout(limits.idle, frames::send(&mut stream, &BlobAnswer::NotHere)).await??;
            continue;
        };
        let end = request.start.checked_add(request.length);
        if !(1..=BlobRequest::LONGEST).contains(&request.length) || end.is_none_or(|end| end > reader.size()) {
            timeout(limits.idle, frames::send(&mut stream, &BlobAnswer::BadRange)).await??;
            continue;
        }
        timeout(limits.idle, frames::send(&mut stream, &BlobAnswer::Here(reader.size()))).await??;
        send_range(&mut stream, reader.clone(), request, limits, &mut pace).await.inspect_err(|error| {
            tracing::warn!(%peer, blob = %request.digest.short(), %error, "cannot send a range");
        })?;
    }
}

async fn send_range(
    stream: &mut Stream,
    reader: Arc<BlobReader>,
    request: BlobRequest,
    limits: &Limits,
    pace: &mut Pace,
) -> io::Result<()> {
    let (sender, mut chunks) = pipe::channel();
    let encoding = tokio::task::spawn_blocking(move || {
        let mut sink = ChunkWriter::new(sender);
        reader.encode_range(request.start, request.length, &mut sink).map_err(io::Error::other)?;
        sink.flush()
    });
    while let Some(chunk) = chunks.recv().await {
        let start = Instant::now();
        timeout(limits.idle, frames::write(stream, &chunk)).await??;
        pace.count(chunk.len(), start)?;
    }
    encoding.await??;
    timeout(limits.idle, async {
        frames::write(stream, &[]).await?;
        stream.flush().await
    })
    .await?
}
