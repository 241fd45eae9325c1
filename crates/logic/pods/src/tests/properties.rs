//! What holds whatever happens: any order of wishes, ends, failures, power cuts and restarts of this process.

use super::{config, node, pod};
use crate::{Action, Effect, Eviction, Outcome, PodKey, Pods, ProbeResult, Refusal, VolumesReady, translate};
use kedge_api::{Pod, PodPhase, Timestamp};
use kedge_containers::{
    ContainerId, ContainerState, ExitReason, ObservedContainer, ObservedSandbox, PodIdentity, SandboxId,
};
use kedge_wire::Time;
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A run that needs more steps to become quiet runs in circles.
const STEPS_MAX: usize = 3000;
/// Pods that a run is about. The first two have the same name.
const PODS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Want(usize),
    Delete(usize, i64),
    Forget(usize),
    /// A container ends by itself.
    Exit(usize, i32),
    /// The oldest action under way is done, or fails.
    Finish(bool),
    Probe(usize, bool),
    Look,
    Evict(usize),
    PowerCut,
    /// This process dies; what it had ordered has been done or not.
    Restart(bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..PODS).prop_map(Step::Want),
        1 => (0..PODS, 0_i64..40).prop_map(|(pod, grace)| Step::Delete(pod, grace)),
        1 => (0..PODS).prop_map(Step::Forget),
        2 => (0..6_usize, 0..3_i32).prop_map(|(at, code)| Step::Exit(at, code)),
        9 => prop::bool::weighted(0.85).prop_map(Step::Finish),
        2 => (0..4_usize, any::<bool>()).prop_map(|(at, fine)| Step::Probe(at, fine)),
        5 => Just(Step::Look),
        1 => (0..PODS).prop_map(Step::Evict),
        1 => Just(Step::PowerCut),
        1 => any::<bool>().prop_map(Step::Restart),
        2 => (0_u64..400).prop_map(Step::Pass),
    ]
}

fn desired(at: usize) -> Pod {
    let main = json!({ "name": "c", "image": "web:1", "livenessProbe": { "exec": { "command": ["x"] }, "failureThreshold": 1 } });
    let spec = match at {
        0 => json!({ "containers": [main] }),
        1 => {
            json!({ "containers": [main, { "name": "d", "image": "d:1" }], "initContainers": [{ "name": "init", "image": "i:1" }] })
        }
        2 => {
            json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "job:1" }, { "name": "d", "image": "job:1" }] })
        }
        _ => json!({
            "restartPolicy": "OnFailure",
            "initContainers": [{ "name": "side", "image": "s:1", "restartPolicy": "Always" }],
            "containers": [main],
        }),
    };
    pod(
        if at < 2 { "twin" } else { ["job", "mixed"][at - 2] },
        &format!("u{at}"),
        spec,
    )
}

struct Sim {
    pods: Pods,
    now: Time,
    sandboxes: Vec<ObservedSandbox>,
    under_way: Vec<(Arc<Pod>, Action)>,
    probes: Vec<crate::ProbeId>,
    /// What the cloud holds, with the last status that it was told.
    cloud: BTreeMap<PodKey, Pod>,
    started: BTreeMap<(String, String), u32>,
    phases: BTreeMap<String, PodPhase>,
    serial: u64,
}

impl Sim {
    fn new() -> Self {
        let mut sim = Self {
            pods: Pods::new(config()),
            now: Time::from_ms(1_767_225_600_000),
            sandboxes: Vec::new(),
            under_way: Vec::new(),
            probes: Vec::new(),
            cloud: BTreeMap::new(),
            started: BTreeMap::new(),
            phases: BTreeMap::new(),
            serial: 0,
        };
        sim.begin();
        sim
    }

