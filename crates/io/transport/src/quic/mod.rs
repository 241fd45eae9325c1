//! QUIC (RFC 9000) between two own ends: mutual TLS, one UDP socket for all connections of a server, and on each
//! connection one stream in both directions that carries what a WebSocket would.
//!
//! The stream begins with the same request and answer as a WebSocket, as text of HTTP/1.1 with `Upgrade: kedge`, so
//! identity, headers and refusals are decided by the same code. After that it carries messages, each behind its length.

mod dial;
mod google;
mod io;
mod listener;

pub use dial::dial_quic;
pub(crate) use dial::failed;
pub use listener::{QuicHandshake, QuicListener};

use quinn::{IdleTimeout, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// The protocol that TLS agrees on; an end that does not know it is refused in the handshake.
const ALPN: &[u8] = b"kedge/1";
/// A connection on which nothing arrives for so long is gone. The hub's keepalive timeout is shorter and says it better.
const IDLE_TIMEOUT_MS: u32 = 120_000;
/// Bytes of a message that the server takes before its session reads them; together with the round trip this bounds what
/// one edge can send in a second, and what it can occupy.
const SERVER_RECEIVE_BYTES: u32 = 64 * 1024;
/// The same at an edge, which has one connection and receives whole sets of objects.
const CLIENT_RECEIVE_BYTES: u32 = 1024 * 1024;
/// Bytes that wait to be acknowledged by the peer, which is what a slow peer occupies.
const SEND_BYTES: u64 = 256 * 1024;
/// Bytes of the handshake that may arrive out of order; a chain of certificates has some thousand.
const CRYPTO_BYTES: usize = 16 * 1024;

fn transport(receive_bytes: u32, peer_streams: u32) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(peer_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(receive_bytes))
        .receive_window(VarInt::from_u32(receive_bytes))
        .send_window(SEND_BYTES)
        .crypto_buffer_size(CRYPTO_BYTES)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))));
    // The link has a heartbeat of its own.
    transport.keep_alive_interval(None::<Duration>);
    Arc::new(transport)
}
