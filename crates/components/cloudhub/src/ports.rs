//! Who the hub talks to inside the process.

use kedge_link::Peer;
pub use kedge_link::cloud::{Acked, Answer, Attached};
use kedge_pki::TokenId;
use kedge_telemetry::channel::{ask, keyed};
use kedge_wire::{NodeName, Object, ObjectKey, Request};

/// A node has connected; the answer is an [`Attached`]. Whoever takes it ends the session by dropping `desired`, and
/// learns from closed channels that it has ended.
#[derive(Debug)]
pub struct Attach {
    pub node: NodeName,
    pub peer: Peer,
    /// Changes after the answer (`None`: nothing under this key any more).
    pub desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub requests: ask::Receiver<Request, Answer>,
    /// What the node has made durable.
    pub acked: keyed::Receiver<ObjectKey, Acked>,
}

/// The hub's outlets.
#[derive(Debug, Clone)]
pub struct Ports {
    pub attach: ask::Sender<Attach, Attached>,
    /// Whether the API knows a node of this name.
    pub node_exists: ask::Sender<NodeName, bool>,
    /// Whether a one-time join token may be used.
    pub redeem: ask::Sender<Redeem, Redeemed>,
}

/// A node shows a one-time join token whose signature and expiry are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redeem {
    pub token: TokenId,
    pub node: NodeName,
    /// Hex of the SHA-256 of the key that the certificate is asked for.
    pub key: String,
}

/// The answer to [`Redeem`], the same from every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    /// Used with this key now or before: an answer that was lost is given again.
    Granted,
    /// Used with another key before.
    Spent,
    /// Nobody knows the token: it was withdrawn, or cleaned up.
    Unknown,
}
