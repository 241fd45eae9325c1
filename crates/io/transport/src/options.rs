//! Socket options that every connection has.

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// A dead peer is noticed after about a minute even if nobody speaks: 30 s of silence, then 3 probes 10 s apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Sets no-delay and TCP keepalive. A socket that refuses an option still works, so this only leaves a trace.
pub(crate) fn prepare(tcp: &TcpStream) {
    let set = || -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)?;
        Ok(())
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "socket options not set");
    }
}
