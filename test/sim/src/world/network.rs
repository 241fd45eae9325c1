//! Frames and connections.

use super::{Happening, World};
use crate::checks;
use crate::network::{ConnId, Frame, Way};
use crate::store::Order;
use kedge_link::cloud::CloudLink;
use kedge_wire::{Envelope, Packet};

impl World {
    pub(super) fn frame(&mut self, frame: Frame) {
        let Some(conn) = self.network.conns.get(&frame.conn).filter(|conn| !conn.half_open) else {
            return;
        };
        let (edge, replica) = (conn.edge, conn.replica);
        self.report.frames += 1;
        if !is_routine(&frame.packet) {
            self.note(|| describe(edge, replica, &frame));
        }
        match frame.way {
            Way::Up => {
                let now = self.replicas[replica].clock.show(self.now);
                if let Some(session) = self.session(replica, edge, frame.conn) {
                    session.link.handle_packet(frame.packet, now);
                }
            }
            Way::Down => {
                // The official edge drops from its queue when it is full, and says nothing.
                let drops = self.edges[edge].is_official_model() && !self.calm && self.chance.percent(2);
                if self.edges[edge].conn == Some(frame.conn) && !drops {
                    self.edges[edge].receive(frame.packet, self.now);
                    self.start_store(edge);
                }
            }
        }
    }

    /// An edge dials any cloud; when that is not there, another one soon.
    pub(super) fn dial(&mut self, edge: usize, life: u64) {
        let later = 200 + self.chance.below(2_000);
        if self.edges[edge].life != life || self.edges[edge].conn.is_some() {
            return;
        }
        let replica = self.chance.index(super::REPLICAS);
        if self.replicas[replica].cloud.is_none() {
            return self.arrange(later, Happening::Dial { edge, life });
        }
        let conn = self.network.open(edge, replica);
        self.note(|| format!("edge-{edge} dials replica {replica}: connection {}", conn.0));
        self.edges[edge].conn = Some(conn);
        let later = self.chance.below(200);
        self.arrange(later, Happening::Accepted { conn });
    }

    /// The hub replaces whatever session the node had there; the edge asks its store what it holds.
    pub(super) fn accepted(&mut self, id: ConnId) {
        let seed = self.chance.next();
        let Some(conn) = self.network.conns.get(&id) else {
            return;
        };
        let (edge, replica) = (conn.edge, conn.replica);
        let now = self.replicas[replica].clock.show(self.now);
        let Some(cloud) = &mut self.replicas[replica].cloud else {
            return;
        };
        if let Some(old) = cloud.sessions.get(&edge).map(|session| session.conn) {
            cloud.end(edge, old);
            self.network.cut(old);
        }
        let (node, peer) = (self.edges[edge].node(), self.edges[edge].peer());
        let mut link = CloudLink::new(node, peer, crate::cloud::config(), seed, now);
        let memory = cloud.memory.remove(&edge).unwrap_or_default();
        let remembered = crate::cloud::uids(&memory);
        link.assume_held(memory);
        cloud.sessions.insert(
            edge,
            crate::cloud::Session {
                conn: id,
                link,
                remembered,
                attached: false,
                attached_at: 0,
                answered_at: 0,
            },
        );
        self.newest[replica][edge] = id.0;
        if self.edges[edge].conn == Some(id) {
            self.edges[edge].store.orders.push_back(Order::Held(id));
            self.start_store(edge);
        }
        let later = self.chance.below(300);
        self.arrange(later, Happening::Attach { edge, conn: id });
    }

    pub(super) fn edge_loses(&mut self, edge: usize, conn: ConnId) {
        if self.edges[edge].conn != Some(conn) {
            return;
        }
        self.note(|| format!("edge-{edge} loses connection {}", conn.0));
        self.edges[edge].disconnected(self.now);
        let (life, later) = (self.edges[edge].life, 200 + self.chance.below(2_000));
        self.arrange(later, Happening::Dial { edge, life });
    }

    pub(super) fn send(&mut self, conn: ConnId, way: Way, packets: Vec<Packet>) {
        for packet in packets {
            if let (Way::Down, Packet::Envelope(envelope)) = (way, &packet) {
                self.check_order(conn, envelope);
            }
            if let Some(at) = self.network.arrival(conn, way, self.now, &mut self.chance) {
                self.arrange(at - self.now, Happening::Frame(Frame { conn, way, packet }));
            }
        }
    }

    /// What a cloud tells a node to hold or to delete.
    fn check_order(&mut self, conn: ConnId, envelope: &Envelope) {
        let uid = envelope.content.object_meta().ok().and_then(|meta| meta.uid);
        let (Some(conn), Some(uid)) = (self.network.conns.get(&conn), uid) else {
            return;
        };
        let (index, replica) = (conn.edge, &self.replicas[conn.replica]);
        let position = replica.cloud.as_ref().map_or(0, |cloud| cloud.position);
        let edge = &mut self.edges[index];
        let kept = if envelope.route.operation == "delete" {
            let first = edge.first_delete.entry(uid.as_str().to_owned());
            first.or_insert(self.now);
            checks::deletes(edge, index, &self.api, uid.as_str())
        } else {
            checks::sends(edge, &self.api, uid.as_str(), position, self.now)
        };
        self.must(kept);
    }
}

/// Keepalives and leases fill a trace and explain nothing.
fn is_routine(packet: &Packet) -> bool {
    match packet {
        Packet::Envelope(envelope) => {
            let resource = &envelope.route.resource;
            resource == "node" || resource.contains("/lease/")
        }
        Packet::Ping | Packet::Pong => true,
    }
}

fn describe(edge: usize, replica: usize, frame: &Frame) -> String {
    let way = match frame.way {
        Way::Up => "->",
        Way::Down => "<-",
    };
    let place = format!("edge-{edge} {way} replica {replica} on {}", frame.conn.0);
    let Packet::Envelope(envelope) = &frame.packet else {
        return format!("{place}: {:?}", frame.packet);
    };
    let Envelope { header, route, .. } = &**envelope;
    let version = header
        .resource_version
        .as_ref()
        .map_or("", |version| version.as_str());
    let parent = header.parent.as_ref().map_or("", |parent| parent.as_str());
    let id = header.id.as_str();
    format!(
        "{place}: {} {} @{version} id {} parent {}",
        route.operation,
        route.resource,
        id.get(..8).unwrap_or(id),
        parent.get(..8).unwrap_or(parent)
    )
}
