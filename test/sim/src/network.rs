//! Connections: ordered, delayed, and gone when cut.

use crate::chance::Chance;
use kedge_wire::Packet;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) edge: usize,
    pub(crate) replica: usize,
    /// Frames are swallowed and nobody is told.
    pub(crate) half_open: bool,
    last_up: u64,
    last_down: u64,
}

/// Frames on their way are kept by the world's agenda; a connection that is not here loses them.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    last_id: u64,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) conn: ConnId,
    pub(crate) way: Way,
    pub(crate) packet: Packet,
}

impl Network {
    pub(crate) fn open(&mut self, edge: usize, replica: usize) -> ConnId {
        self.last_id += 1;
        let id = ConnId(self.last_id);
        self.conns.insert(
            id,
            Conn {
                edge,
                replica,
                half_open: false,
                last_up: 0,
                last_down: 0,
            },
        );
        id
    }

    /// When a frame sent now arrives; `None` when it never does.
    pub(crate) fn arrival(&mut self, id: ConnId, way: Way, now: u64, chance: &mut Chance) -> Option<u64> {
        let conn = self.conns.get_mut(&id).filter(|conn| !conn.half_open)?;
        let delay = if chance.percent(5) {
            chance.below(3000)
        } else {
            chance.below(40)
        };
        let last = match way {
            Way::Up => &mut conn.last_up,
            Way::Down => &mut conn.last_down,
        };
        *last = (*last).max(now + delay);
        Some(*last)
    }

    pub(crate) fn cut(&mut self, id: ConnId) -> Option<Conn> {
        self.conns.remove(&id)
    }

    pub(crate) fn random(&self, chance: &mut Chance) -> Option<ConnId> {
        if self.conns.is_empty() {
            return None;
        }
        self.conns.keys().nth(chance.index(self.conns.len())).copied()
    }
}
