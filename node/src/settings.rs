//! What every command needs to know, as typed ([`GlobalArgs`]) and as meant ([`Settings`]).

use crate::{Result, charters, keys, logging, shutdown::Shutdown};
use clap::{Args, builder::FalseyValueParser};
use hdd_protocol::{Charter, Digest, SecretKey, Verified};
use hdd_registry::Registry;
use libp2p::Multiaddr;
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

/// The port of long-running roles, so that an address handed to others stays true after a restart.
pub const PORT: u16 = 4801;

/// Flags that every command takes. Each has an environment variable; a flag wins over it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct GlobalArgs {
    /// Folder for the key, the records and the checkpoints of this node
    #[arg(long, env = "HDD_DATA", global = true, value_name = "DIR", default_value_os_t = default_data())]
    pub data: PathBuf,
    /// Addresses to listen on; repeat it or separate with commas [default: TCP and QUIC on all interfaces, port 4801 for
    /// long-running roles, any free port for others]
    #[arg(long, env = "HDD_LISTEN", global = true, value_name = "MULTIADDR", value_delimiter = ',')]
    pub listen: Vec<Multiaddr>,
    /// Peers to join through, such as /ip4/192.0.2.7/tcp/4801/p2p/12D3Koo...; repeat it or separate with commas
    #[arg(long, env = "HDD_BOOTSTRAP", global = true, value_name = "MULTIADDR", value_delimiter = ',')]
    pub bootstrap: Vec<Multiaddr>,
    /// The network: a built-in charter's name (emoji32) or a charter's digest
    #[arg(long, env = "HDD_CHARTER", global = true, value_name = "DIGEST|NAME", default_value_t = CharterChoice::BuiltIn)]
    pub charter: CharterChoice,
    /// Look for peers on the local network (mDNS)
    #[arg(long, env = "HDD_LAN", global = true, value_parser = FalseyValueParser::new())]
    pub lan: bool,
    /// Log filter, such as info or hdd_node::network=debug
    #[arg(long, env = "HDD_LOG", global = true, value_name = "FILTER", value_parser = logging::parse_filter)]
    pub log: Option<String>,
    /// Log more; twice for details, three times for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print results as JSON, for programs
    #[arg(long, env = "HDD_JSON", global = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// Which network a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CharterChoice {
    /// The one inside the binary.
    BuiltIn,
    /// One that peers hold.
    Digest(Digest),
}

impl FromStr for CharterChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == charters::BUILT_IN {
            return Ok(Self::BuiltIn);
        }
        text.parse().map(Self::Digest).map_err(|_| {
            format!(
                "no built-in charter has this name; expected {} or a digest of 64 hexadecimal digits",
                charters::BUILT_IN
            )
        })
    }
}

impl fmt::Display for CharterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str(charters::BUILT_IN),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

fn default_data() -> PathBuf {
    // Without a home folder, as in a bare container, the working folder stands in.
    directories::ProjectDirs::from("", "", "hdd-node")
        .map_or_else(|| "hdd-node-data".into(), |dirs| dirs.data_dir().into())
}

/// What the flags mean, and how the process is asked to stop.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Data folder.
    pub data: PathBuf,
    /// Addresses to listen on; empty for the role's own.
    pub listen: Vec<Multiaddr>,
    /// Peers to join through.
    pub bootstrap: Vec<Multiaddr>,
    /// The network.
    pub charter: CharterChoice,
    /// Whether peers are looked for on the local network.
    pub lan: bool,
    /// Whether results are printed as JSON.
    pub json: bool,
    /// Tells when to stop.
    pub shutdown: Shutdown,
}

impl Settings {
    /// Settings from flags.
    pub fn new(args: GlobalArgs, shutdown: Shutdown) -> Self {
        let GlobalArgs { data, listen, bootstrap, charter, lan, json, log: _, verbose: _ } = args;
        Self { data, listen, bootstrap, charter, lan, json, shutdown }
    }

    /// The registry of the data folder.
    ///
    /// # Errors
    /// The registry's: another process uses the folder, or it cannot be made or read.
    pub fn registry(&self) -> Result<Arc<Registry>> {
        Ok(Arc::new(Registry::open(&self.data)?))
    }

    /// The key of the data folder, made at first use.
    ///
    /// # Errors
    /// As [`keys::load_or_create`].
    pub fn key(&self) -> Result<SecretKey> {
        keys::load_or_create(&self.data)
    }

    /// The chosen charter's digest.
    ///
    /// # Errors
    /// [`crate::Error::BuiltInCharter`].
    pub fn charter_digest(&self) -> Result<Digest> {
        match self.charter {
            CharterChoice::BuiltIn => Ok(charters::built_in()?.digest()),
            CharterChoice::Digest(digest) => Ok(digest),
        }
    }

    /// The chosen charter if no peer has to be asked: it is built in, or `registry` holds it.
    ///
    /// # Errors
    /// [`crate::Error::BuiltInCharter`]; the registry's.
    pub fn local_charter(&self, registry: &Registry) -> Result<Option<Verified<Charter>>> {
        match self.charter {
            CharterChoice::BuiltIn => charters::built_in().map(Some),
            CharterChoice::Digest(digest) => Ok(registry.charter(digest)?),
        }
    }

    /// The addresses that a role listens on: those given, else every interface at `port` (0: any free one).
    pub fn listen_at(&self, port: u16) -> Vec<Multiaddr> {
        use libp2p::multiaddr::Protocol::{Ip4, QuicV1, Tcp, Udp};
        if !self.listen.is_empty() {
            return self.listen.clone();
        }
        let any = Multiaddr::empty().with(Ip4(std::net::Ipv4Addr::UNSPECIFIED));
        vec![any.clone().with(Tcp(port)), any.with(Udp(port)).with(QuicV1)]
    }
}
