//! What comes next for one pod.

use super::{Volumes, Wish, Worker};
use crate::status::Terminal;
use crate::{Action, Config, Effect, EventReason, ObservationId, admission, translate};
use kedge_api::{PodPhase, RestartPolicy};
use kedge_containers::SandboxId;
use kedge_wire::Time;
use std::collections::VecDeque;

impl Worker {
    /// Looks at the pod and sends the next action, if one is due.
    pub(crate) fn step(&mut self, config: &Config, blocked: bool, now: Time, out: &mut VecDeque<Effect>) {
        if self.finished {
            return;
        }
        if self.must_hurry() {
            self.stopping_since = Some(now);
            return self.stop_alive(now, out);
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
            Wish::Delete { .. } | Wish::Forget { .. } => self.step_down(now, out),
            Wish::Run if self.terminal.is_some() => self.step_terminal(now, out),
            Wish::Run if blocked || self.is_held() => {}
            Wish::Run => self.step_up(config, now, out),
        }
    }

    fn check_deadline(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        let passed = self
            .deadline()
            .is_some_and(|deadline| now >= self.start_time + deadline);
        if self.wish == Wish::Run && self.terminal.is_none() && self.admitted && passed {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.event(None, EventReason::DeadlineExceeded, message.clone(), out);
            self.end(Terminal {
                reason: Some("DeadlineExceeded".to_owned()),
                message: Some(message),
                ..Terminal::of_phase(PodPhase::Failed)
            });
        }
    }

