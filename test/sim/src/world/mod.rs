//! The world: an agenda of happenings, and what each does.
//!
//! Its parts by duty: [`faults`] wishes trouble upon it, [`network`] carries, [`cloud_side`] and [`edge_side`] move the
//! machines at either end.

mod cloud_side;
mod edge_side;
mod faults;
mod network;

use crate::api::Api;
use crate::chance::Chance;
use crate::checks::{self, Violation};
use crate::cloud::{self, Cloud, Replica};
use crate::edge::{self, Edge};
use crate::network::{ConnId, Frame, Network};
use kedge_wire::MessageId;
use std::collections::BTreeMap;

/// How long after the last fault every node must hold exactly what placement says: the silence that reveals a
/// half-open connection (30 s), a new connection, and some retries.
pub const CONVERGENCE_MS_MAX: u64 = 120_000;
/// How long nothing at all may happen after that.
const PEACE_MS: u64 = 60_000;
const EDGES: usize = 3;
const REPLICAS: usize = 3;
const STEPS: usize = 250;
const ASK_EVERY_MS: u64 = 5_000;
/// Rarer than the silence that edges endure, so that in peace only the heartbeat keeps a connection alive.
const CALM_ASK_EVERY_MS: u64 = 25_000;
/// Happenings within one millisecond beyond which the world is taken to spin.
const WAKES_AT_ONCE_MAX: u32 = 10_000;
/// Lines of the trace that a violation of an ordinary run shows.
const TRACE_LINES_MAX: usize = 120;

/// What a run did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub events: u64,
    pub frames: u64,
    pub acknowledged: u64,
    pub answered: u64,
    pub faults: u64,
}

// Most happenings are frames, so boxing them would only add allocations.
#[allow(clippy::large_enum_variant)]
enum Happening {
    Frame(Frame),
    Dial {
        edge: usize,
        life: u64,
    },
    Accepted {
        conn: ConnId,
    },
    Attach {
        edge: usize,
        conn: ConnId,
    },
    EdgeNotices {
        edge: usize,
        conn: ConnId,
    },
    CloudNotices {
        edge: usize,
        replica: usize,
        conn: ConnId,
    },
    StoreDone {
        edge: usize,
        life: u64,
    },
    /// The controllers of a replica answer a request, after they wrote the status in it.
    Answer {
        edge: usize,
        replica: usize,
        conn: ConnId,
        id: MessageId,
        status: Option<u64>,
    },
    Ask {
        edge: usize,
        life: u64,
    },
    EdgeStarts {
        edge: usize,
    },
    CloudStarts {
        replica: usize,
    },
    /// The watches of a replica have shown so much of the history.
    Watched {
        replica: usize,
        life: u64,
        upto: usize,
    },
    /// The controllers of a replica write the next ObjectSync.
    Record {
        replica: usize,
        life: u64,
    },
}

pub(crate) struct World {
    seed: u64,
    now: u64,
    chance: Chance,
    api: Api,
    replicas: Vec<Replica>,
    edges: Vec<Edge>,
    network: Network,
    /// The newest connection of each node at each replica.
    newest: [[u64; EDGES]; REPLICAS],
    agenda: BTreeMap<(u64, u64), Happening>,
    last_entry: u64,
    /// The clouds record what official nodes hold.
    records: bool,
    calm: bool,
    report: Report,
    broken: Option<String>,
    trace: Option<Vec<String>>,
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Report, Violation> {
    run_and_trace(seed, TRACE_LINES_MAX)
}

/// Runs one seed; a violation shows so many lines.
pub fn run_and_trace(seed: u64, lines_max: usize) -> Result<Report, Violation> {
    let mut world = World::new(seed, false);
    match world.live() {
        Ok(()) => Ok(world.report),
        Err(_) => {
            // Once more, this time with a pen in hand.
            let mut world = World::new(seed, true);
            let text = world.live().expect_err("a seed always gives the same run");
            let trace = world.trace.unwrap_or_default();
            let shown = trace.len().saturating_sub(lines_max);
            Err(Violation {
                seed,
                text,
                trace: trace[shown..].to_vec(),
            })
        }
    }
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let edges = (0..EDGES).map(|index| Edge::new(index, chance.next())).collect();
        let mut replicas: Vec<Replica> = (0..REPLICAS).map(|_| Replica::default()).collect();
        for replica in &mut replicas {
            replica.cloud = Some(Cloud::default());
        }
        let records = chance.percent(80);
        let mut world = Self {
            seed,
            now: 1_000_000,
            chance,
            api: Api::default(),
            replicas,
            edges,
            network: Network::default(),
            newest: [[0; EDGES]; REPLICAS],
            agenda: BTreeMap::new(),
            last_entry: 0,
            records,
            calm: false,
            report: Report::default(),
            broken: None,
            trace: traced.then(Vec::new),
        };
        for edge in 0..EDGES {
            world.arrange_life(edge);
        }
        world
    }

