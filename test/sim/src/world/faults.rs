//! What a test author wishes upon the world.

use super::{EDGES, Happening, REPLICAS, World};
use crate::network::ConnId;

/// The longest that a watch lags. Less than the patience of a link, which is how long a cloud may lag and still serve.
const LAG_MS_MAX: u64 = 8_000;
const OUTAGE_MS_MAX: u64 = 20_000;

impl World {
    /// One thing.
    pub(super) fn stir(&mut self) {
        match self.chance.below(100) {
            0..=65 => self.mutate(),
            66..=72 => {
                if let Some(conn) = self.network.random(&mut self.chance) {
                    self.cut(conn);
                }
            }
            73..=76 => {
                if let Some(conn) = self.network.random(&mut self.chance) {
                    self.break_silently(conn);
                }
            }
            77..=82 => {
                let edge = self.chance.index(EDGES);
                self.crash_edge(edge);
            }
            83..=85 => {
                let replica = self.chance.index(REPLICAS);
                self.crash_cloud(replica);
            }
            86..=88 => self.lag(),
            89 => self.break_api(),
            90..=91 => self.set_a_clock(),
            92..=94 => {
                let edge = self.chance.index(EDGES);
                self.edges[edge].status += 1;
            }
            _ => {
                let edge = self.chance.index(EDGES);
                self.ask(edge);
            }
        }
    }

    fn mutate(&mut self) {
        if self.api.is_down(self.now) {
            return;
        }
        let before = self.api.history.len();
        self.api.mutate(&mut self.chance, EDGES, self.now);
        for index in before..self.api.history.len() {
            let happened = self.api.history[index].clone();
            self.note(|| {
                let deleted = matches!(happened.seen, kedge_placement::index::Seen::Deleted(_));
                let verb = if deleted { "deleted" } else { "applied" };
                format!("api: {} {verb} @{}", happened.key, happened.version)
            });
        }
        let upto = self.api.history.len();
        for replica in 0..REPLICAS {
            let life = self.replicas[replica].life;
            let lag = self.replicas[replica].lag_ms;
            let later = self.chance.below(20) + lag;
            self.arrange(later, Happening::Watched { replica, life, upto });
        }
    }

    /// The watch of a replica falls behind, or keeps up again.
    fn lag(&mut self) {
        let replica = self.chance.index(REPLICAS);
        let lag = if self.chance.percent(60) {
            self.chance.below(LAG_MS_MAX)
        } else {
            0
        };
        self.replicas[replica].lag_ms = lag;
        self.report.faults += 1;
        self.note(|| format!("replica {replica} lags by {lag} ms"));
    }

    /// The API refuses writes for a while, and nobody changes anything.
    fn break_api(&mut self) {
        let pause = self.chance.below(OUTAGE_MS_MAX);
        self.api.down_until = self.now + pause;
        self.report.faults += 1;
        self.note(|| format!("the api is down for {pause} ms"));
    }

    fn set_a_clock(&mut self) {
        self.report.faults += 1;
        if self.chance.percent(50) {
            let edge = self.chance.index(EDGES);
            self.edges[edge].set_clock(&mut self.chance);
            self.note(|| format!("the clock of edge-{edge} leaps"));
            if self.edges[edge].up {
                self.edges[edge].wake(self.now);
            }
        } else {
            let replica = self.chance.index(REPLICAS);
            self.replicas[replica].clock.leap(&mut self.chance);
            self.note(|| format!("the clock of replica {replica} leaps"));
            self.wake_replica(replica);
        }
    }

    fn cut(&mut self, id: ConnId) {
        let Some(conn) = self.network.cut(id) else { return };
        self.report.faults += 1;
        self.note(|| format!("connection {} is cut", id.0));
        let (edge, replica) = (conn.edge, conn.replica);
        let (sooner, later) = (self.chance.below(500), self.chance.below(3_000));
        self.arrange(sooner, Happening::EdgeNotices { edge, conn: id });
        self.arrange(
            later,
            Happening::CloudNotices {
                edge,
                replica,
                conn: id,
            },
        );
    }

    /// Frames vanish and nobody is told. Our link finds out by itself; the official edge has only its TCP, which gives
    /// up on a write that nobody confirms.
    fn break_silently(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else {
            return;
        };
        conn.half_open = true;
        let edge = conn.edge;
        self.report.faults += 1;
        self.note(|| format!("connection {} is half open", id.0));
        if self.edges[edge].is_official_model() {
            let later = 15_000 + self.chance.below(20_000);
            self.arrange(later, Happening::EdgeNotices { edge, conn: id });
        }
    }

    fn crash_edge(&mut self, index: usize) {
        let (finished, reinstalled) = (self.chance.percent(50), self.chance.percent(15));
        if !self.edges[index].up {
            return;
        }
        self.report.faults += 1;
        self.note(|| format!("edge-{index} crashes"));
        if finished && self.edges[index].store.busy {
            self.write_next(index, false);
        }
        let conn = self.edges[index].conn;
        self.edges[index].crash();
        if reinstalled {
            self.note(|| format!("edge-{index} is installed anew"));
            self.edges[index].reinstall();
        }
        if let Some((id, conn)) = conn.and_then(|id| Some((id, self.network.cut(id)?))) {
            let later = self.chance.below(40_000);
            let (edge, replica) = (conn.edge, conn.replica);
            self.arrange(
                later,
                Happening::CloudNotices {
                    edge,
                    replica,
                    conn: id,
                },
            );
        }
        let later = self.chance.below(8_000);
        self.arrange(later, Happening::EdgeStarts { edge: index });
    }

    /// A replica dies with everything it knew.
    fn crash_cloud(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.cloud.take().is_none() {
            return;
        }
        replica.life += 1;
        self.report.faults += 1;
        self.note(|| format!("replica {index} crashes"));
        let conns = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.replica == index);
        let conns: Vec<ConnId> = conns.map(|(id, _)| *id).collect();
        for conn in conns {
            if let Some(cut) = self.network.cut(conn) {
                let later = self.chance.below(1_000);
                self.arrange(later, Happening::EdgeNotices { edge: cut.edge, conn });
            }
        }
        let later = self.chance.below(5_000);
        self.arrange(later, Happening::CloudStarts { replica: index });
    }
}
