//! All pods of the node.

use crate::admission;
use crate::worker::{Wish, Worker};
use crate::{Capacity, Config, Effect, ObservationId, Outcome, PodKey, ProbeId, ProbeResult};
use kedge_api::Pod;
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A container whose pod nobody knows any more gets this long to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// One worker per pod UID, and the orphans.
#[derive(Debug)]
pub struct Pods {
    config: Config,
    workers: BTreeMap<String, Worker>,
    /// Which UID is desired under a name.
    desired: BTreeMap<PodKey, String>,
    /// No pod is missing from `desired`, so what belongs to none of them may go.
    complete: bool,
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
            config,
            workers: BTreeMap::new(),
            desired: BTreeMap::new(),
            complete: false,
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

    /// A pod is desired (`Some`) or not any more (`None`).
    pub fn handle_desired(&mut self, key: &PodKey, pod: Option<Arc<Pod>>, now: Time) {
        let uid = pod.as_ref().map(|pod| pod.uid().to_owned());
        let old = match &uid {
            Some(uid) => self.desired.insert(key.clone(), uid.clone()),
            None => self.desired.remove(key),
        };
        if let Some(old) = old.filter(|old| Some(old) != uid.as_ref())
            && let Some(worker) = self.workers.get_mut(&old)
        {
            worker.forget();
        }
        if let (Some(pod), Some(uid)) = (pod, uid) {
            match self.workers.get_mut(&uid) {
                Some(worker) => worker.want(&self.config, pod),
                None => {
                    let worker = Worker::new(&self.config, pod, now, self.next_observation());
                    self.workers.insert(uid, worker);
                }
            }
        }
        self.settle(now);
    }

    /// Every desired pod has been told: what belongs to no pod may be removed from now on.
    pub fn handle_desired_complete(&mut self, now: Time) {
        self.complete = true;
        self.settle(now);
    }

    /// A config map or a secret has changed or arrived.
    pub fn handle_config_changed(&mut self, namespace: &str, is_secret: bool, name: &str, now: Time) {
        for worker in self
            .workers
            .values_mut()
            .filter(|worker| worker.key.namespace == namespace)
        {
            if crate::translate::uses(&worker.pod, is_secret, name) {
                worker.config_changed();
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
            worker.observe(&self.config, id, by_uid.remove(uid).unwrap_or_default());
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
        if !self.complete || !self.orphans.insert(uid.clone()) {
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
            worker.outcome(outcome, now, fresh_after);
        }
        self.settle(now);
    }

    /// A probe was answered.
    pub fn handle_probe(&mut self, id: &ProbeId, result: ProbeResult, now: Time) {
        if let Some(worker) = self.workers.get_mut(&id.uid) {
            worker.probe_answered(id, result, now, &mut self.effects);
        }
        self.settle(now);
    }

    /// The link to the cloud came up: everything is reported again.
    pub fn handle_online(&mut self, now: Time) {
        for worker in self.workers.values_mut() {
            worker.say_again();
        }
        self.settle(now);
    }

    /// A report did not reach the cloud.
    pub fn handle_report_failed(&mut self, uid: &str, now: Time) {
        if let Some(worker) = self.workers.get_mut(uid) {
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
        self.workers
            .values()
            .filter_map(|worker| worker.wake_at(now))
            .min()
    }

    /// The desired pod of this name.
    pub fn pod(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.workers.get(self.desired.get(key)?).map(|worker| &worker.pod)
    }

    /// How many pods have a worker.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is no pod.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Lets every worker take its next step, oldest UID first, and drops those that have finished.
    fn settle(&mut self, now: Time) {
        let uids: Vec<String> = self.workers.keys().cloned().collect();
        for uid in uids {
            let blocked = self.name_is_taken(&uid) || !self.admit(&uid);
            if let Some(worker) = self.workers.get_mut(&uid) {
                worker.step(&self.config, blocked, now, &mut self.effects);
                worker.send_probes(&self.config, now, &mut self.effects);
                worker.refresh_status(&self.config, now, &mut self.effects);
            }
        }
        self.drop_finished(now);
    }

    /// A finished worker goes. If its pod is desired again meanwhile, a new one begins from nothing.
    fn drop_finished(&mut self, now: Time) {
        let finished: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.finished)
            .map(|(uid, _)| uid.clone())
            .collect();
        let fresh_after = self.next_observation();
        for uid in finished {
            let Some(worker) = self.workers.remove(&uid) else {
                continue;
            };
            if self.desired.get(&worker.key) == Some(&uid) {
                let again = Worker::new(&self.config, worker.pod, now, fresh_after);
                self.workers.insert(uid, again);
            }
        }
    }

    /// Whether a pod of another UID, known or not, still stands under this pod's name.
    fn name_is_taken(&self, uid: &str) -> bool {
        let Some(worker) = self.workers.get(uid) else {
            return false;
        };
        let other = |(other, rival): (&String, &Worker)| {
            other != uid && rival.key == worker.key && rival.occupies_name() && !rival.is_clean()
        };
        self.workers.iter().any(other) || self.orphan_names.contains_key(&worker.key)
    }

    /// Judges a pod once, when nothing of it exists yet. Returns whether it may be worked on.
    fn admit(&mut self, uid: &str) -> bool {
        let Some(worker) = self.workers.get(uid) else {
            return false;
        };
        if worker.admitted || worker.is_terminal() || worker.wish != Wish::Run || self.observed.is_none() {
            return true;
        }
        let verdict = if worker.exists() {
            Ok(())
        } else {
            admission::judge(&worker.pod, self.used(), self.config.allocatable)
        };
        let Some(worker) = self.workers.get_mut(uid) else {
            return false;
        };
        worker.admitted = true;
        if let Err(refusal) = verdict {
            worker.reject(refusal, &mut self.effects);
        }
        true
    }

    fn used(&self) -> Capacity {
        let held = self.workers.values().filter(|worker| worker.holds_resources());
        held.fold(Capacity::default(), |sum, worker| {
            let asked = admission::requested(&worker.pod);
            Capacity {
                cpu_milli: sum.cpu_milli.saturating_add(asked.cpu_milli),
                memory_bytes: sum.memory_bytes.saturating_add(asked.memory_bytes),
                pods: sum.pods.saturating_add(asked.pods),
            }
        })
    }
}
