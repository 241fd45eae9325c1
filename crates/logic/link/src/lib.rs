//! The relation between one edge node and the cloud, both ends, as state machines.
//!
//! **Duty.** Hello, keepalive, acknowledgement after commit, retry, resume; the cloud's mailbox of one node. What
//! survives a dropped connection lives here.
//!
//! **Inputs.** Envelopes, orders from the owner, and the time. **Outputs.** Envelopes to send, events for the owner,
//! and the moment to wake (`poll_*`). After every `handle_*` and every order the owner drains `poll_event`, then
//! `poll_transmit`, then sleeps until `poll_timeout`.
//!
//! **Never.** No tokio, no clock, no randomness but a seed, no I/O. Never inspects an object beyond its metadata.
//!
//! # The session, seen from the cloud ([`cloud::CloudLink`], one value a session)
//!
//! ```text
//!            new(Peer::Kedge)                      new(Peer::Official)
//!                  |                                       |
//!                  v        digest, or RESUME_WAIT_MAX     v
//!          [awaiting resume] ------------------------> [running] ---> [closed]
//!            replies flow,                              objects flow   silence, violation
//!            objects wait
//! ```
//!
//! # One key of the mailbox
//!
//! ```text
//!                desired differs from held
//!     [in sync] ---------------------------> [queued] --- window has room ---> [flying]
//!         ^                                     ^  ^                            |  |  |
//!         |                                     |  +-- retry delay passed ------+  |  |
//!         |                                     +----- [resting] <---- refused ----+  |
//!         +------------- acknowledged, and nothing newer is desired ------------------+
//! ```
//!
//! # One delivery on the edge ([`edge::EdgeLink`], one value a process)
//!
//! ```text
//!     envelope --> known id? --> acknowledge again
//!              --> version not newer than what is held, same uid? --> acknowledge
//!              --> another change of this key being committed? --> wait in the key's lane
//!              --> Event::Deliver --> owner commits --> committed(Ok)  --> acknowledge
//!                                                   --> committed(Err) --> operation `error`
//! ```
//!
//! # Rules that both ends keep
//!
//! * **Versions only grow.** For one uid, a version that is a smaller or equal decimal number than the one held is
//!   acknowledged and not delivered, because the node already holds something at least as new: the sender is a cloud
//!   whose watch lags (a replica just started) or a repetition. Versions that are not decimal numbers are compared for
//!   equality only. An API restored from an old backup therefore changes a surviving object on the edge only once its
//!   versions have grown past the old ones, or when the object is created anew (new uid).
//! * **A new uid is a new object.** Under one key the old uid is deleted, and its delete committed, before the new uid
//!   is delivered. The cloud sends the delete and waits for its acknowledgement; should a cloud not know what the node
//!   held (official peers do not say), the edge makes the delete itself.
//! * **A delete names its uid.** A delete of a uid that the node does not hold is acknowledged and changes nothing.
//! * **The node object** is replaced and never deleted over the link: deleting a node ends its session.

pub mod cloud;
pub mod edge;
mod seed;

use kedge_wire::{ObjectKind, ResourceVersion};

/// Whether the peer is one of ours. Agreed in the WebSocket upgrade by [`OFFER_HEADER`]: an edge that offers and a
/// cloud that echoes it both speak the additions (digest resume, answered keepalives); any other peer gets the
/// official protocol only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Official,
    Kedge,
}

/// HTTP header of the offer and of its acceptance; the value is the protocol version.
pub const OFFER_HEADER: &str = "Kedge-Link";
/// The only version there is.
pub const OFFER_VERSION: &str = "1";

/// Objects that one digest may name. A node runs some hundred pods with a few config maps each; more is a violation,
/// and an edge that holds more leaves the rest out.
pub const DIGEST_ENTRIES_MAX: usize = 20_000;

/// One object that an edge holds, as it tells after a reconnect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// `<ns>/<kind>/<name>`.
    pub key: String,
    pub uid: String,
    pub version: String,
}

/// Whether the cloud decides which nodes hold objects of this kind, so that a digest names them and one that is not
/// desired is deleted. Anything else in an edge's store (tokens, leases, claims it asked for) is its own cache.
fn is_placed(kind: &ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Pod | ObjectKind::ConfigMap | ObjectKind::Secret | ObjectKind::Node
    )
}

/// Whether holding `held` is at least as good as being sent `offered`, for one uid.
fn covers(held: &ResourceVersion, offered: &ResourceVersion) -> bool {
    if held == offered {
        return true;
    }
    match (held.as_str().parse::<u64>(), offered.as_str().parse::<u64>()) {
        (Ok(held), Ok(offered)) => held >= offered,
        (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}
