//! How bytes move: TCP (Noise, yamux) and QUIC, over IPv4, IPv6 and DNS names.

use super::{Error, NetworkConfig, Result, behaviour::Behaviour};
use libp2p::{Swarm, SwarmBuilder, identity::Keypair, noise, tcp, yamux};
use std::time::Duration;

/// A connection without a stream is kept this long, so that a peer that cannot be dialled stays reachable.
const IDLE_CONNECTION: Duration = Duration::from_secs(600);

/// A swarm with this node's behaviour that listens nowhere yet.
pub(super) fn swarm(config: &NetworkConfig, key: Keypair) -> Result<Swarm<Behaviour>> {
    let behaviour = Behaviour::new(config, &key)?;
    let builder = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|e| Error::Setup { what: "the noise handshake", cause: e.to_string() })?
        .with_quic()
        .with_dns()
        .map_err(|e| Error::Setup { what: "name resolution", cause: e.to_string() })?;
    let Ok(builder) = builder.with_behaviour(|_| behaviour);
    Ok(builder
        .with_swarm_config(|c| c.with_idle_connection_timeout(IDLE_CONNECTION))
        .with_connection_timeout(config.limits.handshake)
        .build())
}
