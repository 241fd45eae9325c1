//! All pods of the node.

mod admit;
mod mirrors;

use crate::clock::Clock;
use crate::eviction::Pressures;
use crate::shutdown;
use crate::static_pods;
use crate::worker::Worker;
use crate::{
    Amounts, Config, Effect, Eviction, ObservationId, Outcome, PodKey, PodSource, ProbeId, ProbeResult,
    Running, amounts, is_critical, qos_class,
};
use kedge_api::{Pod, PodPhase, PodStatus, Taint};
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_wire::Time;
use mirrors::Mirrors;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A container whose pod nobody knows any more gets this long to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// What the cloud says about this node, as far as pods are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Without it no static pod can be shown in the cloud.
    pub uid: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

/// Which pods need not wait for their release any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    Pod(PodKey),
    /// All pods of the node.
    Node,
}

/// A pod that has a worker.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// As it is desired.
    pub pod: &'a Arc<Pod>,
    /// As this node computed it last, reported or not.
    pub status: &'a Arc<PodStatus>,
    pub source: PodSource,
    pub admitted: bool,
}

/// One worker per pod UID, and the orphans.
#[derive(Debug)]
pub struct Pods {
    config: Config,
    allocatable: Amounts,
    node: NodeFacts,
    pressures: Pressures,
    shutting_down: bool,
    /// What the wall clock is ahead of the clock that `now` is read from.
    ahead_ms: i64,
    workers: BTreeMap<String, Worker>,
    /// Which UID the cloud desires under a name.
    desired: BTreeMap<PodKey, String>,
    /// Which UID a file of the node desires under a name.
    statics: BTreeMap<PodKey, String>,
    mirrors: Mirrors,
    /// No pod is missing from `desired`, so what belongs to none of them may go.
    complete: bool,
    /// The files have been read.
    statics_read: bool,
    /// Orphans that are being removed.
    orphans: BTreeSet<String>,
    /// Names that orphans occupy, from the last observation.
    orphan_names: BTreeMap<PodKey, BTreeSet<String>>,
    observations: ObservationId,
    /// An orphan was removed: look again.
    orphans_seen_after: ObservationId,
    observed: Option<ObservationId>,
    effects: VecDeque<Effect>,
}

impl Pods {
    pub fn new(config: Config) -> Self {
        Self {
            allocatable: config.allocatable.clone(),
            node: NodeFacts {
                uid: None,
                labels: config.node_labels.clone(),
                taints: config.node_taints.clone(),
            },
            config,
            pressures: Pressures::default(),
            shutting_down: false,
            ahead_ms: 0,
            workers: BTreeMap::new(),
            desired: BTreeMap::new(),
            statics: BTreeMap::new(),
            mirrors: Mirrors::default(),
            complete: false,
            statics_read: false,
            orphans: BTreeSet::new(),
            orphan_names: BTreeMap::new(),
            observations: ObservationId(0),
            orphans_seen_after: ObservationId(0),
            observed: None,
            effects: VecDeque::new(),
        }
    }

