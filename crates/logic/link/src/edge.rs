//! The edge's end of the link. One value for the whole life of the process; connections come and go.
//!
//! The owner gives every object change to the store, in the order of the events, and reports each with
//! [`EdgeLink::committed`]. What it passes to [`EdgeLink::handle_connected`] as `held` must have been read from the
//! store after all changes delivered before; asking the store through the same ordered queue does that.

mod lanes;
mod pace;
mod requests;

use crate::seed::Seed;
use crate::steady::Steady;
use crate::{DIGEST_ENTRIES_MAX, Digest, Held, Peer};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, ObjectKey, Operation, Packet, Refusal, Reply,
};
use kedge_wire::{ObjectKind, Route, Source, Time, ToCloud, ToEdge};
pub use lanes::{ACKNOWLEDGED_MAX, DELIVERIES_MAX};
use lanes::{Lanes, Outcome};
use pace::Pace;
pub use pace::Rates;
use requests::{Answered, Requests, is_query, wants_answer};
use std::collections::VecDeque;
use std::time::Duration;

/// The acknowledgement window that the edge asks for: enough for a store that commits many changes at once, little enough
/// that what is on its way to a slow disk stays small. Far fewer than [`DELIVERIES_MAX`], so none is dropped.
pub const WINDOW: u32 = 64;
/// Acknowledgements that wait for the socket. One beyond it is not said; the cloud repeats the object and gets it then.
pub const ACKS_MAX: usize = 4096;
/// Untaken events beyond which a message other than an object change closes the connection. The owner drains them
/// after every call.
pub const EVENTS_MAX: usize = 8192;

/// An official cloud sends each node its objects when it connects, and does not say which is the last. It takes no longer
/// than this for a node of an ordinary size.
pub const FIRST_SET_WAIT: Duration = Duration::from_secs(60);

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
    /// No traffic from the cloud for this long after something that expects an answer (any request; with one of our
    /// own clouds a keepalive, too) closes the connection.
    pub silence_max: Duration,
    /// Requests without an answer at one time; more wait in the owner.
    pub requests_max: usize,
    /// What leaves of its own accord, at most.
    pub rates: Rates,
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
// Orders are made and passed on one at a time, so their size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum StoreOrder {
    /// Make this durable, then hand it on. Only object changes are sent this way.
    Commit(ToEdge),
    /// What the node holds: the digest that opens a session.
    Held,
    /// The cloud has sent everything, and it has been committed: what is not held is not wanted.
    Complete,
}

/// The answer to a [`StoreOrder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreDone {
    Committed(Result<(), String>),
    Held(Vec<Held>),
    /// To [`StoreOrder::Complete`]: it is known; a store that could not keep it has said so.
    Noted,
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
    /// An object change must be committed, then [`EdgeLink::committed`] called; those of one key come one at a time.
    /// Any other message (twin, user, task, volume, unknown) is handed on and needs no such call.
    Deliver { id: DeliveryId, message: ToEdge },
    /// The answer to a request; each has exactly one.
    Answer {
        id: RequestId,
        answer: Result<Reply, RequestError>,
    },
    /// Nothing that this node must hold is missing.
    Complete,
    /// The connection must be closed, with the reason for the log; then [`EdgeLink::handle_disconnected`] called.
    Close { reason: String },
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Object changes being committed or waiting for their lane.
    pub deliveries: usize,
    /// Requests without an answer.
    pub requests: usize,
    /// Object changes dropped because all places were taken; the cloud repeats them.
    pub dropped: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct EdgeLink {
    config: Config,
    seed: Seed,
    /// Begins with the first time that is told.
    time: Option<Steady>,
    connection: Option<Connection>,
    lanes: Lanes,
    requests: Requests,
    pace: Pace,
    events: VecDeque<Event>,
    last_message: u64,
}

/// What belongs to one connection and dies with it.
#[derive(Debug)]
struct Connection {
    peer: Peer,
    closing: bool,
    keepalive_due: Time,
    /// Since when an answer is owed and nothing at all was heard.
    owed_since: Option<Time>,
    /// When an official cloud counts as having sent everything.
    complete_due: Option<Time>,
    resume: Option<Envelope>,
    keepalive: Option<Packet>,
    acks: VecDeque<Envelope>,
    leases: VecDeque<Asking>,
    askings: VecDeque<Asking>,
}

impl Connection {
    fn has_askings(&self) -> bool {
        !self.leases.is_empty() || !self.askings.is_empty()
    }
}

