//! Listening, with errors that say what to do.

use super::{Error, Result, behaviour::Behaviour};
use libp2p::{Multiaddr, Swarm, core::transport::ListenerId, multiaddr::Protocol};
use std::{
    io,
    net::{IpAddr, TcpListener, UdpSocket},
};

/// Listens on `address`.
///
/// # Errors
/// [`Error::Listen`] with the remedy.
pub(super) fn on(swarm: &mut Swarm<Behaviour>, address: &Multiaddr) -> Result<ListenerId> {
    try_port(address).map_err(|error| explain(address, &error))?;
    swarm.listen_on(address.clone()).map_err(|error| explain(address, &error))
}

/// Two nodes of one user could listen on one port, and each would get some of the connections: libp2p sets SO_REUSEPORT.
/// A socket without it finds out.
fn try_port(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()), // for libp2p to refuse
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        Some(Protocol::Udp(port)) if port != 0 => UdpSocket::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

fn explain(address: &Multiaddr, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let remedy = match innermost.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::AddrInUse) => {
            "stop the program that uses the port, or listen on another (0 takes a free one)"
        }
        Some(io::ErrorKind::PermissionDenied) => "choose a port above 1023",
        Some(io::ErrorKind::AddrNotAvailable) => "choose an address of this machine, or 0.0.0.0 for all",
        _ => "write it like /ip4/0.0.0.0/tcp/4001 or /ip4/0.0.0.0/udp/4001/quic-v1",
    };
    Error::Listen { address: address.clone(), cause: innermost.to_string(), remedy }
}
