//! A process in the network: key, registry, client and, for long-lived roles, the control socket.
//!
//! A *host* owns its data folder for as long as it runs. A *visitor* runs one command; if a host has the data folder, the
//! visitor is a *guest*: it brings an empty folder and a throwaway key, and joins through the host. If another visitor has
//! the folder, a guest joins through the bootstraps and the remembered peers.

use crate::{
    Error, Result,
    control::{self, Handler, Reply, Request},
    network::{self, Client, NetworkConfig, Running, Service},
    settings::{CharterChoice, PORT, Settings},
};
use hdd_protocol::{Charter, SecretKey, Verified};
use hdd_registry::Registry;
use libp2p::Multiaddr;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// A visitor waits this long for its first peer.
const CONNECT: Duration = Duration::from_secs(15);
/// Records have arrived once none came for this long,
const QUIET: Duration = Duration::from_millis(1500);
/// or after this.
const SETTLE: Duration = Duration::from_secs(15);

/// A running node.
pub struct Node {
    /// Its key.
    pub key: SecretKey,
    /// What it holds.
    pub registry: Arc<Registry>,
    /// Its network.
    pub client: Client,
    handler: Handler,
    running: Running,
    control: Option<control::Server>,
    known_peers: bool,
    guest: Option<TempDir>,
}

impl Node {
    /// Starts a long-lived node on the registry of `settings`; `role` names it in `status`, `relay` lets others connect
    /// through it.
    ///
    /// # Errors
    /// A key file or charter that cannot be used; the network's, such as a port in use.
    pub async fn host(
        settings: &Settings,
        role: &'static str,
        registry: Arc<Registry>,
        service: Option<Arc<dyn Service>>,
        relay: bool,
    ) -> Result<Self> {
        let key = settings.key()?;
        let config = NetworkConfig { listen: settings.listen_at(PORT), serve_relay: relay, ..config(settings) };
        let mut node = Self::start(settings, role, registry, key, config, service).await?;
        // Without the socket a host still does its work: `status` and its like then say that it does not answer.
        match control::Server::start(node.handler.clone()) {
            Ok(server) => node.control = Some(server),
            Err(error) => tracing::warn!("{}", error.chain()),
        }
        Ok(node)
    }

    /// Starts a short-lived node with a free port.
    ///
    /// # Errors
    /// As [`Node::host`]; the registry's `InUse` if another process has the data folder and does not answer, and there is
    /// nobody else to join through.
    pub async fn visit(settings: &Settings) -> Result<Self> {
        match settings.registry() {
            Ok(registry) => Self::visit_with(settings, registry).await,
            Err(Error::Registry(in_use @ hdd_registry::Error::InUse { .. })) => {
                let host = match control::ask(&settings.data, &Request::Status).await {
                    Ok(Reply::Status(status)) => status.listening,
                    _ => Vec::new(),
                };
                Self::visit_as_guest(settings, &host, in_use).await
            }
            Err(error) => Err(error),
        }
    }

    /// Visits with a folder of its own, through the addresses of `host` and whom the settings and their folder name.
    async fn visit_as_guest(settings: &Settings, host: &[String], in_use: hdd_registry::Error) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("make a temporary folder in", std::env::temp_dir()))?;
        let remembered = peers_file(&settings.data);
        let mut guest = Settings { data: folder.path().into(), listen: Vec::new(), ..settings.clone() };
        guest.bootstrap.extend(host.iter().filter_map(|address| address.parse::<Multiaddr>().ok()));
        if remembered.exists() {
            let copied = std::fs::copy(&remembered, peers_file(&guest.data));
            copied.map_err(Error::io("copy", &remembered))?;
        } else if guest.bootstrap.is_empty() && !guest.lan {
            return Err(in_use.into());
        }
        let mut node = Self::visit_with(&guest, guest.registry()?).await?;
        node.guest = Some(folder);
        Ok(node)
    }

    async fn visit_with(settings: &Settings, registry: Arc<Registry>) -> Result<Self> {
        let config = NetworkConfig { listen: settings.listen_at(0), ..config(settings) };
        Self::start(settings, "visit", registry, settings.key()?, config, None).await
    }

    async fn start(
        settings: &Settings,
        role: &'static str,
        registry: Arc<Registry>,
        key: SecretKey,
        config: NetworkConfig,
        service: Option<Arc<dyn Service>>,
    ) -> Result<Self> {
        if let (CharterChoice::BuiltIn, Some(charter)) = (&settings.charter, settings.local_charter(&registry)?) {
            registry.insert_charter(&charter)?;
        }
        let known_peers =
            config.lan || !config.bootstrap.is_empty() || config.peers_file.as_ref().is_some_and(|file| file.exists());
        let (client, running) = network::start(config, &key, registry.clone(), service).await?;
        let handler = Handler {
            role,
            author: key.public(),
            client: client.clone(),
            registry: registry.clone(),
            settings: settings.clone(),
        };
        Ok(Self { key, registry, client, handler, running, control: None, known_peers, guest: None })
    }

    /// The charter of the settings: built in, held, or asked of peers.
    ///
    /// # Errors
    /// The network's if no peer has it.
    pub async fn charter(&self) -> Result<Verified<Charter>> {
        let Settings { charter, .. } = &self.handler.settings;
        match charter {
            CharterChoice::BuiltIn => crate::charters::built_in(),
            CharterChoice::Digest(digest) => Ok(self.client.charter(*digest).await?),
        }
    }

    /// Waits for a first peer.
    ///
    /// # Errors
    /// [`Error::NoPeers`] if there is nobody to dial; the network's, naming each address that failed.
    pub async fn connected(&self) -> Result<usize> {
        if !self.known_peers {
            return Err(Error::NoPeers);
        }
        Ok(self.client.wait_connected(CONNECT).await?)
    }

    /// Waits until peers have handed over the records that were missing here.
    pub async fn settled(&self) {
        let mut events = self.client.events();
        let quiet = async { while matches!(tokio::time::timeout(QUIET, events.recv()).await, Ok(Ok(_))) {} };
        if tokio::time::timeout(SETTLE, quiet).await.is_err() {
            tracing::info!("records still arrive; more may be known in a while");
        }
    }

    /// True for a visitor whose data folder belongs to a host: what it holds is gone when it stops.
    pub fn is_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// Answers one request about this node.
    ///
    /// # Errors
    /// As [`Handler::answer`].
    pub async fn answer(&self, request: Request) -> Result<Reply> {
        self.handler.answer(request).await
    }

    /// Prints on standard error how others reach this node.
    ///
    /// # Errors
    /// The network's, such as a port in use.
    pub async fn greet(&self) -> Result<()> {
        let addresses = self.client.listening().await?;
        eprintln!("{} {} listens; others join with one of", self.handler.role, self.client.peer_id());
        for address in addresses {
            eprintln!("  --bootstrap {address}");
        }
        Ok(())
    }

    /// Leaves the network in good order.
    pub async fn stop(self) {
        drop(self.control);
        self.running.stop().await;
    }
}