    /// Down to nothing: containers, sandboxes, volumes, and the word to the cloud.
    fn step_down(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        if self.instances.alive().next().is_some() {
            return self.stop_alive(now, out);
        }
        let mut mains = self.pod.spec.containers.iter();
        let succeeded = mains.all(|c| self.instances.exit_code(&c.name) == Some(0));
        self.end(Terminal::of_phase(phase_of(succeeded)));
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

    /// The pod is over but its object stays: nothing runs, nothing is mounted, logs remain unless it was evicted.
    pub(super) fn step_terminal(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        if self.instances.alive().next().is_some() {
            return self.stop_alive(now, out);
        }
        if let Some(id) = self.sandbox_to_stop(true) {
            return self.stop_sandbox(id, out);
        }
        if self.volumes != Volumes::Removed {
            return self.send(Action::RemoveVolumes, out);
        }
        // The node needs the disk: what an evicted pod wrote goes with it, and only its status tells of it.
        if self.is_evicted() && !self.instances.sandboxes().is_empty() {
            self.send(Action::RemoveSandboxes(self.instances.sandbox_ids()), out);
        }
    }

    /// A sandbox that still may hold a network.
    fn sandbox_to_stop(&self, ready_too: bool) -> Option<SandboxId> {
        let sandboxes = self.instances.sandboxes().iter();
        let mut candidates = sandboxes.filter(|s| ready_too || !s.ready).map(|s| &s.id);
        candidates
            .find(|id| !self.stopped_sandboxes.contains(*id))
            .cloned()
    }

    fn stop_sandbox(&mut self, id: SandboxId, out: &mut VecDeque<Effect>) {
        self.stopped_sandboxes.insert(id.clone());
        self.send(Action::StopSandbox(id), out);
    }

    /// Up to running: devices and CPUs, volumes, sandbox, init containers, containers.
    fn step_up(&mut self, config: &Config, now: Time, out: &mut VecDeque<Effect>) {
        if let Some(phase) = self.finished_phase() {
            self.end(Terminal::of_phase(phase));
            return self.step_terminal(now, out);
        }
        let waits = self
            .pod_trouble
            .as_ref()
            .is_some_and(|trouble| trouble.retry_at() > now);
        if waits {
            return;
        }
        if self.wants_allocation(config) {
            self.allocated = true;
            let standing = self.exists();
            return self.send(Action::Allocate { standing }, out);
        }
        match self.volumes {
            Volumes::Missing | Volumes::Stale => return self.send(Action::PrepareVolumes, out),
            Volumes::Ready { refresh_at: Some(at) } if at <= now => {
                return self.send(Action::PrepareVolumes, out);
            }
            Volumes::Ready { .. } | Volumes::Removed => {}
        }
        let Some(sandbox) = self.instances.ready_sandbox().map(|sandbox| sandbox.id.clone()) else {
            return self.step_sandbox(config, now, out);
        };
        // What an earlier sandbox holds of a network goes; the records of its containers stay for a while.
        if let Some(old) = self.old_sandbox(&sandbox) {
            return self.stop_sandbox(old, out);
        }
        self.step_containers(config, &sandbox, now, out);
    }

    fn old_sandbox(&self, current: &SandboxId) -> Option<SandboxId> {
        let sandboxes = self.instances.sandboxes().iter().map(|s| &s.id);
        let mut old = sandboxes.filter(|id| *id != current && !self.stopped_sandboxes.contains(*id));
        old.next().cloned()
    }

    /// Device plug-ins are asked once, before anything is made. CPUs are given out also when a pod stands already: the
    /// node may have begun to do so since it was made.
    fn wants_allocation(&self, config: &Config) -> bool {
        let mut containers = self
            .pod
            .spec
            .init_containers
            .iter()
            .chain(&self.pod.spec.containers);
        let extended =
            |c: &kedge_api::Container| c.resources.limits.keys().any(|n| admission::is_extended(n));
        !self.allocated && (config.pins || !self.exists() && containers.any(extended))
    }

    /// The phase of a pod that has nothing more to do.
    pub(super) fn finished_phase(&self) -> Option<PodPhase> {
        let policy = self.pod.spec.restart_policy;
        let mains = self.pod.spec.containers.iter();
        let codes: Option<Vec<i32>> = mains.map(|c| self.instances.exit_code(&c.name)).collect();
        let codes = codes.filter(|codes| !codes.is_empty() && self.replaced.is_empty())?;
        let succeeded = codes.iter().all(|code| *code == 0);
        match policy {
            RestartPolicy::Always => None,
            RestartPolicy::OnFailure => succeeded.then_some(PodPhase::Succeeded),
            RestartPolicy::Never => Some(phase_of(succeeded)),
        }
    }

    /// There is no ready sandbox: what an old one holds goes first, then a new one comes, unless the pod's containers
    /// are not to run again.
    fn step_sandbox(&mut self, config: &Config, now: Time, out: &mut VecDeque<Effect>) {
        let mut mains = self.pod.spec.containers.iter();
        let never = self.pod.spec.restart_policy == RestartPolicy::Never;
        if never && mains.any(|c| self.instances.ever_ran(&c.name)) {
            // Some of its containers ran and are lost, and they must not run twice.
            self.end(Terminal::of_phase(PodPhase::Failed));
            return self.step_terminal(now, out);
        }
        if let Some(old) = self.sandbox_to_stop(false) {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.event(None, EventReason::SandboxChanged, message, out);
            return self.stop_sandbox(old, out);
        }
        if translate::lacks_cluster_dns(config, &self.pod) {
            let message = format!(
                "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                self.key.name,
                self.key.namespace,
                self.uid()
            );
            self.event(None, EventReason::MissingClusterDns, message, out);
        }
        let attempt = self.instances.next_sandbox_attempt();
        self.send(Action::RunSandbox { attempt }, out);
    }

    /// The first observation that this worker may decide on.
    pub(crate) fn needs_observation(&self) -> Option<ObservationId> {
        let waits = self.busy == 0 && !self.finished && self.seen.is_none_or(|seen| seen < self.fresh_after);
        waits.then_some(self.fresh_after)
    }
}

fn phase_of(succeeded: bool) -> PodPhase {
    if succeeded {
        PodPhase::Succeeded
    } else {
        PodPhase::Failed
    }
}
