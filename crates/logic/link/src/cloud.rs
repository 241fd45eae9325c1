//! The cloud's end of one session with one node, with the node's mailbox.

use crate::Peer;
use kedge_wire::{Body, Envelope, MessageId, NodeName, Object, ObjectKey, Request, ResourceVersion, Time, ToCloud, Uid};
use std::time::Duration;

/// Settings of the cloud's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Silence after which the session is closed; official default 30 s.
    pub keepalive_timeout: Duration,
    /// Objects sent and not acknowledged at one time.
    pub in_flight_max: usize,
    /// First wait before an unacknowledged object is sent again; doubles up to `retry_delay_max`.
    pub retry_delay: Duration,
    pub retry_delay_max: Duration,
    /// Requests of the node being worked on at one time; more is a violation that ends the session.
    pub requests_max: usize,
}

/// What the owner must know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node asks something about an object; answer with [`CloudLink::reply`] under `id`.
    Request { id: MessageId, request: Request },
    /// Anything else the node says (twin, user, application, task, k8s CA, unknown).
    Message { id: MessageId, message: ToCloud },
    /// The node durably holds this version (`None`: the key is gone).
    Acked { key: ObjectKey, version: Option<ResourceVersion> },
    /// The session must end; the reason is for the log and the close frame.
    Close { reason: String },
}

/// One session of one node.
#[derive(Debug)]
pub struct CloudLink {}

impl CloudLink {
    pub fn new(_node: NodeName, _peer: Peer, _config: Config, _seed: u64, _now: Time) -> Self {
        todo!()
    }
    /// What the node held when its previous session in this process ended, so that deletes reach an official edge
    /// that was away. Call before the first `set_desired`.
    pub fn assume_held(&mut self, _held: Vec<(ObjectKey, Uid, ResourceVersion)>) {
        todo!()
    }
    /// What the node is known to hold now; survives into the next session through `assume_held`.
    pub fn held(&self) -> Vec<(ObjectKey, Uid, ResourceVersion)> {
        todo!()
    }
    /// The node must hold this object, or none under this key.
    pub fn set_desired(&mut self, _key: ObjectKey, _object: Option<Object>, _now: Time) {
        todo!()
    }
    /// The first full set of desired objects has been given: what the node holds beyond it may be deleted now.
    pub fn desired_complete(&mut self, _now: Time) {
        todo!()
    }
    /// Answers a request. `operation_error` sends operation `error` with a text body instead of `response`.
    pub fn reply(
        &mut self,
        _id: &MessageId,
        _body: Body,
        _version: Option<ResourceVersion>,
        _operation_error: bool,
        _now: Time,
    ) {
        todo!()
    }
    pub fn handle_envelope(&mut self, _envelope: Envelope, _now: Time) {
        todo!()
    }
    pub fn handle_timeout(&mut self, _now: Time) {
        todo!()
    }
    /// Lease replies first, then status replies, then objects, then bulk.
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
