//! The one task that owns the pods: it takes events, asks [`kedge_pods::Pods`], and hands out what is to be done.

mod setup;

use crate::clock::Clock;
use crate::cloud::{Cloud, Error};
use crate::config::Config;
use crate::events::Events;
use crate::hands::{Hands, STARTS_MAX};
use crate::logs::Logs;
use crate::node::{NodeTasks, RuntimeTrouble};
use crate::objects::{Held, Snapshot};
use crate::reports::{Letter, Reports};
use crate::{LogAnswer, Ports, probe, termination};
use kedge_api::Pod;
use kedge_containers::ObservedSandbox;
use kedge_host::Facts;
use kedge_link::edge::RequestError;
use kedge_pods::translate::{References, env_references, volume_references};
use kedge_pods::{Action, Effect, ObservationId, Outcome, PodKey, Pods, ProbeId, ProbeResult};
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{Body, ObjectKey, ObjectKind, Time};
use setup::{addresses, pods_config, start_hints};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Outcomes that wait for the owner. It never waits for a hand, so this only evens out bursts.
const RESULTS_MAX: usize = 64;
/// While something is under way the runtime is listed this often at least.
const RELIST_BUSY: Duration = Duration::from_secs(1);
/// Otherwise this often; a change is told by the runtime's hint long before.
const RELIST_IDLE: Duration = Duration::from_secs(10);
/// A list that takes longer has failed.
const LIST_MAX: Duration = Duration::from_secs(30);
/// A runtime that has not answered for this long makes the node not ready.
const RUNTIME_SILENCE_MAX: Duration = Duration::from_secs(30);
/// A node that has never held anything gets this long after its first connection before containers of unknown pods are
/// taken for orphans: the desired set is on its way.
const FIRST_SET_WAIT: Duration = Duration::from_secs(60);

/// What comes back to the owner.
enum Event {
    Outcome {
        uid: String,
        outcome: Outcome,
    },
    Probe {
        id: ProbeId,
        result: ProbeResult,
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
        result: Result<(Vec<ObservedSandbox>, termination::Messages), String>,
    },
}

/// Runs edged until the scope is cancelled.
pub(crate) async fn run(
    config: Config,
    facts: Facts,
    runtime: Arc<dyn Runtime>,
    initial: Vec<(ObjectKey, Body)>,
    ports: Ports,
    scope: Scope,
) {
    let clock = Clock::start();
    let version = runtime.version().await;
    let prefix = version.map_or_else(|_| "kedge".to_owned(), |version| version.name);
    let addresses = addresses(&config, &facts);
    let pods_config = pods_config(&config, &facts, addresses.clone(), &prefix);
    let (results_tx, results) = queue::channel("edged-results", RESULTS_MAX);
    let (trouble, trouble_rx) = latest::channel(None);
    let (seen, seen_rx) = latest::channel(Arc::new(Vec::new()));
    let Ports {
        desired,
        cloud,
        online,
        node_get,
    } = ports;
    let cloud = Cloud::new(cloud);
    let events = Events::start(
        config.report_events,
        cloud.clone(),
        config.node_name.to_string(),
        clock,
        &scope,
    );
    let tasks = NodeTasks {
        config: Arc::new(config),
        facts: Arc::new(facts),
        addresses,
        runtime: Arc::clone(&runtime),
        cloud: cloud.clone(),
        clock,
        online: online.clone(),
        trouble: trouble_rx,
        scope: scope.clone(),
    };
    let node_name = tasks.config.node_name.to_string();
    tasks.start();
    let hint = Arc::new(Notify::new());
    start_hints(Arc::clone(&runtime), Arc::clone(&hint), &scope);
    let hands = Hands {
        runtime,
        cloud,
        events,
        config: Arc::new(pods_config.clone()),
        clock,
        starts: Arc::new(Semaphore::new(STARTS_MAX)),
    };
    let owner = Owner {
        pods: Pods::new(pods_config),
        held: Held::default(),
        reports: Reports::default(),
        hands,
        scope,
        node_name,
        logs: Logs::new(seen_rx),
        seen,
        trouble,
        messages: termination::Messages::new(),
        desired_pods: BTreeMap::new(),
        waits: BTreeMap::new(),
        results: results_tx,
        observing: false,
        look_again: true,
        under_way: 0,
        last_list: clock.now(),
        last_answer: clock.now(),
        complete_at: None,
    };
    owner.run(initial, desired, online, node_get, results, hint).await;
}

