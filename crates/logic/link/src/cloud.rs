//! The cloud's end of one session with one node, with the node's mailbox.
//!
//! A session is one connection of one node; the hub makes a new value for each and drops it when the connection ends.
//! What the old session knew about the node goes into the new one through [`CloudLink::held`] and
//! [`CloudLink::assume_held`].

mod mailbox;
mod replies;
mod slot;

use crate::seed::Seed;
use crate::steady::Steady;
use crate::{DIGEST_ENTRIES_MAX, Digest, Held, Peer};
use kedge_wire::{
    Body, Envelope, MessageId, NodeName, Object, ObjectKey, Packet, Request, ResourceVersion, Time, ToCloud,
    Uid,
};
use kedge_wire::{ChangeVerb, Group, Header, Letter, ObjectChange, ObjectKind, Operation, Source, ToEdge};
use mailbox::{Acknowledged, Mailbox, Outgoing, Pace};
pub use mailbox::{IN_FLIGHT_BYTES_MAX, LAG_WAIT_MAX};
pub use replies::REQUEST_AGE_MAX;
use replies::Replies;
use slot::Saying;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a session with one of our own edges waits for its digest before it goes on without. The digest is the
/// first message of the connection, so a longer silence means trouble that only the keepalive timeout can judge.
pub const RESUME_WAIT_MAX: Duration = Duration::from_secs(5);
/// Events the owner may leave untaken. It drains them after every call, and one call adds a few at
/// most.
pub const EVENTS_MAX: usize = 1024;

/// Settings of the cloud's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Silence after which the session is closed; official default 30 s.
    pub keepalive_timeout: Duration,
    /// The acknowledgement window: objects sent and not acknowledged at one time. An edge of ours may ask for fewer.
    pub in_flight_max: usize,
    /// First wait before an unacknowledged object is sent again; doubles up to `retry_delay_max`.
    pub retry_delay: Duration,
    pub retry_delay_max: Duration,
    /// Requests of the node being worked on at one time; more is a violation that ends the session.
    pub requests_max: usize,
}

/// What the owner of the objects says to a node's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub body: Body,
    pub version: Option<ResourceVersion>,
    /// Sent as operation `error` with a text instead of as `response`.
    pub error: bool,
    /// Nothing is sent.
    pub silent: bool,
}

/// What a node holds under a key, as it told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    pub uid: Uid,
    /// `None`: it does not hold `uid` any more.
    pub version: Option<ResourceVersion>,
}

/// What the owner of the objects says when a session begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// Everything that the node must hold.
    pub objects: Vec<(ObjectKey, Object)>,
    /// What records of an earlier cloud say that the node holds; empty for our own edges, which say it themselves.
    pub held: Vec<(ObjectKey, Uid, ResourceVersion)>,
    /// How far the watch of each kind has got, for [`CloudLink::set_reached`].
    pub reached: Vec<(ObjectKind, ResourceVersion)>,
}

/// What the owner must know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node asks something about an object; answer with [`CloudLink::reply`] under `id`, or say with
    /// [`CloudLink::dismiss`] that there is no answer.
    Request { id: MessageId, request: Request },
    /// Anything else the node says (twin, user, application, task, k8s CA, unknown). [`CloudLink::reply`] answers
    /// the question for the Kubernetes CA; the others have no answer through this link yet.
    Message { id: MessageId, message: ToCloud },
    /// The node durably holds this version of the object `uid` (`None`: it does not hold `uid` any more).
    Acked {
        key: ObjectKey,
        uid: Uid,
        version: Option<ResourceVersion>,
    },
    /// The session must end; the reason is for the log and the close frame. Nothing follows it.
    Close { reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitingResume { until: Time },
    Running,
    Closed,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Objects sent and not acknowledged.
    pub in_flight: usize,
    /// The bytes of their bodies.
    pub in_flight_bytes: usize,
    /// Objects that wait for the window.
    pub waiting: usize,
    /// Requests being worked on and answers waiting for the socket.
    pub requests: usize,
    /// Messages the node refused, in this session.
    pub refusals: u64,
    /// Messages sent again, in this session.
    pub retries: u64,
    /// Messages that claimed to come from a part of the cloud and were dropped.
    pub imposters: u64,
    /// Acknowledgements and refusals of what was not sent, or was settled before.
    pub strays: u64,
    /// Decisions taken about objects; grows with what happens to them.
    pub steps: u64,
}

