//! Connections between cloud and edge: TLS, WebSocket, and messages on them.
//!
//! **Duty.** Listen and dial ([`Listener`], [`dial`], [`accept`]); carry [`kedge_wire::Envelope`]s as text and tunnel
//! frames as binary messages ([`Sender`], [`Receiver`]); keep every limit of size and time; tell refused, timeout,
//! certificate and handshake trouble apart in words a person can act on.
//!
//! **Inputs.** Addresses, TLS configurations (made by `kedge-pki`), headers. **Outputs.** A [`Connection`], or a typed
//! error. **Never.** No retry, no session, no keepalive policy: those decide, and live in `kedge-link`.
//!
//! [`pair`] is the same type over memory instead of TLS, for tests; both pass one contract suite. A [`Plug`] is the
//! cable between an edge and the cloud: while it is pulled, dialling fails and connections break.

mod accept;
mod connection;
mod dial;
mod listener;
mod options;
mod plug;

pub use accept::{AcceptError, Acceptance, Refusal, UpgradeRequest, accept, accept_tls};
pub use connection::{Close, CloseCode, Connection, Limits, Receiver, RecvError, SendError, Sender, pair};
pub use dial::{DialError, Target, TlsTrouble, dial, dial_tls};
pub use listener::{BindError, Listener};
pub use plug::Plug;

use std::time::Duration;

/// A TLS handshake and a WebSocket upgrade each; the official edge waits 30 s for both.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// A message that a peer does not take within this time ends the connection; the official edge's write deadline.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
