//! The clouds: watches, sessions, and what their controllers read and write.

use super::{Happening, World};
use crate::api::Sync;
use crate::checks;
use crate::cloud::{Cloud, Memory, Record, Session};
use crate::network::{ConnId, Way};
use kedge_link::Peer;
use kedge_link::cloud::Event;
use kedge_wire::{Body, MessageId, ObjectKey, ObjectKind, Packet, ResourceVersion, Uid};
use std::collections::BTreeSet;

/// How long controllers wait before they try a refused write again.
const RETRY_MS: u64 = 500;

impl World {
    pub(super) fn session(&mut self, replica: usize, edge: usize, conn: ConnId) -> Option<&mut Session> {
        let cloud = self.replicas[replica].cloud.as_mut()?;
        cloud
            .sessions
            .get_mut(&edge)
            .filter(|session| session.conn == conn)
    }

    pub(super) fn start_cloud(&mut self, index: usize) {
        if self.replicas[index].cloud.is_some() {
            return;
        }
        if self.api.is_down(self.now) {
            // It cannot list, so it is not ready.
            return self.arrange(RETRY_MS, Happening::CloudStarts { replica: index });
        }
        let behind = if self.calm { 0 } else { self.chance.index(4) };
        let cloud = Cloud::start(&self.api, behind);
        self.note(|| format!("replica {index} starts at {}", cloud.position));
        let replica = &mut self.replicas[index];
        replica.cloud = Some(cloud);
        let (life, upto) = (replica.life, self.api.history.len());
        let later = replica.lag_ms + self.chance.below(1_000);
        self.arrange(
            later,
            Happening::Watched {
                replica: index,
                life,
                upto,
            },
        );
    }

    pub(super) fn watched(&mut self, index: usize, life: u64, upto: usize) {
        let replica = &mut self.replicas[index];
        let now = replica.clock.show(self.now);
        let Some(cloud) = replica.cloud.as_mut().filter(|_| replica.life == life) else {
            return;
        };
        while cloud.position < upto {
            let changes = cloud.see(&self.api.history[cloud.position]);
            cloud.pass_on(changes, now);
        }
    }

    /// The controllers read what is recorded about the node and tell what it must hold.
    pub(super) fn attach(&mut self, edge: usize, conn: ConnId) {
        let Some(replica) = self.network.conns.get(&conn).map(|conn| conn.replica) else {
            return;
        };
        let recorded = self.records && self.edges[edge].peer() == Peer::Official;
        if recorded && self.api.is_down(self.now) {
            return self.arrange(RETRY_MS, Happening::Attach { edge, conn });
        }
        let memory: Memory = self
            .api
            .syncs
            .iter()
            .filter(|((node, _), _)| recorded && *node == edge)
            .map(|((_, uid), sync)| {
                let version = ResourceVersion::new(sync.version.to_string());
                (sync.key.clone(), Uid::new(uid.as_str()), version)
            })
            .collect();
        self.excuse_unrecorded(edge, replica);
        let (place, world_now) = (replica, self.now);
        let replica = &mut self.replicas[replica];
        let now = replica.clock.show(world_now);
        if let Some(cloud) = &mut replica.cloud {
            cloud.attach(edge, conn, memory, now);
        }
        if let Some(session) = self.session(place, edge, conn) {
            session.attached_at = world_now;
        }
    }

    /// What an official node holds or will hold, is not recorded, and is not known to this cloud either, may stay with
    /// it. A version that is not recorded may be overwritten by an older one.
    fn excuse_unrecorded(&mut self, index: usize, replica: usize) {
        if self.edges[index].peer() != Peer::Official {
            return;
        }
        let known: Vec<BTreeSet<String>> = self.replicas.iter().map(|replica| replica.knows(index)).collect();
        let mut uids = self.edges[index].uids();
        for uid in known.iter().flatten() {
            uids.entry(uid.clone()).or_default();
        }
        for (uid, version) in uids {
            let sync = self.api.syncs.get(&(index, uid.clone()));
            let edge = &mut self.edges[index];
            if sync.is_none_or(|sync| sync.version < version) {
                edge.ahead.insert(uid.clone());
            }
            if sync.is_none() && !known[replica].contains(&uid) {
                edge.excused.insert(uid);
            }
        }
    }

