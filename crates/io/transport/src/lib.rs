//! Connections between cloud and edge: TLS, WebSocket or QUIC, and messages on them.
//!
//! **Duty.** Listen and dial ([`Acceptor`], [`QuicListener`], [`dial`], [`dial_quic`]); carry [`kedge_wire::Packet`]s in the framing that
//! both ends agreed on ([`Framing`]) and the frames of the tunnel as bytes ([`Sender`], [`Receiver`]); keep every limit
//! of size and time; tell refused, timeout, certificate and handshake trouble apart in words a person can act on.
//!
//! **Inputs.** Addresses, TLS configurations (made by `kedge-pki`), headers. **Outputs.** A [`Connection`], or a typed
//! error. **Never.** No retry, no session, no keepalive policy: those decide, and live in `kedge-link`.
//!
//! [`pair`] is the same type over memory instead of TLS, for tests; all carriers pass one contract suite. A [`Plug`] is
//! the cable between an edge and the cloud: while it is pulled, dialling fails and connections break.
//!
//! ```text
//!   Packet ── packet (framing, packing) ── outgoing: frame heads, masks ──┐
//!                                                                         ├── TLS on TCP | QUIC stream | memory
//!   Packet ── packet ────────────────────── incoming: frames to messages ─┘
//! ```
//!
//! What the tunnel carries are streams; [`tunnel`] is what both of its ends do with them.
//!
//! A connection between two messages owns no buffer beside that of TLS: nothing is read ahead, and what is written
//! passes through a scratch buffer of the thread.

mod accept;
mod acceptor;
mod close;
mod connection;
mod dial;
mod frame;
mod gate;
mod head;
mod incoming;
mod listener;
mod options;
mod outgoing;
mod pack;
mod packet;
mod plug;
mod quic;
pub mod tunnel;

pub use accept::{AcceptError, Acceptance, Refusal, UpgradeRequest, accept, accept_tls};
pub use acceptor::{Acceptor, Handshake};
pub use close::{Close, CloseCode};
pub use connection::{Connection, Limits, Message, Receiver, RecvError, SendError, Sender, pair};
pub use dial::{DialError, Target, TlsTrouble, dial, dial_tls};
pub use gate::{HandshakeLimits, network_of};
pub use listener::{BindError, Listener};
pub use packet::Framing;
pub use plug::Plug;
pub use quic::{QuicHandshake, QuicListener, dial_quic};

use std::time::Duration;

/// The header `Sec-WebSocket-Accept` that answers this `Sec-WebSocket-Key`.
pub fn websocket_accept(key: &str) -> String {
    head::accept_of(key.as_bytes())
}

/// A TLS handshake and an upgrade each; the official edge waits 30 s for both.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// A message that a peer does not take within this time ends the connection; the official edge's write deadline.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
