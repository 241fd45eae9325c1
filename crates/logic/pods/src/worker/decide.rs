//! What comes next for one pod.

use super::{Volumes, Wish, Worker, grace};
use crate::instances::{self};
use crate::{Action, Config, Effect, EventReason, ObservationId, translate};
use kedge_api::{Container, PodPhase, RestartPolicy};
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, SandboxId};
use kedge_wire::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// What to do about one container.
enum Next {
    /// It is as it shall be; nothing to do.
    Fine,
    /// It ended and stays so, with this exit code.
    Over(i32),
    /// It must be started now.
    Start,
    /// It will be started later.
    Wait,
    /// It was created but never started: remove it first.
    Remove(ContainerId),
}

impl Worker {
    /// Looks at the pod and sends the next action, if one is due.
    pub(crate) fn step(&mut self, _config: &Config, blocked: bool, now: Time, out: &mut VecDeque<Effect>) {
        if self.finished {
            return;
        }
        if let (Some(grace), Some(with)) = (self.stop_grace(), self.stopping_with)
            && grace < with
        {
            return self.stop_alive(grace, out);
        }
        if self.busy > 0 || self.seen.is_none_or(|seen| seen < self.fresh_after) {
            return;
        }
        if self.remove_retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.remove_retry_at = None;
        self.check_deadline(now, out);
        match self.wish {
            Wish::Delete { grace } | Wish::Forget { grace } => self.step_down(grace, now, out),
            Wish::Run if self.terminal.is_some() => self.step_terminal(now, out),
            Wish::Run if blocked => {}
            Wish::Run => self.step_up(now, out),
        }
    }

    fn stop_grace(&self) -> Option<Duration> {
        match self.wish {
            Wish::Run => None,
            Wish::Delete { grace } | Wish::Forget { grace } => Some(grace),
        }
    }

    fn check_deadline(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        let passed = self
            .deadline()
            .is_some_and(|deadline| now >= self.start_time + deadline);
        if self.wish == Wish::Run && self.terminal.is_none() && passed {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.event(None, EventReason::DeadlineExceeded, message.clone(), out);
            self.end(
                PodPhase::Failed,
                Some("DeadlineExceeded".to_owned()),
                Some(message),
            );
        }
    }

    /// Stops the main containers, then the sidecars; returns whether anything was alive.
    fn stop_alive(&mut self, grace: Duration, out: &mut VecDeque<Effect>) {
        let main = |c: &&ObservedContainer| self.pod.spec.containers.iter().any(|spec| spec.name == c.name);
        let name = |c: &ObservedContainer| (c.id.clone(), c.name.clone());
        let mut containers: Vec<_> = self.instances.alive().filter(main).map(name).collect();
        if containers.is_empty() {
            containers = self.instances.alive().map(name).collect();
        }
        if containers.is_empty() {
            return;
        }
        for (_, name) in &containers {
            self.event(
                Some(name.clone()),
                EventReason::Killing,
                format!("Stopping container {name}"),
                out,
            );
        }
        self.tell_hooks(out);
        self.stopping_with = Some(grace);
        self.send(Action::StopContainers { containers, grace }, out);
    }

    /// Hooks need to run something in the container, which this version cannot.
    fn tell_hooks(&mut self, out: &mut VecDeque<Effect>) {
        let has = |c: &Container| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
        let names: Vec<String> = self
            .pod
            .spec
            .containers
            .iter()
            .filter(|c| has(c))
            .map(|c| c.name.clone())
            .collect();
        if self.hook_told {
            return;
        }
        self.hook_told = true;
        for name in names {
            let message =
                "this version does not run preStop hooks; the container gets its stop signal at once"
                    .to_owned();
            self.event(Some(name), EventReason::FailedPreStopHook, message, out);
        }
    }

    /// Down to nothing: containers, sandboxes, volumes, and the word to the cloud.
    fn step_down(&mut self, grace: Duration, now: Time, out: &mut VecDeque<Effect>) {
        if self.instances.alive().next().is_some() {
            return self.stop_alive(grace, out);
        }
        let failed = self
            .instances
            .all()
            .filter_map(instances::end)
            .any(|end| end.exit_code != 0);
        self.end(
            if failed {
                PodPhase::Failed
            } else {
                PodPhase::Succeeded
            },
            None,
            None,
        );
        if !self.instances.sandboxes().is_empty() {
            return self.send(Action::RemoveSandboxes(self.instances.sandbox_ids()), out);
        }
        if self.volumes != Volumes::Removed {
            return self.send(Action::RemoveVolumes, out);
        }
        match self.wish {
            Wish::Forget { .. } => self.finished = true,
            Wish::Delete { .. } => self.say_deleted(now, out),
            Wish::Run => {}
        }
    }

    /// The pod is over but its object stays: nothing runs, logs remain.
    fn step_terminal(&mut self, _now: Time, out: &mut VecDeque<Effect>) {
        if self.instances.alive().next().is_some() {
            return self.stop_alive(grace(&self.pod), out);
        }
        if let Some(sandbox) = self.instances.ready_sandbox() {
            let id = sandbox.id.clone();
            self.send(Action::StopSandbox(id), out);
        }
    }

