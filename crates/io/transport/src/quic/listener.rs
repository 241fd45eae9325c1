//! The server's side: one UDP socket for all connections.

use super::google::Filter;
use super::io::QuicIo;
use super::{ALPN, SERVER_RECEIVE_BYTES, transport};
use crate::HANDSHAKE_TIMEOUT;
use crate::accept::{AcceptError, Acceptance, Refusal, UpgradeRequest, upgrade};
use crate::connection::{Connection, Limits};
use crate::frame::Carrier;
use crate::gate::{Gate, HandshakeLimits, Ticket};
use crate::listener::BindError;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, Runtime, ServerConfig, TokioRuntime};
use rustix::net::sockopt;
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// Asked of the kernel for all connections together; it gives at most `net.core.rmem_max`.
const SOCKET_RECEIVE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one peer, and of all, that wait while their handshake has not its turn.
const WAITING_BYTES: u64 = 16 * 1024;
const WAITING_BYTES_ALL: u64 = 4 * 1024 * 1024;

/// Handshakes under way at one time, whatever the limits say: quinn computes them in tasks of its own, where they cannot
/// take turns by steps, so this many half milliseconds are the longest that sessions wait for them.
const IN_PROGRESS_MAX: usize = 128;

/// Listens for QUIC.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: Endpoint,
    address: SocketAddr,
    gate: Arc<Gate>,
}

impl QuicListener {
    /// Listens; port 0 lets the system choose. `tls` is that of the WebSocket server.
    pub fn bind(
        address: SocketAddr,
        tls: &rustls::ServerConfig,
        limits: HandshakeLimits,
    ) -> Result<Self, BindError> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| BindError::Other {
            address,
            source: io::Error::other(error),
        })?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(transport(SERVER_RECEIVE_BYTES, 1))
            .max_incoming(limits.accepted_max)
            .incoming_buffer_size(WAITING_BYTES)
            .incoming_buffer_size_total(WAITING_BYTES_ALL);
        let failed = |source| BindError::of(address, source);
        let socket = UdpSocket::bind(address).map_err(failed)?;
        if let Err(error) = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_RECEIVE_BYTES) {
            tracing::debug!(%error, "receive buffer of the QUIC socket stays as it is");
        }
        let local = socket.local_addr().map_err(failed)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(),
            Some(config),
            Arc::new(Filter::new(TokioRuntime.wrap_udp_socket(socket).map_err(failed)?)),
            Arc::new(TokioRuntime),
        );
        Ok(Self {
            endpoint: endpoint.map_err(failed)?,
            address: local,
            gate: Gate::new(HandshakeLimits {
                in_progress_max: limits.in_progress_max.min(IN_PROGRESS_MAX),
                per_address_max: limits.per_address_max.min(IN_PROGRESS_MAX.div_ceil(2)),
                ..limits
            }),
        })
    }

    /// The address with the port that the system chose.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that found room, to be run in a task of its own. Under load a peer must prove its address
    /// first. Cancel safe.
    pub async fn next(&self) -> QuicHandshake {
        loop {
            let Some(incoming) = self.endpoint.accept().await else {
                // Only closing the endpoint ends it, and nothing here does.
                return std::future::pending().await;
            };
            if self.gate.is_pressed() && incoming.may_retry() && !incoming.remote_address_validated() {
                // It comes back with a token.
                let _ = incoming.retry();
                continue;
            }
            match self.gate.enter(incoming.remote_address().ip()) {
                Some(ticket) => return QuicHandshake { incoming, ticket },
                None => incoming.refuse(),
            }
        }
    }

    /// Connections that were refused because too many handshakes were waiting.
    pub fn refused(&self) -> u64 {
        self.gate.refused()
    }

    /// Connections whose handshake is under way or waits for its turn.
    pub fn in_progress(&self) -> usize {
        self.gate.accepted()
    }
}

/// Own ends always set the fixed bit, so that the dialect of official edges can be told from them.
pub(super) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    config
}

/// A peer that has not said who it is. Dropping it refuses it.
#[derive(Debug)]
pub struct QuicHandshake {
    incoming: Incoming,
    ticket: Ticket,
}

impl QuicHandshake {
    pub fn peer(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Waits for its turn, then TLS and the upgrade; `decide` sees the request and takes or refuses it, as for a
    /// WebSocket. It must take it with [`crate::Framing::Kedge`].
    pub async fn run<T, D>(self, limits: Limits, decide: D) -> Result<(Connection, T), AcceptError>
    where
        D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
        T: Send,
    {
        // Boxed for the same reason as a handshake over TCP.
        Box::pin(self.shake(limits, decide)).await
    }

    async fn shake<T, D>(self, limits: Limits, decide: D) -> Result<(Connection, T), AcceptError>
    where
        D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
        T: Send,
    {
        let _turn = self.ticket.turn().await?;
        let failed = |error: quinn::ConnectionError| AcceptError::Tls(io::Error::other(error));
        let handshake = async {
            let connection = self.incoming.accept().map_err(failed)?.await.map_err(failed)?;
            let (send, receive) = connection.accept_bi().await.map_err(failed)?;
            Ok((connection, send, receive))
        };
        let (connection, send, receive) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(shaken) => shaken?,
            Err(_) => {
                return Err(AcceptError::Timeout {
                    step: "QUIC handshake",
                });
            }
        };
        let certificate = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|chain| chain.into_iter().next());
        let io = QuicIo::new(connection, send, receive);
        upgrade(io, Carrier::Stream, certificate, limits, decide).await
    }
}
