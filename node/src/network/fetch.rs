//! Fetches a blob: from the local registry, else from one provider after another until every range is there. Each 16 KiB is
//! verified before it reaches the disk, and what is verified stays for the next provider, the next call and the next run.

use super::{
    Client, Error, Limits, Result,
    blob::{BlobAnswer, BlobRequest},
    frames,
    pace::Pace,
    pipe::{self, CHUNK, ChunkReader},
    task::blocking,
};
use hdd_protocol::{Blob, Digest, protocols};
use hdd_registry::{Download, Error as Stored};
use libp2p::{PeerId, Stream};
use std::{collections::HashSet, io, ops::Range, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Wait before the providers of a blob are asked once more.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
/// Wait for another download of the same blob.
const WHILE_BUSY: Duration = Duration::from_millis(200);
/// Slack of the last frame: the parents of a range's groups.
const FRAME: usize = 2 * CHUNK;

/// How far a fetch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes verified and written.
    pub done: u64,
    /// Bytes in all.
    pub size: u64,
    /// Who sends at the moment.
    pub provider: PeerId,
}

/// What became of one provider.
enum Outcome {
    Complete,
    NotHere,
    Failed(String),
    WrongBytes,
}

/// See [`Client::fetch`].
pub(super) async fn fetch(client: &Client, blob: Blob, mut progress: impl FnMut(Progress) + Send) -> Result<PathBuf> {
    let mut download = loop {
        if let Some(path) = local(client, blob).await {
            return Ok(path);
        }
        let registry = client.registry().clone();
        match blocking(move || registry.begin_download(blob)).await {
            Err(Stored::Busy { .. }) => sleep(WHILE_BUSY).await,
            begun => break begun?,
        }
    };
    let limits = client.limits().clone();
    if download.missing(limits.piece).is_none() {
        return finish(client, download).await;
    }
    let mut liars = HashSet::new();
    let mut failure = None;
    let mut asked = HashSet::new();
    for round in 0..limits.rounds {
        if round > 0 {
            sleep(BETWEEN_ROUNDS).await;
        }
        let before = download.done();
        let mut found = false;
        for peer in providers(client, blob).await? {
            if liars.contains(&peer) {
                continue;
            }
            asked.insert(peer);
            let (rest, outcome) = from_provider(client, peer, blob, download, &mut progress).await?;
            download = rest;
            match outcome {
                Outcome::Complete => return finish(client, download).await,
                Outcome::NotHere => {}
                Outcome::WrongBytes => {
                    tracing::warn!(%peer, blob = %blob.digest.short(), "provider sends wrong bytes");
                    liars.insert(peer);
                    failure.get_or_insert(Error::WrongBytes { digest: blob.digest, peer });
                }
                Outcome::Failed(why) => {
                    tracing::debug!(%peer, blob = %blob.digest.short(), why, "provider failed");
                    found = true;
                    let Blob { digest, size } = blob;
                    let (peer, done) = (Box::new(peer), download.done());
                    failure = Some(Error::ProviderFailed { digest, peer, done, size, why });
                }
            }
        }
        if !found && download.done() == before {
            break; // nobody to wait for
        }
    }
    Err(failure.unwrap_or(Error::NoProvider { digest: blob.digest, asked: asked.len() }))
}

async fn finish(client: &Client, download: Download) -> Result<PathBuf> {
    let blob = blocking(move || download.finish()).await?;
    local(client, blob).await.ok_or(Error::NoProvider { digest: blob.digest, asked: 0 })
}

async fn local(client: &Client, blob: Blob) -> Option<PathBuf> {
    let registry = client.registry().clone();
    blocking(move || registry.verify_blob(blob.digest)).await.unwrap_or_else(|error| {
        tracing::warn!(%error, blob = %blob.digest.short(), "cannot verify a held blob");
        None
    })
}

/// Those that the DHT names, then connected peers that serve blobs at all.
async fn providers(client: &Client, blob: Blob) -> Result<Vec<PeerId>> {
    let mut providers = client.providers(super::provider_key(blob.digest)).await?;
    let serves = |p: &super::PeerInfo| p.protocols.iter().any(|p| p == protocols::BLOB);
    for peer in client.peers().await?.into_iter().filter(serves).map(|p| p.id) {
        if !providers.contains(&peer) {
            providers.push(peer);
        }
    }
    providers.truncate(client.limits().providers);
    Ok(providers)
}