struct Owner {
    pods: Pods,
    held: Held,
    reports: Reports,
    hands: Hands,
    scope: Scope,
    node_name: String,
    logs: Logs,
    seen: latest::Sender<Arc<Vec<ObservedSandbox>>>,
    trouble: latest::Sender<RuntimeTrouble>,
    messages: termination::Messages,
    /// For reading termination messages.
    desired_pods: BTreeMap<PodKey, Arc<Pod>>,
    /// Ends the waits of a pod that shall not run any more, by UID.
    waits: BTreeMap<String, Scope>,
    results: queue::Sender<Event>,
    observing: bool,
    /// A hint came: list as soon as possible.
    look_again: bool,
    /// Actions under way.
    under_way: usize,
    last_list: Time,
    last_answer: Time,
    /// When the desired set of a new node counts as complete.
    complete_at: Option<Time>,
}

impl Owner {
    async fn run(
        mut self,
        initial: Vec<(ObjectKey, Body)>,
        mut desired: keyed::Receiver<ObjectKey, Option<Body>>,
        mut online: latest::Receiver<bool>,
        mut node_get: ask::Receiver<NodeGet, LogAnswer>,
        mut results: queue::Receiver<Event>,
        hint: Arc<Notify>,
    ) {
        let known = !initial.is_empty();
        for (key, body) in initial {
            self.desired(key, Some(body));
        }
        if known {
            self.pods.handle_desired_complete(self.now());
        }
        let mut was_online = *online.borrow_and_update();
        if was_online && !known {
            self.complete_at = Some(self.now() + FIRST_SET_WAIT);
        }
        let scope = self.scope.clone();
        let (mut desired_open, mut online_open, mut asks_open) = (true, true, true);
        loop {
            self.settle();
            let wake = self.hands.clock.instant(self.wake_at());
            tokio::select! {
                biased;
                // Ending comes first: no new work.
                () = scope.cancelled() => return,
                // What the cloud wants decides about everything else.
                change = desired.recv(), if desired_open => match change {
                    Some((key, body)) => self.desired(key, body),
                    None => desired_open = false,
                },
                Some(event) = results.recv() => self.event(event),
                () = hint.notified() => self.look_again = true,
                changed = online.changed(), if online_open => {
                    online_open = changed.is_ok();
                    let is_online = *online.borrow_and_update();
                    if is_online && !was_online {
                        self.online();
                    }
                    was_online = is_online;
                },
                question = node_get.recv(), if asks_open => match question {
                    Some(question) => self.logs(question),
                    None => asks_open = false,
                },
                () = tokio::time::sleep_until(wake) => self.timeout(),
            }
        }
    }

    fn now(&self) -> Time {
        self.hands.clock.now()
    }

    /// A desired object has changed.
    fn desired(&mut self, key: ObjectKey, body: Option<Body>) {
        let now = self.now();
        match (&key.kind, &key.namespace) {
            (ObjectKind::Pod, Some(namespace)) => {
                let pod_key = PodKey::new(namespace, &key.name);
                self.desired_pod(pod_key, body.as_ref(), now);
            }
            (ObjectKind::ConfigMap | ObjectKind::Secret, Some(namespace)) => {
                let is_secret = key.kind == ObjectKind::Secret;
                let changed = body.is_some();
                self.held.set(key.clone(), body);
                // What is gone leaves the volumes as they are.
                if changed {
                    self.pods
                        .handle_config_changed(namespace, is_secret, &key.name, now);
                }
            }
            (_other, _) => {}
        }
    }

    fn desired_pod(&mut self, key: PodKey, body: Option<&Body>, now: Time) {
        let pod = match body.map(Body::parse::<Pod>) {
            None => None,
            Some(Ok(pod)) => Some(Arc::new(pod)),
            Some(Err(error)) => {
                // The earlier version of the pod, if there is one, goes on.
                tracing::error!(pod = %key, %error, "desired pod cannot be read");
                return;
            }
        };
        let elsewhere = |pod: &Arc<Pod>| {
            pod.spec
                .node_name
                .as_ref()
                .is_some_and(|node| *node != self.node_name)
        };
        if pod.as_ref().is_some_and(elsewhere) {
            tracing::warn!(pod = %key, "pod of another node is not run here");
            return;
        }
        self.end_waits(&key, pod.as_deref());
        match &pod {
            Some(pod) => self.desired_pods.insert(key.clone(), Arc::clone(pod)),
            None => self.desired_pods.remove(&key),
        };
        self.pods.handle_desired(&key, pod, now);
    }

