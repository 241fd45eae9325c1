//! CloudHub: where edges join and stay connected.
//!
//! **Duty.** The bootstrap server (10002, HTTPS) hands out the authority's certificate and signs node certificates for
//! holders of a join token or of a node certificate. The hub (10000, WebSocket; 10001, QUIC for our own edges; one of
//! them or both) keeps one session a node and carries desired objects down and requests up, with
//! `kedge_link::cloud::CloudLink` as the judge.
//!
//! **Inputs.** Connections of edges; from the controllers, the desired objects of each attached node and answers to its
//! requests ([`Attach`], [`Attached`]); whether a node exists, and whether a one-time token may be used. **Outputs.**
//! Attachments, requests and acknowledgements to the controllers; packets and certificates to edges; numbers.
//!
//! **Never.** No Kubernetes API, no decision about what a node must hold, no trust in a name that a message or header
//! claims: who a node is stands in its certificate. No queue is shared between nodes.
//!
//! ```text
//!   WebSocket ──┐
//!               ├─ handshake task ──> registry (one owner: who is connected, who replaces whom)
//!   QUIC ───────┘                        │ welcome
//!                                        v
//!     edge <── outlet ── session task { CloudLink } ── requests, acked ──> controllers' worker of this node
//!     edge ── receiver ──> flow ──┘              <── desired, answers ──┘
//! ```
//!
//! # What a node can do to others
//!
//! | it | so it |
//! |---|---|
//! | takes nothing | is cut off when one message is not taken within the transport's write timeout; its replies and objects wait in its own link, bounded |
//! | is silent | is told and let go after the keepalive timeout |
//! | sends too much | is read at the rate of [`FlowLimits`]; after their `patience` its session ends |
//! | asks too much | is not read from while as many of its requests as may be are being worked on |
//! | sends what is no message, or one that is too large | is told what was wrong and let go |
//! | acknowledges nothing, twice, or what was never sent | gets its objects again, ever more rarely; strays are counted and change nothing |
//! | connects again and again | replaces itself; its handshakes wait behind those of its address |
//!
//! Edges that join by the thousand are held by the transport's [`kedge_transport::Acceptor`], at the hub and at the
//! bootstrap server: few handshakes compute at a time, so those connected are answered in between. That is enough to
//! need no threads of their own for handshakes: `benches/join_storm.rs` measures what is left.

// Tests inside play the same neighbours as the tests outside.
#[cfg(test)]
extern crate self as kedge_cloudhub;

mod bootstrap;
mod clock;
mod config;
mod hub;
mod metrics;
mod ports;
mod reception;
mod registry;
mod session;
mod traffic;

pub use config::Config;
pub use hub::CloudHub;
pub use metrics::{Metrics, Snapshot};
pub use ports::{Acked, Answer, Attach, Attached, Ports, Redeem, Redeemed};
pub use session::FlowLimits;

/// Why the hub cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start the hub")]
    Hub(#[source] kedge_transport::BindError),
    #[error("start the hub's QUIC listener")]
    Quic(#[source] kedge_transport::BindError),
    #[error("edges have no way in: enable WebSocket or QUIC")]
    NoWayIn,
    #[error("start the bootstrap server")]
    Bootstrap(#[source] kedge_transport::BindError),
    #[error("prepare TLS")]
    Tls(#[source] kedge_pki::Error),
}
