//! The one task that owns the pods: it takes events, asks [`kedge_pods::Pods`], and hands out what is to be done.
//!
//! | file | holds |
//! |---|---|
//! | `setup` | what stands before the first event |
//! | `desired` | what the cloud and the files of this node want |
//! | `observe` | what the runtime shows |
//! | `perform` | what is handed out |
//! | `tell` | what the cloud and the tasks beside the owner are told |

mod desired;
mod observe;
mod perform;
mod setup;
mod tell;

pub use setup::PodRules;
pub(crate) use setup::run;

use crate::LogAnswer;
use crate::beside::{Board, Order};
use crate::cloud::Error;
use crate::face::ProbeCounts;
use crate::hands::Hands;
use crate::logs::Logs;
use crate::objects::Held;
use crate::reports::Reports;
use desired::Changes;
use kedge_api::Pod;
use kedge_pods::{ObservationId, Outcome, PodKey, Pods, ProbeId, ProbeResult, Release};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{Body, ObjectKey, Time};
use observe::Observer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Outcomes that wait for the owner. It never waits for a hand, so this only evens out bursts.
const RESULTS_MAX: usize = 64;
/// A smaller difference between the clocks is no step but the one running a little faster than the other.
const CLOCK_STEP_MIN_MS: u64 = 1000;

/// What comes back to the owner.
enum Event {
    Outcome {
        uid: String,
        outcome: Outcome,
    },
    Probe {
        id: ProbeId,
        result: ProbeResult,
        took: Duration,
    },
    Orphan {
        uid: String,
    },
    Reported {
        uid: String,
        result: Result<(), Error>,
    },
    Observed {
        id: ObservationId,
        result: Result<observe::Found, String>,
    },
}

/// Where events come from.
struct Inputs {
    desired: keyed::Receiver<ObjectKey, Option<Body>>,
    complete: latest::Receiver<bool>,
    online: latest::Receiver<bool>,
    logs: ask::Receiver<NodeGet, LogAnswer>,
    orders: queue::Receiver<Order>,
    /// Pods that need not wait for their release any more.
    releases: queue::Receiver<Release>,
    /// Static pods; `None`: this node has no source of them.
    files: Option<latest::Receiver<Option<Vec<Pod>>>>,
    results: queue::Receiver<Event>,
    /// The runtime says that something may have changed.
    hint: Arc<Notify>,
}

struct Owner {
    pods: Pods,
    held: Held,
    changes: Changes,
    reports: Reports,
    hands: Hands,
    scope: Scope,
    node_name: String,
    logs: Logs,
    observer: Observer,
    board: Board,
    /// The pods may differ from what the board shows.
    board_stale: bool,
    /// Ends the waits of a pod that shall not run any more, by UID.
    waits: BTreeMap<String, (PodKey, Scope)>,
    results: queue::Sender<Event>,
    /// When this task was last seen alive.
    beat: latest::Sender<Time>,
    probes: ProbeCounts,
    /// Waits until all reports are with metamanager.
    told_waiter: Option<Arc<Notify>>,
    /// Actions under way.
    under_way: usize,
    /// No desired pod is missing from what was handed over.
    holds_all: bool,
    /// And the pods have been told so.
    complete: bool,
    /// The files of this node have been looked at, where there are any.
    files_known: bool,
    /// What unknown pods left on the disk was removed.
    swept: bool,
    /// What the pods were told that the wall clock is ahead of the clock of this process.
    ahead_ms: i64,
}

impl Owner {
    async fn run(mut self, initial: Vec<(ObjectKey, Body)>, mut inputs: Inputs) {
        if inputs.files.is_none() {
            self.static_pods(Vec::new());
        }
        for (key, body) in initial {
            self.desired(key, Some(body));
        }
        let mut was_online = *inputs.online.borrow_and_update();
        let scope = self.scope.clone();
        let (mut desired_open, mut online_open, mut logs_open) = (true, true, true);
        let (mut orders_open, mut releases_open) = (true, true);
        let mut complete_open = true;
        // Looked at like a change of it: behind the objects that wait already.
        inputs.complete.mark_changed();
        loop {
            self.settle();
            self.look_at_wall_clock();
            self.beat.send_replace(self.now());
            let wake = self.hands.clock.instant(self.wake_at());
            tokio::select! {
                biased;
                // Ending comes first: no new work.
                () = scope.cancelled() => return,
                // What the cloud wants decides about everything else.
                change = inputs.desired.recv(), if desired_open => match change {
                    Some((key, body)) => self.desired(key, body),
                    None => desired_open = false,
                },
                // The objects that made it so were there before the word, and none waits any more.
                () = std::future::ready(()), if self.may_complete() => self.complete(),
                files = files_changed(&mut inputs.files) => match files {
                    Some(pods) => self.static_pods(pods),
                    None => inputs.files = None,
                },
                changed = inputs.complete.changed(), if complete_open => {
                    complete_open = changed.is_ok();
                    self.holds_all = *inputs.complete.borrow_and_update();
                },
                Some(event) = inputs.results.recv() => self.event(event),
                order = inputs.orders.recv(), if orders_open => match order {
                    Some(order) => self.order(order),
                    None => orders_open = false,
                },
                release = inputs.releases.recv(), if releases_open => match release {
                    Some(release) => self.pods.handle_release(&release, self.now()),
                    None => releases_open = false,
                },
                () = inputs.hint.notified() => self.observer.look_again = true,
                changed = inputs.online.changed(), if online_open => {
                    online_open = changed.is_ok();
                    let is_online = *inputs.online.borrow_and_update();
                    if is_online && !was_online {
                        self.online();
                    }
                    was_online = is_online;
                },
                question = inputs.logs.recv(), if logs_open => match question {
                    Some(question) => self.logs(question),
                    None => logs_open = false,
                },
                () = tokio::time::sleep_until(wake) => self.timeout(),
            }
        }
    }

