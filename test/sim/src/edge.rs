//! One edge of the simulated world: our link, or a model of the official edge, over a store.

use crate::chance::Chance;
use crate::clock::Clock;
use crate::network::ConnId;
use crate::store::{Order, Store};
use kedge_link::Peer;
use kedge_link::edge::{Config, EdgeLink, Rates, RequestId};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, ObjectKey, ObjectKind, Packet, Refusal, Request, ToCloud,
    ToEdge,
};
use kedge_wire::{NodeName, Operation, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) const REQUESTS_MAX: usize = 16;
const KEEPALIVE_MS: u64 = 10_000;

pub(crate) fn config() -> Config {
    Config {
        keepalive_interval: Duration::from_millis(KEEPALIVE_MS),
        silence_max: Duration::from_secs(20),
        requests_max: REQUESTS_MAX,
        rates: Rates::default(),
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
    /// It got something that no official edge understands.
    pub(crate) surprised: bool,
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) due: u64,
    /// The status that it reports, if it is a report.
    pub(crate) status: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) name: String,
    /// Counts starts, so that what was arranged in an earlier life is ignored.
    pub(crate) life: u64,
    pub(crate) up: bool,
    pub(crate) clock: Clock,
    pub(crate) conn: Option<ConnId>,
    /// The store has said what it holds, so the link was told about the connection.
    pub(crate) ready: bool,
    pub(crate) unread: Vec<Packet>,
    pub(crate) brain: Brain,
    pub(crate) store: Store,
    pub(crate) open: BTreeMap<RequestId, Asked>,
    /// The status of this node as it is.
    pub(crate) status: u64,
    /// The status that the cloud has confirmed.
    pub(crate) confirmed: u64,
    /// When a cloud first told this edge to delete a uid.
    pub(crate) first_delete: BTreeMap<String, u64>,
    /// Uids that must not be held again, and when their delete was first sent.
    pub(crate) buried: BTreeMap<String, u64>,
    /// When a cloud that had not seen the end of a uid last sent it.
    pub(crate) revived: BTreeMap<String, u64>,
    /// Uids that it holds and its cloud could not know of.
    pub(crate) excused: BTreeSet<String>,
    /// Uids that it holds in a version which its cloud could not know of.
    pub(crate) ahead: BTreeSet<String>,
}

impl Edge {
    pub(crate) fn new(index: usize, seed: u64) -> Self {
        let mut edge = Self {
            name: format!("edge-{index}"),
            life: 0,
            up: false,
            clock: Clock::default(),
            conn: None,
            ready: false,
            unread: Vec::new(),
            brain: Brain::Official(Official::default()),
            store: Store::default(),
            open: BTreeMap::new(),
            status: 0,
            confirmed: 0,
            first_delete: BTreeMap::new(),
            buried: BTreeMap::new(),
            revived: BTreeMap::new(),
            excused: BTreeSet::new(),
            ahead: BTreeSet::new(),
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

    /// What passed since the link was last asked is not counted when the clock leaps, and it is asked once in a keepalive
    /// interval at least: so much later may a request time out.
    pub(crate) fn set_clock(&mut self, chance: &mut Chance) {
        self.clock.leap(chance);
        for asked in self.open.values_mut() {
            asked.due += KEEPALIVE_MS;
        }
    }

    /// The machine gets a new disk: it comes back under its name and holds nothing.
    pub(crate) fn reinstall(&mut self) {
        self.store.durable.clear();
        self.confirmed = 0;
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

    pub(crate) fn is_surprised(&self) -> bool {
        matches!(&self.brain, Brain::Official(official) if official.surprised)
    }

    pub(crate) fn node(&self) -> NodeName {
        NodeName::new(self.name.as_str()).expect("edge-<n> is a node name")
    }

    pub(crate) fn lease_update(&self) -> ToCloud {
        let body = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, self.name);
        let body = Body::from_json(body).expect("written as JSON");
        ToCloud::Request(Request::update(ObjectKey::lease(&self.node()), body))
    }

    /// What this node has to say of itself.
    pub(crate) fn report(&self) -> ToCloud {
        let body = Body::from_json(self.status.to_string()).expect("a number is JSON");
        ToCloud::Request(Request::update(
            ObjectKey::cluster(ObjectKind::NodeStatus, &self.name),
            body,
        ))
    }

    pub(crate) fn connected(&mut self, now: u64) {
        self.ready = true;
        let (held, time) = (self.store.held(), self.clock.show(now));
        match &mut self.brain {
            Brain::Link { link, peer } => link.handle_connected(*peer, &held, time),
            Brain::Official(official) => official.keepalive_due = now,
        }
        for packet in std::mem::take(&mut self.unread) {
            self.receive(packet, now);
        }
    }

    pub(crate) fn disconnected(&mut self, now: u64) {
        self.conn = None;
        self.ready = false;
        self.unread.clear();
        match &mut self.brain {
            Brain::Link { link, .. } => link.handle_disconnected(self.clock.show(now)),
            Brain::Official(official) => official.outbox.clear(),
        }
    }

    pub(crate) fn receive(&mut self, packet: Packet, now: u64) {
        if !self.ready {
            self.unread.push(packet);
            return;
        }
        match (&mut self.brain, packet) {
            (Brain::Link { link, .. }, packet) => link.handle_packet(packet, self.clock.show(now)),
            (Brain::Official(_), Packet::Envelope(envelope)) => {
                if let ToEdge::Object(change) = ToEdge::open((*envelope).clone()).message {
                    let envelope = *envelope;
                    self.store.orders.push_back(Order::Write { envelope, change });
                }
            }
            (Brain::Official(official), Packet::Ping | Packet::Pong) => official.surprised = true,
        }
    }

    pub(crate) fn timeout(&self) -> Option<u64> {
        if !self.up {
            return None;
        }
        match &self.brain {
            Brain::Link { link, .. } => link.poll_timeout().map(|time| self.clock.moment(time)),
            Brain::Official(official) => self.ready.then_some(official.keepalive_due),
        }
    }

    pub(crate) fn wake(&mut self, now: u64) {
        let ready = self.ready;
        match &mut self.brain {
            Brain::Link { link, .. } => link.handle_timeout(self.clock.show(now)),
            Brain::Official(official) if ready && official.keepalive_due <= now => {
                official.keepalive_due = now + KEEPALIVE_MS;
                official.say(None, ToCloud::KeepAlive, now);
            }
            Brain::Official(_) => {}
        }
    }

    /// Everything that is durable here or may become so.
    pub(crate) fn uids(&self) -> BTreeMap<String, u64> {
        let durable = self.store.durable.values();
        let durable = durable.map(|stored| (stored.uid.clone(), stored.version));
        let ordered = self.store.orders.iter().filter_map(|order| match order {
            Order::Write { change, .. } | Order::Commit { change, .. } => {
                let uid = change.body.object_meta().ok()?.uid?;
                let version = change.version.as_ref()?.as_str().parse().ok()?;
                Some((uid.as_str().to_owned(), version))
            }
            Order::Held(_) => None,
        });
        let mut uids = BTreeMap::new();
        for (uid, version) in durable.chain(ordered) {
            let newest: &mut u64 = uids.entry(uid).or_default();
            *newest = version.max(*newest);
        }
        uids
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
