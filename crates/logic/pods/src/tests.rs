//! Stories: what happens to a pod, told line by line. The world below has a runtime that obeys at once.

mod admission;
mod endings;
mod properties;
mod static_pods;
mod stories;
mod told;
mod translation;
mod user_namespaces;
mod whole_node;

use crate::{
    Action, Config, Effect, NodeFacts, Outcome, PodKey, Pods, ProbeResult, ProbeTarget, Refusal, Stop,
    VolumesReady, translate,
};
use expect_test::Expect;
use kedge_api::{ContainerState as Reported, Pod, PodStatus};
use kedge_containers::{
    ContainerId, ContainerState, ExitReason, ObservedContainer, ObservedSandbox, PodIdentity, SandboxId,
};
use kedge_wire::Time;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// 2026-01-01T00:00:00Z.
const START_MS: u64 = 1_767_225_600_000;
/// A story that goes on longer runs in circles.
const ROUNDS_MAX: usize = 500;

/// How far a container came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Started,
    /// It does not run.
    Only,
    Dead,
}

pub(crate) struct World {
    pub(crate) pods: Pods,
    pub(crate) now: Time,
    pub(crate) sandboxes: Vec<ObservedSandbox>,
    /// Answers to probes, by container name; the default is success.
    pub(crate) probe_answers: BTreeMap<String, ProbeResult>,
    /// Refusals of the next starts of a container (by name), of volumes (`volumes`), devices or sandboxes.
    pub(crate) refusals: BTreeMap<String, VecDeque<Refusal>>,
    /// Probes are not answered.
    pub(crate) silent: bool,
    /// The last report of each pod, in full.
    pub(crate) reports: BTreeMap<String, String>,
    /// Containers that do not end when they are asked to, until [`World::stops_end`].
    pub(crate) stubborn: bool,
    stopping: Vec<(String, Vec<Stop>)>,
    /// Containers that are created but do not run yet, until [`World::starts_end`].
    pub(crate) slow: bool,
    starting: Vec<(String, String)>,
    /// Mirrors that the cloud made.
    pub(crate) mirrors: Vec<Arc<Pod>>,
    serial: u32,
    pub(crate) log: Vec<String>,
    last: BTreeMap<String, String>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let mut pods = Pods::new(config);
        pods.handle_static(Vec::new(), Time::from_ms(START_MS));
        Self {
            pods,
            now: Time::from_ms(START_MS),
            sandboxes: Vec::new(),
            probe_answers: BTreeMap::new(),
            refusals: BTreeMap::new(),
            silent: false,
            reports: BTreeMap::new(),
            stubborn: false,
            stopping: Vec::new(),
            slow: false,
            starting: Vec::new(),
            mirrors: Vec::new(),
            serial: 0,
            log: Vec::new(),
            last: BTreeMap::new(),
        }
    }

    /// The process restarts: the runtime's containers stay, memory is gone.
    pub(crate) fn restart(&mut self) {
        self.log.push("-- restart".to_owned());
        self.pods = Pods::new(self.pods.config().clone());
        self.pods.handle_static(Vec::new(), self.now);
        self.last.clear();
        self.stopping.clear();
        self.starting.clear();
    }

    pub(crate) fn want(&mut self, pod: Pod) {
        self.pods
            .handle_desired(&PodKey::of(&pod), Some(Arc::new(pod)), self.now);
        self.run();
    }

    pub(crate) fn statics(&mut self, pods: Vec<Pod>) {
        self.pods.handle_static(pods, self.now);
        self.run();
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.pods
            .handle_desired(&PodKey::new("default", name), None, self.now);
        self.run();
    }

    pub(crate) fn complete(&mut self) {
        self.pods.handle_desired_complete(self.now);
        self.run();
    }

    /// Containers that were asked to stop have ended now.
    pub(crate) fn stops_end(&mut self) {
        let now = self.now.as_ms();
        for (uid, stops) in std::mem::take(&mut self.stopping) {
            for stop in &stops {
                if let Some(container) = self.container(&stop.id) {
                    end(container, now, 143);
                }
            }
            self.pods
                .handle_outcome(&uid, Outcome::ContainersStopped(Ok(())), self.now);
        }
        self.run();
    }

    /// Containers that were created run now.
    pub(crate) fn starts_end(&mut self) {
        let started_ms = self.now.as_ms();
        for (uid, name) in std::mem::take(&mut self.starting) {
            let sandboxes = self.sandboxes.iter_mut().filter(|s| s.pod.uid == uid);
            sandboxes
                .flat_map(|s| &mut s.containers)
                .filter(|c| c.name == name && c.state == ContainerState::Created)
                .for_each(|c| c.state = ContainerState::Running { started_ms });
            let outcome = Outcome::Container { name, result: Ok(()) };
            self.pods.handle_outcome(&uid, outcome, self.now);
        }
        self.run();
    }

    /// Time passes, waking the logic whenever it wants to be woken.
    pub(crate) fn pass(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        for _ in 0..ROUNDS_MAX {
            match self.pods.poll_timeout(self.now).filter(|at| *at <= end) {
                Some(at) => self.now = at,
                None => break,
            }
            self.pods.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
        self.pods.handle_timeout(self.now);
        self.run();
    }

    /// A container ends by itself.
    pub(crate) fn exit(&mut self, name: &str, code: i32) {
        let now = self.now.as_ms();
        let running = self
            .sandboxes
            .iter_mut()
            .flat_map(|s| &mut s.containers)
            .filter(|c| c.name == name);
        for container in running {
            end(container, now, code);
        }
        self.log.push(format!("-- {name} exits with {code}"));
        self.look();
        self.run();
    }

    /// The node loses its processes.
    pub(crate) fn power_cut(&mut self) {
        let now = self.now.as_ms();
        for sandbox in &mut self.sandboxes {
            sandbox.ready = false;
            sandbox.ips.clear();
            sandbox.containers.iter_mut().for_each(|c| end(c, now, 255));
        }
        self.log.push("-- power cut".to_owned());
    }

    /// Everything that runs ends, and nobody has looked yet.
    pub(crate) fn end_all(&mut self, code: i32) {
        let now = self.now.as_ms();
        let all = self.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
        all.for_each(|container| end(container, now, code));
    }

    pub(crate) fn look_now(&mut self) {
        self.look();
        self.run();
    }

    fn look(&mut self) {
        let id = self.pods.begin_observation();
        self.pods.handle_observed(id, self.sandboxes.clone(), self.now);
    }

    pub(crate) fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if let Some(effect) = self.pods.poll_effect() {
                self.perform(effect);
            } else if self.pods.wants_observation() {
                self.look();
            } else {
                return;
            }
        }
        panic!("runs in circles:\n{}", self.log.join("\n"));
    }

    fn perform(&mut self, effect: Effect) {
        let at = self.now.since(Time::from_ms(START_MS)).as_secs();
        let line = match effect {
            Effect::Do { pod, action } => {
                let (line, outcome) = self.act(&pod, action);
                self.log.push(format!("{at}s {line}"));
                if let Some(outcome) = outcome {
                    self.pods.handle_outcome(pod.uid(), outcome, self.now);
                }
                return;
            }
            Effect::RemoveOrphan { uid, sandboxes, .. } => {
                self.sandboxes.retain(|sandbox| !sandboxes.contains(&sandbox.id));
                self.log.push(format!("{at}s remove orphan {uid}"));
                return self.pods.handle_orphan_removed(&uid);
            }
            Effect::Probe { id, target, .. } => {
                if self.silent {
                    self.log
                        .push(format!("{at}s probe {} is not answered", target_line(&target)));
                    return;
                }
                let name = self
                    .container(&id.container)
                    .map_or("?".to_owned(), |c| c.name.clone());
                let answer = self
                    .probe_answers
                    .get(&name)
                    .cloned()
                    .unwrap_or(ProbeResult::Success);
                if answer != ProbeResult::Success {
                    self.log
                        .push(format!("{at}s probe {name} {} fails", target_line(&target)));
                }
                return self.pods.handle_probe(&id, answer, self.now);
            }
            Effect::Report { key, uid, patch } => {
                let line = status_line(&patch);
                self.reports.insert(uid.clone(), patch);
                if self.last.insert(uid, line.clone()).as_ref() == Some(&line) {
                    return;
                }
                format!("report {}: {line}", key.name)
            }
            Effect::ReportDeleted { key, uid } => format!("report deleted {} {uid}", key.name),
            Effect::CreateMirror { pod } => {
                let line = format!("create mirror {}", pod.metadata.name);
                let mut mirror = Pod::clone(&pod);
                self.serial += 1;
                mirror.metadata.uid = Some(format!("m{}", self.serial));
                self.mirrors.push(Arc::new(mirror));
                line
            }
            Effect::DeleteMirror { key, uid } => format!("delete mirror {} {uid}", key.name),
            Effect::Event(event) => format!("event {}: {}", event.reason.as_str(), event.message),
        };
        self.log.push(format!("{at}s {line}"));
    }

    fn act(&mut self, pod: &Pod, action: Action) -> (String, Option<Outcome>) {
        let name = &pod.metadata.name;
        let (line, outcome) = match action {
            Action::Allocate { .. } => {
                let result = self.refusal("devices").map_or(Ok(()), Err);
                (format!("devices {name}"), Outcome::Allocated(result))
            }
            Action::PrepareVolumes => {
                let result = self.refusal("volumes").map_or(Ok(VolumesReady::default()), Err);
                (format!("volumes {name}"), Outcome::Volumes(result))
            }
            Action::RunSandbox { attempt } => {
                let result = self.refusal("sandbox").map_or(Ok(()), Err);
                if result.is_ok() {
                    self.make_sandbox(pod, attempt);
                }
                (format!("sandbox {name}#{attempt}"), Outcome::Sandbox(result))
            }
            Action::StartContainer {
                sandbox,
                container,
                attempt,
                target,
                ..
            } => {
                let result = self.refusal(&container).map_or(Ok(()), Err);
                let refused = |reason: &str| {
                    let result = result.as_ref();
                    result.is_err_and(|refusal: &Refusal| refusal.reason == reason)
                };
                let made = if refused("PostStartHookError") {
                    Some(Made::Dead)
                } else if refused("RunContainerError") || (self.slow && result.is_ok()) {
                    Some(Made::Only)
                } else {
                    result.is_ok().then_some(Made::Started)
                };
                if let Some(made) = made {
                    self.make_container(pod, &sandbox, &container, attempt, made);
                }
                let into = target
                    .map(|target| format!(" into {}", target.0))
                    .unwrap_or_default();
                let line = format!("start {container}#{attempt}{into}");
                if self.slow && result.is_ok() {
                    self.starting.push((pod.uid().to_owned(), container));
                    return (line, None);
                }
                (
                    line,
                    Outcome::Container {
                        name: container,
                        result,
                    },
                )
            }
            Action::StopContainers { containers } => return self.stop(pod, containers),
            Action::RemoveContainers(ids) => {
                self.sandboxes
                    .iter_mut()
                    .for_each(|s| s.containers.retain(|c| !ids.contains(&c.id)));
                (
                    format!("remove {} containers", ids.len()),
                    Outcome::ContainersRemoved(Ok(())),
                )
            }
            Action::StopSandbox(id) => {
                self.sandboxes
                    .iter_mut()
                    .filter(|s| s.id == id)
                    .for_each(|s| s.ready = false);
                (format!("stop sandbox of {name}"), Outcome::SandboxStopped(Ok(())))
            }
            Action::RemoveSandboxes(ids) => {
                self.sandboxes.retain(|sandbox| !ids.contains(&sandbox.id));
                (
                    format!("remove {} sandboxes of {name}", ids.len()),
                    Outcome::SandboxesRemoved(Ok(())),
                )
            }
            Action::RemoveVolumes => (
                format!("remove volumes of {name}"),
                Outcome::VolumesRemoved(Ok(())),
            ),
        };
        (line, Some(outcome))
    }

    fn stop(&mut self, pod: &Pod, stops: Vec<Stop>) -> (String, Option<Outcome>) {
        let words: Vec<String> = stops
            .iter()
            .map(|stop| {
                let hook = if stop.run_pre_stop { " after its hook" } else { "" };
                format!("{} grace {}s{hook}", stop.name, stop.grace.as_secs())
            })
            .collect();
        let line = format!("stop {}", words.join(", "));
        if self.stubborn {
            self.stopping.push((pod.uid().to_owned(), stops));
            return (line, None);
        }
        let now = self.now.as_ms();
        for stop in &stops {
            if let Some(container) = self.container(&stop.id) {
                end(container, now, 143);
            }
        }
        (line, Some(Outcome::ContainersStopped(Ok(()))))
    }

    fn refusal(&mut self, name: &str) -> Option<Refusal> {
        self.refusals.get_mut(name)?.pop_front()
    }

    fn container(&mut self, id: &ContainerId) -> Option<&mut ObservedContainer> {
        self.sandboxes
            .iter_mut()
            .flat_map(|s| &mut s.containers)
            .find(|c| c.id == *id)
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
            ips: vec![format!("10.0.0.{}", self.serial)],
            containers: Vec::new(),
        });
    }

    fn make_container(&mut self, pod: &Pod, sandbox: &SandboxId, name: &str, attempt: u32, made_as: Made) {
        self.serial += 1;
        let spec = pod.container(name).unwrap();
        let now = self.now.as_ms();
        let mut made = ObservedContainer {
            id: ContainerId(format!("c{}", self.serial)),
            name: name.to_owned(),
            attempt,
            image: spec.image.clone(),
            image_ref: format!("sha256:{}", spec.image),
            spec_hash: translate::spec_hash(spec),
            created_ms: self.now.as_ms(),
            state: ContainerState::Running {
                started_ms: self.now.as_ms(),
            },
            log_path: "/dev/null".into(),
        };
        match made_as {
            Made::Started => {}
            Made::Only => made.state = ContainerState::Created,
            Made::Dead => end(&mut made, now, 137),
        }
        self.sandboxes
            .iter_mut()
            .find(|s| s.id == *sandbox)
            .unwrap()
            .containers
            .push(made);
    }
}

