//! A connection to a port in a sandbox. It is made in the sandbox's network and then belongs to whoever asked.

use super::Failure;
use kedge_supervision::Reply;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The loopback answers at once, unless nobody takes connections.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectOrder {
    /// The sandbox's network.
    pub(crate) network_pin: PathBuf,
    pub(crate) port: u16,
}

/// The sandbox's own addresses, the usual one first.
pub(crate) fn addresses(port: u16) -> [SocketAddr; 2] {
    [
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
    ]
}

/// Connects, and sends the connection to standard output, which is a socket.
pub(super) fn run(order: Result<ConnectOrder, Failure>) -> ExitCode {
    let connected = order.and_then(|order| connect(&order));
    let (reply, connection) = match connected {
        Ok(connection) => (Reply::Done, Some(connection)),
        Err(Failure(why)) => (Reply::Failed(why), None),
    };
    let told = kedge_supervision::encode(&reply)
        .map_err(std::io::Error::other)
        .and_then(|bytes| {
            kedge_packets::send(std::io::stdout(), &bytes, connection.as_ref().map(AsFd::as_fd))
        });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn connect(order: &ConnectOrder) -> Result<TcpStream, Failure> {
    let failed = |error: std::io::Error| Failure::new("enter the sandbox's network", error);
    let network = File::open(&order.network_pin).map_err(failed)?;
    setns(network, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
    let [first, second] = addresses(order.port);
    TcpStream::connect_timeout(&first, CONNECT_MAX)
        .or_else(|error| TcpStream::connect_timeout(&second, CONNECT_MAX).map_err(|_| error))
        .map_err(|error| Failure::new(&format!("port {}", order.port), error))
}