    /// The settings, for translations.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn clock(&self, now: Time) -> Clock {
        Clock {
            now,
            ahead_ms: self.ahead_ms,
        }
    }

    /// A pod is desired by the cloud (`Some`) or not any more (`None`). What only mirrors a static pod is not run.
    pub fn handle_desired(&mut self, key: &PodKey, pod: Option<Arc<Pod>>, now: Time) {
        let mirror = pod.as_ref().filter(|pod| static_pods::is_mirror(pod)).cloned();
        let pod = pod.filter(|_| mirror.is_none());
        self.mirrors.set(key, mirror);
        let uid = pod.as_ref().map(|pod| pod.uid().to_owned());
        let old = match &uid {
            Some(uid) => self.desired.insert(key.clone(), uid.clone()),
            None => self.desired.remove(key),
        };
        self.forget(old.filter(|old| Some(old) != uid.as_ref()));
        if let Some(pod) = pod {
            self.want(pod, PodSource::Api, now);
        }
        self.settle(now);
    }

    /// All pods that files of this node describe: static ones. They run with or without the cloud. Call it after
    /// the desired pods of the start, and at least once, with an empty list where there are no files: before that nothing
    /// counts as an orphan.
    pub fn handle_static(&mut self, pods: Vec<Pod>, now: Time) {
        let clock = self.clock(now);
        let seen = Time::from_ms(clock.wall().as_ms());
        let mut found: BTreeMap<PodKey, Arc<Pod>> = BTreeMap::new();
        for pod in pods {
            if let Some(pod) = static_pods::adopt(pod, &self.config.node_name, seen) {
                let key = PodKey::of(&pod);
                let pod = match self.unchanged(&key, &pod) {
                    Some(known) => Arc::clone(known),
                    None => Arc::new(static_pods::take_over(pod, self.mirrors.get(&key))),
                };
                found.entry(key).or_insert(pod);
            }
        }
        let gone = |(key, uid): &(&PodKey, &String)| found.get(*key).is_none_or(|pod| pod.uid() != *uid);
        let gone: Vec<String> = self
            .statics
            .iter()
            .filter(gone)
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in gone {
            self.forget(Some(uid));
        }
        self.statics = found
            .iter()
            .map(|(key, pod)| (key.clone(), pod.uid().to_owned()))
            .collect();
        for (key, mut pod) in found {
            if self.workers.contains_key(pod.uid()) {
                continue;
            }
            // What the cloud was told of the same pod before a restart of this process goes on; but a pod that the
            // node refused, or that ended with the machine, is judged anew, because nobody else would try again.
            let told = self
                .mirrors
                .fitting(&key, static_pods::hash(&pod))
                .map(|mirror| &mirror.status);
            let refused = |status: &&PodStatus| {
                let ended_with_machine = status.reason.as_deref() == Some(shutdown::REASON);
                status.phase == Some(PodPhase::Failed)
                    && (status.container_statuses.is_empty() || ended_with_machine)
            };
            if let Some(status) = told.filter(|status| !refused(status)) {
                Arc::make_mut(&mut pod).status = status.clone();
            }
            self.want(pod, PodSource::File, now);
        }
        self.statics_read = true;
        self.settle(now);
    }

    /// The static pod of this name, if it says the same.
    fn unchanged(&self, key: &PodKey, pod: &Pod) -> Option<&Arc<Pod>> {
        let known = &self.workers.get(self.statics.get(key)?)?.pod;
        let same = known.spec == pod.spec && known.metadata.labels == pod.metadata.labels;
        (same && static_pods::same_notes(known, pod)).then_some(known)
    }

    fn forget(&mut self, uid: Option<String>) {
        if let Some(worker) = uid.and_then(|uid| self.workers.get_mut(&uid)) {
            worker.forget();
        }
    }

    fn want(&mut self, pod: Arc<Pod>, source: PodSource, now: Time) {
        match self.workers.get_mut(pod.uid()) {
            Some(worker) => {
                worker.tell_resize(&pod, &mut self.effects);
                worker.want(pod);
            }
            None => {
                let uid = pod.uid().to_owned();
                let clock = self.clock(now);
                let worker = Worker::new(&self.config, pod, source, &clock, self.next_observation());
                self.workers.insert(uid, worker);
            }
        }
    }

    /// Every desired pod has been told: what belongs to no pod may be removed from now on, as soon as the static pods
    /// are known too.
    pub fn handle_desired_complete(&mut self, now: Time) {
        self.complete = true;
        self.settle(now);
    }

    /// A config map or a secret has changed or arrived.
    pub fn handle_config_changed(&mut self, namespace: &str, is_secret: bool, name: &str, now: Time) {
        let mut changed = false;
        for worker in self
            .workers
            .values_mut()
            .filter(|worker| worker.key.namespace == namespace)
        {
            if crate::translate::uses(&worker.pod, is_secret, name) {
                worker.config_changed();
                changed = true;
            }
        }
        if changed {
            self.settle(now);
        }
    }

    /// What pods may use together has changed. Pods that run already stay.
    pub fn handle_allocatable(&mut self, allocatable: Amounts, now: Time) {
        self.allocatable = allocatable;
        self.settle(now);
    }

    /// Which handlers of the runtime can make the mounts below a read-only mount read-only as well; the default one has an
    /// empty name.
    pub fn handle_recursive_read_only(&mut self, handlers: BTreeSet<String>, now: Time) {
        self.config.recursive_read_only = handlers;
        self.settle(now);
    }

    /// The machine shuts down: no pod begins any more.
    pub fn handle_shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// The cloud says something about this node.
    pub fn handle_node(&mut self, node: NodeFacts, now: Time) {
        self.node = node;
        self.settle(now);
    }

    /// The pressures that the node shows have changed: they count for new pods.
    pub fn handle_pressures(&mut self, pressures: Pressures) {
        self.pressures = pressures;
    }

    /// What the wall clock is ahead of the clock that `now` is read from; zero at the start. It is for what others
    /// read: `now` itself must never jump.
    pub fn handle_wall_clock(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
    }

    /// A pod must go: it ends with the reason and the message of the eviction. Nothing happens to one that is going
    /// already, or that is not known.
    pub fn handle_evict(&mut self, uid: &str, eviction: &Eviction, now: Time) {
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.evict(eviction, &mut self.effects);
        }
        self.settle(now);
    }

    /// Pods that were held back may begin.
    pub fn handle_release(&mut self, release: &Release, now: Time) {
        for worker in self.workers.values_mut() {
            match release {
                Release::Pod(key) if *key != worker.key => {}
                Release::Pod(_) | Release::Node => worker.release(),
            }
        }
        self.settle(now);
    }

    /// Call before listing the runtime's containers; the id goes with the list.
    pub fn begin_observation(&mut self) -> ObservationId {
        self.observations = self.next_observation();
        self.observations
    }

    fn next_observation(&self) -> ObservationId {
        ObservationId(self.observations.0 + 1)
    }

    /// Some worker waits for an observation that has not begun yet.
    pub fn wants_observation(&self) -> bool {
        let workers = self.workers.values().filter_map(Worker::needs_observation);
        workers
            .chain([self.orphans_seen_after])
            .any(|id| id > self.observations)
    }

    /// What the runtime has.
    pub fn handle_observed(&mut self, id: ObservationId, list: Vec<ObservedSandbox>, now: Time) {
        if self.observed.is_some_and(|newest| newest >= id) {
            return;
        }
        self.observed = Some(id);
        let mut by_uid: BTreeMap<String, Vec<ObservedSandbox>> = BTreeMap::new();
        for sandbox in list {
            by_uid.entry(sandbox.pod.uid.clone()).or_default().push(sandbox);
        }
        for (uid, worker) in &mut self.workers {
            let seen = by_uid.remove(uid).unwrap_or_default();
            worker.observe(&self.config, id, seen, now);
        }
        self.orphan_names.clear();
        for (uid, sandboxes) in by_uid {
            self.handle_orphan(uid, &sandboxes);
        }
        self.settle(now);
    }

    fn handle_orphan(&mut self, uid: String, sandboxes: &[ObservedSandbox]) {
        for sandbox in sandboxes {
            let key = PodKey::new(&sandbox.pod.namespace, &sandbox.pod.name);
            self.orphan_names.entry(key).or_default().insert(uid.clone());
        }
        if !self.complete || !self.statics_read || !self.orphans.insert(uid.clone()) {
            return;
        }
        let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        let containers = sandboxes
            .iter()
            .flat_map(|s| &s.containers)
            .filter(|c| running(&c.state));
        let containers = containers.map(|c| c.id.clone()).collect();
        let sandboxes = sandboxes.iter().map(|s| s.id.clone()).collect();
        self.effects.push_back(Effect::RemoveOrphan {
            uid,
            sandboxes,
            containers,
            grace: ORPHAN_GRACE,
        });
    }

    /// An orphan was removed, or could not be: the next observation tells.
    pub fn handle_orphan_removed(&mut self, uid: &str) {
        self.orphans.remove(uid);
        self.orphans_seen_after = self.next_observation();
    }

    /// An action of a pod ended.
    pub fn handle_outcome(&mut self, uid: &str, outcome: Outcome, now: Time) {
        let fresh_after = self.next_observation();
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.outcome(outcome, now, fresh_after, &mut self.effects);
        }
        self.settle(now);
    }

    /// A probe was answered.
    pub fn handle_probe(&mut self, id: &ProbeId, result: ProbeResult, now: Time) {
        if let Some(worker) = self.workers.get_mut(&id.uid) {
            worker.probe_answered(id, result, now, &mut self.effects);
        }
        // An answer concerns nobody else, and answers come often.
        self.settle_one(&id.uid, now);
    }

    /// The link to the cloud came up: everything is reported again.
    pub fn handle_online(&mut self, now: Time) {
        for worker in self.workers.values_mut() {
            worker.say_again();
        }
        self.mirrors.say_again();
        self.settle(now);
    }

    /// A report did not reach the cloud. `uid` is the one of the report.
    pub fn handle_report_failed(&mut self, uid: &str, now: Time) {
        let of_mirror = |worker: &&mut Worker| worker.mirror_uid() == Some(uid);
        let worker = match self.workers.contains_key(uid) {
            true => self.workers.get_mut(uid),
            false => self.workers.values_mut().find(of_mirror),
        };
        if let Some(worker) = worker {
            worker.report_failed(now);
        }
    }

    /// The moment of [`Pods::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Time) {
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Pods::handle_timeout`].
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let workers = self.workers.values().filter_map(|worker| worker.wake_at(now));
        workers.chain(self.mirrors.wake_at(now)).min()
    }

    /// The desired pod of this name.
    pub fn pod(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        let uid = self.statics.get(key).or_else(|| self.desired.get(key))?;
        self.workers.get(uid).map(|worker| &worker.pod)
    }

    /// Every pod that has a worker, by UID.
    pub fn known(&self) -> impl Iterator<Item = Known<'_>> {
        self.workers.values().map(|worker| Known {
            pod: &worker.pod,
            status: &worker.status,
            source: worker.source,
            admitted: worker.admitted,
        })
    }

    /// The pods that use the node now.
    pub fn running(&self) -> Vec<Running> {
        let held = self.workers.iter().filter(|(_, worker)| worker.holds_resources());
        held.map(|(uid, worker)| Running {
            uid: uid.clone(),
            key: worker.key.clone(),
            priority: worker.pod.spec.priority.unwrap_or(0),
            qos: qos_class(&worker.pod),
            requests: amounts::requests(&worker.pod)
                .into_iter()
                .map(|(name, number)| {
                    let quantity = amounts::quantity(&name, number);
                    (name, quantity)
                })
                .collect(),
            critical: is_critical(&worker.pod),
        })
        .collect()
    }

    /// How many pods have a worker.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is no pod.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Lets every worker take its next step, oldest pod first, and drops those that have finished.
    fn settle(&mut self, now: Time) {
        self.mirrors.attach(&mut self.workers);
        self.limit_dead_containers();
        let mut uids: Vec<String> = self.workers.keys().cloned().collect();
        uids.sort_by_key(|uid| self.workers.get(uid).map(|w| w.pod.metadata.creation_timestamp));
        for uid in uids {
            self.settle_one(&uid, now);
        }
        self.drop_finished(now);
        if self.complete && self.statics_read {
            let place = mirrors::Place {
                node: &self.config.node_name,
                node_uid: self.node.uid.as_deref(),
                statics: &self.statics,
                workers: &self.workers,
            };
            self.mirrors.settle(&place, now, &mut self.effects);
        }
    }

    /// Of all dead containers the oldest are too many.
    fn limit_dead_containers(&mut self) {
        let Some(max) = self.config.dead_containers.all_max else {
            return;
        };
        let mut made: Vec<Time> = self.workers.values().flat_map(Worker::spare_made).collect();
        made.sort_unstable_by(|a, b| b.cmp(a));
        let until = made.get(max as usize).copied();
        for worker in self.workers.values_mut() {
            worker.drop_spare(until);
        }
    }

    fn settle_one(&mut self, uid: &str, now: Time) {
        let clock = self.clock(now);
        let blocked = self.name_is_taken(uid) || !self.admit(uid);
        if let Some(worker) = self.workers.get_mut(uid) {
            worker.step(&self.config, blocked, now, &mut self.effects);
            worker.send_probes(&self.config, now, &mut self.effects);
            worker.refresh_status(&self.config, &clock, &mut self.effects);
        }
    }

    /// A finished worker goes. If its pod is desired again meanwhile, a new one begins from nothing.
    fn drop_finished(&mut self, now: Time) {
        let finished: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.finished)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in finished {
            let Some(worker) = self.workers.remove(&uid) else {
                continue;
            };
            let again = [&self.desired, &self.statics]
                .into_iter()
                .any(|wanted| wanted.get(&worker.key) == Some(&uid));
            if again {
                self.want(worker.pod, worker.source, now);
            }
        }
    }

    /// Whether a pod of another UID, known or not, still stands under this pod's name.
    fn name_is_taken(&self, uid: &str) -> bool {
        let Some(worker) = self.workers.get(uid) else {
            return false;
        };
        let other = |(other, rival): (&String, &Worker)| {
            other != uid && rival.key == worker.key && rival.occupies_name() && !rival.is_clean() && {
                // Of two that both shall run the one that stands goes on, and a file comes before the cloud.
                rival.is_leaving() || !worker.exists() && (rival.exists() || rival.source > worker.source)
            }
        };
        self.workers.iter().any(other) || self.orphan_names.contains_key(&worker.key)
    }
}