fn end(container: &mut ObservedContainer, now_ms: u64, exit_code: i32) {
    if let ContainerState::Running { started_ms, .. } = container.state {
        let reason = if exit_code == 0 {
            ExitReason::Completed
        } else {
            ExitReason::Error
        };
        container.state = ContainerState::Exited {
            started_ms,
            finished_ms: now_ms,
            exit_code,
            reason,
            message: String::new(),
        };
    }
}

fn target_line(target: &ProbeTarget) -> String {
    match target {
        ProbeTarget::Http { host, port, path, .. } => format!("http://{host}:{port}{path}"),
        ProbeTarget::Tcp { host, port } => format!("tcp {host}:{port}"),
        ProbeTarget::Grpc { host, port, service } => format!("grpc {host}:{port} {service}"),
        ProbeTarget::Exec { command, .. } => format!("exec {}", command.join(" ")),
    }
}

/// The parts of a reported status that a story is about.
fn status_line(patch: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(patch).unwrap();
    let status: PodStatus = serde_json::from_value(value["status"].clone()).unwrap();
    let ready = status
        .conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let state = |state: &Reported| match (&state.waiting, &state.running, &state.terminated) {
        (Some(waiting), _, _) => waiting.reason.clone().unwrap_or_default(),
        (_, Some(_), _) => "running".to_owned(),
        (_, _, Some(ended)) => format!("exited {}", ended.exit_code),
        (None, None, None) => "-".to_owned(),
    };
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .map(|c| {
            let restarts = if c.restart_count > 0 {
                format!(" x{}", c.restart_count)
            } else {
                String::new()
            };
            let last = if c.last_state.terminated.is_some() {
                format!(" (was {})", state(&c.last_state))
            } else {
                String::new()
            };
            format!("{} {}{restarts}{last}", c.name, state(&c.state))
        });
    let reason = status
        .reason
        .map(|reason| format!(" {reason}"))
        .unwrap_or_default();
    let phase = status.phase.map_or("?".to_owned(), |phase| format!("{phase:?}"));
    let parts: Vec<String> = containers.collect();
    format!(
        "{phase}{reason}{} [{}]",
        if ready { " ready" } else { "" },
        parts.join(", ")
    )
}

pub(crate) fn config() -> Config {
    Config {
        node_name: "edge-1".to_owned(),
        cluster_dns: vec!["10.96.0.10".to_owned()],
        cluster_domain: "cluster.local".to_owned(),
        host_ips: vec!["192.0.2.7".to_owned()],
        container_id_prefix: "kedge://".to_owned(),
        pods_dir: "/pods".into(),
        log_dir: "/logs".into(),
        ..Config::default()
    }
}

/// What the cloud says of the node.
pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        uid: Some("node-uid".to_owned()),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        taints: Vec::new(),
    }
}

/// A pod from the YAML-like JSON of its spec.
pub(crate) fn pod(name: &str, uid: &str, spec: serde_json::Value) -> Pod {
    let value =
        serde_json::json!({ "metadata": { "name": name, "namespace": "default", "uid": uid }, "spec": spec });
    serde_json::from_value(value).unwrap()
}

pub(crate) fn check(world: &World, expect: &Expect) {
    expect.assert_eq(&(world.log.join("\n") + "\n"));
}
