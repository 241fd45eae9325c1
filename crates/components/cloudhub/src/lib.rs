//! CloudHub: where edges join and stay connected.
//!
//! **Duty.** Two servers. The bootstrap server (10002, HTTPS) hands out the authority's certificate and signs node
//! certificates for holders of a join token or of a node certificate. The hub (10000, TLS WebSocket) keeps one session a
//! node and carries desired objects down and requests up, with `kedge_link::cloud::CloudLink` as the judge.
//!
//! **Inputs.** Connections of edges; from the controllers, the desired objects of each attached node and answers to its
//! requests ([`Attach`]). **Outputs.** Attachments and requests to the controllers; envelopes to edges.
//!
//! **Never.** No Kubernetes API, no decision about what a node must hold, no trust in a name that a message or header
//! claims: who a node is stands in its certificate. No queue is shared between nodes.
//!
//! ```text
//!   accept loop ── handshake task ──> registry (one owner: who is connected, who replaces whom)
//!                                        │ entered
//!                                        v
//!     edge <── writer ── session task { CloudLink } ── requests ──> controllers' worker of this node
//!     edge ──> reader ──────┘                    <── desired, answers ──┘
//! ```

mod bootstrap;
mod config;
mod hub;
mod metrics;
mod ports;
mod registry;
mod session;

pub use config::Config;
pub use hub::CloudHub;
pub use metrics::{Metrics, Snapshot};
pub use ports::{Answer, Attach, Ports};

/// Why the hub cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start the hub")]
    Hub(#[source] kedge_transport::BindError),
    #[error("start the bootstrap server")]
    Bootstrap(#[source] kedge_transport::BindError),
    #[error("prepare TLS")]
    Tls(#[source] kedge_pki::Error),
}