/// Takes from one provider what it has. Only this node's own failures are errors.
async fn from_provider(
    client: &Client,
    peer: PeerId,
    blob: Blob,
    mut download: Download,
    progress: &mut (impl FnMut(Progress) + Send),
) -> Result<(Download, Outcome)> {
    let limits = client.limits();
    let mut stream = match client.open(peer, protocols::BLOB).await {
        Ok(stream) => stream,
        Err(Error::Stopped) => return Err(Error::Stopped),
        Err(error) => return Ok((download, Outcome::Failed(error.to_string()))),
    };
    let mut pace = Pace::new(limits);
    while let Some(range) = download.missing(limits.piece) {
        match timeout(limits.handshake, ask(&mut stream, blob, &range)).await {
            Ok(Ok(BlobAnswer::Here(size))) if size == blob.size => {}
            Ok(Ok(BlobAnswer::Here(size))) => {
                let why = format!("has {size} bytes under this hash, {} were promised", blob.size);
                return Ok((download, Outcome::Failed(why)));
            }
            Ok(Ok(BlobAnswer::NotHere)) => return Ok((download, Outcome::NotHere)),
            Ok(Ok(BlobAnswer::Busy)) => return Ok((download, Outcome::Failed("serves too many others".into()))),
            Ok(Ok(BlobAnswer::BadRange)) => return Ok((download, Outcome::Failed("refuses the range".into()))),
            Ok(Err(error)) => return Ok((download, Outcome::Failed(error.to_string()))),
            Err(_) => return Ok((download, Outcome::Failed("did not answer in time".into()))),
        }
        let (rest, received) = receive(&mut stream, blob.digest, download, range, limits, &mut pace).await;
        download = rest;
        progress(Progress { done: download.done(), size: download.size(), provider: peer });
        match received {
            Ok(()) => {}
            Err(Stored::WrongBytes { .. }) => return Ok((download, Outcome::WrongBytes)),
            Err(Stored::Stream { source, .. }) => return Ok((download, Outcome::Failed(source.to_string()))),
            Err(own) => return Err(own.into()),
        }
    }
    Ok((download, Outcome::Complete))
}

async fn ask(stream: &mut Stream, blob: Blob, range: &Range<u64>) -> io::Result<BlobAnswer> {
    let request = BlobRequest { digest: blob.digest, start: range.start, length: range.end - range.start };
    // A busy provider answers before it has read the request, and may have closed.
    let sent = frames::send(stream, &request).await;
    let answer = frames::receive(stream, "blob answer", BlobAnswer::LIMIT).await;
    if answer.is_err() {
        sent?;
    }
    answer
}

/// Passes a range's frames on to the thread that verifies and writes them.
async fn receive(
    stream: &mut Stream,
    digest: Digest,
    mut download: Download,
    range: Range<u64>,
    limits: &Limits,
    pace: &mut Pace,
) -> (Download, Result<(), Stored>) {
    let (sender, chunks) = pipe::channel();
    let offset = range.start;
    // Drops the sender at its end, which ends the reader.
    let pump = async move {
        loop {
            let start = Instant::now();
            let frame = timeout(limits.idle, frames::read(stream, FRAME)).await??;
            if frame.is_empty() {
                return Ok(());
            }
            pace.count(frame.len(), start)?;
            if sender.send(frame.into()).await.is_err() {
                return Ok(()); // the writer has seen enough, and says why
            }
        }
    };
    let writing = blocking(move || {
        let written = download.write_range(range, &mut ChunkReader::new(chunks));
        (download, written)
    });
    let (pumped, (download, written)): (io::Result<()>, _) = tokio::join!(pump, writing);
    let received = match (written, pumped) {
        (Ok(_), Ok(())) => Ok(()),
        (Ok(_), Err(source)) | (Err(Stored::Stream { .. }), Err(source)) => {
            Err(Stored::Stream { digest, offset, source })
        }
        (Err(error), _) => Err(error),
    };
    (download, received)
}