    pub(super) fn settle_session(&mut self, replica: usize, edge: usize) {
        let now = self.replicas[replica].clock.show(self.now);
        let cloud = self.replicas[replica].cloud.as_mut();
        let Some(session) = cloud.and_then(|cloud| cloud.sessions.get_mut(&edge)) else {
            return;
        };
        let conn = session.conn;
        let events: Vec<Event> = std::iter::from_fn(|| session.link.poll_event()).collect();
        let outgoing: Vec<Packet> = std::iter::from_fn(|| session.link.poll_transmit(now)).collect();
        for event in events {
            self.cloud_event(replica, edge, conn, event);
        }
        self.send(conn, Way::Down, outgoing);
    }

    fn cloud_event(&mut self, replica: usize, index: usize, conn: ConnId, event: Event) {
        match event {
            Event::Request { id, request } => {
                if self.calm || !self.chance.percent(5) {
                    let pause = self.chance.below(300);
                    let later = self.in_turn(replica, index, conn, pause);
                    let report = request.key.kind == ObjectKind::NodeStatus;
                    let status = report.then(|| request.body.parse().expect("an edge reports a number"));
                    self.arrange(
                        later,
                        Happening::Answer {
                            edge: index,
                            replica,
                            conn,
                            id,
                            status,
                        },
                    );
                }
            }
            Event::Message { .. } => {}
            Event::Acked { key, uid, version } => {
                self.report.acknowledged += 1;
                let kept = checks::acknowledged(&self.edges[index], &self.api, &key, &uid, version.as_ref());
                self.must(kept);
                self.arrange_record(replica, index, key, &uid, version.as_ref());
            }
            Event::Close { reason } => {
                self.note(|| format!("replica {replica} closes the session of edge-{index}: {reason}"));
                if let Some(cloud) = &mut self.replicas[replica].cloud {
                    cloud.end(index, conn);
                }
                if self.network.cut(conn).is_some_and(|cut| !cut.half_open) {
                    let later = self.chance.below(500);
                    self.arrange(later, Happening::EdgeNotices { edge: index, conn });
                }
            }
        }
    }

    /// When the next answer of a session may be given.
    fn in_turn(&mut self, replica: usize, edge: usize, conn: ConnId, pause: u64) -> u64 {
        let now = self.now;
        self.session(replica, edge, conn).map_or(pause, |session| {
            session.answered_at = session.answered_at.max(now + pause);
            session.answered_at - now
        })
    }

    /// The records of one cloud are written in the order of the acknowledgements, soon.
    fn arrange_record(
        &mut self,
        index: usize,
        edge: usize,
        key: ObjectKey,
        uid: &Uid,
        version: Option<&ResourceVersion>,
    ) {
        if !self.records || self.edges[edge].peer() != Peer::Official {
            return;
        }
        let later = self.chance.below(100);
        let replica = &mut self.replicas[index];
        let (life, Some(cloud)) = (replica.life, &mut replica.cloud) else {
            return;
        };
        cloud.records.push_back(Record {
            edge,
            key,
            uid: uid.as_str().to_owned(),
            version: version.map(|version| version.as_str().parse().expect("versions are numbers here")),
        });
        let replica = index;
        self.arrange(later, Happening::Record { replica, life });
    }

    /// Writes the oldest record; each has a happening of its own, whichever comes first.
    pub(super) fn record(&mut self, index: usize, life: u64) {
        let (now, down_until) = (self.now, self.api.down_until);
        let place = &mut self.replicas[index];
        let Some(cloud) = place.cloud.as_mut().filter(|_| place.life == life) else {
            return;
        };
        if self.api.is_down(now) {
            let replica = index;
            return self.arrange(down_until - now, Happening::Record { replica, life });
        }
        let Some(record) = cloud.records.pop_front() else {
            return;
        };
        let Record {
            edge,
            key,
            uid,
            version,
        } = record;
        match version {
            None => self.api.remove_sync(edge, &uid),
            Some(version) => {
                let (replica, at) = (index, now);
                let sync = Sync {
                    key,
                    version,
                    replica,
                    at,
                };
                self.api.write_sync(edge, &uid, sync);
            }
        }
    }

    /// A lease is answered at once; a status when it is written, or when that is refused.
    pub(super) fn answer(
        &mut self,
        edge: usize,
        replica: usize,
        conn: ConnId,
        id: &MessageId,
        status: Option<u64>,
    ) {
        let fails = !self.calm && self.chance.percent(5);
        if self.session(replica, edge, conn).is_none() {
            return;
        }
        let written = match status {
            Some(status) => self.api.write_status(edge, status, self.now),
            None => true,
        };
        let now = self.replicas[replica].clock.show(self.now);
        if let Some(session) = self.session(replica, edge, conn) {
            session
                .link
                .reply(id, Body::text("done"), None, fails || !written, now);
        }
    }
}
