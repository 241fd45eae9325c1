//! Leads the crews: starts them, gives orders, adds up what they report, and shows it once a second.

use crate::budget;
use crate::cli::Transport;
use crate::crew::TICK;
use crate::histogram::{Histogram, millis};
use crate::orders::{Gauges, LINE_BYTES_MAX, Mark, Order, Report, Setup, Tick, Times};
use crate::plan::Plan;
use crate::processes::{self, Lines};
use crate::watch::{Seen, Target};
use anyhow::{Context, Result, anyhow, bail};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{latest, queue};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::Instant;

/// Reports of crews that wait for the conductor, which does nothing else.
const REPORTS_WAITING_MAX: usize = 64;
/// A crew has nothing to wait for before it is ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// Facts are looked at this often; reports come more seldom.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A crew that does not end when told is ended.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Which group of edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId(usize);

/// All crews.
pub struct Conductor {
    groups: Vec<Group>,
    incoming: queue::Receiver<Incoming>,
    to_incoming: queue::Sender<Incoming>,
    nodes: Option<latest::Receiver<Seen>>,
    errors: BTreeMap<String, u64>,
    began: Instant,
    next_line: Instant,
    scope: Scope,
}

/// Edges of one kind, in one or more processes.
struct Group {
    name: &'static str,
    crews: Vec<Crew>,
    edges: u64,
    /// Since [`Conductor::open_window`].
    window: Times,
    /// Since the last line of progress.
    second: Histogram,
    commits_us: Vec<u64>,
}

struct Crew {
    child: Child,
    orders: ChildStdin,
    now: Gauges,
    /// Its memory before the first edge; `None` until it is ready.
    rss_before: Option<u64>,
    marked: bool,
}

struct Incoming {
    group: usize,
    crew: usize,
    /// `Err`: the crew is gone.
    report: Result<Report>,
}

impl Conductor {
    /// No edges yet. With `nodes`, what the API says about them is shown, too.
    pub fn new(nodes: Option<latest::Receiver<Seen>>, scope: Scope) -> Self {
        let (to_incoming, incoming) = queue::channel("crew reports", REPORTS_WAITING_MAX);
        let began = Instant::now();
        Self {
            groups: Vec::new(),
            incoming,
            to_incoming,
            nodes,
            errors: BTreeMap::new(),
            began,
            next_line: began + TICK,
            scope,
        }
    }

    /// Starts the processes of a group; its edges do not join yet.
    pub async fn start_group(
        &mut self,
        name: &'static str,
        edges: u32,
        processes: u32,
        template: &Setup,
    ) -> Result<GroupId> {
        let group = self.groups.len();
        let mut crews = Vec::new();
        for (number, (first, count)) in budget::shares(0, edges, processes).into_iter().enumerate() {
            let mut child = processes::start_self(&["crew"])?;
            let stdout = child.stdout.take().context("a crew without an output")?;
            let orders = child.stdin.take().context("a crew without an input")?;
            let listen = listen(stdout, group, number, self.to_incoming.clone());
            self.scope.spawn_until_cancelled("crew reports", listen);
            let mut crew = Crew {
                child,
                orders,
                now: Gauges::default(),
                rss_before: None,
                marked: false,
            };
            let setup = Setup {
                first,
                count,
                ..template.clone()
            };
            crew.order(&Order::Setup(Box::new(setup))).await?;
            crews.push(crew);
        }
        self.groups.push(Group {
            name,
            crews,
            edges: u64::from(edges),
            window: Times::default(),
            second: Histogram::default(),
            commits_us: Vec::new(),
        });
        let ready = |state: &Self| {
            state.groups[group]
                .crews
                .iter()
                .all(|crew| crew.rss_before.is_some())
        };
        if !self.until(READY_MAX, ready).await? {
            bail!("the processes of hollow edges were not ready within {READY_MAX:?}");
        }
        Ok(GroupId(group))
    }

    /// Every edge of a group begins to join within this time.
    pub async fn arrive(&mut self, group: GroupId, within: Duration) -> Result<()> {
        self.order_all(
            group,
            &Order::Arrive {
                within_ms: whole_ms(within),
            },
        )
        .await
    }

    /// Every connection of a group breaks, and is made anew within this time.
    pub async fn drop_all(&mut self, group: GroupId, return_within: Duration) -> Result<()> {
        self.order_all(
            group,
            &Order::Drop {
                return_within_ms: whole_ms(return_within),
            },
        )
        .await
    }

    /// From now on the commits of this object are noted.
    pub async fn mark(&mut self, group: GroupId, mark: Mark) -> Result<()> {
        for crew in &mut self.groups[group.0].crews {
            crew.marked = false;
        }
        self.order_all(group, &Order::Mark(mark)).await?;
        let marked = |state: &Self| state.groups[group.0].crews.iter().all(|crew| crew.marked);
        if !self.until(READY_MAX, marked).await? {
            bail!("the processes of hollow edges did not take the mark within {READY_MAX:?}");
        }
        self.groups[group.0].commits_us.clear();
        Ok(())
    }

    async fn order_all(&mut self, group: GroupId, order: &Order) -> Result<()> {
        for crew in &mut self.groups[group.0].crews {
            crew.order(order).await?;
        }
        Ok(())
    }

