//! The cloud's end of one session with one node, with the node's mailbox.
//!
//! A session is one connection of one node; the hub makes a new value for each and drops it when the connection ends.
//! What the old session knew about the node goes into the new one through [`CloudLink::held`] and
//! [`CloudLink::assume_held`].

mod mailbox;
mod replies;

use crate::seed::Seed;
use crate::{DIGEST_ENTRIES_MAX, Held, Peer};
use kedge_wire::{
    Body, Envelope, MessageId, NodeName, Object, ObjectKey, Request, ResourceVersion, Time, ToCloud, Uid,
};
use kedge_wire::{ChangeVerb, Group, Header, Letter, ObjectChange, ObjectKind, Operation, Source, ToEdge};
use mailbox::{Backoff, Mailbox, Outgoing, Saying};
pub use replies::REQUEST_AGE_MAX;
use replies::Replies;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a session with one of our own edges waits for its digest before it goes on without. The digest is the
/// first message of the connection, so a longer silence means trouble that only the keepalive timeout can judge.
pub const RESUME_WAIT_MAX: Duration = Duration::from_secs(5);
/// Events the owner may leave untaken. It drains them after every call, and one call adds at most one.
pub const EVENTS_MAX: usize = 1024;

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

/// What the owner must know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node asks something about an object; answer with [`CloudLink::reply`] under `id`, or say with
    /// [`CloudLink::dismiss`] that there is no answer.
    Request { id: MessageId, request: Request },
    /// Anything else the node says (twin, user, application, task, k8s CA, unknown). [`CloudLink::reply`] answers
    /// the question for the Kubernetes CA; the others have no answer through this link yet.
    Message { id: MessageId, message: ToCloud },
    /// The node durably holds this version (`None`: the key is gone).
    Acked {
        key: ObjectKey,
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
}

