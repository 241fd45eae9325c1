//! The edges: their stores, their links, and what they ask.

use super::{Happening, World};
use crate::checks;
use crate::edge::{Asked, Brain};
use crate::network::Way;
use crate::store::{Order, Wrote};
use kedge_link::edge::Event;
use kedge_wire::{Packet, ToCloud, ToEdge};
use std::time::Duration;

const REQUEST_TIMEOUT_MS: u64 = 10_000;

impl World {
    pub(super) fn start_edge(&mut self, index: usize) {
        if self.edges[index].up {
            return;
        }
        let seed = self.chance.next();
        self.edges[index].start(index, seed);
        self.note(|| format!("edge-{index} starts"));
        self.arrange_life(index);
    }

    /// Renews the lease, and reports the status until it is confirmed. The official edge reports it each time.
    pub(super) fn ask(&mut self, index: usize) {
        let edge = &self.edges[index];
        if !edge.ready {
            return;
        }
        let (lease, report, status) = (edge.lease_update(), edge.report(), edge.status);
        let under_way = edge.open.values().any(|asked| asked.status == Some(status));
        let owed = edge.confirmed != status && !under_way;
        self.request(index, lease, None);
        if owed || self.edges[index].is_official_model() {
            self.request(index, report, Some(status));
        }
    }

    fn request(&mut self, index: usize, message: ToCloud, status: Option<u64>) {
        let now = self.now;
        let edge = &mut self.edges[index];
        match &mut edge.brain {
            Brain::Link { link, .. } => {
                let timeout = Duration::from_millis(REQUEST_TIMEOUT_MS);
                if let Ok(id) = link.request(message, timeout, edge.clock.show(now)) {
                    let due = now + REQUEST_TIMEOUT_MS;
                    edge.open.insert(id, Asked { due, status });
                }
            }
            Brain::Official(official) => official.say(None, message, now),
        }
    }

    pub(super) fn start_store(&mut self, index: usize) {
        let store = &mut self.edges[index].store;
        if store.busy || store.orders.is_empty() {
            return;
        }
        store.busy = true;
        let life = self.edges[index].life;
        let slow = self.chance.percent(3);
        let later = self.chance.below(if slow { 6_000 } else { 60 });
        self.arrange(later, Happening::StoreDone { edge: index, life });
    }

    pub(super) fn store_done(&mut self, index: usize, fails: bool) {
        if fails {
            self.fail_next(index);
        } else {
            self.write_next(index, true);
        }
        self.edges[index].store.busy = false;
        self.start_store(index);
    }

    /// Works the first order off; `reported` is false when the power goes between the write and its report.
    pub(super) fn write_next(&mut self, index: usize, reported: bool) {
        let now = self.now;
        let Some(order) = self.edges[index].store.orders.pop_front() else {
            return;
        };
        let edge = &mut self.edges[index];
        let wrote = match &order {
            Order::Commit { change, .. } | Order::Write { change, .. } => edge.store.write(change),
            Order::Held(_) => Wrote::Nothing,
        };
        let kept = checks::wrote(edge, &self.api, &wrote);
        if reported {
            match (order, &mut edge.brain) {
                (Order::Commit { id, .. }, Brain::Link { link, .. }) => {
                    link.committed(id, Ok(()), edge.clock.show(now));
                }
                (Order::Write { envelope, .. }, Brain::Official(official)) if edge.conn.is_some() => {
                    let answer_lost = !self.calm && self.chance.percent(2);
                    if !answer_lost {
                        official.wrote(&envelope, true, now);
                    }
                }
                (Order::Held(conn), _) if edge.conn == Some(conn) && !edge.ready => edge.connected(now),
                (Order::Held(_) | Order::Commit { .. } | Order::Write { .. }, _) => {}
            }
        }
        self.must(kept);
        self.note(|| format!("edge-{index} store: {wrote:?}"));
    }

    fn fail_next(&mut self, index: usize) {
        let now = self.now;
        let edge = &mut self.edges[index];
        // Reading what is held does not fail: the hub would ask again.
        if matches!(edge.store.orders.front(), Some(Order::Held(_))) {
            return self.write_next(index, true);
        }
        let order = edge.store.orders.pop_front();
        match (order, &mut edge.brain) {
            (Some(Order::Commit { id, .. }), Brain::Link { link, .. }) => {
                link.committed(id, Err("disk full".into()), edge.clock.show(now));
            }
            (Some(Order::Write { envelope, .. }), Brain::Official(official)) if edge.conn.is_some() => {
                official.wrote(&envelope, false, now);
            }
            (Some(Order::Held(_) | Order::Commit { .. } | Order::Write { .. }) | None, _) => {}
        }
        self.report.faults += 1;
        self.note(|| format!("edge-{index} store: a write fails"));
    }

    pub(super) fn settle_edge(&mut self, index: usize) {
        if !self.edges[index].up {
            return;
        }
        let lost = self.take_events(index);
        self.start_store(index);
        if lost && let Some(conn) = self.edges[index].conn {
            if let Some(cut) = self.network.cut(conn).filter(|cut| !cut.half_open) {
                let (later, replica) = (self.chance.below(500), cut.replica);
                self.arrange(
                    later,
                    Happening::CloudNotices {
                        edge: index,
                        replica,
                        conn,
                    },
                );
            }
            self.edge_loses(index, conn);
        }
        let edge = &mut self.edges[index];
        let Some(conn) = edge.conn.filter(|_| edge.ready) else {
            return;
        };
        let now = edge.clock.show(self.now);
        let outgoing: Vec<Packet> = match &mut edge.brain {
            Brain::Link { link, .. } => std::iter::from_fn(|| link.poll_transmit(now)).collect(),
            Brain::Official(official) => official.outbox.drain(..).map(Packet::from).collect(),
        };
        self.send(conn, Way::Up, outgoing);
    }

    /// True when the link wants its connection closed.
    fn take_events(&mut self, index: usize) -> bool {
        let mut lost = false;
        loop {
            let edge = &mut self.edges[index];
            let event = match &mut edge.brain {
                Brain::Link { link, .. } => link.poll_event(),
                Brain::Official(_) => None,
            };
            match event {
                Some(Event::Deliver {
                    id,
                    message: ToEdge::Object(change),
                }) => {
                    edge.store.orders.push_back(Order::Commit { id, change });
                }
                Some(Event::Deliver { .. } | Event::Complete) => {}
                Some(Event::Answer { id, answer }) => {
                    self.report.answered += 1;
                    let asked = edge.open.remove(&id);
                    if let (
                        Ok(_),
                        Some(Asked {
                            status: Some(status), ..
                        }),
                    ) = (&answer, asked)
                    {
                        edge.confirmed = status;
                    }
                    if asked.is_none() {
                        self.must(Err(format!("edge-{index}: request {} was answered twice", id.0)));
                    }
                }
                Some(Event::Close { reason }) => {
                    lost = true;
                    self.note(|| format!("edge-{index} closes: {reason}"));
                }
                None => return lost,
            }
        }
    }
}
