//! A listening socket with errors that say what to do.

use crate::options;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Wait after a failed accept (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "port {} is in use on {}: another program listens there; stop it (`ss -lntup sport = :{}` shows it) or choose \
         another port",
        address.port(), address.ip(), address.port()
    )]
    InUse { address: SocketAddr },
    #[error("this user may not listen on port {}: choose a port above 1023 or start as root", address.port())]
    NotPermitted { address: SocketAddr },
    #[error("{} is not an address of this machine: choose one that `ip address` shows, or 0.0.0.0", address.ip())]
    NotLocal { address: SocketAddr },
    #[error("listen on {address}")]
    Other { address: SocketAddr, source: io::Error },
}

impl BindError {
    pub(crate) fn of(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { address },
            io::ErrorKind::AddrNotAvailable => Self::NotLocal { address },
            _ => Self::Other { address, source },
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens; port 0 lets the system choose.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError::of(address, source);
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Self { tcp, address })
    }

    /// The address with the port that the system chose.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. Trouble of one connection or of the moment does not end the listener. Cancel safe.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.tcp.accept().await {
                Ok((tcp, peer)) => {
                    options::prepare(&tcp);
                    return (tcp, peer);
                }
                Err(error) => {
                    tracing::warn!(address = %self.address, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_way_out() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = Listener::bind(first.local_address()).await.unwrap_err();
        let port = first.local_address().port();
        assert_eq!(
            error.to_string(),
            format!(
                "port {port} is in use on 127.0.0.1: another program listens there; stop it (`ss -lntup sport = :{port}` \
                 shows it) or choose another port"
            )
        );
    }
}