/// One session of one node.
#[derive(Debug)]
pub struct CloudLink {
    node: NodeName,
    peer: Peer,
    config: Config,
    seed: Seed,
    time: Steady,
    phase: Phase,
    last_heard: Time,
    resumed: bool,
    /// What the node takes at a time, if it is one of ours and has said so.
    window: usize,
    /// A heartbeat of the edge waits for its answer.
    pong_due: bool,
    mailbox: Mailbox,
    replies: Replies,
    events: VecDeque<Event>,
    imposters: u64,
    strays: u64,
}

impl CloudLink {
    pub fn new(node: NodeName, peer: Peer, config: Config, seed: u64, now: Time) -> Self {
        let phase = match peer {
            Peer::Kedge => Phase::AwaitingResume {
                until: now + RESUME_WAIT_MAX,
            },
            Peer::Official => Phase::Running,
        };
        Self {
            node,
            peer,
            config,
            seed: Seed::new(seed),
            time: Steady::new(now),
            phase,
            last_heard: now,
            resumed: false,
            window: usize::MAX,
            pong_due: false,
            mailbox: Mailbox::default(),
            replies: Replies::default(),
            events: VecDeque::new(),
            imposters: 0,
            strays: 0,
        }
    }

    /// Whose session this is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// What the node holds according to somebody else than the node: the session before this one, or ObjectSync objects
    /// that another cloud wrote. May be called again. A node of ours says by itself what it holds, and its word replaces
    /// what was assumed.
    ///
    /// The uids are relied on: what is not desired is deleted, and a pod of a new uid waits for the end of each old one.
    /// The versions are not, because the node may have lost its store meanwhile: everything desired is sent all the
    /// same. They only tell when our own watch is behind ([`LAG_WAIT_MAX`]).
    pub fn assume_held(&mut self, held: Vec<(ObjectKey, Uid, ResourceVersion)>) {
        for (key, uid, version) in held {
            self.mailbox.assume(key, uid, version);
        }
    }

    /// What the node is known to hold now; survives into the next session through `assume_held`. An object that was
    /// sent and never acknowledged is named too, with version `0`.
    pub fn held(&self) -> Vec<(ObjectKey, Uid, ResourceVersion)> {
        self.mailbox.held()
    }

    /// Fill levels, for metrics.
    pub fn depth(&self) -> Depth {
        Depth {
            in_flight: self.mailbox.in_flight(),
            in_flight_bytes: self.mailbox.in_flight_bytes(),
            waiting: self.mailbox.waiting(),
            requests: self.replies.load(),
            refusals: self.mailbox.refusals(),
            retries: self.mailbox.retries(),
            imposters: self.imposters,
            strays: self.strays,
            steps: self.mailbox.steps(),
        }
    }

    /// The node must hold this object, or none under this key.
    pub fn set_desired(&mut self, key: ObjectKey, object: Option<Object>, _now: Time) {
        self.mailbox.want(key, object);
    }

    /// The first full set of desired objects has been given: what the node holds beyond it may be deleted now.
    pub fn desired_complete(&mut self, now: Time) {
        let now = self.advance(now);
        self.mailbox.complete(now);
    }

