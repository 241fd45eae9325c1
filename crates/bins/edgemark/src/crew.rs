//! A process of hollow edges: takes orders from standard input, reports on standard output, ends when either is gone.

use crate::hollow::{HollowEdge, Setting, Tally};
use crate::orders::{LINE_BYTES_MAX, Order, Report, Setup};
use crate::proc;
use crate::processes::{self, Lines};
use anyhow::{Context, Result, bail};
use kedge_edgehub::Transport;
use kedge_telemetry::channel::queue;
use kedge_telemetry::clock::process_seed;
use kedge_telemetry::{Scope, logs};
use kedge_wire::NodeName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// Hollow edges wait most of the time; more threads would only take turns on the cores that CloudCore needs.
const WORKER_THREADS: usize = 2;
/// Log lines and volumes are written by these; a thread for each of ten thousand pods would be memory for each.
const BLOCKING_THREADS_MAX: usize = 8;
/// How often a crew reports.
pub const TICK: Duration = Duration::from_secs(1);
/// Containers are counted at every so many ticks: the count asks each of ten thousand runtimes.
const TICKS_PER_COUNT: u64 = 2;
/// Reports that wait for the pipe. The conductor reads at once; more than this means that it is gone or stuck.
const REPORTS_WAITING_MAX: usize = 16;
/// A crew that does not end by itself is ended: nothing of a hollow edge needs to be kept.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Runs the process.
pub fn main() -> Result<()> {
    processes::end_with_parent()?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    let outcome = tokio.block_on(run());
    // What still writes a log line of a hollow container is not waited for.
    tokio.shutdown_background();
    outcome
}

async fn run() -> Result<()> {
    let (input, mut output) = processes::standard_pipes()?;
    let mut orders = Lines::new(input, LINE_BYTES_MAX);
    let Some(Order::Setup(setup)) = orders.next().await? else {
        bail!("the first order must be a setup; this command is for edgemark itself");
    };
    let (reports, mut waiting) = queue::channel("reports", REPORTS_WAITING_MAX);
    let writer = tokio::spawn(async move {
        while let Some(report) = waiting.recv().await {
            let mut line = serde_json::to_string(&report).context("write a report")?;
            line.push('\n');
            output
                .write_all(line.as_bytes())
                .await
                .context("the conductor is gone")?;
        }
        anyhow::Ok(())
    });
    let crew = match Crew::new(*setup) {
        Ok(crew) => crew,
        Err(error) => {
            let why = format!("{error:#}");
            let _ = reports.send(Report::Failed { why }).await;
            drop(reports);
            return writer.await?;
        }
    };
    let scope = crew.scope.clone();
    let outcome = tokio::select! {
        outcome = crew.serve(&mut orders, reports) => outcome,
        gone = writer => gone?,
    };
    scope.drain(DRAIN_MAX).await;
    outcome
}

struct Crew {
    setup: Setup,
    setting: Arc<Setting>,
    edges: Arc<[HollowEdge]>,
    scope: Scope,
}

impl Crew {
    fn new(setup: Setup) -> Result<Self> {
        logs::install(&setup.log, logs::Format::Text, logs::stderr());
        if setup.nice > 0 {
            rustix::process::nice(setup.nice).context("stand back for the others (nice)")?;
        }
        proc::raise_descriptor_limit().context("raise the limit of file descriptors")?;
        // Every name is checked before the first edge begins.
        NodeName::new(format!("{}-{}", setup.prefix, setup.first)).context("--name-prefix")?;
        let scope = Scope::new();
        let setting = Setting {
            hubs: setup.hubs.clone(),
            transport: if setup.quic {
                Transport::Quic
            } else {
                Transport::WebSocket
            },
            https: setup.https.clone(),
            token: setup.token.clone(),
            state: setup.state.clone(),
            scratch: setup.scratch.clone(),
            tally: Arc::new(Tally::default()),
        };
        let edges = (0..setup.count).map(|_| HollowEdge::new(&scope)).collect();
        Ok(Self {
            setting: Arc::new(setting),
            edges,
            scope,
            setup,
        })
    }

