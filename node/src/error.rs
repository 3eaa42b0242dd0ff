//! What can go wrong between the command line and the crates below it.

use hdd_protocol::Digest;
use std::{io, path::PathBuf, time::Duration};

/// Every failure of a command. Messages say what, where and what to do; causes are chained.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the network.
    #[error(transparent)]
    Network(Box<crate::network::Error>),
    /// From the registry.
    #[error(transparent)]
    Registry(#[from] hdd_registry::Error),
    /// From an expert's training, data or files.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Expert(#[from] hdd_expert_runtime::Error),
    /// From the router, admission or serving.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Router(#[from] hdd_router_service::Error),
    /// A record or request that breaks the protocol's rules.
    #[error(transparent)]
    Protocol(#[from] hdd_protocol::Error),
    /// Training or testing ended without a result.
    #[cfg(feature = "torch")]
    #[error("{0}")]
    Training(String),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Flags that do not go together, or a value that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The binary's own charter is missing or broken.
    #[error("this build carries no usable charter '{name}'; name another with --charter DIGEST, or build again")]
    BuiltInCharter {
        /// Its name.
        name: &'static str,
        /// Why it was refused.
        source: hdd_protocol::Error,
    },
    /// Others could read the key.
    #[error("the key file {} has mode {mode:03o}, others could read it; run `chmod 600 {}`", path.display(), path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file.
    #[error("{} is no key file: expected 64 hexadecimal digits, as `hdd-node key export` writes them", path.display())]
    KeyFormat {
        /// The file.
        path: PathBuf,
    },
    /// A key would be lost.
    #[error("{} exists and is not overwritten; a lost key is a lost identity: export it first, then add --force", path.display())]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// A running node did not answer on its control socket.
    #[error("the node that uses {} does not answer; stop it, or wait and try again", folder.display())]
    Control {
        /// Its data folder.
        folder: PathBuf,
        /// What the socket said.
        source: io::Error,
    },
    /// A running node refused a control request.
    #[error("the running node refused: {0}")]
    ControlRefused(String),
    /// Nobody to ask.
    #[error(
        "no peer is known: give one with --bootstrap /ip4/ADDRESS/tcp/PORT/p2p/ID (a running node prints its own), \
         or look on the local network with --lan"
    )]
    NoPeers,
    /// No aggregator answered in time.
    #[error("no aggregator of charter {charter} found in {} s ({heard}); {remedy}", waited.as_secs())]
    NoAggregator {
        /// The network.
        charter: Digest,
        /// How long was waited.
        waited: Duration,
        /// What was heard instead.
        heard: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An aggregator answered outside its protocol.
    #[error("aggregator {aggregator} answered wrongly: {why}; ask another with --aggregator")]
    BadAnswer {
        /// Its peer id.
        aggregator: String,
        /// What is wrong.
        why: String,
    },
    /// Nothing here or nearby has this name.
    #[error(
        "no manifest or blob '{id}' is known here or among {peers} connected peers; `hdd-node experts --json` and \
         `hdd-node routers --json` list manifests"
    )]
    Unknown {
        /// What was asked for.
        id: String,
        /// Peers that were asked.
        peers: usize,
    },
    /// A short name that several records share.
    #[error("'{id}' is the beginning of several digests; give more digits")]
    Ambiguous {
        /// What was asked for.
        id: String,
    },
    /// A picture that cannot be drawn or written.
    #[error("cannot write a picture of {width} x {height} pixels: {why}")]
    Picture {
        /// Pixels a row.
        width: u64,
        /// Rows.
        height: u64,
        /// What is wrong.
        why: String,
    },
    /// Text that is no JSON of the expected form.
    #[error("cannot read or write JSON")]
    Json(#[from] serde_json::Error),
    /// A background task died.
    #[error("an internal task died; please report this")]
    Task(#[from] tokio::task::JoinError),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl From<crate::network::Error> for Error {
    fn from(error: crate::network::Error) -> Self {
        Self::Network(Box::new(error)) // several times as large as the others
    }
}

impl Error {
    /// Attaches what was tried on which path to the system's error.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The process's exit code: 130 when interrupted, as shells have it, 2 for misuse, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// The message and its causes, one a line.
    pub fn chain(&self) -> String {
        let mut text = format!("error: {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let why = error.to_string();
            if !text.ends_with(&why) {
                text.push_str(&format!("\n  caused by: {why}")); // unless the message above quotes it already
            }
            cause = error.source();
        }
        text
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