    /// The owner's watch of `kind` has reached `version`, also if this node has no part in it; to be told before the first
    /// desired object, and again whenever the owner likes. From then on a node that holds something newer is waited for,
    /// because another cloud gave it to it. Without it the watch is taken to be where the API is, which is right for the
    /// only cloud of an API.
    pub fn set_reached(&mut self, kind: &ObjectKind, version: &ResourceVersion) {
        self.mailbox.reach(kind, version);
    }

    /// Answers a request. `operation_error` sends operation `error` with a text body instead of `response`.
    ///
    /// An answer to a request that is unknown, settled or older than [`REQUEST_AGE_MAX`] is dropped.
    pub fn reply(
        &mut self,
        id: &MessageId,
        body: Body,
        version: Option<ResourceVersion>,
        operation_error: bool,
        now: Time,
    ) {
        let operation = if operation_error {
            Operation::Error
        } else {
            Operation::Response
        };
        let answer_id = self.seed.message_id();
        let timestamp_ms = timestamp_ms(now);
        self.replies
            .answer(id, answer_id, body, version, operation, timestamp_ms);
    }

    /// The request `id` is settled and has no answer.
    pub fn dismiss(&mut self, id: &MessageId) {
        self.replies.dismiss(id);
    }

    /// Something came from the node.
    pub fn handle_packet(&mut self, packet: Packet, now: Time) {
        if self.phase == Phase::Closed {
            return;
        }
        let now = self.advance(now);
        self.last_heard = now;
        match packet {
            Packet::Envelope(envelope) => self.handle_envelope(*envelope, now),
            Packet::Ping => self.handle_ping(),
            // The cloud never asks for a sign of life: the edge gives them by itself.
            Packet::Pong => self.close(format!(
                "node {} answered a heartbeat that nobody sent",
                self.node
            )),
        }
    }

    fn handle_ping(&mut self) {
        match self.peer {
            Peer::Kedge => self.pong_due = true,
            Peer::Official => self.close(format!(
                "node {} sent a heartbeat without having offered it",
                self.node
            )),
        }
    }

    fn handle_envelope(&mut self, envelope: Envelope, now: Time) {
        let Letter { header, message } = ToCloud::open(envelope);
        match message {
            // To have been heard is all that it is for.
            ToCloud::KeepAlive => {}
            ToCloud::Ack(ack) => self.handle_ack(&ack.parent),
            ToCloud::Refusal(refusal) => self.handle_refusal(refusal.parent.as_ref(), now),
            ToCloud::Request(request) => self.handle_request(header.id, request, now),
            ToCloud::Resume { body } => self.handle_resume(&body),
            ToCloud::KubernetesCa { .. } => {
                if self.may_ask() && self.replies.ask_kubernetes_ca(&header.id, now) {
                    self.tell(Event::Message {
                        id: header.id,
                        message,
                    });
                }
            }
            ToCloud::Twin { .. }
            | ToCloud::Application { .. }
            | ToCloud::Upload { .. }
            | ToCloud::Task { .. }
            | ToCloud::Volume { .. }
            | ToCloud::Other { .. } => self.tell(Event::Message {
                id: header.id,
                message,
            }),
        }
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.phase == Phase::Closed {
            return;
        }
        let now = self.advance(now);
        if self.last_heard + self.config.keepalive_timeout <= now {
            let silence = self.config.keepalive_timeout.as_secs_f32();
            return self.close(format!("node {} was silent for {silence} s", self.node));
        }
        if let Phase::AwaitingResume { until } = self.phase
            && until <= now
        {
            self.phase = Phase::Running;
        }
        self.mailbox.expire(now);
        self.replies.expire(now);
    }