    async fn serve<R>(self, orders: &mut Lines<R>, reports: queue::Sender<Report>) -> Result<()>
    where
        R: tokio::io::AsyncRead + Unpin,
    {
        reports
            .send(Report::Ready {
                rss_bytes: rss_bytes(),
            })
            .await?;
        let mut next = Instant::now() + TICK;
        let mut ticks = 0;
        let mut pods_running = 0;
        loop {
            tokio::select! {
                biased;
                // A tick that is late would make the second of its figures longer.
                () = tokio::time::sleep_until(next) => {
                    next += TICK;
                    ticks += 1;
                    if ticks % TICKS_PER_COUNT == 0 {
                        pods_running = self.count_pods().await;
                    }
                    reports.send(self.tick(pods_running)).await?;
                }
                order = orders.next() => match order? {
                    None | Some(Order::Stop) => return Ok(()),
                    Some(Order::Setup(_)) => bail!("a crew is set up once"),
                    Some(Order::Arrive { within_ms }) => self.arrive(Duration::from_millis(within_ms)),
                    Some(Order::Drop { return_within_ms }) => {
                        self.drop_all(Duration::from_millis(return_within_ms));
                    }
                    Some(Order::Mark(mark)) => {
                        self.setting.tally.mark(mark);
                        reports.send(Report::Marked).await?;
                    }
                }
            }
        }
    }

    fn tick(&self, pods_running: u64) -> Report {
        let mut tick = self.setting.tally.take();
        tick.now.pods_running = pods_running;
        tick.now.rss_bytes = rss_bytes();
        let broken = self.edges.iter().filter(|edge| edge.failure().is_some()).count();
        tick.now.broken = u64::try_from(broken).unwrap_or(u64::MAX);
        Report::Tick(Box::new(tick))
    }

    async fn count_pods(&self) -> u64 {
        let mut running = 0;
        for edge in self.edges.iter() {
            running += edge.pods_running().await;
        }
        running
    }

    /// Each edge begins at its own moment of `within`.
    fn arrive(&self, within: Duration) {
        let (edges, setting, scope) = (
            Arc::clone(&self.edges),
            Arc::clone(&self.setting),
            self.scope.clone(),
        );
        let (prefix, first) = (self.setup.prefix.clone(), self.setup.first);
        let seed = process_seed();
        self.scope.spawn_until_cancelled("arrivals", async move {
            let began = Instant::now();
            for (at, number) in (0..edges.len()).zip(first..) {
                tokio::time::sleep_until(began + moment(at, edges.len(), within)).await;
                let Ok(node) = NodeName::new(format!("{prefix}-{number}")) else {
                    setting.tally.error("start: bad node name");
                    continue;
                };
                let (edges, setting) = (Arc::clone(&edges), Arc::clone(&setting));
                let seed = seed ^ u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                scope.spawn("join", async move { edges[at].join(setting, node, seed).await });
            }
        });
    }

    /// All break at once, each returns at its own moment of `within`.
    fn drop_all(&self, within: Duration) {
        let edges = Arc::clone(&self.edges);
        for edge in edges.iter() {
            edge.drop_connection();
        }
        self.scope.spawn_until_cancelled("returns", async move {
            let began = Instant::now();
            for (at, edge) in edges.iter().enumerate() {
                tokio::time::sleep_until(began + moment(at, edges.len(), within)).await;
                edge.let_back();
            }
        });
    }
}

fn rss_bytes() -> u64 {
    proc::memory(std::process::id()).map_or(0, |memory| memory.rss_bytes)
}

/// The moment of one of many within a time, evenly spread.
fn moment(at: usize, of: usize, within: Duration) -> Duration {
    within.mul_f64(at as f64 / of.max(1) as f64)
}