/// One session of one node.
#[derive(Debug)]
pub struct CloudLink {
    node: NodeName,
    peer: Peer,
    config: Config,
    seed: Seed,
    phase: Phase,
    last_heard: Time,
    resumed: bool,
    nothing_sent: bool,
    mailbox: Mailbox,
    replies: Replies,
    events: VecDeque<Event>,
    imposters: u64,
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
            phase,
            last_heard: now,
            resumed: false,
            nothing_sent: true,
            mailbox: Mailbox::default(),
            replies: Replies::default(),
            events: VecDeque::new(),
            imposters: 0,
        }
    }

    /// Whose session this is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// What the node held when its previous session in this process ended, so that deletes reach an official edge
    /// that was away. Call before the first `set_desired`.
    ///
    /// Only the uids are relied on: the node may have lost its store meanwhile, so the full set is sent all the same.
    pub fn assume_held(&mut self, held: Vec<(ObjectKey, Uid, ResourceVersion)>) {
        for (key, uid, _version) in held {
            self.mailbox.hold(key, uid, None);
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
            waiting: self.mailbox.waiting(),
            requests: self.replies.load(),
            refusals: self.mailbox.refusals(),
            retries: self.mailbox.retries(),
            imposters: self.imposters,
        }
    }

    /// The node must hold this object, or none under this key.
    pub fn set_desired(&mut self, key: ObjectKey, object: Option<Object>, _now: Time) {
        self.mailbox.want(key, object);
    }

    /// The first full set of desired objects has been given: what the node holds beyond it may be deleted now.
    pub fn desired_complete(&mut self, _now: Time) {
        self.mailbox.complete();
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
        self.replies.answer(id, answer_id, body, version, operation, now);
    }

    /// The request `id` is settled and has no answer.
    pub fn dismiss(&mut self, id: &MessageId) {
        self.replies.dismiss(id);
    }

    pub fn handle_envelope(&mut self, envelope: Envelope, now: Time) {
        if self.phase == Phase::Closed {
            return;
        }
        self.last_heard = now;
        let Letter { header, message } = ToCloud::open(envelope);
        match message {
            ToCloud::KeepAlive => self.handle_keepalive(&header.id, now),
            ToCloud::Ack(ack) => self.handle_ack(&ack.parent),
            ToCloud::Refusal(refusal) => {
                if let Some(parent) = &refusal.parent {
                    let backoff = self.backoff();
                    self.mailbox.refused(parent, now, backoff, &mut self.seed);
                }
            }
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

    /// Lease replies first, then status replies, then other replies, then objects, then bulk.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Envelope> {
        if self.phase == Phase::Closed {
            return None;
        }
        if let Some(reply) = self.replies.next() {
            return Some(reply);
        }
        if self.phase != Phase::Running {
            return None;
        }
        let backoff = self.backoff();
        let outgoing = self
            .mailbox
            .next(now, self.config.in_flight_max, backoff, &mut self.seed)?;
        self.nothing_sent = false;
        Some(seal(outgoing, now))
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
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

    fn backoff(&self) -> Backoff {
        Backoff {
            first: self.config.retry_delay,
            max: self.config.retry_delay_max,
        }
    }

    fn handle_keepalive(&mut self, id: &MessageId, now: Time) {
        match self.peer {
            Peer::Kedge => {
                let answer_id = self.seed.message_id();
                self.replies.answer_keepalive(id, answer_id, now);
            }
            Peer::Official => {}
        }
    }

    fn handle_ack(&mut self, parent: &MessageId) {
        if let Some(settled) = self.mailbox.acknowledged(parent) {
            self.tell(Event::Acked {
                key: settled.key,
                version: settled.version,
            });
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
        let late = self.phase == Phase::Running;
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
            Ok(held) => {
                self.resumed = true;
                self.phase = Phase::Running;
                self.mailbox.resume(held, !late || self.nothing_sent);
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

fn read_digest(body: &Body) -> Result<Vec<(ObjectKey, Uid, ResourceVersion)>, String> {
    let entries: Vec<Held> = body.parse().map_err(|problem| problem.to_string())?;
    if entries.len() > DIGEST_ENTRIES_MAX {
        return Err(format!(
            "{} entries are more than the limit of {DIGEST_ENTRIES_MAX}",
            entries.len()
        ));
    }
    entries.into_iter().map(read_held).collect()
}

fn read_held(held: Held) -> Result<(ObjectKey, Uid, ResourceVersion), String> {
    let Some(key) = ObjectKey::parse(&held.key) else {
        let shown: String = held.key.chars().take(80).collect();
        return Err(format!("{shown:?} is not a key"));
    };
    Ok((key, Uid::new(held.uid), ResourceVersion::new(held.version)))
}

fn seal(outgoing: Outgoing, now: Time) -> Envelope {
    let Outgoing { id, key, saying } = outgoing;
    let (verb, version, body) = match saying {
        Saying::Put { verb, object } => (verb, Some(object.version), object.body),
        Saying::Delete { uid } => (ChangeVerb::Delete, None, tombstone(&key, &uid)),
    };
    let header = Header {
        id,
        parent: None,
        timestamp_ms: i64::try_from(now.as_ms()).unwrap_or(i64::MAX),
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
    if let Some(kind) = kubernetes_kind(&key.kind) {
        object.insert("apiVersion".into(), "v1".into());
        object.insert("kind".into(), kind.into());
    }
    object.insert("metadata".into(), metadata.into());
    Body::from_value(&object).expect("a map of strings is always JSON")
}

/// The Kubernetes kind of the objects that placement sends, all of them in `v1`.
fn kubernetes_kind(kind: &ObjectKind) -> Option<&'static str> {
    match kind {
        ObjectKind::Pod => Some("Pod"),
        ObjectKind::ConfigMap => Some("ConfigMap"),
        ObjectKind::Secret => Some("Secret"),
        ObjectKind::Node => Some("Node"),
        ObjectKind::PodPatch
        | ObjectKind::PodStatus
        | ObjectKind::ServiceAccountToken
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus
        | ObjectKind::Lease
        | ObjectKind::Event
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Volume
        | ObjectKind::Other(_) => None,
    }
}