    /// A pod that is deleted, gone or replaced does not go on pulling images or waiting for the cloud.
    fn end_waits(&mut self, key: &PodKey, pod: Option<&Pod>) {
        let Some(old) = self.desired_pods.get(key) else {
            return;
        };
        let goes_on =
            pod.is_some_and(|pod| pod.uid() == old.uid() && pod.metadata.deletion_timestamp.is_none());
        if !goes_on && let Some(wait) = self.waits.remove(old.uid()) {
            wait.cancel();
        }
    }

    fn online(&mut self) {
        let now = self.now();
        if self.complete_at.is_none() {
            self.complete_at = Some(now + FIRST_SET_WAIT);
        }
        self.pods.handle_online(now);
    }

    fn event(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Outcome { uid, outcome } => {
                self.under_way -= 1;
                self.waits.remove(&uid);
                self.pods.handle_outcome(&uid, outcome, now);
            }
            Event::Probe { id, result } => self.pods.handle_probe(&id, result, now),
            Event::Orphan { uid } => {
                self.under_way -= 1;
                self.pods.handle_orphan_removed(&uid);
            }
            Event::Reported { uid, result } => self.reported(&uid, result, now),
            Event::Observed { id, result } => self.observed(id, result, now),
        }
    }

    fn reported(&mut self, uid: &str, result: Result<(), Error>, now: Time) {
        self.reports.done(uid);
        match result {
            Ok(()) => {}
            // metamanager keeps it until the cloud is back.
            Err(error) if error.is_absence() => tracing::debug!(uid, "report waits for the cloud"),
            Err(Error::NotAsked(RequestError::Full | RequestError::Timeout)) => {
                self.pods.handle_report_failed(uid, now)
            }
            // The pod is gone in the cloud, or the report is not to its liking: saying it again would not help.
            Err(error) => tracing::debug!(uid, %error, "report refused"),
        }
    }

    fn observed(
        &mut self,
        id: ObservationId,
        result: Result<(Vec<ObservedSandbox>, termination::Messages), String>,
        now: Time,
    ) {
        self.observing = false;
        match result {
            Ok((list, messages)) => {
                self.last_answer = now;
                self.messages = messages;
                self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                self.seen.send_if_modified(|seen| {
                    let differs = **seen != list;
                    if differs {
                        *seen = Arc::new(list.clone());
                    }
                    differs
                });
                self.pods.handle_observed(id, list, now);
            }
            Err(why) => {
                tracing::warn!(why, "containers cannot be listed");
                if now.since(self.last_answer) >= RUNTIME_SILENCE_MAX {
                    self.trouble
                        .send_if_modified(|trouble| trouble.replace(why.clone()).as_ref() != Some(&why));
                }
            }
        }
    }

    fn timeout(&mut self) {
        let now = self.now();
        if self.complete_at.is_some_and(|at| at <= now) {
            self.complete_at = Some(Time::from_ms(u64::MAX));
            self.pods.handle_desired_complete(now);
        }
        self.pods.handle_timeout(now);
    }

    fn wake_at(&self) -> Time {
        let now = self.now();
        let relist = if self.observing {
            None
        } else {
            Some(self.last_list + self.relist_interval())
        };
        let complete = self.complete_at.filter(|at| at.as_ms() != u64::MAX);
        let moments = [relist, complete, self.pods.poll_timeout(now)];
        moments.into_iter().flatten().min().unwrap_or(now + RELIST_IDLE)
    }

    fn relist_interval(&self) -> Duration {
        let unanswered = self.now().since(self.last_answer) > RELIST_IDLE;
        if self.under_way > 0 || unanswered {
            RELIST_BUSY
        } else {
            RELIST_IDLE
        }
    }

    /// Hands out everything that is to be done now.
    fn settle(&mut self) {
        while let Some(effect) = self.pods.poll_effect() {
            self.perform(effect);
        }
        while let Some(letter) = self.reports.next() {
            self.send(letter);
        }
        let due = self.now() >= self.last_list + self.relist_interval();
        if !self.observing && (due || self.look_again || self.pods.wants_observation()) {
            self.observe();
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Do { pod, action } => self.act(pod, action),
            Effect::RemoveOrphan {
                uid,
                sandboxes,
                containers,
                grace,
            } => {
                self.under_way += 1;
                tracing::info!(uid, "containers of an unknown pod are removed");
                let (hands, results) = (self.hands.clone(), self.results.clone());
                self.scope.spawn_until_cancelled("edged-orphan", async move {
                    hands.remove_orphan(&sandboxes, containers, grace).await;
                    let _ = results.send(Event::Orphan { uid }).await;
                });
            }
            Effect::Probe { id, target, timeout } => {
                let results = self.results.clone();
                self.scope.spawn_until_cancelled("edged-probe", async move {
                    let result = probe::ask(&target, timeout).await;
                    let _ = results.send(Event::Probe { id, result }).await;
                });
            }
            Effect::Report { key, uid, patch } => self.reports.status(key, uid, patch),
            Effect::ReportDeleted { key, uid } => self.reports.deleted(key, uid),
            Effect::Event(event) => self.hands.events.tell(event),
        }
    }

    /// One action in a task of its own.
    fn act(&mut self, pod: Arc<Pod>, action: Action) {
        self.under_way += 1;
        let snapshot = self.snapshot(&pod, &action);
        let (hands, results) = (self.hands.clone(), self.results.clone());
        tracing::debug!(pod = %PodKey::of(&pod), ?action, "action");
        let wait = self.scope.child();
        if matches!(action, Action::PrepareVolumes | Action::StartContainer { .. }) {
            self.waits.insert(pod.uid().to_owned(), wait.clone());
        }
        let task = async move {
            let outcome = hands.perform(&pod, &snapshot, action, &wait).await;
            let _ = results
                .send(Event::Outcome {
                    uid: pod.uid().to_owned(),
                    outcome,
                })
                .await;
        };
        // A task that is dropped half way leaves what the next start finds in the runtime's list.
        self.scope.spawn_until_cancelled("edged-pod", task);
    }

    /// The held objects that the action may need.
    fn snapshot(&self, pod: &Pod, action: &Action) -> Snapshot {
        let references = match action {
            Action::PrepareVolumes => volume_references(pod),
            Action::StartContainer { container, .. } => pod
                .container(container)
                .map_or_else(References::default, env_references),
            Action::RunSandbox { .. }
            | Action::StopContainers { .. }
            | Action::RemoveContainers(_)
            | Action::StopSandbox(_)
            | Action::RemoveSandboxes(_)
            | Action::RemoveVolumes => References::default(),
        };
        self.held.snapshot(pod.namespace(), &references)
    }

    fn send(&self, letter: Letter) {
        let (cloud, results) = (self.hands.cloud.clone(), self.results.clone());
        self.scope.spawn_until_cancelled("edged-report", async move {
            let answer: Result<serde_json::Value, Error> =
                cloud.object(letter.operation, letter.key, letter.body).await;
            let _ = results
                .send(Event::Reported {
                    uid: letter.uid,
                    result: answer.map(drop),
                })
                .await;
        });
    }

    /// Lists the runtime's containers.
    fn observe(&mut self) {
        self.observing = true;
        self.look_again = false;
        self.last_list = self.now();
        let id = self.pods.begin_observation();
        let (hands, results) = (self.hands.clone(), self.results.clone());
        let (messages, pods) = (self.messages.clone(), self.desired_pods.clone());
        self.scope.spawn_until_cancelled("edged-list", async move {
            let result = match tokio::time::timeout(LIST_MAX, hands.runtime.list()).await {
                Ok(Ok(list)) => complete(list, messages, Arc::clone(&hands.config), pods).await,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!(
                    "the runtime did not answer within {}s",
                    LIST_MAX.as_secs()
                )),
            };
            let _ = results.send(Event::Observed { id, result }).await;
        });
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

/// Adds the last words of ended containers.
async fn complete(
    mut list: Vec<ObservedSandbox>,
    known: termination::Messages,
    config: Arc<kedge_pods::Config>,
    pods: BTreeMap<PodKey, Arc<Pod>>,
) -> Result<(Vec<ObservedSandbox>, termination::Messages), String> {
    let read = move || {
        let messages = termination::complete(&mut list, &known, &config, &pods);
        (list, messages)
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| "reading termination messages was stopped".to_owned())
}