    /// Waits until something is true; false when it was not in time.
    pub async fn until(&mut self, within: Duration, fact: impl Fn(&Self) -> bool) -> Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            if fact(self) {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            self.look(deadline.min(now + LOOK_INTERVAL)).await?;
        }
    }

    /// Lets time pass.
    pub async fn rest(&mut self, time: Duration) -> Result<()> {
        self.until(time, |_| false).await.map(drop)
    }

    /// Takes one report, or returns at `until`.
    async fn look(&mut self, until: Instant) -> Result<()> {
        tokio::select! {
            biased;
            Some(incoming) = self.incoming.recv() => self.take(incoming)?,
            () = tokio::time::sleep_until(until) => {}
        }
        if Instant::now() >= self.next_line {
            self.next_line += TICK;
            eprintln!("{}", self.line());
            for group in &mut self.groups {
                group.second = Histogram::default();
            }
        }
        Ok(())
    }

    fn take(&mut self, incoming: Incoming) -> Result<()> {
        let group = &mut self.groups[incoming.group];
        let crew = &mut group.crews[incoming.crew];
        match incoming.report.context("a process of hollow edges is gone")? {
            Report::Ready { rss_bytes } => crew.rss_before = Some(rss_bytes),
            Report::Marked => crew.marked = true,
            Report::Failed { why } => return Err(anyhow!("a process of hollow edges failed: {why}")),
            Report::Tick(tick) => {
                let Tick {
                    now,
                    times,
                    errors,
                    commits_us,
                } = *tick;
                crew.now = now;
                group.window.merge(&times);
                group.second.merge(&times.lease);
                group.commits_us.extend(commits_us);
                for (kind, count) in errors {
                    *self.errors.entry(kind).or_default() += count;
                }
            }
        }
        Ok(())
    }

    /// How things stand, on one line.
    fn line(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        let mut line = format!("{seconds:>4} s");
        for group in &self.groups {
            let now = group.now();
            let name = if self.groups.len() > 1 { group.name } else { "" };
            line += &format!(
                "  {name} joined {}/{} online {} pods {}",
                now.joined, group.edges, now.online, now.pods_running
            );
            if !group.second.is_empty() {
                let ms = |part| millis(group.second.percentile(part));
                line += &format!(" lease p50 {} p99 {} ms", ms(50.0), ms(99.0));
            }
        }
        if let Some(nodes) = &self.nodes {
            let seen = nodes.borrow();
            line += &format!("  ready {} flips {}", seen.ready(), seen.flips());
        }
        let errors: u64 = self.errors.values().sum();
        line + &format!("  errors {errors}")
    }

    pub fn now(&self, group: GroupId) -> Gauges {
        self.groups[group.0].now()
    }

    /// Moments of commits of the marked object.
    pub fn commits_us(&self, group: GroupId) -> &[u64] {
        &self.groups[group.0].commits_us
    }

    /// Forgets the times so far.
    pub fn open_window(&mut self) {
        for group in &mut self.groups {
            group.window = Times::default();
        }
    }

    /// The times since the window was opened.
    pub fn window(&self, group: GroupId) -> &Times {
        &self.groups[group.0].window
    }

    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    pub fn seen(&self) -> Option<Seen> {
        self.nodes.as_ref().map(|nodes| nodes.borrow().clone())
    }

    /// All edges that are connected.
    pub fn online(&self) -> u64 {
        self.groups.iter().map(|group| group.now().online).sum()
    }

    /// Edges of which a part has ended.
    pub fn broken(&self) -> u64 {
        self.groups.iter().map(|group| group.now().broken).sum()
    }

    /// Memory of the processes of hollow edges.
    pub fn rss_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.now().rss_bytes).sum()
    }

    /// The same before the first edge.
    pub fn rss_bytes_before(&self) -> u64 {
        let crews = self.groups.iter().flat_map(|group| &group.crews);
        crews.filter_map(|crew| crew.rss_before).sum()
    }

    pub fn pids(&self) -> Vec<u32> {
        let crews = self.groups.iter().flat_map(|group| &group.crews);
        crews.filter_map(|crew| crew.child.id()).collect()
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends the processes of hollow edges.
    pub async fn stop(mut self) {
        for group in &mut self.groups {
            for crew in &mut group.crews {
                // A crew that is gone already is stopped.
                let _ = crew.order(&Order::Stop).await;
            }
        }
        for crew in self.groups.into_iter().flat_map(|group| group.crews) {
            let Crew {
                mut child, orders, ..
            } = crew;
            drop(orders);
            if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

impl Group {
    fn now(&self) -> Gauges {
        let mut sum = Gauges::default();
        for crew in &self.crews {
            sum.add(&crew.now);
        }
        sum
    }
}

impl Crew {
    async fn order(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order).context("write an order")?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .await
            .context("a process of hollow edges is gone")
    }
}

async fn listen(stdout: ChildStdout, group: usize, crew: usize, to: queue::Sender<Incoming>) {
    let mut reports = Lines::new(stdout, LINE_BYTES_MAX);
    loop {
        let report = match reports.next().await {
            Ok(Some(report)) => Ok(report),
            Ok(None) => Err(anyhow!("it ended by itself; its last words are above")),
            Err(error) => Err(error),
        };
        let gone = report.is_err();
        let incoming = Incoming { group, crew, report };
        if to.send(incoming).await.is_err() || gone {
            return;
        }
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where the edges of a run dial and what they present.
pub fn template(plan: &Plan, target: &Target, places: &Places, prefix: &str, nice: i32) -> Setup {
    Setup {
        hubs: target.hubs.clone(),
        quic: plan.transport == Transport::Quic,
        https: target.https.clone(),
        token: target.token.clone(),
        prefix: prefix.to_owned(),
        first: 0,
        count: 0,
        state: places.state.clone(),
        scratch: places.scratch.clone(),
        nice,
        log: plan.log.clone(),
    }
}

/// Where the edges of a run keep their files.
#[derive(Debug)]
pub struct Places {
    pub state: std::path::PathBuf,
    pub scratch: std::path::PathBuf,
}
