//! The relation between one edge node and the cloud, both ends, as state machines.
//!
//! **Duty.** Hello, keepalive, acknowledgement after commit, retry, resume, replace, drain; the cloud's mailbox of one
//! node. What survives a dropped connection lives here.
//!
//! **Inputs.** Envelopes, orders from the owner, and the time. **Outputs.** Envelopes to send, events for the owner,
//! and the moment to wake (`poll_*`).
//!
//! **Never.** No tokio, no clock, no randomness but a seed, no I/O.

pub mod cloud;
pub mod edge;

/// Whether the peer is one of ours. Agreed in the WebSocket upgrade by [`OFFER_HEADER`]: an edge that offers and a
/// cloud that echoes it both speak the additions (digest resume); any other peer gets the official protocol only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Official,
    Kedge,
}

/// HTTP header of the offer and of its acceptance; the value is the protocol version.
pub const OFFER_HEADER: &str = "Kedge-Link";
/// The only version there is.
pub const OFFER_VERSION: &str = "1";

/// One object that an edge holds, as it tells after a reconnect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// `<ns>/<kind>/<name>`.
    pub key: String,
    pub uid: String,
    pub version: String,
}