    /// Lease replies first, then status replies, then other replies, then objects, then bulk; and once, when an edge of
    /// ours holds everything that it must, the word that it does.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Packet> {
        if self.phase == Phase::Closed {
            return None;
        }
        if std::mem::take(&mut self.pong_due) {
            return Some(Packet::Pong);
        }
        if let Some(reply) = self.replies.next() {
            return Some(reply.into());
        }
        if self.phase != Phase::Running {
            return None;
        }
        let (steady, pace) = (self.advance(now), self.pace());
        if let Some(outgoing) = self.mailbox.next(steady, pace, &mut self.seed) {
            return Some(seal(outgoing, timestamp_ms(now)).into());
        }
        (self.resumed && self.mailbox.take_settled()).then(|| self.resumption_ended(now))
    }

    /// One of ours is told that it lacks nothing.
    fn resumption_ended(&mut self, now: Time) -> Packet {
        let header = Header::new(self.seed.message_id(), timestamp_ms(now));
        let message = ToEdge::Resumed;
        Letter { header, message }.seal().into()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            // Nearly always so, and room for a few events is more than all the rest of a link.
            self.events = VecDeque::new();
        }
        event
    }

    /// When to call [`CloudLink::handle_timeout`], on the owner's clock.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.due().map(|due| self.time.outside(due))
    }

    /// The next steady moment at which something is to be done.
    fn due(&self) -> Option<Time> {
        let resume = match self.phase {
            Phase::AwaitingResume { until } => Some(until),
            Phase::Running => None,
            Phase::Closed => return None,
        };
        let silence = Some(self.last_heard + self.config.keepalive_timeout);
        let moments = [
            silence,
            resume,
            self.mailbox.next_timeout(),
            self.replies.next_timeout(),
        ];
        moments.into_iter().flatten().min()
    }

    fn advance(&mut self, now: Time) -> Time {
        let due = self.due();
        self.time.advance(now, due)
    }

    fn pace(&self) -> Pace {
        Pace {
            first: self.config.retry_delay,
            max: self.config.retry_delay_max,
            window: self.config.in_flight_max.min(self.window),
        }
    }

    fn handle_ack(&mut self, parent: &MessageId) {
        match self.mailbox.acknowledged(parent) {
            Acknowledged::Settled { key, told } => {
                for (uid, version) in told {
                    let key = key.clone();
                    self.tell(Event::Acked { key, uid, version });
                }
            }
            Acknowledged::Unknown => self.strays += 1,
        }
    }

    fn handle_refusal(&mut self, parent: Option<&MessageId>, now: Time) {
        let pace = self.pace();
        let known = parent.is_some_and(|parent| self.mailbox.refused(parent, now, pace, &mut self.seed));
        if !known {
            self.strays += 1;
        }
    }

    fn handle_request(&mut self, id: MessageId, request: Request, now: Time) {
        if speaks_as_cloud(&request.route.source) {
            self.imposters += 1;
            return;
        }
        if request.key.kind == ObjectKind::Event {
            // The protocol has no answer to an event, so there is nothing to remember.
            return self.tell(Event::Request { id, request });
        }
        if self.may_ask() && self.replies.ask(&id, &request, now) {
            self.tell(Event::Request { id, request });
        }
    }

    fn may_ask(&mut self) -> bool {
        if self.replies.load() < self.config.requests_max {
            return true;
        }
        let max = self.config.requests_max;
        self.close(format!("node {} has more than {max} requests open", self.node));
        false
    }

    fn handle_resume(&mut self, body: &Body) {
        match (self.peer, self.resumed) {
            (Peer::Official, _) => {
                return self.close(format!(
                    "node {} sent a digest without having offered it",
                    self.node
                ));
            }
            (Peer::Kedge, true) => {
                return self.close(format!("node {} sent a second digest", self.node));
            }
            (Peer::Kedge, false) => {}
        }
        match read_digest(body) {
            Ok((window, held)) => {
                self.resumed = true;
                self.window = window;
                self.phase = Phase::Running;
                self.mailbox.resume(held);
            }
            Err(problem) => self.close(format!(
                "the digest of node {} is not usable: {problem}",
                self.node
            )),
        }
    }

    fn tell(&mut self, event: Event) {
        if self.phase == Phase::Closed {
            return;
        }
        if self.events.len() >= EVENTS_MAX {
            return self.close(format!(
                "more than {EVENTS_MAX} messages of node {} wait",
                self.node
            ));
        }
        self.events.push_back(event);
    }

    fn close(&mut self, reason: String) {
        self.phase = Phase::Closed;
        self.events.push_back(Event::Close { reason });
    }
}