    /// Up to running: volumes, sandbox, init containers, containers.
    fn step_up(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        if self
            .pod_trouble
            .as_ref()
            .is_some_and(|trouble| trouble.retry_at() > now)
        {
            return;
        }
        match self.volumes {
            Volumes::Missing | Volumes::Stale => return self.send(Action::PrepareVolumes, out),
            Volumes::Ready { refresh_at: Some(at) } if at <= now => {
                return self.send(Action::PrepareVolumes, out);
            }
            Volumes::Ready { .. } | Volumes::Removed => {}
        }
        let Some(sandbox) = self.instances.ready_sandbox().map(|sandbox| sandbox.id.clone()) else {
            return self.step_sandbox(out);
        };
        let old: Vec<SandboxId> = self
            .instances
            .sandboxes()
            .iter()
            .map(|s| s.id.clone())
            .filter(|id| *id != sandbox)
            .collect();
        if !old.is_empty() {
            return self.send(Action::RemoveSandboxes(old), out);
        }
        self.crash_waits.clear();
        if self.stop_unwanted(out) || self.step_init(&sandbox, now, out) {
            return;
        }
        self.step_main(&sandbox, now, out);
    }

    /// There is no ready sandbox: what is left of an old one goes first, then a new one comes, unless the pod's
    /// containers ended for good.
    fn step_sandbox(&mut self, out: &mut VecDeque<Effect>) {
        let policy = self.pod.spec.restart_policy;
        let mains = self.pod.spec.containers.iter();
        let ended = |c: &Container| {
            self.instances
                .past(&c.name)
                .and_then(|past| past.terminated.as_ref())
                .map(|t| t.exit_code)
        };
        let over = match policy {
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => mains.clone().all(|c| ended(c) == Some(0)),
            RestartPolicy::Never => mains.clone().any(|c| self.instances.ever_ran(&c.name)),
        };
        if over {
            let failed = mains.clone().any(|c| ended(c) != Some(0));
            return self.end(
                if failed {
                    PodPhase::Failed
                } else {
                    PodPhase::Succeeded
                },
                None,
                None,
            );
        }
        if !self.instances.sandboxes().is_empty() {
            return self.send(Action::RemoveSandboxes(self.instances.sandbox_ids()), out);
        }
        let attempt = self.instances.next_sandbox_attempt();
        self.send(Action::RunSandbox { attempt }, out);
    }

    /// Containers that run but must not go on as they are.
    fn stop_unwanted(&mut self, out: &mut VecDeque<Effect>) -> bool {
        let mut stop: Option<(ContainerId, String, Duration, String)> = None;
        for container in self.instances.alive() {
            let name = &container.name;
            let Some(spec) = self.pod.container(name) else {
                continue;
            };
            if container.spec_hash != translate::spec_hash(spec) {
                let why = format!("Container {name} definition changed, will be restarted");
                stop = Some((container.id.clone(), name.clone(), grace(&self.pod), why));
                break;
            }
            if let Some((kind, own)) = self.condemned(container) {
                let why = format!(
                    "Container {name} failed {} probe, will be restarted",
                    kind.to_string().to_lowercase()
                );
                stop = Some((
                    container.id.clone(),
                    name.clone(),
                    own.unwrap_or_else(|| grace(&self.pod)),
                    why,
                ));
                break;
            }
        }
        let Some((id, name, grace, why)) = stop else {
            return false;
        };
        self.event(Some(name.clone()), EventReason::Killing, why, out);
        self.stopping_with = Some(grace);
        self.send(
            Action::StopContainers {
                containers: vec![(id, name)],
                grace,
            },
            out,
        );
        true
    }

    /// Whether the init containers of the present sandbox have done their work.
    pub(super) fn initialized(&self) -> bool {
        let spec = &self.pod.spec;
        if spec.init_containers.is_empty()
            || spec
                .containers
                .iter()
                .any(|c| self.instances.current(&c.name).is_some())
        {
            return true;
        }
        spec.init_containers
            .iter()
            .all(|c| match self.instances.current(&c.name) {
                None => false,
                Some(seen) if is_sidecar(c) => self.probes.started(&seen.id),
                Some(seen) => instances::end(seen).is_some_and(|end| end.exit_code == 0),
            })
    }