    /// A new life of the process.
    fn begin(&mut self) {
        self.pods = Pods::new(config());
        self.pods.handle_static(Vec::new(), self.now);
        self.pods.handle_node(node(), self.now);
        for (key, pod) in self.cloud.clone() {
            self.pods.handle_desired(&key, Some(Arc::new(pod)), self.now);
        }
        self.pods.handle_desired_complete(self.now);
        self.probes.clear();
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Want(at) => {
                let pod = desired(at);
                let key = PodKey::of(&pod);
                let known = self.cloud.get(&key).is_some_and(|known| known.uid() == pod.uid());
                if !known && !self.phases.contains_key(pod.uid()) {
                    self.cloud.insert(key.clone(), pod.clone());
                    self.pods.handle_desired(&key, Some(Arc::new(pod)), self.now);
                }
            }
            Step::Delete(at, grace) => self.delete(at, grace),
            Step::Forget(at) => {
                let key = PodKey::of(&desired(at));
                self.cloud.remove(&key);
                self.pods.handle_desired(&key, None, self.now);
            }
            Step::Exit(at, code) => {
                let now = self.now.as_ms();
                let mut running = self.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
                if let Some(container) = running.nth(at) {
                    end(container, now, code);
                }
            }
            Step::Finish(fine) => self.finish(fine),
            Step::Probe(at, fine) => {
                if at < self.probes.len() {
                    let id = self.probes.swap_remove(at);
                    let failure = ProbeResult::Failure("sick".to_owned());
                    let result = if fine { ProbeResult::Success } else { failure };
                    self.pods.handle_probe(&id, result, self.now);
                }
            }
            Step::Look => self.look(),
            Step::Evict(at) => {
                let eviction = Eviction {
                    reason: "Evicted".to_owned(),
                    message: "memory".to_owned(),
                    grace: Duration::from_secs(1),
                };
                self.pods.handle_evict(&format!("u{at}"), &eviction, self.now);
            }
            Step::PowerCut => {
                let now = self.now.as_ms();
                for sandbox in &mut self.sandboxes {
                    sandbox.ready = false;
                    sandbox.containers.iter_mut().for_each(|c| end(c, now, 255));
                }
                self.under_way.clear();
                self.begin();
            }
            Step::Restart(done) => {
                for (pod, action) in std::mem::take(&mut self.under_way) {
                    if done {
                        self.perform(&pod, action);
                    }
                }
                self.begin();
            }
            Step::Pass(seconds) => {
                self.now = self.now + Duration::from_secs(seconds);
                self.pods.handle_timeout(self.now);
            }
        }
        self.take_effects();
    }

    fn delete(&mut self, at: usize, grace: i64) {
        let key = PodKey::of(&desired(at));
        if let Some(pod) = self.cloud.get_mut(&key) {
            pod.metadata.deletion_timestamp = Some(Timestamp::from_ms(self.now.as_ms()));
            let before = pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX);
            pod.metadata.deletion_grace_period_seconds = Some(grace.min(before));
            let pod = pod.clone();
            self.pods.handle_desired(&key, Some(Arc::new(pod)), self.now);
        }
    }

    fn look(&mut self) {
        let id = self.pods.begin_observation();
        self.pods.handle_observed(id, self.sandboxes.clone(), self.now);
    }

    fn finish(&mut self, fine: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let (pod, action) = self.under_way.remove(0);
        let outcome = if fine {
            self.perform(&pod, action)
        } else {
            refused(action)
        };
        self.pods.handle_outcome(pod.uid(), outcome, self.now);
    }

    fn take_effects(&mut self) {
        while let Some(effect) = self.pods.poll_effect() {
            match effect {
                Effect::Do { pod, action } => {
                    let stop = matches!(action, Action::StopContainers { .. });
                    let busy = self.under_way.iter().any(|(other, _)| other.uid() == pod.uid());
                    assert!(!busy || stop, "{} does two things at once", pod.uid());
                    self.under_way.push((pod, action));
                }
                Effect::RemoveOrphan { uid, .. } => {
                    self.sandboxes.retain(|sandbox| sandbox.pod.uid != uid);
                    self.pods.handle_orphan_removed(&uid);
                }
                Effect::Probe { id, .. } => self.probes.push(id),
                Effect::Report { key, uid, patch } => self.report(&key, &uid, &patch),
                Effect::ReportDeleted { key, uid } => {
                    let here = self.sandboxes.iter().any(|sandbox| sandbox.pod.uid == uid);
                    assert!(!here, "{uid} is told to be gone and is not");
                    if self.cloud.get(&key).is_some_and(|pod| pod.uid() == uid) {
                        self.cloud.remove(&key);
                        self.pods.handle_desired(&key, None, self.now);
                    }
                }
                Effect::CreateMirror { .. } | Effect::DeleteMirror { .. } => panic!("no static pods here"),
                Effect::Event(_) => {}
            }
        }
    }

    fn report(&mut self, key: &PodKey, uid: &str, patch: &str) {
        let value: serde_json::Value = serde_json::from_str(patch).unwrap();
        let status: kedge_api::PodStatus = serde_json::from_value(value["status"].clone()).unwrap();
        let phase = status.phase.unwrap();
        let before = self.phases.insert(uid.to_owned(), phase);
        let back = before.filter(|before| before.is_terminal() && *before != phase);
        assert_eq!(back, None, "{uid} was over and is {phase:?}");
        if phase.is_terminal() {
            let mut all = self
                .sandboxes
                .iter()
                .filter(|s| s.pod.uid == uid)
                .flat_map(|s| &s.containers);
            assert!(!all.any(is_running), "{uid} is over and runs");
        }
        if let Some(pod) = self.cloud.get_mut(key).filter(|pod| pod.uid() == uid) {
            pod.status = status;
        }
    }

    /// The runtime does what was ordered.
    fn perform(&mut self, pod: &Pod, action: Action) -> Outcome {
        let now = self.now.as_ms();
        match action {
            Action::Allocate { .. } => Outcome::Allocated(Ok(())),
            Action::PrepareVolumes => Outcome::Volumes(Ok(VolumesReady::default())),
            Action::RunSandbox { attempt } => {
                let name = &pod.metadata.name;
                let rival = self
                    .sandboxes
                    .iter()
                    .find(|s| s.pod.name == *name && s.pod.uid != pod.uid());
                assert!(rival.is_none(), "{name}: {} runs beside {rival:?}", pod.uid());
                self.make_sandbox(pod, attempt);
                Outcome::Sandbox(Ok(()))
            }
            Action::StartContainer {
                sandbox,
                container,
                attempt,
                ..
            } => {
                let started = (pod.uid().to_owned(), container.clone());
                let before = self.started.insert(started, attempt);
                assert!(
                    before.is_none_or(|before| before < attempt),
                    "{container} has one number twice"
                );
                let main = pod.spec.containers.iter().any(|c| c.name == container);
                let never = pod.spec.restart_policy == kedge_api::RestartPolicy::Never;
                assert!(
                    !(main && never && before.is_some()),
                    "{container} runs twice and never should"
                );
                let result = self.make_container(pod, &sandbox, &container, attempt);
                Outcome::Container {
                    name: container,
                    result,
                }
            }
            Action::StopContainers { containers } => {
                let ids: BTreeSet<ContainerId> = containers.into_iter().map(|stop| stop.id).collect();
                let all = self.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
                all.filter(|c| ids.contains(&c.id)).for_each(|c| end(c, now, 143));
                Outcome::ContainersStopped(Ok(()))
            }
            Action::RemoveContainers(ids) => {
                for sandbox in &mut self.sandboxes {
                    sandbox.containers.retain(|c| !ids.contains(&c.id));
                }
                Outcome::ContainersRemoved(Ok(()))
            }
            Action::StopSandbox(id) => {
                for sandbox in self.sandboxes.iter_mut().filter(|s| s.id == id) {
                    sandbox.ready = false;
                    sandbox.containers.iter_mut().for_each(|c| end(c, now, 137));
                }
                Outcome::SandboxStopped(Ok(()))
            }
            Action::RemoveSandboxes(ids) => {
                self.sandboxes.retain(|sandbox| !ids.contains(&sandbox.id));
                Outcome::SandboxesRemoved(Ok(()))
            }
            Action::RemoveVolumes => Outcome::VolumesRemoved(Ok(())),
        }
    }

    fn make_sandbox(&mut self, pod: &Pod, attempt: u32) {
        self.serial += 1;
        self.sandboxes.push(ObservedSandbox {
            id: SandboxId(format!("s{}", self.serial)),
            pod: PodIdentity {
                namespace: pod.namespace().to_owned(),
                name: pod.metadata.name.clone(),
                uid: pod.uid().to_owned(),
            },
            attempt,
            ready: true,
            created_ms: self.now.as_ms(),
            ips: vec!["10.0.0.1".to_owned()],
            containers: Vec::new(),
        });
    }

    fn make_container(
        &mut self,
        pod: &Pod,
        sandbox: &SandboxId,
        name: &str,
        attempt: u32,
    ) -> Result<(), Refusal> {
        self.serial += 1;
        let gone = || Refusal::new("CreateContainerError", "the sandbox is gone");
        let place = self
            .sandboxes
            .iter_mut()
            .find(|s| s.id == *sandbox && s.ready)
            .ok_or_else(gone)?;
        let twice = place.containers.iter().any(|c| c.name == name && is_running(c));
        assert!(!twice, "{name} runs twice");
        let spec = pod.container(name).unwrap();
        place.containers.push(ObservedContainer {
            id: ContainerId(format!("c{}", self.serial)),
            name: name.to_owned(),
            attempt,
            image: spec.image.clone(),
            image_ref: spec.image.clone(),
            spec_hash: translate::spec_hash(spec),
            created_ms: self.now.as_ms(),
            state: ContainerState::Running {
                started_ms: self.now.as_ms(),
            },
            log_path: "/dev/null".into(),
        });
        Ok(())
    }

    /// Nothing disturbs any more: everything comes to rest.
    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.under_way.is_empty() {
                self.finish(true);
            } else if self.pods.wants_observation() || self.init_ends() {
                self.look();
            } else if let Some(at) = self.pods.poll_timeout(self.now).filter(|_| !self.is_quiet()) {
                self.now = at;
                self.answer_probes();
                self.pods.handle_timeout(self.now);
            } else {
                return;
            }
            self.take_effects();
        }
        panic!("runs in circles: {:?}", self.under_way);
    }

    /// What initialises a pod does its work and ends.
    fn init_ends(&mut self) -> bool {
        let now = self.now.as_ms();
        let all = self.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
        let mut running: Vec<_> = all.filter(|c| c.name == "init" && is_running(c)).collect();
        running.iter_mut().for_each(|container| end(container, now, 0));
        !running.is_empty()
    }

    fn answer_probes(&mut self) {
        for id in std::mem::take(&mut self.probes) {
            self.pods.handle_probe(&id, ProbeResult::Success, self.now);
        }
    }

    /// Every pod that shall run runs or is over.
    fn is_quiet(&self) -> bool {
        let wanted = |pod: &Pod| {
            self.cloud
                .get(&PodKey::of(pod))
                .is_some_and(|known| known.uid() == pod.uid())
        };
        self.pods.known().all(|known| match known.status.phase {
            _ if !wanted(known.pod) => false,
            Some(PodPhase::Running) => {
                let mut all = known.status.container_statuses.iter();
                known.pod.metadata.deletion_timestamp.is_none() && all.all(|c| c.state.waiting.is_none())
            }
            Some(PodPhase::Succeeded | PodPhase::Failed) => known.pod.metadata.deletion_timestamp.is_none(),
            Some(PodPhase::Pending | PodPhase::Unknown) | None => false,
        })
    }
}

fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

fn end(container: &mut ObservedContainer, now_ms: u64, exit_code: i32) {
    if let ContainerState::Running { started_ms } = container.state {
        container.state = ContainerState::Exited {
            started_ms,
            finished_ms: now_ms,
            exit_code,
            reason: if exit_code == 0 {
                ExitReason::Completed
            } else {
                ExitReason::Error
            },
            message: String::new(),
        };
    }
}

fn refused(action: Action) -> Outcome {
    let refusal = Err(Refusal::new("CreateContainerError", "the runtime is gone"));
    match action {
        Action::Allocate { .. } => Outcome::Allocated(Ok(())),
        Action::PrepareVolumes => Outcome::Volumes(Err(Refusal::new("FailedMount", "no"))),
        Action::RunSandbox { .. } => Outcome::Sandbox(refusal),
        Action::StartContainer { container, .. } => Outcome::Container {
            name: container,
            result: refusal,
        },
        Action::StopContainers { .. } => Outcome::ContainersStopped(refusal),
        Action::RemoveContainers(_) => Outcome::ContainersRemoved(refusal),
        Action::StopSandbox(_) => Outcome::SandboxStopped(refusal),
        Action::RemoveSandboxes(_) => Outcome::SandboxesRemoved(refusal),
        Action::RemoveVolumes => Outcome::VolumesRemoved(refusal),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let mut sim = Sim::new();
        for step in steps {
            sim.apply(step);
        }
        sim.settle();
        // The cloud wants nothing any more: nothing is left on the node.
        for at in 0..PODS {
            sim.delete(at, 0);
        }
        sim.take_effects();
        sim.settle();
        sim.look();
        sim.take_effects();
        sim.settle();
        prop_assert!(sim.sandboxes.is_empty(), "{:?}", sim.sandboxes);
        prop_assert!(sim.pods.is_empty());
    }
}