/// A node must not speak in the name of a part of the cloud; the official hub drops such messages too.
fn speaks_as_cloud(source: &Source) -> bool {
    match source {
        Source::CloudHub
        | Source::CloudStream
        | Source::DeviceController
        | Source::EdgeController
        | Source::SyncController => true,
        Source::None
        | Source::WebSocket
        | Source::Edged
        | Source::DynamicController
        | Source::PolicyController
        | Source::MetaManager
        | Source::Meta
        | Source::MetaServer
        | Source::Twin
        | Source::Bus
        | Source::ServiceBus
        | Source::RouterEventBus
        | Source::RouterServiceBus
        | Source::TaskManager
        | Source::NodeUpgradeJobController
        | Source::Kedge
        | Source::Other(_) => false,
    }
}

/// The window that the node asks for, and what it holds.
type Resumed = (usize, Vec<(ObjectKey, Uid, ResourceVersion)>);

fn read_digest(body: &Body) -> Result<Resumed, String> {
    let Digest { window, held } = body.parse().map_err(|problem| problem.to_string())?;
    if held.len() > DIGEST_ENTRIES_MAX {
        return Err(format!(
            "{} entries are more than the limit of {DIGEST_ENTRIES_MAX}",
            held.len()
        ));
    }
    if window == 0 {
        return Err("a window of 0 takes nothing".to_owned());
    }
    let held: Result<Vec<_>, String> = held.into_iter().map(read_held).collect();
    Ok((usize::try_from(window).unwrap_or(usize::MAX), held?))
}

fn read_held(held: Held) -> Result<(ObjectKey, Uid, ResourceVersion), String> {
    let Some(key) = ObjectKey::parse(&held.key) else {
        let shown: String = held.key.chars().take(80).collect();
        return Err(format!("{shown:?} is not a key"));
    };
    Ok((key, Uid::new(held.uid), ResourceVersion::new(held.version)))
}

fn timestamp_ms(now: Time) -> i64 {
    i64::try_from(now.as_ms()).unwrap_or(i64::MAX)
}

fn seal(outgoing: Outgoing, timestamp_ms: i64) -> Envelope {
    let Outgoing { id, key, saying } = outgoing;
    let (verb, version, body) = match saying {
        Saying::Put { verb, object } => (verb, Some(object.version), object.body),
        Saying::Delete { uid } => (ChangeVerb::Delete, None, tombstone(&key, &uid)),
    };
    let header = Header {
        id,
        parent: None,
        timestamp_ms,
        resource_version: version.clone(),
        sync: false,
        kind: None,
    };
    let change = ObjectChange {
        source: Source::EdgeController,
        group: Group::Resource,
        verb,
        key,
        version,
        body,
    };
    Letter {
        header,
        message: ToEdge::Object(change),
    }
    .seal()
}

/// What a delete says: enough for an edge to find the object and to see that it means this one.
pub(crate) fn tombstone(key: &ObjectKey, uid: &Uid) -> Body {
    let mut metadata = serde_json::Map::new();
    metadata.insert("name".into(), key.name.clone().into());
    if let Some(namespace) = &key.namespace {
        metadata.insert("namespace".into(), namespace.clone().into());
    }
    metadata.insert("uid".into(), uid.as_str().into());
    let mut object = serde_json::Map::new();
    if let Some(kind) = key.kind.placed() {
        object.insert("apiVersion".into(), "v1".into());
        object.insert("kind".into(), kind.kubernetes().into());
    }
    object.insert("metadata".into(), metadata.into());
    Body::from_value(&object).expect("a map of strings is always JSON")
}
