//! What is played, scenario by scenario. Each reads as the story that its name tells.

use crate::cli::{Newcomers, Scenario};
use crate::conductor::{Conductor, GroupId, Places, template};
use crate::histogram::Histogram;
use crate::hollow::wall_us;
use crate::meter::{Baseline, Span};
use crate::orders::Mark;
use crate::plan::{Nonsense, Plan};
use crate::stage::Stage;
use crate::summary::{Promise, Summary, rounded};
use crate::watch::{Seen, Target};
use crate::workload::Workload;
use anyhow::{Context, Result};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use std::time::Duration;

/// What all edges of a run may take to join, beyond the time over which they arrive. Ten thousand on a small machine
/// take a while, and the figures say how long.
const JOIN_MAX: Duration = Duration::from_secs(300);
/// The same for pods.
const PODS_MAX: Duration = Duration::from_secs(300);
/// After everything has come up: buffers are freed, the last reports are written.
const SETTLE: Duration = Duration::from_secs(15);
/// Each edge renews its lease once in this time.
const LEASE_ROUND: Duration = Duration::from_secs(10);
/// An edge whose connection was lost comes back within its longest wait.
const RETURN_MAX: Duration = Duration::from_secs(120);
/// A change of a config map that has not arrived by then counts as lost.
const COMMIT_MAX: Duration = Duration::from_secs(120);
/// Between two changes.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// A lease that nobody renewed makes its node not ready within this: 40 s of grace, and the node controller's period.
const NOT_READY_MAX: Duration = Duration::from_secs(60);
/// How far the newcomers stand back where processors are few: in reality they are machines of their own, and must not
/// take the time of those that are measured.
const NEWCOMERS_NICE: i32 = 10;

/// The promises of SPECIFICATION.md.
const IDLE_RSS_MB: f64 = 25.0;
const IDLE_BYTES_PER_EDGE: f64 = 20.0 * 1024.0;
const IDLE_CALLS: f64 = 3.0;
const NEIGHBOURS_LEASE_MS: f64 = 1000.0;
const FANOUT_MS: f64 = 3000.0;

/// A run under way.
pub struct Play<'a> {
    plan: &'a Plan,
    target: Target,
    places: &'a Places,
    workload: Option<Workload>,
    conductor: Conductor,
    baseline: Baseline,
    summary: Summary,
}

/// The first part of the names of a plan's nodes.
pub fn prefixes(plan: &Plan) -> Vec<String> {
    if plan.scenario == Scenario::Neighbours {
        vec![running_prefix(plan), newcomers_prefix(plan)]
    } else {
        vec![plan.prefix.clone()]
    }
}

/// The names of a plan's nodes.
pub fn node_names(plan: &Plan) -> Vec<String> {
    let named = |prefix: &str, count: u32| -> Vec<String> {
        (0..count).map(|number| format!("{prefix}-{number}")).collect()
    };
    if plan.scenario == Scenario::Neighbours {
        let mut names = named(&running_prefix(plan), plan.running);
        names.extend(named(&newcomers_prefix(plan), plan.nodes));
        names
    } else {
        named(&plan.prefix, plan.nodes)
    }
}

fn running_prefix(plan: &Plan) -> String {
    format!("{}-run", plan.prefix)
}

fn newcomers_prefix(plan: &Plan) -> String {
    format!("{}-new", plan.prefix)
}

/// Plays the plan. `stage` is there when CloudCore is ours to kill.
pub async fn play(
    plan: &Plan,
    target: Target,
    places: &Places,
    nodes: Option<latest::Receiver<Seen>>,
    stage: Option<&mut Stage>,
    scope: &Scope,
) -> Result<Summary> {
    let workload = Workload::prepare(&target, wall_us()).await?;
    let mut play = Play {
        baseline: Baseline::take(&target),
        conductor: Conductor::new(nodes, scope.clone()),
        summary: Summary {
            scenario: plan.scenario.name(),
            nodes: plan.nodes,
            pods_per_node: plan.pods_per_node,
            running: plan.running,
            processes: plan.processes,
            arrive_within_s: plan.arrive_within.as_secs_f64(),
            ..Summary::default()
        },
        plan,
        target,
        places,
        workload,
    };
    let played = match plan.scenario {
        Scenario::Idle => play.idle().await,
        Scenario::Join => play.join().await,
        Scenario::Storm => play.storm().await,
        Scenario::Neighbours => play.neighbours().await,
        Scenario::ConfigFanout => play.config_fanout().await,
        Scenario::Replica => match stage {
            Some(stage) => play.replica(stage).await,
            None => Err(Nonsense::ReplicaOfOthers.into()),
        },
    };
    let summary = play.finish(played.is_ok()).await;
    played.and(summary)
}

