//! The world: an agenda of happenings, and what each does.

use crate::api::Api;
use crate::chance::Chance;
use crate::checks::{self, Violation};
use crate::cloud::{self, Cloud, Session};
use crate::edge::{self, Brain, Edge};
use crate::network::{ConnId, Frame, Network, Way};
use crate::store::{Order, Wrote};
use kedge_link::cloud::{CloudLink, Event as CloudEvent};
use kedge_link::edge::Event as EdgeEvent;
use kedge_wire::{Body, Envelope, MessageId, Time, ToEdge};
use std::collections::BTreeMap;

/// How long after the last fault every node must hold exactly what placement says: the silence that reveals a
/// half-open connection (30 s), a new connection, and some retries.
pub const CONVERGENCE_MS_MAX: u64 = 120_000;
const EDGES: usize = 3;
const STEPS: usize = 250;
const LEASE_EVERY_MS: u64 = 5_000;
const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// Happenings within one millisecond beyond which the world is taken to spin.
const WAKES_AT_ONCE_MAX: u32 = 10_000;
/// Lines of the trace that a violation shows.
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
        conn: ConnId,
    },
    StoreDone {
        edge: usize,
        life: u64,
    },
    Answer {
        edge: usize,
        conn: ConnId,
        id: MessageId,
        error: bool,
    },
    Ask {
        edge: usize,
        life: u64,
    },
    EdgeStarts {
        edge: usize,
    },
    CloudStarts,
}