    /// Trouble for a while, then peace, then agreement.
    fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            let pause = self.chance.below(if self.chance.clone().percent(5) {
                15_000
            } else {
                700
            });
            self.pass(pause)?;
            self.stir();
            self.settle()?;
        }
        self.make_peace();
        self.pass(CONVERGENCE_MS_MAX)?;
        self.agreed()?;
        let connected =
            |world: &Self| -> Vec<Option<ConnId>> { world.edges.iter().map(|edge| edge.conn).collect() };
        let before = connected(self);
        self.pass(PEACE_MS)?;
        if connected(self) != before {
            return Err("a connection was lost in peace".into());
        }
        Ok(())
    }

    fn make_peace(&mut self) {
        self.calm = true;
        self.note(|| "--- calm ---".into());
        self.api.down_until = self.now;
        for replica in 0..REPLICAS {
            self.replicas[replica].lag_ms = 0;
            if self.replicas[replica].cloud.is_none() {
                self.arrange(100, Happening::CloudStarts { replica });
            }
        }
        for edge in 0..EDGES {
            if !self.edges[edge].up {
                self.arrange(100, Happening::EdgeStarts { edge });
            }
        }
    }

    fn agreed(&self) -> Result<(), String> {
        for (index, edge) in self.edges.iter().enumerate() {
            let conn = edge.conn.and_then(|conn| self.network.conns.get(&conn));
            let replica = conn.map(|conn| conn.replica);
            let replica = replica.ok_or_else(|| format!("{} is not connected", edge.name))?;
            let cloud = self.replicas[replica].cloud.as_ref();
            let cloud = cloud.ok_or_else(|| format!("replica {replica} never came back"))?;
            if cloud.position != self.api.history.len() {
                return Err(format!("replica {replica} never caught up"));
            }
            checks::agreed(edge, &self.api, &cloud.placement)?;
            checks::told(edge, index, &self.api)?;
            if self.records && edge.peer() == kedge_link::Peer::Official {
                let session = cloud.sessions.get(&index);
                let attached_at = session.map_or(0, |session| session.attached_at);
                checks::recorded(edge, index, &self.api, replica, attached_at)?;
            }
        }
        Ok(())
    }

    /// Lets time pass, doing what falls due.
    fn pass(&mut self, ms: u64) -> Result<(), String> {
        let end = self.now + ms;
        let mut wakes_at_once = 0;
        loop {
            let agenda = self.agenda.keys().next().map(|(at, _)| *at);
            let next = agenda.into_iter().chain(self.timeouts()).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return Ok(());
            }
            wakes_at_once = if next > self.now { 0 } else { wakes_at_once + 1 };
            if wakes_at_once > WAKES_AT_ONCE_MAX {
                return Err("a moment to wake has come and waking changes nothing".into());
            }
            self.now = self.now.max(next);
            if agenda.is_some_and(|at| at <= self.now) {
                if let Some((_, happening)) = self.agenda.pop_first() {
                    self.happen(happening);
                }
            } else {
                self.wake();
            }
            self.report.events += 1;
            self.settle()?;
        }
    }

    fn timeouts(&self) -> Option<u64> {
        let edges = self.edges.iter().filter_map(Edge::timeout);
        let replicas = self.replicas.iter().flat_map(|replica| {
            let sessions = replica.cloud.iter().flat_map(|cloud| cloud.sessions.values());
            sessions.filter_map(|session| Some(replica.clock.moment(session.link.poll_timeout()?)))
        });
        edges.chain(replicas).min()
    }

    fn wake(&mut self) {
        let now = self.now;
        for edge in self.edges.iter_mut().filter(|edge| edge.up) {
            edge.wake(now);
        }
        for replica in 0..REPLICAS {
            self.wake_replica(replica);
        }
    }

    fn wake_replica(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let now = replica.clock.show(self.now);
        for session in replica
            .cloud
            .iter_mut()
            .flat_map(|cloud| cloud.sessions.values_mut())
        {
            session.link.handle_timeout(now);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Frame(frame) => self.frame(frame),
            Happening::Dial { edge, life } => self.dial(edge, life),
            Happening::Accepted { conn } => self.accepted(conn),
            Happening::Attach { edge, conn } => self.attach(edge, conn),
            Happening::EdgeNotices { edge, conn } => self.edge_loses(edge, conn),
            Happening::CloudNotices { edge, replica, conn } => {
                if let Some(cloud) = &mut self.replicas[replica].cloud {
                    cloud.end(edge, conn);
                }
            }
            Happening::StoreDone { edge, life } => {
                if self.edges[edge].life == life {
                    let fails = !self.calm && self.chance.percent(4);
                    self.store_done(edge, fails);
                }
            }
            Happening::Answer {
                edge,
                replica,
                conn,
                id,
                status,
            } => self.answer(edge, replica, conn, &id, status),
            Happening::Ask { edge, life } => {
                if self.edges[edge].life == life {
                    self.ask(edge);
                    let later = if self.calm {
                        CALM_ASK_EVERY_MS
                    } else {
                        ASK_EVERY_MS
                    };
                    self.arrange(later, Happening::Ask { edge, life });
                }
            }
            Happening::EdgeStarts { edge } => self.start_edge(edge),
            Happening::CloudStarts { replica } => self.start_cloud(replica),
            Happening::Watched { replica, life, upto } => self.watched(replica, life, upto),
            Happening::Record { replica, life } => self.record(replica, life),
        }
    }

    /// Moves everything that is ready to move, then checks.
    fn settle(&mut self) -> Result<(), String> {
        for edge in 0..EDGES {
            self.settle_edge(edge);
            for replica in 0..REPLICAS {
                self.settle_session(replica, edge);
            }
        }
        if let Some(text) = self.broken.take() {
            return Err(text);
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        for (replica, newest) in self.replicas.iter().zip(&self.newest) {
            for (index, session) in replica.cloud.iter().flat_map(|cloud| &cloud.sessions) {
                let edge = &self.edges[*index];
                checks::newest_session(edge, session.conn.0, newest[*index])?;
                checks::within_limits(session.link.depth(), cloud::IN_FLIGHT_MAX, cloud::REQUESTS_MAX)
                    .map_err(|text| format!("cloud, session of {}: {text}", edge.name))?;
            }
        }
        for edge in &self.edges {
            if edge.open.len() > edge::REQUESTS_MAX {
                return Err(format!("{}: {} requests are open", edge.name, edge.open.len()));
            }
            if let Some((id, _)) = edge.open.iter().find(|(_, asked)| asked.due + 1_000 < self.now) {
                return Err(format!("{}: request {} has no answer", edge.name, id.0));
            }
            if edge.is_surprised() {
                return Err(format!("{} got a heartbeat, which it cannot know", edge.name));
            }
        }
        Ok(())
    }

    fn arrange_life(&mut self, edge: usize) {
        let life = self.edges[edge].life;
        let later = self.chance.below(1_000);
        self.arrange(later, Happening::Dial { edge, life });
        self.arrange(later + ASK_EVERY_MS, Happening::Ask { edge, life });
    }

    fn arrange(&mut self, later: u64, happening: Happening) {
        self.last_entry += 1;
        self.agenda.insert((self.now + later, self.last_entry), happening);
    }

    /// Keeps the first thing that broke.
    fn must(&mut self, kept: Result<(), String>) {
        if let Err(text) = kept {
            self.broken.get_or_insert(text);
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let (now, seed) = (self.now, self.seed);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("[{seed} {now}] {}", line()));
        }
    }
}