impl Play<'_> {
    /// Edges with pods come to rest and are watched.
    async fn idle(&mut self) -> Result<()> {
        let edges = self.start_all_with_pods(false).await?;
        self.conductor.rest(SETTLE).await?;
        self.conductor.open_window();
        let span = self.begin().await;
        self.conductor.rest(self.plan.duration).await?;
        self.end(span, true).await;
        self.summary.add_times(self.conductor.window(edges));
        if let Some(rss) = self.baseline.rss_bytes() {
            self.promise(
                "RSS of CloudCore without nodes, MB",
                IDLE_RSS_MB,
                rss as f64 / 1e6,
            );
        }
        let per_edge = self
            .summary
            .cloudcore
            .first()
            .and_then(|cloud| cloud.bytes_per_edge);
        if let Some(bytes) = per_edge {
            self.promise(
                "bytes of CloudCore for each edge",
                IDLE_BYTES_PER_EDGE,
                bytes as f64,
            );
        }
        let calls = self.summary.api.as_ref().and_then(|api| api.per_node_minute);
        if let Some(calls) = calls {
            self.promise("calls on the API per node and minute", IDLE_CALLS, calls);
        }
        Ok(())
    }

    /// New nodes, from the first dial to the first lease.
    async fn join(&mut self) -> Result<()> {
        let edges = self.start("edges").await?;
        let span = self.begin().await;
        self.join_all(edges).await?;
        self.end(span, false).await;
        self.summary.add_times(self.conductor.window(edges));
        let missing = f64::from(self.plan.nodes) - self.summary.joined as f64;
        self.promise("edges that did not join", 0.0, missing);
        self.run_pods(edges, &self.plan.prefix, self.plan.nodes, false)
            .await
    }

    /// All connections break at once.
    async fn storm(&mut self) -> Result<()> {
        let edges = self.start_all_with_pods(false).await?;
        self.conductor.rest(LEASE_ROUND).await?;
        self.conductor.open_window();
        let span = self.begin().await;
        self.conductor.drop_all(edges, self.plan.arrive_within).await?;
        let all = u64::from(self.plan.nodes);
        // Counted are the returns: that all are connected is also true before they are gone.
        let wait = self.plan.arrive_within + RETURN_MAX;
        self.conductor
            .until(wait, |c| c.window(edges).back.count() >= all)
            .await?;
        // Each renews its lease once more, and a node that was missed would be told by now.
        self.conductor.rest(NOT_READY_MAX).await?;
        self.end(span, false).await;
        self.summary.add_times(self.conductor.window(edges));
        let missing = all.saturating_sub(self.conductor.now(edges).online);
        self.promise("edges that did not return", 0.0, missing as f64);
        self.promise_flips(&self.plan.prefix);
        Ok(())
    }

    /// Some run while many others come.
    async fn neighbours(&mut self) -> Result<()> {
        let plan = self.plan;
        let (run, new) = (running_prefix(plan), newcomers_prefix(plan));
        let setup = template(plan, &self.target, self.places, &run, 0);
        let conductor = &mut self.conductor;
        let running = conductor
            .start_group("running", plan.running, plan.running_processes, &setup)
            .await?;
        let setup = template(plan, &self.target, self.places, &new, NEWCOMERS_NICE);
        let newcomers = conductor
            .start_group("newcomers", plan.nodes, plan.processes, &setup)
            .await?;
        if plan.newcomers == Newcomers::Return {
            self.join_group(newcomers, plan.nodes).await?;
        }
        self.join_group(running, plan.running).await?;
        self.run_pods(running, &run, plan.running, false).await?;
        self.conductor.rest(SETTLE).await?;

        self.conductor.open_window();
        self.conductor.rest(LEASE_ROUND * 2).await?;
        let calm = self.conductor.window(running).lease.clone();
        self.summary.add_time("running_lease_reply_before", &calm);

        self.conductor.open_window();
        let span = self.begin().await;
        let wait = plan.arrive_within + JOIN_MAX;
        let all = u64::from(plan.nodes);
        match plan.newcomers {
            Newcomers::Join => {
                self.conductor.arrive(newcomers, plan.arrive_within).await?;
                self.conductor
                    .until(wait, |c| c.now(newcomers).joined >= all)
                    .await?;
            }
            Newcomers::Return => {
                self.conductor.drop_all(newcomers, plan.arrive_within).await?;
                self.conductor
                    .until(wait, |c| c.window(newcomers).back.count() >= all)
                    .await?;
            }
        }
        let stormy = self.conductor.window(running).lease.clone();
        self.end(span, false).await;
        self.summary.add_times(self.conductor.window(newcomers));
        self.summary.add_time("running_lease_reply", &stormy);
        // A node whose lease was missed would be told by now.
        self.conductor.rest(NOT_READY_MAX).await?;
        let missing = match plan.newcomers {
            Newcomers::Join => all.saturating_sub(self.conductor.now(newcomers).joined),
            Newcomers::Return => all.saturating_sub(self.conductor.now(newcomers).online),
        };
        self.promise("newcomers that did not come", 0.0, missing as f64);
        if let Some(p) = stormy.percentiles() {
            self.promise(
                "p99 of the lease replies of running edges, ms",
                NEIGHBOURS_LEASE_MS,
                p.p99,
            );
        }
        self.promise_flips(&run);
        Ok(())
    }

    /// One change, many edges.
    async fn config_fanout(&mut self) -> Result<()> {
        let edges = self.start_all_with_pods(true).await?;
        self.conductor.rest(SETTLE).await?;
        self.conductor.open_window();
        let span = self.begin().await;
        let (mut each, mut whole) = (Histogram::default(), Histogram::default());
        let mut lost = 0;
        for round in 1..=self.plan.rounds {
            lost += self.change_config(edges, round, &mut each, &mut whole).await?;
            self.conductor.rest(ROUND_PAUSE).await?;
        }
        self.end(span, false).await;
        self.summary.add_times(self.conductor.window(edges));
        self.summary.add_time("config_commit", &each);
        self.summary.add_time("config_commit_of_the_last", &whole);
        self.promise("commits that did not come", 0.0, lost as f64);
        if let Some(p) = whole.percentiles() {
            self.promise(
                "until the last edge has committed a config map, ms",
                FANOUT_MS,
                p.max,
            );
        }
        Ok(())
    }

    /// One of two CloudCores is killed, and a config map changes at that moment.
    async fn replica(&mut self, stage: &mut Stage) -> Result<()> {
        let edges = self.start_all_with_pods(true).await?;
        self.conductor.rest(SETTLE).await?;
        self.conductor.open_window();
        let span = self.begin().await;
        let all = u64::from(self.plan.nodes);
        let (mut each, mut whole) = (Histogram::default(), Histogram::default());
        stage.kill_first_cloud().await?;
        let lost = self.change_config(edges, 1, &mut each, &mut whole).await?;
        self.conductor
            .until(RETURN_MAX, |c| {
                c.now(edges).online >= all && c.window(edges).back.count() > 0
            })
            .await?;
        self.conductor.rest(NOT_READY_MAX).await?;
        self.end(span, false).await;
        self.summary.add_times(self.conductor.window(edges));
        self.summary.add_time("config_commit", &each);
        self.promise("commits that did not come", 0.0, lost as f64);
        let missing = all.saturating_sub(self.conductor.now(edges).online);
        self.promise("edges that did not return", 0.0, missing as f64);
        self.promise_flips(&self.plan.prefix);
        Ok(())
    }

    /// Changes the config map and waits for every edge; gives the number of those that did not take it.
    async fn change_config(
        &mut self,
        edges: GroupId,
        round: u32,
        each: &mut Histogram,
        whole: &mut Histogram,
    ) -> Result<u64> {
        let workload = self.workload.as_ref().context("there is a client of the API")?;
        let mark = Mark {
            key: Workload::config_map_key(),
            text: workload.mark(round),
        };
        self.conductor.mark(edges, mark).await?;
        let began = wall_us();
        let workload = self.workload.as_ref().context("there is a client of the API")?;
        workload.set_config_map(round).await?;
        let all = usize::try_from(self.plan.nodes).unwrap_or(usize::MAX);
        self.conductor
            .until(COMMIT_MAX, |c| c.commits_us(edges).len() >= all)
            .await?;
        let commits = self.conductor.commits_us(edges);
        let after = |at: &u64| Duration::from_micros(at.saturating_sub(began));
        commits.iter().for_each(|at| each.observe(after(at)));
        if let Some(last) = commits.iter().max() {
            whole.observe(after(last));
        }
        Ok(u64::try_from(all.saturating_sub(commits.len())).unwrap_or(u64::MAX))
    }

    /// Starts the processes of a scenario that has one group.
    async fn start(&mut self, name: &'static str) -> Result<GroupId> {
        let setup = template(self.plan, &self.target, self.places, &self.plan.prefix, 0);
        self.conductor
            .start_group(name, self.plan.nodes, self.plan.processes, &setup)
            .await
    }

    /// All edges of a scenario that has one group, joined and with their pods.
    async fn start_all_with_pods(&mut self, with_config: bool) -> Result<GroupId> {
        let edges = self.start("edges").await?;
        self.join_all(edges).await?;
        self.run_pods(edges, &self.plan.prefix, self.plan.nodes, with_config)
            .await?;
        Ok(edges)
    }

    async fn join_all(&mut self, edges: GroupId) -> Result<()> {
        self.join_group(edges, self.plan.nodes).await
    }

    /// Lets a group join; those that do not within the limit are missing in the summary.
    async fn join_group(&mut self, group: GroupId, edges: u32) -> Result<()> {
        let within = self.plan.arrive_within;
        self.conductor.arrive(group, within).await?;
        let all = u64::from(edges);
        if !self
            .conductor
            .until(within + JOIN_MAX, |c| c.now(group).joined >= all)
            .await?
        {
            eprintln!(
                "not all edges joined within {:?}; going on with those that did",
                within + JOIN_MAX
            );
        }
        self.summary.joined += self.conductor.now(group).joined;
        Ok(())
    }

    /// Creates the pods of a group and waits until they run.
    async fn run_pods(&mut self, group: GroupId, prefix: &str, nodes: u32, with_config: bool) -> Result<()> {
        let each = self.plan.pods_per_node;
        let Some(workload) = self.workload.as_ref().filter(|_| each > 0) else {
            return Ok(());
        };
        if with_config {
            workload.set_config_map(0).await?;
        }
        let all = u64::from(nodes) * u64::from(each);
        // Both at one time: progress goes on while pods are created.
        let (created, running) = tokio::join!(
            workload.create_pods(prefix, nodes, each, with_config),
            self.conductor
                .until(PODS_MAX, |c| c.now(group).pods_running >= all)
        );
        created?;
        if !running? {
            eprintln!("not all pods run after {PODS_MAX:?}; going on");
        }
        self.summary.pods_running += self.conductor.now(group).pods_running;
        Ok(())
    }

    async fn begin(&self) -> Span {
        Span::begin(&self.target, &self.conductor).await
    }

    async fn end(&mut self, span: Span, at_rest: bool) {
        span.end(
            &self.target,
            &self.conductor,
            &self.baseline,
            &mut self.summary,
            at_rest,
        )
        .await;
    }

    fn promise(&mut self, what: &'static str, at_most: f64, seen: f64) {
        self.summary
            .promises
            .push(Promise::new(what, at_most, rounded(seen)));
    }

    /// No node of this prefix was ever not ready.
    fn promise_flips(&mut self, prefix: &str) {
        if let Some(seen) = self.conductor.seen() {
            self.promise("nodes that became not ready", 0.0, seen.flips_of(prefix) as f64);
        }
    }

    /// Ends the edges and gives the summary.
    async fn finish(mut self, complete: bool) -> Result<Summary> {
        self.summary.took_s = rounded(self.conductor.took().as_secs_f64());
        self.summary.ready_flips = self.conductor.seen().map(|seen| seen.flips());
        self.summary.errors = self.conductor.errors().clone();
        let broken: u64 = self.conductor.broken();
        if broken > 0 {
            self.summary
                .errors
                .insert("edges that lost a part".to_owned(), broken);
        }
        self.conductor.stop().await;
        if let Some(workload) = self.workload.filter(|_| !self.plan.keep) {
            let removed = workload
                .remove(&node_names(self.plan), self.plan.pods_per_node)
                .await;
            if complete {
                removed?;
            }
        }
        Ok(self.summary)
    }
}