/// A pod that asks for this much CPU (thousandths) and memory (MiB), and how it is promised.
fn asking(at: usize, cpu: i64, memory: i64, class: u8) -> Pod {
    let asked = json!({ "cpu": format!("{cpu}m"), "memory": format!("{memory}Mi") });
    let resources = match class {
        0 => json!({}),
        1 => json!({ "requests": asked }),
        _ => json!({ "requests": asked, "limits": asked }),
    };
    let mut pod = pod(
        &format!("p{at}"),
        &format!("u{at}"),
        json!({ "containers": [{ "name": "c", "image": "i", "resources": resources }] }),
    );
    pod.spec.priority = (class == 3).then_some(2_000_000_000);
    pod
}

proptest! {
    #[test]
    fn victims_make_room_or_nobody_goes(
        pods in prop::collection::vec((0_i64..1000, 0_i64..1000, 0_u8..4), 0..8),
        cpu in 0_i64..3000,
        memory in 0_i64..3000,
    ) {
        use crate::admission::{Candidate, victims};
        let mut critical = asking(99, 1, 1, 1);
        critical.spec.priority = Some(2_000_000_000);
        let pods: Vec<Pod> = pods.iter().enumerate().map(|(at, (c, m, class))| asking(at, *c, *m, *class)).collect();
        let candidates: Vec<Candidate<'_>> = pods.iter().map(|pod| Candidate { uid: pod.uid(), pod }).collect();
        let lacking: BTreeMap<String, i64> = [("cpu", cpu), ("memory", memory << 20)]
            .into_iter()
            .filter(|(_, amount)| *amount > 0)
            .map(|(name, amount)| (name.to_owned(), amount))
            .collect();
        let freed = |chosen: &dyn Fn(&Pod) -> bool, name: &str| -> i64 {
            let chosen = pods.iter().filter(|pod| chosen(pod));
            chosen.map(|pod| crate::amounts::requests(pod).get(name).copied().unwrap_or(0)).sum()
        };
        match victims(&critical, &lacking, &candidates) {
            Some(gone) => {
                let chosen = |pod: &Pod| gone.iter().any(|uid| uid == pod.uid());
                for (name, amount) in &lacking {
                    prop_assert!(freed(&chosen, name) >= *amount);
                }
                prop_assert!(pods.iter().filter(|pod| chosen(pod)).all(|pod| !crate::is_critical(pod)));
            }
            None => {
                let humble = |pod: &Pod| !crate::is_critical(pod);
                prop_assert!(lacking.iter().any(|(name, amount)| freed(&humble, name) < *amount));
            }
        }
    }

    /// Whatever stands in a pod, it is expanded without losing text that names nothing.
    #[test]
    fn expansion_keeps_what_it_does_not_know(text in "[$()A-Z a-z]{0,40}") {
        let nobody = translate::expand(&text, |_| None);
        if !text.contains("$$") {
            prop_assert_eq!(&nobody, &text);
        }
        prop_assert!(nobody.len() <= text.len());
    }
}
