//! The cloud of the simulated world: one placement, one session a node, and a memory that a crash wipes.

use crate::api::Api;
use crate::network::ConnId;
use kedge_link::cloud::{CloudLink, Config};
use kedge_placement::index::{Change, Placement, Seen};
use kedge_wire::{ObjectKey, ObjectKind, ResourceVersion, Uid};
use std::collections::BTreeMap;
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
    /// The desired set was asked for and given; changes flow.
    pub(crate) attached: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Cloud {
    pub(crate) placement: Placement,
    pub(crate) sessions: BTreeMap<usize, Session>,
    pub(crate) memory: BTreeMap<usize, Memory>,
}

impl Cloud {
    /// A cloud that has just started and lists the API.
    pub(crate) fn start(api: &Api) -> Self {
        let mut cloud = Self::default();
        for (key, seen) in api.list() {
            cloud.see(&key, seen);
        }
        cloud
    }

    pub(crate) fn see(&mut self, key: &ObjectKey, seen: Seen) -> Vec<Change> {
        let changes = if key.kind == ObjectKind::Pod {
            self.placement.handle_pod(seen)
        } else if key.kind == ObjectKind::ConfigMap {
            self.placement.handle_config_map(seen)
        } else {
            self.placement.handle_secret(seen)
        };
        changes.expect("the API of the simulation has good objects")
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
