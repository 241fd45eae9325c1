//! The relation between one edge node and the cloud, both ends, as state machines.
//!
//! **Duty.** Hello, keepalive, acknowledgement after commit, retry, resume; the cloud's mailbox of one node. What
//! survives a dropped connection lives here.
//!
//! **Inputs.** Packets, orders from the owner, and the time. **Outputs.** Packets to send, events for the owner,
//! and the moment to wake (`poll_*`). After every `handle_*` and every order the owner drains `poll_event`, then
//! `poll_transmit`, then sleeps until `poll_timeout`.
//!
//! **Never.** No tokio, no clock, no randomness but a seed, no I/O. Never inspects an object beyond its metadata. Never
//! believes a clock that leaps: a link counts the time that passes between two calls, see `steady.rs`.
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
//!         ^  ^                                ^  ^  ^                           |  |  |
//!         |  +-- [waiting] -- watch is there -+  |  +-- retry delay passed -----+  |  |
//!         |      held is newer than our watch    +---- [resting] <---- refused ----+  |
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
//! * **Who lags does not decide.** Of several clouds over one API the one that a node comes to may have seen less than the
//!   one it comes from. If the owner tells how far its watch has got ([`cloud::CloudLink::set_reached`]), nothing newer
//!   than that is deleted or replaced on the node until the watch is there, or [`cloud::LAG_WAIT_MAX`] has passed.
//! * **The window** is the smaller of what the cloud allows and what an edge of ours asks for in its digest; and of large
//!   objects no more than [`cloud::IN_FLIGHT_BYTES_MAX`] are on the way.
//! * **Everything is there.** Once all of the first full set was acknowledged, a cloud of ours says so
//!   ([`kedge_wire::ToEdge::Resumed`]), and the edge knows that what it does not hold is not wanted. An official cloud has
//!   no such word: there it is taken to be so [`edge::FIRST_SET_WAIT`] after the connection.
//! * **Signs of life.** The edge gives one in each interval. Between two of our own ends it is [`kedge_wire::Packet::Ping`]
//!   and the cloud answers it, so that both ends notice a dead connection; an official cloud gets the official message
//!   and does not answer.
//! * **The node object** is replaced and never deleted over the link: deleting a node ends its session.

mod bucket;
pub mod cloud;
pub mod edge;
mod seed;
mod steady;

pub use bucket::{Bucket, Rate};

use kedge_wire::ResourceVersion;

/// Whether the peer is one of ours. Agreed in the WebSocket upgrade by [`OFFER_HEADER`]: an edge that offers and a
/// cloud that echoes it both speak the additions (digest, window, heartbeats, framing); any other peer gets the official
/// protocol only.
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

/// How an edge of ours opens a session: the content of `resume`.
///
/// The whole list, and not first a hash of it: the versions of a node and of its pods grow with their status, which is
/// not sent down, so such a hash would differ nearly always, and the list takes less than the TLS handshake before it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Digest {
    /// Objects that the edge takes before it has acknowledged the first; the cloud keeps to the smaller of this and its
    /// own window.
    pub window: u32,
    pub held: Vec<Held>,
}

/// One object that an edge holds, as it tells after a reconnect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// `<ns>/<kind>/<name>`.
    pub key: String,
    pub uid: String,
    pub version: String,
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
