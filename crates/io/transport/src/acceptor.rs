//! The door of a server of many nodes: a listener whose handshakes have limits.

use crate::accept::{AcceptError, Acceptance, Refusal, UpgradeRequest, accept_tls, upgrade_tls};
use crate::connection::{Connection, Limits};
use crate::gate::{Gate, HandshakeLimits, Ticket};
use crate::listener::Listener;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Accepts connections and hands them out as [`Handshake`]s, to be run in a task each.
///
/// Handshakes that may not begin yet wait without costing more than a socket; when too many wait, newcomers are closed
/// at once and try again by their own back-off. While handshakes compute, only as many steps of them as there are cores
/// stand in the runtime's queue, so sessions that are open already are served in between.
///
/// ```text
///   loop { select! { cancelled => return, handshake = acceptor.next() => spawn(handshake.run(limits, decide)) } }
/// ```
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    gate: Arc<Gate>,
}

impl Acceptor {
    pub fn new(listener: Listener, tls: Arc<rustls::ServerConfig>, limits: HandshakeLimits) -> Self {
        Self {
            listener,
            tls,
            gate: Gate::new(limits),
        }
    }

    /// Where peers connect.
    pub fn local_address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// The next connection that found room. Cancel safe.
    pub async fn next(&self) -> Handshake {
        loop {
            let (tcp, peer) = self.listener.accept().await;
            // Without room the socket is dropped, which closes it.
            if let Some(ticket) = self.gate.enter(peer.ip()) {
                return Handshake {
                    tcp,
                    peer,
                    tls: Arc::clone(&self.tls),
                    ticket,
                };
            }
        }
    }

    /// Connections that were closed because too many handshakes were waiting.
    pub fn refused(&self) -> u64 {
        self.gate.refused()
    }

    /// Connections whose handshake is under way or waits for its turn.
    pub fn in_progress(&self) -> usize {
        self.gate.accepted()
    }
}

/// An accepted connection that has not said who it is. Dropping it closes it.
#[derive(Debug)]
pub struct Handshake {
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    ticket: Ticket,
}

impl Handshake {
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Waits for its turn, then TLS and the upgrade; `decide` sees the request and takes or refuses it.
    pub async fn run<T, D>(self, limits: Limits, decide: D) -> Result<(Connection, T), AcceptError>
    where
        D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
        T: Send,
    {
        // In a box that goes when the handshake is done: its state is large, and the task that waits here may be that of
        // the session, for which it would keep its size.
        Box::pin(async move {
            let turn = self.ticket.turn().await?;
            let stream = turn.in_steps(accept_tls(self.tcp, self.tls)).await?;
            upgrade_tls(stream, limits, decide).await
        })
        .await
    }

    /// Waits for its turn, then TLS, then `serve`, all in one turn: for a server of HTTPS, whose connections are as short as
    /// a handshake and are to be bounded like one.
    pub async fn serve_tls<F: Future>(
        self,
        serve: impl FnOnce(TlsStream<TcpStream>) -> F,
    ) -> Result<F::Output, AcceptError> {
        let turn = self.ticket.turn().await?;
        let served = async {
            let stream = accept_tls(self.tcp, self.tls).await?;
            Ok(serve(stream).await)
        };
        turn.in_steps(served).await
    }
}