    /// Sees to init containers and sidecars in their order. Returns whether the main containers must wait.
    fn step_init(&mut self, sandbox: &SandboxId, now: Time, out: &mut VecDeque<Effect>) -> bool {
        let initialized = self.initialized();
        let pod = std::sync::Arc::clone(&self.pod);
        for spec in &pod.spec.init_containers {
            let sidecar = is_sidecar(spec);
            if initialized && !sidecar {
                continue;
            }
            let policy = match (sidecar, pod.spec.restart_policy) {
                (true, _) => RestartPolicy::Always,
                // An init container is repeated until it succeeds, unless the pod never repeats.
                (false, RestartPolicy::Never) => RestartPolicy::Never,
                (false, RestartPolicy::Always | RestartPolicy::OnFailure) => RestartPolicy::OnFailure,
            };
            match self.next(spec, policy, now) {
                Next::Over(0) => {}
                Next::Over(code) => {
                    let message = format!("init container {} ended with code {code}", spec.name);
                    self.end(PodPhase::Failed, None, Some(message));
                    return true;
                }
                Next::Start => {
                    self.start(sandbox, spec, out);
                    return true;
                }
                Next::Remove(id) => {
                    self.send(Action::RemoveContainers(vec![id]), out);
                    return true;
                }
                Next::Fine if sidecar => {
                    let started = self
                        .instances
                        .current(&spec.name)
                        .is_some_and(|c| self.probes.started(&c.id));
                    if !started && !initialized {
                        return true;
                    }
                }
                Next::Wait if initialized => self.note_wait(spec, now, out),
                Next::Wait => {
                    self.note_wait(spec, now, out);
                    return true;
                }
                Next::Fine => return true,
            }
        }
        !initialized
    }

    fn step_main(&mut self, sandbox: &SandboxId, now: Time, out: &mut VecDeque<Effect>) {
        let pod = std::sync::Arc::clone(&self.pod);
        let mut over = Vec::new();
        for spec in &pod.spec.containers {
            match self.next(spec, pod.spec.restart_policy, now) {
                Next::Fine => {}
                Next::Over(code) => over.push(code),
                Next::Start => return self.start(sandbox, spec, out),
                Next::Remove(id) => return self.send(Action::RemoveContainers(vec![id]), out),
                Next::Wait => self.note_wait(spec, now, out),
            }
        }
        if over.len() == pod.spec.containers.len() {
            let failed = over.iter().any(|code| *code != 0);
            self.end(
                if failed {
                    PodPhase::Failed
                } else {
                    PodPhase::Succeeded
                },
                None,
                None,
            );
            return self.step_terminal(now, out);
        }
        let superfluous = self.instances.superfluous();
        if !superfluous.is_empty() {
            self.send(Action::RemoveContainers(superfluous), out);
        }
    }

    fn next(&mut self, spec: &Container, policy: RestartPolicy, now: Time) -> Next {
        let waits = self
            .trouble
            .get(&spec.name)
            .is_some_and(|trouble| trouble.retry_at() > now);
        let Some(current) = self.instances.current(&spec.name) else {
            return if waits { Next::Wait } else { Next::Start };
        };
        let end = match &current.state {
            ContainerState::Running { .. } => return Next::Fine,
            ContainerState::Created if waits => return Next::Wait,
            ContainerState::Created => return Next::Remove(current.id.clone()),
            ContainerState::Exited { .. } | ContainerState::Unknown => instances::end(current),
        };
        let Some(end) = end else { return Next::Fine };
        let again = match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => end.exit_code != 0,
            RestartPolicy::Never => false,
        };
        if !again {
            return Next::Over(end.exit_code);
        }
        // A container that was stopped because it had to change is not at fault.
        let changed = current.spec_hash != translate::spec_hash(spec);
        let delay = self
            .crash
            .entry(spec.name.clone())
            .or_default()
            .delay(end.started, end.finished);
        if waits || (!changed && now < end.finished + delay) {
            Next::Wait
        } else {
            Next::Start
        }
    }

    fn start(&mut self, sandbox: &SandboxId, spec: &Container, out: &mut VecDeque<Effect>) {
        if self.instances.current(&spec.name).is_some() {
            self.crash.entry(spec.name.clone()).or_default().restarted();
        }
        let pod_ips = self
            .instances
            .ready_sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default();
        let attempt = self.instances.next_attempt(&spec.name);
        let container = spec.name.clone();
        self.send(
            Action::StartContainer {
                sandbox: sandbox.clone(),
                container,
                attempt,
                pod_ips,
            },
            out,
        );
    }

    /// The status shows the crash back-off, and an event tells it once per crash.
    fn note_wait(&mut self, spec: &Container, now: Time, out: &mut VecDeque<Effect>) {
        let Some(current) = self.instances.current(&spec.name) else {
            return;
        };
        let Some(end) = instances::end(current) else {
            return;
        };
        let delay = self
            .crash
            .entry(spec.name.clone())
            .or_default()
            .delay(end.started, end.finished);
        if now >= end.finished + delay {
            return;
        }
        self.crash_waits.insert(spec.name.clone(), delay);
        let id = current.id.0.clone();
        if self.backoff_told.insert(spec.name.clone(), id.clone()) != Some(id) {
            let message = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                spec.name,
                self.key.name,
                self.key.namespace,
                self.uid()
            );
            self.event(Some(spec.name.clone()), EventReason::BackOff, message, out);
        }
    }

    /// The first observation that this worker may decide on.
    pub(crate) fn needs_observation(&self) -> Option<ObservationId> {
        let waits = self.busy == 0 && !self.finished && self.seen.is_none_or(|seen| seen < self.fresh_after);
        waits.then_some(self.fresh_after)
    }
}

fn is_sidecar(spec: &Container) -> bool {
    spec.restart_policy == Some(RestartPolicy::Always)
}
