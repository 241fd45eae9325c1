//! Socket options that every connection has.

use rustix::net::sockopt;
use std::time::Duration;
use tokio::net::TcpStream;

/// A dead peer is noticed after about a minute even if nobody speaks: 30 s of silence, then 3 probes 10 s apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// And about as soon when this side speaks: the system alone repeats what nobody acknowledges for a quarter of an hour,
/// and asks for no sign of life meanwhile.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Sets no-delay, and when a silent peer is dead. A socket that refuses an option still works, so this only leaves a trace.
pub(crate) fn prepare(tcp: &TcpStream) {
    let set = || -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES)?;
        let unacknowledged_ms = u32::try_from(UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(tcp, unacknowledged_ms)?;
        Ok(())
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "socket options not set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_dead_peer_is_noticed_whether_this_side_speaks_or_not() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&tcp);
        assert!(sockopt::socket_keepalive(&tcp).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&tcp).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_user_timeout(&tcp).unwrap(), 60_000);
    }
}