fn config(settings: &Settings) -> NetworkConfig {
    NetworkConfig {
        bootstrap: settings.bootstrap.clone(),
        peers_file: Some(peers_file(&settings.data)),
        lan: settings.lan,
        ..NetworkConfig::default()
    }
}

fn peers_file(data: &Path) -> PathBuf {
    data.join("peers.json")
}

/// Where a command gets its answers: a running host, or a visit of its own.
pub enum Source {
    /// The node that has the data folder.
    Host(PathBuf),
    /// A node that was started for this command.
    Visit(Box<Node>),
}

impl Source {
    /// Finds the host of the data folder, or visits the network and takes in what peers have.
    ///
    /// # Errors
    /// As [`Node::visit`]. Having no peers is none if what the folder holds can still be looked at.
    pub async fn find(settings: &Settings) -> Result<Self> {
        let node = match settings.registry() {
            Err(Error::Registry(in_use @ hdd_registry::Error::InUse { .. })) => {
                match control::ask(&settings.data, &Request::Status).await {
                    Err(Error::Control { .. }) => Node::visit_as_guest(settings, &[], in_use).await?,
                    _ => return Ok(Self::Host(settings.data.clone())),
                }
            }
            registry => Node::visit_with(settings, registry?).await?,
        };
        match node.connected().await {
            Ok(_) => {
                node.settled().await;
                if let Err(error) = node.charter().await {
                    tracing::warn!("{}", error.chain());
                }
            }
            Err(error) if node.is_guest() => {
                node.stop().await;
                return Err(error); // its folder is empty: there is nothing to look at
            }
            Err(error) => eprintln!("only what {} holds; {}", settings.data.display(), error.chain()),
        }
        Ok(Self::Visit(Box::new(node)))
    }

    /// Asks.
    ///
    /// # Errors
    /// As [`control::ask`] or [`Handler::answer`].
    pub async fn ask(&self, request: Request) -> Result<Reply> {
        match self {
            Self::Host(data) => control::ask(data, &request).await,
            Self::Visit(node) => node.answer(request).await,
        }
    }

    /// Ends the visit.
    pub async fn close(self) {
        if let Self::Visit(node) = self {
            node.stop().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;

    #[tokio::test(flavor = "multi_thread")]
    async fn beside_another_visitor_a_guest_joins_on_its_own_if_there_is_anybody_to_join() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            data: folder.path().into(),
            listen: Vec::new(),
            bootstrap: Vec::new(),
            charter: CharterChoice::BuiltIn,
            lan: false,
            json: false,
            shutdown: Shutdown::manual().1,
        };
        let _other_visitor = settings.registry().unwrap();
        let in_use = |error| matches!(error, Error::Registry(hdd_registry::Error::InUse { .. }));
        assert!(Node::visit(&settings).await.err().is_some_and(in_use));
        assert!(Source::find(&settings).await.err().is_some_and(in_use));

        std::fs::write(peers_file(&settings.data), "[]").unwrap();
        let guest = Node::visit(&settings).await.unwrap();
        assert!(guest.is_guest() && guest.handler.settings.data != settings.data);
        guest.stop().await;

        std::fs::remove_file(peers_file(&settings.data)).unwrap();
        settings.bootstrap.push("/ip4/127.0.0.1/tcp/1".parse().unwrap());
        let guest = Node::visit(&settings).await.unwrap();
        assert!(guest.is_guest() && guest.handler.settings.bootstrap == settings.bootstrap);
        guest.stop().await;
    }
}