    fn now(&self) -> Time {
        self.hands.clock.now()
    }

    /// The machine's clock may have been set since the last turn. What is written for others follows it; what is waited
    /// for does not.
    fn look_at_wall_clock(&mut self) {
        let as_ms = |time: Time| i64::try_from(time.as_ms()).unwrap_or(i64::MAX);
        let ahead_ms = as_ms(self.hands.clock.wall()) - as_ms(self.now());
        if ahead_ms.abs_diff(self.ahead_ms) >= CLOCK_STEP_MIN_MS {
            tracing::info!(ahead_ms, "the machine's clock was set");
            self.ahead_ms = ahead_ms;
            self.pods.handle_wall_clock(ahead_ms);
        }
    }

    fn online(&mut self) {
        let now = self.now();
        self.pods.handle_online(now);
    }

    fn may_complete(&self) -> bool {
        self.holds_all && self.files_known && !self.complete
    }

    /// What belongs to no pod may go from now on.
    fn complete(&mut self) {
        self.complete = true;
        self.pods.handle_desired_complete(self.now());
    }

    fn event(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Outcome { uid, outcome } => {
                self.under_way -= 1;
                self.waits.remove(&uid);
                self.board_stale = true;
                self.pods.handle_outcome(&uid, outcome, now);
            }
            Event::Probe { id, result, took } => {
                self.probes.count(&id, &result, took);
                self.pods.handle_probe(&id, result, now);
            }
            Event::Orphan { uid } => {
                self.under_way -= 1;
                self.pods.handle_orphan_removed(&uid);
            }
            Event::Reported { uid, result } => self.reported(&uid, result, now),
            Event::Observed { id, result } => self.observed(id, result, now),
        }
    }

    fn order(&mut self, order: Order) {
        let now = self.now();
        self.board_stale = true;
        match order {
            Order::Evict { uid, eviction } => {
                self.pods.handle_evict(&uid, &eviction, now);
                if let Some((_, wait)) = self.waits.remove(&uid) {
                    wait.cancel();
                }
            }
            Order::Allocatable(amounts) => self.pods.handle_allocatable(amounts, now),
            Order::Node(node) => self.node_shown(node),
            Order::Pressures(pressures) => self.pods.handle_pressures(pressures),
            Order::RecursiveReadOnly(handlers) => self.pods.handle_recursive_read_only(handlers, now),
            Order::ShuttingDown => self.pods.handle_shutdown(),
            Order::WhenTold(waiter) => self.told_waiter = Some(waiter),
        }
    }

    fn timeout(&mut self) {
        self.pods.handle_timeout(self.now());
    }

    fn wake_at(&self) -> Time {
        let now = self.now();
        let moments = [
            self.observer.due(now, self.under_way > 0),
            self.changes.due(),
            self.pods.poll_timeout(now),
        ];
        let idle = now + observe::RELIST_IDLE;
        moments.into_iter().flatten().min().unwrap_or(idle)
    }

    /// Hands out everything that is to be done now.
    fn settle(&mut self) {
        self.tell_changes();
        while let Some(effect) = self.pods.poll_effect() {
            self.perform(effect);
        }
        while let Some(letter) = self.reports.next() {
            self.send(letter);
        }
        if self.reports.is_idle()
            && let Some(waiter) = self.told_waiter.take()
        {
            waiter.notify_one();
        }
        self.publish_pods();
        self.sweep();
        let due = self.observer.shall_look(self.now(), self.under_way > 0);
        if due || self.observer.may_look() && self.pods.wants_observation() {
            self.observe();
        }
    }

    fn logs(&self, question: ask::Question<NodeGet, LogAnswer>) {
        let uid = |namespace: &str, name: &str| {
            self.pods
                .pod(&PodKey::new(namespace, name))
                .map(|pod| pod.uid().to_owned())
        };
        self.logs.serve(question, uid, self.now(), &self.scope);
    }
}

/// The next set of static pods; `None` when nobody reads files any more.
async fn files_changed(files: &mut Option<latest::Receiver<Option<Vec<Pod>>>>) -> Option<Vec<Pod>> {
    let Some(files) = files else {
        return std::future::pending().await;
    };
    loop {
        files.changed().await.ok()?;
        let pods = files.borrow_and_update().clone();
        if pods.is_some() {
            return pods;
        }
    }
}
