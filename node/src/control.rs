//! Asking a node that is already running: `control.sock` in its data folder, mode 0600, one JSON line a request and one a
//! reply. A data folder belongs to one process at a time, so what looks into it or signs with its key goes through here.

use crate::{
    Error, Result,
    network::Client,
    report::{CharterReport, Expert, Peer, Router, Status},
    settings::Settings,
};
use hdd_protocol::{Announcement, PublicKey};
use hdd_registry::Registry;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

/// Longest request line, bytes: twice the largest announcement, which travels in hex.
const REQUEST_LIMIT: u64 = 2 * Announcement::LIMIT as u64 + 1024;
/// Longest reply line, bytes.
const REPLY_LIMIT: u64 = 64 << 20;
/// A request must be complete, and a reply read, within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections served at once.
const CONNECTIONS: usize = 8;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// [`Status`].
    Status,
    /// Connected peers.
    Peers,
    /// Current manifests.
    Experts,
    /// Current routers.
    Routers,
    /// Publish a record that the asker signed.
    Announce {
        /// A canonical [`Announcement`] in hex.
        record: String,
    },
}

/// The reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "content", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Peers`].
    Peers(Vec<Peer>),
    /// To [`Request::Experts`].
    Experts(Vec<Expert>),
    /// To [`Request::Routers`].
    Routers(Vec<Router>),
    /// To [`Request::Announce`]: how many peers it was sent to.
    Announced(usize),
    /// What went wrong.
    Refused(String),
}

/// Answers requests from what a node holds.
#[derive(Clone)]
pub struct Handler {
    /// What the process does.
    pub role: &'static str,
    /// Its key.
    pub author: PublicKey,
    /// Its network client.
    pub client: Client,
    /// Its registry.
    pub registry: Arc<Registry>,
    /// Its settings.
    pub settings: Settings,
}

impl Handler {
    /// # Errors
    /// The network's and the registry's; the protocol's for a record that does not decode.
    pub async fn answer(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status().await?))),
            Request::Peers => Ok(Reply::Peers(self.client.peers().await?.into_iter().map(Peer::from).collect())),
            Request::Experts => {
                let handler = self.clone();
                Ok(Reply::Experts(tokio::task::spawn_blocking(move || handler.experts()).await??))
            }
            Request::Routers => {
                let Self { registry, settings, .. } = self.clone();
                let routers = move || Router::all(&registry, settings.charter_digest()?);
                Ok(Reply::Routers(tokio::task::spawn_blocking(routers).await??))
            }
            Request::Announce { record } => {
                let bytes =
                    hex::decode(record).map_err(|e| Error::Usage(format!("the record is not hexadecimal: {e}")))?;
                let announcement = hdd_protocol::decode("announcement", &bytes, Announcement::LIMIT)?;
                Ok(Reply::Announced(self.client.announce(announcement).await?))
            }
        }
    }

    fn experts(&self) -> Result<Vec<Expert>> {
        Expert::all(&self.registry, self.settings.charter_digest()?)
    }

    async fn status(&self) -> Result<Status> {
        let (peers, listening) = (self.client.peers().await?.len(), self.client.listening().await?);
        let handler = self.clone();
        tokio::task::spawn_blocking(move || {
            let Self { role, author, client, registry, settings } = &handler;
            let (experts, blobs) = (handler.experts()?, registry.blobs()?);
            Ok(Status {
                role: (*role).into(),
                version: env!("CARGO_PKG_VERSION").into(),
                peer_id: client.peer_id().to_string(),
                author: *author,
                data: settings.data.clone(),
                listening: listening.iter().map(ToString::to_string).collect(),
                peers,
                charter: settings.local_charter(registry)?.as_ref().map(CharterReport::of),
                experts: experts.len(),
                own: experts.into_iter().filter(|expert| expert.author == *author).collect(),
                blobs: blobs.len(),
                blob_bytes: blobs.iter().map(|blob| blob.size).sum(),
                free_bytes: fs4::available_space(&settings.data)
                    .map_err(Error::io("ask for the free space of", &settings.data))?,
            })
        })
        .await?
    }
}

fn socket(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// A listening control socket; dropping it closes and removes it.
pub struct Server {
    task: JoinHandle<()>,
    path: PathBuf,
}

impl Server {
    /// Listens in the handler's data folder, whose lock the caller holds: a socket found there is a dead process's.
    ///
    /// # Errors
    /// [`Error::Io`] if no socket can be made there; the path may be too long, systems allow about 100 bytes.
    pub fn start(handler: Handler) -> Result<Self> {
        let path = socket(&handler.settings.data);
        let failed = || Error::io("listen on the control socket", &path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed())?;
        Ok(Self { task: tokio::spawn(serve(listener, handler)), path })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket was gone");
        }
    }
}

async fn serve(listener: UnixListener, handler: Handler) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_secs(1)).await; // out of file handles, most likely
                continue;
            }
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            match timeout(PATIENCE, converse(stream, &handler)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "control connection"),
                Err(_) => tracing::debug!("control connection timed out"),
            }
            drop(slot);
        });
    }
}

async fn converse(stream: UnixStream, handler: &Handler) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_LIMIT)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => handler.answer(request).await.unwrap_or_else(|error| Reply::Refused(error.chain())),
        Err(error) => Reply::Refused(format!("no such request: {error}")),
    };
    let mut bytes = serde_json::to_vec(&reply)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

/// Asks the node that uses the folder `data`.
///
/// # Errors
/// [`Error::Control`] if none answers; [`Error::ControlRefused`] with its reason.
pub async fn ask(data: &Path, request: &Request) -> Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let exchange = async {
        let (read, mut write) = UnixStream::connect(socket(data)).await?.into_split();
        write.write_all(&line).await?;
        let mut reply = String::new();
        BufReader::new(read.take(REPLY_LIMIT)).read_line(&mut reply).await?;
        io::Result::Ok(reply)
    };
    let text = timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let text = text.map_err(|source| Error::Control { folder: data.into(), source })?;
    match serde_json::from_str(&text)? {
        Reply::Refused(why) => Err(Error::ControlRefused(why)),
        reply => Ok(reply),
    }
}
