//! One edge of the simulated world: our link, or a model of the official edge, over a store.

use crate::network::ConnId;
use crate::store::{Order, Store};
use kedge_link::Peer;
use kedge_link::edge::{Config, EdgeLink, RequestId};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, ObjectKey, Refusal, Request, ToCloud, ToEdge,
};
use kedge_wire::{NodeName, Operation, Route, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) const REQUESTS_MAX: usize = 16;
const KEEPALIVE_MS: u64 = 10_000;

pub(crate) fn config() -> Config {
    Config {
        keepalive_interval: Duration::from_millis(KEEPALIVE_MS),
        silence_max: Duration::from_secs(20),
        requests_max: REQUESTS_MAX,
    }
}

#[derive(Debug)]
pub(crate) enum Brain {
    Link { link: Box<EdgeLink>, peer: Peer },
    Official(Official),
}

/// The official edge as far as the hub sees it: writes whatever it is told, in the order in which it comes, and
/// acknowledges each copy. It remembers nothing.
#[derive(Debug, Default)]
pub(crate) struct Official {
    last_id: u64,
    keepalive_due: u64,
    pub(crate) outbox: Vec<Envelope>,
}

#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) name: String,
    /// Counts starts, so that what was arranged in an earlier life is ignored.
    pub(crate) life: u64,
    pub(crate) up: bool,
    pub(crate) conn: Option<ConnId>,
    /// The store has said what it holds, so the link was told about the connection.
    pub(crate) ready: bool,
    pub(crate) unread: Vec<Envelope>,
    pub(crate) brain: Brain,
    pub(crate) store: Store,
    pub(crate) open: BTreeMap<RequestId, u64>,
    /// When the cloud first told this edge to delete a uid.
    pub(crate) first_delete: BTreeMap<String, u64>,
    /// Uids that must never be held again.
    pub(crate) buried: BTreeSet<String>,
    pub(crate) excused: BTreeSet<String>,
}

impl Edge {
    pub(crate) fn new(index: usize, seed: u64) -> Self {
        let mut edge = Self {
            name: format!("edge-{index}"),
            life: 0,
            up: false,
            conn: None,
            ready: false,
            unread: Vec::new(),
            brain: Brain::Official(Official::default()),
            store: Store::default(),
            open: BTreeMap::new(),
            first_delete: BTreeMap::new(),
            buried: BTreeSet::new(),
            excused: BTreeSet::new(),
        };
        edge.start(index, seed);
        edge
    }

    pub(crate) fn start(&mut self, index: usize, seed: u64) {
        self.life += 1;
        self.up = true;
        let link = |peer| Brain::Link {
            link: Box::new(EdgeLink::new(config(), seed)),
            peer,
        };
        self.brain = match index {
            0 => link(Peer::Kedge),
            1 => link(Peer::Official),
            _ => Brain::Official(Official::default()),
        };
    }

    /// Power off: everything volatile is lost.
    pub(crate) fn crash(&mut self) {
        self.life += 1;
        self.up = false;
        self.conn = None;
        self.ready = false;
        self.unread.clear();
        self.open.clear();
        self.store.orders.clear();
        self.store.busy = false;
    }

    pub(crate) fn peer(&self) -> Peer {
        match &self.brain {
            Brain::Link { peer, .. } => *peer,
            Brain::Official(_) => Peer::Official,
        }
    }

    pub(crate) fn is_official_model(&self) -> bool {
        matches!(self.brain, Brain::Official(_))
    }

    pub(crate) fn node(&self) -> NodeName {
        NodeName::new(self.name.as_str()).expect("edge-<n> is a node name")
    }

    pub(crate) fn lease_update(&self) -> ToCloud {
        let body = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, self.name);
        let body = Body::from_json(body).expect("written as JSON");
        ToCloud::Request(Request::update(ObjectKey::lease(&self.node()), body))
    }

    pub(crate) fn connected(&mut self, now: u64) {
        self.ready = true;
        let held = self.store.held();
        match &mut self.brain {
            Brain::Link { link, peer } => link.handle_connected(*peer, &held, Time::from_ms(now)),
            Brain::Official(official) => official.keepalive_due = now,
        }
        for envelope in std::mem::take(&mut self.unread) {
            self.receive(envelope, now);
        }
    }

    pub(crate) fn disconnected(&mut self, now: u64) {
        self.conn = None;
        self.ready = false;
        self.unread.clear();
        match &mut self.brain {
            Brain::Link { link, .. } => link.handle_disconnected(Time::from_ms(now)),
            Brain::Official(official) => official.outbox.clear(),
        }
    }

    pub(crate) fn receive(&mut self, envelope: Envelope, now: u64) {
        if !self.ready {
            self.unread.push(envelope);
            return;
        }
        match &mut self.brain {
            Brain::Link { link, .. } => link.handle_envelope(envelope, Time::from_ms(now)),
            Brain::Official(_) => {
                if let ToEdge::Object(change) = ToEdge::open(envelope.clone()).message {
                    self.store.orders.push_back(Order::Write { envelope, change });
                }
            }
        }
    }

    pub(crate) fn timeout(&self) -> Option<u64> {
        if !self.up {
            return None;
        }
        match &self.brain {
            Brain::Link { link, .. } => link.poll_timeout().map(Time::as_ms),
            Brain::Official(official) => self.ready.then_some(official.keepalive_due),
        }
    }

    pub(crate) fn wake(&mut self, now: u64) {
        let ready = self.ready;
        match &mut self.brain {
            Brain::Link { link, .. } => link.handle_timeout(Time::from_ms(now)),
            Brain::Official(official) if ready && official.keepalive_due <= now => {
                official.keepalive_due = now + KEEPALIVE_MS;
                official.say(None, ToCloud::KeepAlive, now);
            }
            Brain::Official(_) => {}
        }
    }
}

impl Official {
    pub(crate) fn say(&mut self, parent: Option<MessageId>, message: ToCloud, now: u64) {
        self.last_id += 1;
        let header = Header {
            id: MessageId::new(format!("official-{now}-{}", self.last_id)),
            parent,
            timestamp_ms: 0,
            resource_version: None,
            sync: false,
            kind: None,
        };
        self.outbox.push(Letter { header, message }.seal());
    }

    /// Answers a write.
    pub(crate) fn wrote(&mut self, envelope: &Envelope, done: bool, now: u64) {
        let parent = envelope.header.id.clone();
        let route = Route::parse(&envelope.route);
        let message = if done {
            ToCloud::Ack(Ack {
                parent: parent.clone(),
                route: route.acknowledged(),
                body: Body::text("OK"),
            })
        } else {
            let route = Route {
                operation: Operation::Error,
                ..route
            };
            ToCloud::Refusal(Refusal {
                parent: Some(parent.clone()),
                route,
                body: Body::text("disk full"),
            })
        };
        self.say(Some(parent), message, now);
    }
}
