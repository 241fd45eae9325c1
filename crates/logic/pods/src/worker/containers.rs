//! Init containers, sidecars, main and ephemeral containers of a pod whose sandbox stands.

use super::{Worker, grace};
use crate::backoff;
use crate::instances;
use crate::qos::is_sidecar;
use crate::status::Terminal;
use crate::{Action, Config, DeadContainers, Effect, EventReason, Stop, translate};
use kedge_api::{Container, PodPhase, RestartPolicy};
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, SandboxId};
use kedge_wire::Time;
use std::collections::VecDeque;
use std::sync::Arc;
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
    /// The next step of the pod's containers.
    pub(super) fn step_containers(
        &mut self,
        config: &Config,
        sandbox: &SandboxId,
        now: Time,
        out: &mut VecDeque<Effect>,
    ) {
        self.crash_waits.clear();
        if self.stop_unwanted(out)
            || self.step_ephemeral(sandbox, now, out)
            || self.step_init(config, sandbox, now, out)
        {
            return;
        }
        self.step_main(config, sandbox, now, out);
    }

    /// Records of dead instances that are not to be kept.
    fn superfluous(&self, rules: &DeadContainers, now: Time) -> Vec<ContainerId> {
        let is_old = |made: Time| made + rules.age_min <= now;
        let too_many = |newer: usize| rules.each_max.is_some_and(|max| newer >= max as usize);
        let goes = |made: Time, newer: usize| {
            is_old(made) && (too_many(newer) || self.spare_until.is_some_and(|until| made <= until))
        };
        let spare = self.instances.spare().into_iter();
        spare
            .filter(|(container, newer)| goes(Time::from_ms(container.created_ms), *newer))
            .map(|(container, _)| container.id.clone())
            .collect()
    }

    /// When the dead instances were made that the node may have no more of.
    pub(crate) fn spare_made(&self) -> impl Iterator<Item = Time> {
        let spare = self.instances.spare().into_iter();
        spare.map(|(container, _)| Time::from_ms(container.created_ms))
    }

    /// Those that were made until then go, whatever their number.
    pub(crate) fn drop_spare(&mut self, until: Option<Time>) {
        self.spare_until = until;
    }

    /// Containers that run but must not go on as they are.
    fn stop_unwanted(&mut self, out: &mut VecDeque<Effect>) -> bool {
        let never = self.pod.spec.restart_policy == RestartPolicy::Never;
        let mut stop: Option<(ContainerId, String, Duration, String)> = None;
        for container in self.instances.alive() {
            let Some(spec) = self.pod.container(&container.name) else {
                continue;
            };
            let (id, name) = (container.id.clone(), container.name.clone());
            if container.spec_hash != translate::spec_hash(spec) && !self.is_ephemeral(&name) {
                let why = format!("Container {name} definition changed, will be restarted");
                self.replaced.insert(id.clone());
                stop = Some((id, name, grace(&self.pod), why));
                break;
            }
            if let Some((kind, own)) = self.condemned(container) {
                let again = if never && !is_sidecar(spec) {
                    ""
                } else {
                    ", will be restarted"
                };
                let why = format!(
                    "Container {name} failed {} probe{again}",
                    kind.to_string().to_lowercase()
                );
                stop = Some((id, name, own.unwrap_or_else(|| grace(&self.pod)), why));
                break;
            }
        }
        let Some((id, name, grace, why)) = stop else {
            return false;
        };
        self.stopping_with = Some(grace);
        let stop: Stop = self.stop(id, name, grace, Some(why), out);
        self.send(
            Action::StopContainers {
                containers: vec![stop],
            },
            out,
        );
        true
    }

    fn is_ephemeral(&self, name: &str) -> bool {
        self.pod.spec.ephemeral_containers.iter().any(|c| c.name == name)
    }

    /// Ephemeral containers start whenever they are asked for, and never again.
    fn step_ephemeral(&mut self, sandbox: &SandboxId, now: Time, out: &mut VecDeque<Effect>) -> bool {
        let pod = Arc::clone(&self.pod);
        for spec in &pod.spec.ephemeral_containers {
            if let Some(seen) = self.instances.latest(&spec.name) {
                if seen.state == ContainerState::Created && !self.waits(&spec.name, now) {
                    let id = seen.id.clone();
                    self.send(Action::RemoveContainers(vec![id]), out);
                    return true;
                }
                continue;
            }
            // One that was created in vain is remembered too, but it never ran.
            let ran = self.instances.ever_ran(&spec.name) && !self.trouble.contains_key(&spec.name);
            if ran || self.waits(&spec.name, now) {
                continue;
            }
            let target = spec
                .target_container_name
                .as_deref()
                .filter(|name| !name.is_empty());
            let running = |name| {
                self.instances
                    .current(name)
                    .filter(|c| is_running(c))
                    .map(|c| c.id.clone())
            };
            let target = match target.map(running) {
                None => None,
                Some(Some(id)) => Some(id),
                // Whose processes it shall see does not run: it waits for that container.
                Some(None) => continue,
            };
            self.start(sandbox, spec, target, out);
            return true;
        }
        false
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
    fn step_init(
        &mut self,
        config: &Config,
        sandbox: &SandboxId,
        now: Time,
        out: &mut VecDeque<Effect>,
    ) -> bool {
        let initialized = self.initialized();
        let pod = Arc::clone(&self.pod);
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
            match self.next(spec, policy, false, now) {
                Next::Over(0) => {}
                Next::Over(_) => {
                    self.end(Terminal::of_phase(PodPhase::Failed));
                    self.step_terminal(now, out);
                    return true;
                }
                Next::Start => {
                    self.restart(config, sandbox, spec, out);
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

    fn step_main(&mut self, config: &Config, sandbox: &SandboxId, now: Time, out: &mut VecDeque<Effect>) {
        let pod = Arc::clone(&self.pod);
        for spec in &pod.spec.containers {
            match self.next(spec, pod.spec.restart_policy, true, now) {
                Next::Fine | Next::Over(_) => {}
                Next::Start => return self.restart(config, sandbox, spec, out),
                Next::Remove(id) => return self.send(Action::RemoveContainers(vec![id]), out),
                Next::Wait => self.note_wait(spec, now, out),
            }
        }
        let superfluous = self.superfluous(&config.dead_containers, now);
        if !superfluous.is_empty() {
            return self.send(Action::RemoveContainers(superfluous), out);
        }
        let empty = self.instances.empty_sandboxes();
        if !empty.is_empty() {
            self.send(Action::RemoveSandboxes(empty), out);
        }
    }

    /// A start of this container was refused, and the next try is not due.
    fn waits(&self, name: &str, now: Time) -> bool {
        self.trouble
            .get(name)
            .is_some_and(|trouble| trouble.retry_at() > now)
    }

    /// `for_good`: what ended in an earlier sandbox is not repeated in a new one, as init containers are.
    fn next(&mut self, spec: &Container, policy: RestartPolicy, for_good: bool, now: Time) -> Next {
        let waits = self.waits(&spec.name, now);
        let Some(current) = self.instances.current(&spec.name) else {
            let code = self.instances.exit_code(&spec.name).filter(|_| for_good);
            return match (policy, code) {
                (RestartPolicy::OnFailure, Some(0)) => Next::Over(0),
                (RestartPolicy::Never, Some(code)) => Next::Over(code),
                (RestartPolicy::Always | RestartPolicy::OnFailure | RestartPolicy::Never, _) if waits => {
                    Next::Wait
                }
                (RestartPolicy::Always | RestartPolicy::OnFailure | RestartPolicy::Never, _) => Next::Start,
            };
        };
        let end = match &current.state {
            ContainerState::Running { .. } => return Next::Fine,
            ContainerState::Created if waits => return Next::Wait,
            ContainerState::Created => return Next::Remove(current.id.clone()),
            ContainerState::Exited { .. } | ContainerState::Unknown => instances::end(current),
        };
        let Some(end) = end else { return Next::Fine };
        // A container that was stopped because it had to change is not at fault.
        let changed = current.spec_hash != translate::spec_hash(spec);
        let again = match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => end.exit_code != 0,
            RestartPolicy::Never => false,
        };
        if !again && !self.replaced.contains(&current.id) {
            return Next::Over(end.exit_code);
        }
        let delay = self
            .crash
            .entry(spec.name.clone())
            .or_default()
            .delay(end.started, end.finished);
        let due = self
            .waits_until(&spec.name, delay)
            .is_none_or(|until| until <= now);
        if waits || (!changed && !due) {
            Next::Wait
        } else {
            Next::Start
        }
    }

    /// When a container that ended may start again. Clocks of others may jump: an end that this process saw itself is
    /// as old as it was seen, and no end lies in the future.
    pub(super) fn waits_until(&self, name: &str, delay: Duration) -> Option<Time> {
        let latest = self.instances.latest(name)?;
        let end = instances::end(latest)?;
        let seen = self.ends_seen.get(name).filter(|(id, _)| *id == latest.id);
        let finished = match seen {
            Some((_, at)) if Time::from_ms(latest.created_ms) >= self.born => *at,
            Some((_, at)) => end.finished.min(*at),
            None => end.finished,
        };
        Some(finished + delay)
    }

    /// Starts a container of which there may have been an instance before.
    fn restart(
        &mut self,
        config: &Config,
        sandbox: &SandboxId,
        spec: &Container,
        out: &mut VecDeque<Effect>,
    ) {
        if self.instances.current(&spec.name).is_some() {
            let longest = config.crash_wait_max.unwrap_or(backoff::BACKOFF_MAX);
            self.crash
                .entry(spec.name.clone())
                .or_default()
                .restarted(longest);
        }
        self.start(sandbox, spec, None, out);
    }

    fn start(
        &mut self,
        sandbox: &SandboxId,
        spec: &Container,
        target: Option<ContainerId>,
        out: &mut VecDeque<Effect>,
    ) {
        let pod_ips = self
            .instances
            .ready_sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default();
        let attempt = self.instances.next_attempt(&spec.name);
        let start = Action::StartContainer {
            sandbox: sandbox.clone(),
            container: spec.name.clone(),
            attempt,
            pod_ips,
            target,
        };
        self.send(start, out);
    }

    /// The status shows the crash back-off, and an event tells it once per crash; the same for a pull that waits.
    fn note_wait(&mut self, spec: &Container, now: Time, out: &mut VecDeque<Effect>) {
        if let Some(trouble) = self.trouble.get(&spec.name) {
            let shown = now >= trouble.since + crate::status::PULL_ERROR_SHOWN_FOR;
            let told = self.backoff_told.get(&spec.name).is_some_and(String::is_empty);
            if trouble.is_pull() && shown && !told {
                self.backoff_told.insert(spec.name.clone(), String::new());
                let message = format!("Back-off pulling image \"{}\"", spec.image);
                self.event(Some(spec.name.clone()), EventReason::PullBackOff, message, out);
                let message = "Error: ImagePullBackOff".to_owned();
                self.event(Some(spec.name.clone()), EventReason::Failed, message, out);
            }
            return;
        }
        let Some(current) = self.instances.current(&spec.name) else {
            return;
        };
        let Some(end) = instances::end(current) else {
            return;
        };
        let id = current.id.0.clone();
        let delay = self
            .crash
            .entry(spec.name.clone())
            .or_default()
            .delay(end.started, end.finished);
        if self
            .waits_until(&spec.name, delay)
            .is_none_or(|until| now >= until)
        {
            return;
        }
        self.crash_waits.insert(spec.name.clone(), delay);
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
}

fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}
