//! The edge's end of the link. One value for the whole life of the process; connections come and go.
//!
//! Drawing and details: owned by the implementer of this crate.

use crate::{Held, Peer};
use kedge_wire::{Envelope, Reply, Time, ToCloud, ToEdge};
use std::time::Duration;

/// Names a delivery until it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(pub u64);

/// Names a request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Settings of the edge's end (units last).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Official default 15 s.
    pub keepalive_interval: Duration,
    /// No traffic from the cloud for this long after a keepalive that expects an answer closes the connection.
    pub silence_max: Duration,
    /// Requests without an answer at one time; more wait in the owner.
    pub requests_max: usize,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the cloud is not connected")]
    Offline,
    #[error("the connection to the cloud was lost before the answer came")]
    Lost,
    #[error("the cloud did not answer in time")]
    Timeout,
    #[error("too many requests wait for the cloud")]
    Full,
    /// The cloud answered with operation `error`, or with a Kubernetes `Status` instead of an object.
    #[error("the cloud refused: {0}")]
    Refused(String),
}

/// What the hub asks of the component that owns the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOrder {
    /// Make this durable, then hand it on. Only object changes are sent this way.
    Commit(ToEdge),
    /// What the node holds: the digest that opens a session.
    Held,
}

/// The answer to a [`StoreOrder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreDone {
    Committed(Result<(), String>),
    Held(Vec<Held>),
}

/// A request on its way to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudRequest {
    pub message: ToCloud,
    pub timeout: Duration,
}

/// What the owner must know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Commit this, then call [`EdgeLink::committed`]. Object changes of one key come in order.
    Deliver { id: DeliveryId, message: ToEdge },
    /// The answer to a request.
    Answer { id: RequestId, answer: Result<Reply, RequestError> },
    /// The connection must be closed, with the reason for the log.
    Close { reason: String },
}

/// The state machine.
#[derive(Debug)]
pub struct EdgeLink {}

impl EdgeLink {
    pub fn new(_config: Config, _seed: u64) -> Self {
        todo!()
    }
    /// A connection stands. With `Peer::Kedge`, `held` opens the session as a digest.
    pub fn handle_connected(&mut self, _peer: Peer, _held: &[Held], _now: Time) {
        todo!()
    }
    /// The connection is gone. Requests in flight are answered with `Lost`.
    pub fn handle_disconnected(&mut self, _now: Time) {
        todo!()
    }
    pub fn handle_envelope(&mut self, _envelope: Envelope, _now: Time) {
        todo!()
    }
    pub fn handle_timeout(&mut self, _now: Time) {
        todo!()
    }
    /// The owner's commit of a delivery ended: an acknowledgement or a refusal goes out.
    pub fn committed(&mut self, _id: DeliveryId, _result: Result<(), String>, _now: Time) {
        todo!()
    }
    /// Sends a message; if it is a request the answer comes as an event under the returned id.
    pub fn request(&mut self, _message: ToCloud, _timeout: Duration, _now: Time) -> Result<RequestId, RequestError> {
        todo!()
    }
    pub fn poll_transmit(&mut self, _now: Time) -> Option<Envelope> {
        todo!()
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
    pub fn poll_timeout(&self) -> Option<Time> {
        todo!()
    }
}