struct World {
    seed: u64,
    now: u64,
    chance: Chance,
    api: Api,
    cloud: Option<Cloud>,
    edges: Vec<Edge>,
    network: Network,
    newest: [u64; EDGES],
    agenda: BTreeMap<(u64, u64), Happening>,
    last_entry: u64,
    calm: bool,
    report: Report,
    broken: Option<String>,
    trace: Option<Vec<String>>,
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Report, Violation> {
    let mut world = World::new(seed, false);
    match world.live() {
        Ok(()) => Ok(world.report),
        Err(_) => {
            // Once more, this time with a pen in hand.
            let mut world = World::new(seed, true);
            let text = world.live().expect_err("a seed always gives the same run");
            let trace = world.trace.unwrap_or_default();
            let shown = trace.len().saturating_sub(TRACE_LINES_MAX);
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
        let mut world = Self {
            seed,
            now: 1_000_000,
            chance,
            api: Api::default(),
            cloud: Some(Cloud::default()),
            edges,
            network: Network::default(),
            newest: [0; EDGES],
            agenda: BTreeMap::new(),
            last_entry: 0,
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
        self.calm = true;
        self.note(|| "--- calm ---".into());
        if self.cloud.is_none() {
            self.arrange(100, Happening::CloudStarts);
        }
        for edge in 0..EDGES {
            if !self.edges[edge].up {
                self.arrange(100, Happening::EdgeStarts { edge });
            }
        }
        self.pass(CONVERGENCE_MS_MAX)?;
        let cloud = self.cloud.as_ref().ok_or("the cloud never came back")?;
        self.edges
            .iter()
            .try_for_each(|edge| checks::agreed(edge, &self.api, &cloud.placement))
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
        let sessions = self.cloud.iter().flat_map(|cloud| cloud.sessions.values());
        let sessions = sessions.filter_map(|session| session.link.poll_timeout().map(Time::as_ms));
        edges.chain(sessions).min()
    }

    fn wake(&mut self) {
        let now = self.now;
        for edge in self.edges.iter_mut().filter(|edge| edge.up) {
            edge.wake(now);
        }
        for session in self
            .cloud
            .iter_mut()
            .flat_map(|cloud| cloud.sessions.values_mut())
        {
            session.link.handle_timeout(Time::from_ms(now));
        }
    }

    /// One thing that a test author wishes upon the world.
    fn stir(&mut self) {
        match self.chance.below(100) {
            0..=71 => self.mutate(),
            72..=79 => {
                if let Some(conn) = self.network.random(&mut self.chance) {
                    self.cut(conn);
                }
            }
            80..=83 => {
                if let Some(conn) = self.network.random(&mut self.chance) {
                    self.break_silently(conn);
                }
            }
            84..=89 => {
                let edge = self.chance.index(EDGES);
                self.crash_edge(edge);
            }
            90..=91 => self.crash_cloud(),
            _ => {
                let edge = self.chance.index(EDGES);
                self.ask(edge);
            }
        }
    }

    fn mutate(&mut self) {
        for (key, seen) in self.api.mutate(&mut self.chance, EDGES, self.now) {
            self.note(|| {
                format!(
                    "api: {key} {}",
                    if matches!(seen, kedge_placement::index::Seen::Applied(_)) {
                        "applied"
                    } else {
                        "deleted"
                    }
                )
            });
            let Some(cloud) = &mut self.cloud else { continue };
            for change in cloud.see(&key, seen) {
                let session = cloud
                    .sessions
                    .values_mut()
                    .find(|session| *session.link.node() == change.node);
                if let Some(session) = session.filter(|session| session.attached) {
                    session
                        .link
                        .set_desired(change.key, change.object, Time::from_ms(self.now));
                }
            }
        }
    }

    fn cut(&mut self, id: ConnId) {
        let Some(conn) = self.network.cut(id) else { return };
        self.report.faults += 1;
        self.note(|| format!("connection {} is cut", id.0));
        let (edge, sooner, later) = (conn.edge, self.chance.below(500), self.chance.below(3_000));
        self.arrange(sooner, Happening::EdgeNotices { edge, conn: id });
        self.arrange(later, Happening::CloudNotices { edge, conn: id });
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
        let finished = self.chance.percent(50);
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
        if let Some(conn) = conn.filter(|conn| self.network.cut(*conn).is_some()) {
            let later = self.chance.below(40_000);
            self.arrange(later, Happening::CloudNotices { edge: index, conn });
        }
        let later = self.chance.below(8_000);
        self.arrange(later, Happening::EdgeStarts { edge: index });
    }

    fn crash_cloud(&mut self) {
        let Some(cloud) = self.cloud.take() else { return };
        self.report.faults += 1;
        self.note(|| "the cloud crashes".into());
        // What a node that cannot tell held in this moment may stay with it.
        for (index, edge) in self.edges.iter_mut().enumerate().skip(1) {
            edge.excused
                .extend(edge.store.durable.values().map(|stored| stored.uid.clone()));
            let session = cloud.sessions.get(&index).map(|session| session.link.held());
            let memory = cloud.memory.get(&index).cloned();
            let known = session.into_iter().chain(memory).flatten();
            edge.excused
                .extend(known.map(|(_, uid, _)| uid.as_str().to_owned()));
        }
        let conns: Vec<ConnId> = self.network.conns.keys().copied().collect();
        for id in conns {
            if let Some(conn) = self.network.cut(id) {
                let later = self.chance.below(1_000);
                self.arrange(
                    later,
                    Happening::EdgeNotices {
                        edge: conn.edge,
                        conn: id,
                    },
                );
            }
        }
        let later = self.chance.below(5_000);
        self.arrange(later, Happening::CloudStarts);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Frame(frame) => self.frame(frame),
            Happening::Dial { edge, life } => self.dial(edge, life),
            Happening::Accepted { conn } => self.accepted(conn),
            Happening::Attach { edge, conn } => self.attach(edge, conn),
            Happening::EdgeNotices { edge, conn } => self.edge_loses(edge, conn),
            Happening::CloudNotices { edge, conn } => {
                if let Some(cloud) = &mut self.cloud {
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
                conn,
                id,
                error,
            } => {
                let now = Time::from_ms(self.now);
                if let Some(session) = self.session(edge, conn) {
                    session.link.reply(&id, Body::text("done"), None, error, now);
                }
            }
            Happening::Ask { edge, life } => {
                if self.edges[edge].life == life {
                    self.ask(edge);
                    self.arrange(LEASE_EVERY_MS, Happening::Ask { edge, life });
                }
            }
            Happening::EdgeStarts { edge } => {
                if !self.edges[edge].up {
                    let seed = self.chance.next();
                    self.edges[edge].start(edge, seed);
                    self.note(|| format!("edge-{edge} starts"));
                    self.arrange_life(edge);
                }
            }
            Happening::CloudStarts => {
                if self.cloud.is_none() {
                    self.note(|| "the cloud starts".into());
                    self.cloud = Some(Cloud::start(&self.api));
                }
            }
        }
    }

    fn session(&mut self, edge: usize, conn: ConnId) -> Option<&mut Session> {
        let session = self.cloud.as_mut()?.sessions.get_mut(&edge)?;
        (session.conn == conn).then_some(session)
    }

    fn frame(&mut self, frame: Frame) {
        let Some(conn) = self.network.conns.get(&frame.conn).filter(|conn| !conn.half_open) else {
            return;
        };
        let edge = conn.edge;
        self.report.frames += 1;
        if !is_routine(&frame) {
            self.note(|| describe(edge, &frame));
        }
        let now = self.now;
        match frame.way {
            Way::Up => {
                if let Some(session) = self.session(edge, frame.conn) {
                    session.link.handle_envelope(frame.envelope, Time::from_ms(now));
                }
            }
            Way::Down => {
                // The official edge drops from its queue when it is full, and says nothing.
                let drops = self.edges[edge].is_official_model() && !self.calm && self.chance.percent(2);
                if self.edges[edge].conn == Some(frame.conn) && !drops {
                    self.edges[edge].receive(frame.envelope, now);
                    self.start_store(edge);
                }
            }
        }
    }

    fn dial(&mut self, edge: usize, life: u64) {
        let later = 200 + self.chance.below(2_000);
        if self.edges[edge].life != life || self.edges[edge].conn.is_some() {
            return;
        }
        if self.cloud.is_none() {
            return self.arrange(later, Happening::Dial { edge, life });
        }
        let conn = self.network.open(edge);
        self.note(|| format!("edge-{edge} dials connection {}", conn.0));
        self.edges[edge].conn = Some(conn);
        let later = self.chance.below(200);
        self.arrange(later, Happening::Accepted { conn });
    }

    /// The hub replaces whatever session the node had; the edge asks its store what it holds.
    fn accepted(&mut self, id: ConnId) {
        let (now, seed) = (Time::from_ms(self.now), self.chance.next());
        let Some(edge) = self.network.conns.get(&id).map(|conn| conn.edge) else {
            return;
        };
        let Some(cloud) = &mut self.cloud else { return };
        if let Some(old) = cloud.sessions.get(&edge).map(|session| session.conn) {
            cloud.end(edge, old);
            self.network.cut(old);
        }
        let (node, peer) = (self.edges[edge].node(), self.edges[edge].peer());
        let mut link = CloudLink::new(node, peer, cloud::config(), seed, now);
        link.assume_held(cloud.memory.remove(&edge).unwrap_or_default());
        cloud.sessions.insert(
            edge,
            Session {
                conn: id,
                link,
                attached: false,
            },
        );
        self.newest[edge] = id.0;
        if self.edges[edge].conn == Some(id) {
            self.edges[edge].store.orders.push_back(Order::Held);
            self.start_store(edge);
        }
        let later = self.chance.below(300);
        self.arrange(later, Happening::Attach { edge, conn: id });
    }

    fn attach(&mut self, edge: usize, conn: ConnId) {
        let (now, node) = (Time::from_ms(self.now), self.edges[edge].node());
        let Some(desired) = self.cloud.as_ref().map(|cloud| cloud.placement.desired(&node)) else {
            return;
        };
        let Some(session) = self.session(edge, conn) else {
            return;
        };
        session.attached = true;
        for (key, object) in desired {
            session.link.set_desired(key, Some(object), now);
        }
        session.link.desired_complete(now);
    }

    fn edge_loses(&mut self, edge: usize, conn: ConnId) {
        if self.edges[edge].conn != Some(conn) {
            return;
        }
        self.note(|| format!("edge-{edge} loses connection {}", conn.0));
        self.edges[edge].disconnected(self.now);
        let (life, later) = (self.edges[edge].life, 200 + self.chance.below(2_000));
        self.arrange(later, Happening::Dial { edge, life });
    }

    fn ask(&mut self, index: usize) {
        let now = self.now;
        let edge = &mut self.edges[index];
        if !edge.ready {
            return;
        }
        let message = edge.lease_update();
        match &mut edge.brain {
            Brain::Link { link, .. } => {
                let timeout = std::time::Duration::from_millis(REQUEST_TIMEOUT_MS);
                if let Ok(id) = link.request(message, timeout, Time::from_ms(now)) {
                    edge.open.insert(id, now + REQUEST_TIMEOUT_MS);
                }
            }
            Brain::Official(official) => official.say(None, message, now),
        }
    }

    fn start_store(&mut self, index: usize) {
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

    fn store_done(&mut self, index: usize, fails: bool) {
        if fails {
            self.fail_next(index);
        } else {
            self.write_next(index, true);
        }
        self.edges[index].store.busy = false;
        self.start_store(index);
    }

    /// Works the first order off; `reported` is false when the power goes between the write and its report.
    fn write_next(&mut self, index: usize, reported: bool) {
        let now = self.now;
        let Some(order) = self.edges[index].store.orders.pop_front() else {
            return;
        };
        let edge = &mut self.edges[index];
        let wrote = match &order {
            Order::Commit { change, .. } | Order::Write { change, .. } => edge.store.write(change),
            Order::Held => Wrote::Nothing,
        };
        if let Err(text) = checks::wrote(edge, &self.api, &wrote) {
            self.broken.get_or_insert(text);
        }
        if reported {
            match (order, &mut edge.brain) {
                (Order::Commit { id, .. }, Brain::Link { link, .. }) => {
                    link.committed(id, Ok(()), Time::from_ms(now));
                }
                (Order::Write { envelope, .. }, Brain::Official(official)) if edge.conn.is_some() => {
                    let answer_lost = !self.calm && self.chance.percent(2);
                    if !answer_lost {
                        official.wrote(&envelope, true, now);
                    }
                }
                (Order::Held, _) if edge.conn.is_some() && !edge.ready => edge.connected(now),
                (Order::Held | Order::Commit { .. } | Order::Write { .. }, _) => {}
            }
        }
        self.note(|| format!("edge-{index} store: {wrote:?}"));
    }

    fn fail_next(&mut self, index: usize) {
        let now = self.now;
        let edge = &mut self.edges[index];
        // Reading what is held does not fail: the hub would ask again.
        if matches!(edge.store.orders.front(), Some(Order::Held)) {
            return self.write_next(index, true);
        }
        let order = edge.store.orders.pop_front();
        match (order, &mut edge.brain) {
            (Some(Order::Commit { id, .. }), Brain::Link { link, .. }) => {
                link.committed(id, Err("disk full".into()), Time::from_ms(now));
            }
            (Some(Order::Write { envelope, .. }), Brain::Official(official)) if edge.conn.is_some() => {
                official.wrote(&envelope, false, now);
            }
            (Some(Order::Held | Order::Commit { .. } | Order::Write { .. }) | None, _) => {}
        }
        self.report.faults += 1;
        self.note(|| format!("edge-{index} store: a write fails"));
    }

    /// Moves everything that is ready to move, then checks.
    fn settle(&mut self) -> Result<(), String> {
        for edge in 0..EDGES {
            self.settle_edge(edge);
            self.settle_session(edge);
        }
        if let Some(text) = self.broken.take() {
            return Err(text);
        }
        self.check()
    }

    fn settle_edge(&mut self, index: usize) {
        let now = Time::from_ms(self.now);
        if !self.edges[index].up {
            return;
        }
        let mut lost = false;
        loop {
            let edge = &mut self.edges[index];
            let event = match &mut edge.brain {
                Brain::Link { link, .. } => link.poll_event(),
                Brain::Official(_) => None,
            };
            match event {
                Some(EdgeEvent::Deliver {
                    id,
                    message: ToEdge::Object(change),
                }) => {
                    edge.store.orders.push_back(Order::Commit { id, change });
                }
                Some(EdgeEvent::Deliver { .. }) => {}
                Some(EdgeEvent::Answer { id, .. }) => {
                    self.report.answered += 1;
                    if edge.open.remove(&id).is_none() {
                        self.broken
                            .get_or_insert(format!("edge-{index}: request {} was answered twice", id.0));
                    }
                }
                Some(EdgeEvent::Close { reason }) => {
                    lost = true;
                    self.note(|| format!("edge-{index} closes: {reason}"));
                }
                None => break,
            }
        }
        self.start_store(index);
        if lost && let Some(conn) = self.edges[index].conn {
            if self.network.cut(conn).is_some_and(|cut| !cut.half_open) {
                let later = self.chance.below(500);
                self.arrange(later, Happening::CloudNotices { edge: index, conn });
            }
            self.edge_loses(index, conn);
        }
        let Some(conn) = self.edges[index].conn.filter(|_| self.edges[index].ready) else {
            return;
        };
        let outgoing: Vec<Envelope> = match &mut self.edges[index].brain {
            Brain::Link { link, .. } => std::iter::from_fn(|| link.poll_transmit(now)).collect(),
            Brain::Official(official) => std::mem::take(&mut official.outbox),
        };
        self.send(conn, Way::Up, outgoing);
    }

    fn settle_session(&mut self, index: usize) {
        let now = Time::from_ms(self.now);
        let Some(session) = self
            .cloud
            .as_mut()
            .and_then(|cloud| cloud.sessions.get_mut(&index))
        else {
            return;
        };
        let conn = session.conn;
        let events: Vec<CloudEvent> = std::iter::from_fn(|| session.link.poll_event()).collect();
        let outgoing: Vec<Envelope> = std::iter::from_fn(|| session.link.poll_transmit(now)).collect();
        for event in events {
            self.cloud_event(index, conn, event);
        }
        self.send(conn, Way::Down, outgoing);
    }

    fn cloud_event(&mut self, index: usize, conn: ConnId, event: CloudEvent) {
        match event {
            CloudEvent::Request { id, .. } => {
                if self.calm || !self.chance.percent(5) {
                    let (later, error) = (self.chance.below(300), self.chance.percent(5));
                    self.arrange(
                        later,
                        Happening::Answer {
                            edge: index,
                            conn,
                            id,
                            error,
                        },
                    );
                }
            }
            CloudEvent::Message { .. } => {}
            CloudEvent::Acked { key, version } => {
                self.report.acknowledged += 1;
                let checked = checks::acknowledged(&self.edges[index], &self.api, &key, version.as_ref());
                if let Err(text) = checked {
                    self.broken.get_or_insert(text);
                }
            }
            CloudEvent::Close { reason } => {
                self.note(|| format!("cloud closes the session of edge-{index}: {reason}"));
                if let Some(cloud) = &mut self.cloud {
                    cloud.end(index, conn);
                }
                if self.network.cut(conn).is_some_and(|cut| !cut.half_open) {
                    let later = self.chance.below(500);
                    self.arrange(later, Happening::EdgeNotices { edge: index, conn });
                }
            }
        }
    }

    fn send(&mut self, conn: ConnId, way: Way, envelopes: Vec<Envelope>) {
        for envelope in envelopes {
            if way == Way::Down && envelope.route.operation == "delete" {
                self.note_delete(conn, &envelope);
            }
            if let Some(at) = self.network.arrival(conn, way, self.now, &mut self.chance) {
                self.arrange(at - self.now, Happening::Frame(Frame { conn, way, envelope }));
            }
        }
    }

    fn note_delete(&mut self, conn: ConnId, envelope: &Envelope) {
        let uid = envelope.content.object_meta().ok().and_then(|meta| meta.uid);
        if let (Some(conn), Some(uid)) = (self.network.conns.get(&conn), uid) {
            let first = self.edges[conn.edge].first_delete.entry(uid.as_str().to_owned());
            first.or_insert(self.now);
        }
    }

    fn check(&self) -> Result<(), String> {
        for (index, session) in self.cloud.iter().flat_map(|cloud| &cloud.sessions) {
            let edge = &self.edges[*index];
            checks::newest_session(edge, session.conn.0, self.newest[*index])?;
            checks::within_limits(session.link.depth(), cloud::IN_FLIGHT_MAX, cloud::REQUESTS_MAX)
                .map_err(|text| format!("cloud, session of {}: {text}", edge.name))?;
        }
        for edge in &self.edges {
            if edge.open.len() > edge::REQUESTS_MAX {
                return Err(format!("{}: {} requests are open", edge.name, edge.open.len()));
            }
            if let Some((id, due)) = edge.open.iter().find(|(_, due)| **due + 1_000 < self.now) {
                return Err(format!(
                    "{}: request {} due at {due} has no answer",
                    edge.name, id.0
                ));
            }
        }
        Ok(())
    }

    fn arrange_life(&mut self, edge: usize) {
        let life = self.edges[edge].life;
        let later = self.chance.below(1_000);
        self.arrange(later, Happening::Dial { edge, life });
        self.arrange(later + LEASE_EVERY_MS, Happening::Ask { edge, life });
    }

    fn arrange(&mut self, later: u64, happening: Happening) {
        self.last_entry += 1;
        self.agenda.insert((self.now + later, self.last_entry), happening);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let (now, seed) = (self.now, self.seed);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("[{seed} {now}] {}", line()));
        }
    }
}

/// Keepalives and leases fill a trace and explain nothing.
fn is_routine(frame: &Frame) -> bool {
    let resource = &frame.envelope.route.resource;
    resource == "node" || resource.contains("/lease/")
}

fn describe(edge: usize, frame: &Frame) -> String {
    let Envelope { header, route, .. } = &frame.envelope;
    let way = match frame.way {
        Way::Up => "->",
        Way::Down => "<-",
    };
    let version = header
        .resource_version
        .as_ref()
        .map_or("", |version| version.as_str());
    let parent = header.parent.as_ref().map_or("", |parent| parent.as_str());
    let id = header.id.as_str();
    format!(
        "edge-{edge} {way} cloud on {}: {} {} @{version} id {} parent {}",
        frame.conn.0,
        route.operation,
        route.resource,
        id.get(..8).unwrap_or(id),
        parent.get(..8).unwrap_or(parent)
    )
}
