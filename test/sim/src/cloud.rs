//! The clouds of the simulated world: each replica has one placement that follows the history of the API, one session a
//! node, and a memory that a crash wipes.

use crate::api::{Api, Happened};
use crate::clock::Clock;
use crate::network::ConnId;
use kedge_link::cloud::{CloudLink, Config};
use kedge_placement::index::{Change, Placement};
use kedge_wire::{ObjectKey, ObjectKind, ResourceVersion, Time, Uid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(crate) const IN_FLIGHT_MAX: usize = 4;
pub(crate) const REQUESTS_MAX: usize = 32;

pub(crate) fn config() -> Config {
    Config {
        keepalive_timeout: Duration::from_secs(30),
        in_flight_max: IN_FLIGHT_MAX,
        retry_delay: Duration::from_secs(2),
        retry_delay_max: Duration::from_secs(20),
        requests_max: REQUESTS_MAX,
    }
}

/// What a node held when its last session ended.
pub(crate) type Memory = Vec<(ObjectKey, Uid, ResourceVersion)>;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    pub(crate) link: CloudLink,
    /// What this cloud knew about the node when the session began.
    pub(crate) remembered: BTreeSet<String>,
    /// The desired set was asked for and given; changes flow.
    pub(crate) attached: bool,
    pub(crate) attached_at: u64,
    /// When the last answer will have been given: the requests of one node are worked on one after the other.
    pub(crate) answered_at: u64,
}

/// A place for a cloud process.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    pub(crate) cloud: Option<Cloud>,
    /// Counts starts, so that what was arranged in an earlier life is ignored.
    pub(crate) life: u64,
    pub(crate) clock: Clock,
    /// How long changes take to come through its watch.
    pub(crate) lag_ms: u64,
}

impl Replica {
    /// The uids that a node holds or may hold as far as this cloud knows.
    pub(crate) fn knows(&self, edge: usize) -> BTreeSet<String> {
        let Some(cloud) = &self.cloud else {
            return BTreeSet::new();
        };
        let session = cloud.sessions.get(&edge);
        let held = session.map(|session| uids(&session.link.held()));
        let remembered = session.map(|session| session.remembered.clone());
        let memory = cloud.memory.get(&edge).map(uids);
        [held, remembered, memory]
            .into_iter()
            .flatten()
            .flatten()
            .collect()
    }
}

pub(crate) fn uids(memory: &Memory) -> BTreeSet<String> {
    memory.iter().map(|(_, uid, _)| uid.as_str().to_owned()).collect()
}

/// What is to be written about a node.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) edge: usize,
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    /// `None`: the node does not hold it any more.
    pub(crate) version: Option<u64>,
}

/// What one cloud process knows.
#[derive(Debug, Default)]
pub(crate) struct Cloud {
    pub(crate) placement: Placement,
    /// How much of the history its watches have shown.
    pub(crate) position: usize,
    /// The newest version that each watch has shown.
    reached: BTreeMap<ObjectKind, u64>,
    pub(crate) sessions: BTreeMap<usize, Session>,
    pub(crate) memory: BTreeMap<usize, Memory>,
    /// What nodes hold and is not written yet, oldest first.
    pub(crate) records: VecDeque<Record>,
}

impl Cloud {
    /// A cloud that has just started and lists the API, perhaps from a cache that is a little behind.
    pub(crate) fn start(api: &Api, behind: usize) -> Self {
        let mut cloud = Self::default();
        let upto = api.history.len().saturating_sub(behind);
        for happened in &api.history[..upto] {
            cloud.see(happened);
        }
        cloud
    }

    /// The watch shows the next change. Returns what follows for nodes.
    pub(crate) fn see(&mut self, happened: &Happened) -> Vec<Change> {
        let Happened { key, seen, version } = happened;
        self.position += 1;
        self.reached.insert(key.kind.clone(), *version);
        let seen = seen.clone();
        let changes = if key.kind == ObjectKind::Pod {
            self.placement.handle_pod(seen)
        } else if key.kind == ObjectKind::ConfigMap {
            self.placement.handle_config_map(seen)
        } else {
            self.placement.handle_secret(seen)
        };
        changes.expect("the API of the simulation has good objects")
    }

    /// Tells a session how far the watches have got.
    pub(crate) fn tell_reached(reached: &BTreeMap<ObjectKind, u64>, link: &mut CloudLink) {
        for kind in [ObjectKind::Pod, ObjectKind::ConfigMap, ObjectKind::Secret] {
            let version = reached.get(&kind).copied().unwrap_or(0);
            link.set_reached(&kind, &ResourceVersion::new(version.to_string()));
        }
    }

    /// Gives the session of this node its desired set, with what is recorded about the node.
    pub(crate) fn attach(&mut self, edge: usize, conn: ConnId, recorded: Memory, now: Time) {
        let Some(session) = self
            .sessions
            .get_mut(&edge)
            .filter(|session| session.conn == conn)
        else {
            return;
        };
        session.attached = true;
        session.link.assume_held(recorded);
        Self::tell_reached(&self.reached, &mut session.link);
        for (key, object) in self.placement.desired(session.link.node()) {
            session.link.set_desired(key, Some(object), now);
        }
        session.link.desired_complete(now);
    }

    /// Passes changes on to the sessions of their nodes.
    pub(crate) fn pass_on(&mut self, changes: Vec<Change>, now: Time) {
        for session in self.sessions.values_mut().filter(|session| session.attached) {
            Self::tell_reached(&self.reached, &mut session.link);
        }
        for change in changes {
            let session = self
                .sessions
                .values_mut()
                .find(|session| *session.link.node() == change.node);
            if let Some(session) = session.filter(|session| session.attached) {
                session.link.set_desired(change.key, change.object, now);
            }
        }
    }

    /// Ends the session on this connection, if it is still the node's session.
    pub(crate) fn end(&mut self, edge: usize, conn: ConnId) {
        if self
            .sessions
            .get(&edge)
            .is_some_and(|session| session.conn == conn)
            && let Some(session) = self.sessions.remove(&edge)
        {
            self.memory.insert(edge, session.link.held());
        }
    }
}