/// A message of the owner on its way to the socket.
#[derive(Debug)]
struct Asking {
    id: RequestId,
    envelope: Envelope,
    wants_answer: bool,
}

impl EdgeLink {
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            pace: Pace::new(&config.rates),
            config,
            seed: Seed::new(seed),
            time: None,
            connection: None,
            lanes: Lanes::default(),
            requests: Requests::default(),
            events: VecDeque::new(),
            last_message: 0,
        }
    }

    /// A connection stands. With `Peer::Kedge`, `held` opens the session as a digest; with an official peer it only
    /// tells which repetitions need no commit. Pass what the store holds in both cases.
    pub fn handle_connected(&mut self, peer: Peer, held: &[Held], now: Time) {
        self.handle_disconnected(now);
        let steady = self.advance(now);
        self.lanes.connect(held);
        let (resume, complete_due) = match peer {
            Peer::Kedge => (Some(self.digest(held, now)), None),
            Peer::Official => (None, Some(steady + FIRST_SET_WAIT)),
        };
        let keepalive = Some(self.keepalive(peer, now));
        self.connection = Some(Connection {
            peer,
            closing: false,
            keepalive_due: steady + self.config.keepalive_interval,
            owed_since: None,
            complete_due,
            resume,
            keepalive,
            acks: VecDeque::new(),
            leases: VecDeque::new(),
            askings: VecDeque::new(),
        });
    }

    /// The connection is gone. Requests in flight are answered with `Lost`.
    pub fn handle_disconnected(&mut self, _now: Time) {
        if self.connection.take().is_none() {
            return;
        }
        self.lanes.disconnect();
        for id in self.requests.end_all() {
            self.events.push_back(Event::Answer {
                id,
                answer: Err(RequestError::Lost),
            });
        }
    }

    /// Something came from the cloud.
    pub fn handle_packet(&mut self, packet: Packet, now: Time) {
        self.advance(now);
        let Some(connection) = &mut self.connection else {
            return;
        };
        if connection.closing {
            return;
        }
        connection.owed_since = None;
        let peer = connection.peer;
        match (packet, peer) {
            (Packet::Envelope(envelope), Peer::Kedge | Peer::Official) => {
                self.handle_envelope(*envelope, now)
            }
            // Having been heard is all that it is for.
            (Packet::Pong, Peer::Kedge) => {}
            (Packet::Ping, Peer::Kedge | Peer::Official) | (Packet::Pong, Peer::Official) => {
                self.close("the cloud sent a heartbeat that nobody agreed to".to_owned());
            }
        }
    }

    fn handle_envelope(&mut self, envelope: Envelope, now: Time) {
        let Letter { header, message } = ToEdge::open(envelope);
        match message {
            ToEdge::Object(change) => {
                let outcome = self.lanes.accept(header.id, change);
                self.follow(outcome, now);
            }
            ToEdge::Reply(reply) => self.handle_reply(&header, reply, now),
            ToEdge::Resumed if self.speaks_our_additions() => self.tell(Event::Complete),
            ToEdge::Resumed
            | ToEdge::Twin { .. }
            | ToEdge::User { .. }
            | ToEdge::Task { .. }
            | ToEdge::Volume { .. }
            | ToEdge::Other { .. } => {
                self.last_message += 1;
                // Counted from the top, so that these ids never meet those of object changes.
                let id = DeliveryId(u64::MAX - self.last_message);
                self.tell(Event::Deliver { id, message });
            }
        }
    }

    fn speaks_our_additions(&self) -> bool {
        let peer = self.connection.as_ref().map(|connection| connection.peer);
        peer == Some(Peer::Kedge)
    }

    pub fn handle_timeout(&mut self, now: Time) {
        let steady = self.advance(now);
        while let Some(id) = self.requests.expired(steady) {
            self.events.push_back(Event::Answer {
                id,
                answer: Err(RequestError::Timeout),
            });
        }
        let Some(connection) = self.connection.as_ref().filter(|connection| !connection.closing) else {
            return;
        };
        let silent = connection
            .owed_since
            .is_some_and(|since| since + self.config.silence_max <= steady);
        let due = (connection.keepalive_due <= steady).then_some(connection.peer);
        // What is still being committed has come, and is asked for again if it fails.
        let complete = connection.complete_due.is_some_and(|due| due <= steady);
        if silent {
            let seconds = self.config.silence_max.as_secs_f32();
            return self.close(format!(
                "the cloud said nothing for {seconds} s although an answer is due"
            ));
        }
        if complete {
            if let Some(connection) = &mut self.connection {
                connection.complete_due = None;
            }
            self.tell(Event::Complete);
        }
        if let Some(peer) = due {
            let keepalive = self.keepalive(peer, now);
            if let Some(connection) = &mut self.connection {
                connection.keepalive = Some(keepalive);
                connection.keepalive_due = steady + self.config.keepalive_interval;
            }
        }
    }

    /// The owner's commit of a delivery ended: an acknowledgement or a refusal goes out.
    pub fn committed(&mut self, id: DeliveryId, result: Result<(), String>, now: Time) {
        let outcomes = self.lanes.committed(id, result);
        self.follow(outcomes, now);
    }

    /// Sends a message. Exactly one [`Event::Answer`] follows under the returned id: for a request the cloud's answer
    /// or the reason why there is none; for a message that the protocol does not answer (events, twin reports,
    /// uploads, tasks) a made-up `"OK"` once it was given to the socket.
    pub fn request(
        &mut self,
        message: ToCloud,
        timeout: Duration,
        now: Time,
    ) -> Result<RequestId, RequestError> {
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| connection.closing)
        {
            return Err(RequestError::Offline);
        }
        if self.requests.len() >= self.config.requests_max {
            return Err(RequestError::Full);
        }
        let urgent = matches!(&message, ToCloud::Request(request) if request.key.kind == ObjectKind::Lease);
        let wants_answer = wants_answer(&message);
        let query = is_query(&message);
        let envelope = self.envelope(None, message, now);
        let due = self.advance(now) + timeout;
        let id = self.requests.open(envelope.header.id.clone(), query, due);
        if let Some(connection) = &mut self.connection {
            let queue = if urgent {
                &mut connection.leases
            } else {
                &mut connection.askings
            };
            queue.push_back(Asking {
                id,
                envelope,
                wants_answer,
            });
        }
        Ok(id)
    }

    /// The digest first, then keepalive, acknowledgements, lease requests, and everything else; of these two no more than
    /// [`Rates`] allow.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Packet> {
        let now = self.advance(now);
        let connection = self
            .connection
            .as_mut()
            .filter(|connection| !connection.closing)?;
        if let Some(resume) = connection.resume.take() {
            return Some(resume.into());
        }
        if let Some(keepalive) = connection.keepalive.take() {
            if connection.peer == Peer::Kedge {
                connection.owed_since.get_or_insert(now);
            }
            return Some(keepalive);
        }
        if let Some(ack) = connection.acks.pop_front() {
            return Some(ack.into());
        }
        if self.pace.ready_at() > now {
            return None;
        }
        loop {
            let asking = connection
                .leases
                .pop_front()
                .or_else(|| connection.askings.pop_front())?;
            if !self.requests.is_open(asking.id) {
                continue;
            }
            if asking.wants_answer {
                connection.owed_since.get_or_insert(now);
            } else if self.requests.end(asking.id) {
                let answer = Ok(sent(&asking.envelope));
                self.events.push_back(Event::Answer {
                    id: asking.id,
                    answer,
                });
            }
            self.pace.count(asking.envelope.content.json().len(), now);
            return Some(asking.envelope.into());
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`EdgeLink::handle_timeout`], on the owner's clock.
    pub fn poll_timeout(&self) -> Option<Time> {
        Some(self.time?.outside(self.due()?))
    }

    /// The next steady moment at which something is to be done.
    fn due(&self) -> Option<Time> {
        let connection = self.connection.as_ref().filter(|connection| !connection.closing);
        let keepalive = connection.map(|connection| connection.keepalive_due);
        let silence = connection.and_then(|connection| connection.owed_since);
        let silence = silence.map(|since| since + self.config.silence_max);
        // Once it is ready nothing has to wake the owner: whatever keeps it from sending does.
        let ready_at = self.pace.ready_at();
        let paced = self.time.is_some_and(|time| time.now() < ready_at);
        let speaks = connection.filter(|connection| paced && connection.has_askings());
        let speaks = speaks.map(|_| ready_at);
        let complete = connection.and_then(|connection| connection.complete_due);
        [keepalive, silence, speaks, complete, self.requests.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    fn advance(&mut self, now: Time) -> Time {
        let due = self.due();
        self.time.get_or_insert(Steady::new(now)).advance(now, due)
    }

    /// Fill levels, for metrics.
    pub fn depth(&self) -> Depth {
        Depth {
            deliveries: self.lanes.taken(),
            requests: self.requests.len(),
            dropped: self.lanes.dropped(),
        }
    }

    fn handle_reply(&mut self, header: &Header, reply: Reply, now: Time) {
        let Some(parent) = &header.parent else { return };
        let route = reply.route.clone();
        let answered = self.requests.answered(parent, reply.clone());
        let official = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.peer == Peer::Official);
        let owes_ack = match &answered {
            Some(Answered { query, .. }) => *query && route.operation == Operation::Response,
            // Nobody waits any more, but an official cloud would repeat the answer until it is acknowledged.
            None => ToEdge::Reply(reply).needs_ack(),
        };
        if official && owes_ack {
            self.acknowledge(header.id.clone(), route, now);
        }
        if let Some(Answered { id, answer, .. }) = answered {
            self.events.push_back(Event::Answer { id, answer });
        }
    }

    fn follow(&mut self, outcomes: impl IntoIterator<Item = Outcome>, now: Time) {
        for outcome in outcomes {
            match outcome {
                // Never more than DELIVERIES_MAX, so these need no other limit.
                Outcome::Deliver { id, change } => {
                    self.events.push_back(Event::Deliver {
                        id,
                        message: ToEdge::Object(change),
                    });
                }
                Outcome::Acknowledge { parent, route } => self.acknowledge(parent, route, now),
                Outcome::Refuse {
                    parent,
                    route,
                    reason,
                } => self.refuse(parent, route, &reason, now),
            }
        }
    }

    fn acknowledge(&mut self, parent: MessageId, route: Route, now: Time) {
        let ack = Ack {
            parent: parent.clone(),
            route: route.acknowledged(),
            body: Body::text("OK"),
        };
        let envelope = self.envelope(Some(parent), ToCloud::Ack(ack), now);
        self.answer(envelope);
    }

    fn refuse(&mut self, parent: MessageId, route: Route, reason: &str, now: Time) {
        let route = Route {
            source: Source::MetaManager,
            operation: Operation::Error,
            ..route
        };
        let refusal = Refusal {
            parent: Some(parent.clone()),
            route,
            body: Body::text(reason),
        };
        let envelope = self.envelope(Some(parent), ToCloud::Refusal(refusal), now);
        self.answer(envelope);
    }

    fn answer(&mut self, envelope: Envelope) {
        if let Some(connection) = &mut self.connection
            && connection.acks.len() < ACKS_MAX
        {
            connection.acks.push_back(envelope);
        }
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            return self.close(format!("more than {EVENTS_MAX} messages of the cloud wait"));
        }
        self.events.push_back(event);
    }

    fn close(&mut self, reason: String) {
        if let Some(connection) = self.connection.as_mut().filter(|connection| !connection.closing) {
            connection.closing = true;
            self.events.push_back(Event::Close { reason });
        }
    }

    fn digest(&mut self, held: &[Held], now: Time) -> Envelope {
        let placed =
            |held: &&Held| ObjectKey::parse(&held.key).is_some_and(|key| key.kind.placed().is_some());
        let held = held
            .iter()
            .filter(placed)
            .take(DIGEST_ENTRIES_MAX)
            .cloned()
            .collect();
        let digest = Digest { window: WINDOW, held };
        let body = Body::from_value(&digest).expect("numbers and strings are always JSON");
        self.envelope(None, ToCloud::Resume { body }, now)
    }

    /// The sign of life: a few bytes between our own ends, the official message otherwise.
    fn keepalive(&mut self, peer: Peer, now: Time) -> Packet {
        match peer {
            Peer::Kedge => Packet::Ping,
            Peer::Official => self.envelope(None, ToCloud::KeepAlive, now).into(),
        }
    }

    fn envelope(&mut self, parent: Option<MessageId>, message: ToCloud, now: Time) -> Envelope {
        let header = Header {
            id: self.seed.message_id(),
            parent,
            timestamp_ms: i64::try_from(now.as_ms()).unwrap_or(i64::MAX),
            resource_version: None,
            sync: false,
            kind: None,
        };
        Letter { header, message }.seal()
    }
}

/// The made-up answer to a message that the protocol does not answer.
fn sent(envelope: &Envelope) -> Reply {
    let route = Route::parse(&envelope.route).acknowledged();
    Reply {
        route,
        version: None,
        body: Body::text("OK"),
    }
}
