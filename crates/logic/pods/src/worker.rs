//! One pod: what it is, what is under way, and what comes next.

mod decide;
mod report;

use crate::backoff::{self, CrashBackoff, Trouble};
use crate::instances::Instances;
use crate::probes::{Probes, Verdict};
use crate::status::Terminal;
use crate::{
    Action, Config, Effect, EventReason, ObservationId, Outcome, PodEvent, PodKey, ProbeId, ProbeKind,
    ProbeResult, Refusal, VolumesReady,
};
use kedge_api::{Pod, PodStatus};
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_wire::Time;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Kubernetes' default grace.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// A configuration that is missing is looked for again this often, and at once when one arrives.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// A stop or a removal that failed is tried again after this time.
const REMOVE_RETRY: Duration = Duration::from_secs(5);
/// A report that the cloud did not take is made again after this time.
const REPORT_RETRY: Duration = Duration::from_secs(10);
/// The cloud took the deletion, but the object is still desired: say it again after this time.
const DELETED_REPEAT: Duration = Duration::from_secs(60);

/// What the cloud wants with the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    /// It has a deletion timestamp: stop, clean up, say so.
    Delete {
        grace: Duration,
    },
    /// Its object is gone: stop and clean up.
    Forget {
        grace: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volumes {
    Missing,
    Ready {
        refresh_at: Option<Time>,
    },
    /// Ready, but their sources have changed.
    Stale,
    Removed,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: PodKey,
    pub(crate) pod: Arc<Pod>,
    pub(crate) wish: Wish,
    /// Actions under way: none or one, two while a stop is made faster.
    busy: u32,
    /// The grace of the stop that is under way.
    stopping_with: Option<Duration>,
    /// Decide only on an observation at least this new.
    fresh_after: ObservationId,
    seen: Option<ObservationId>,
    instances: Instances,
    probes: Probes,
    volumes: Volumes,
    pod_trouble: Option<Trouble>,
    trouble: BTreeMap<String, Trouble>,
    crash: BTreeMap<String, CrashBackoff>,
    crash_waits: BTreeMap<String, Duration>,
    remove_retry_at: Option<Time>,
    backoff_told: BTreeMap<String, String>,
    terminal: Option<Terminal>,
    start_time: Time,
    status: PodStatus,
    reported: Option<PodStatus>,
    report_retry_at: Option<Time>,
    deleted_said: Option<Time>,
    hook_told: bool,
    pub(crate) admitted: bool,
    /// Nothing of the pod is left on this node.
    pub(crate) finished: bool,
}

impl Worker {
    pub(crate) fn new(config: &Config, pod: Arc<Pod>, now: Time, fresh_after: ObservationId) -> Self {
        let status = pod.status.clone();
        let mut instances = Instances::default();
        instances.recall(&status.init_container_statuses);
        instances.recall(&status.container_statuses);
        let terminal = status
            .phase
            .filter(|phase| phase.is_terminal())
            .map(|phase| Terminal {
                phase,
                reason: status.reason.clone(),
                message: status.message.clone(),
            });
        let mut worker = Self {
            key: PodKey::of(&pod),
            wish: Wish::Run,
            busy: 0,
            stopping_with: None,
            fresh_after,
            seen: None,
            instances,
            probes: Probes::default(),
            volumes: Volumes::Missing,
            pod_trouble: None,
            trouble: BTreeMap::new(),
            crash: BTreeMap::new(),
            crash_waits: BTreeMap::new(),
            remove_retry_at: None,
            backoff_told: BTreeMap::new(),
            terminal,
            start_time: status.start_time.map_or(now, |t| Time::from_ms(t.as_ms())),
            status,
            reported: None,
            report_retry_at: None,
            deleted_said: None,
            hook_told: false,
            admitted: pod.status.start_time.is_some(),
            finished: false,
            pod: Arc::clone(&pod),
        };
        worker.want(config, pod);
        worker
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.uid()
    }

    /// The newest desired pod of this UID.
    pub(crate) fn want(&mut self, _config: &Config, pod: Arc<Pod>) {
        if pod.metadata.deletion_timestamp.is_some() {
            self.wish = Wish::Delete {
                grace: deletion_grace(&pod),
            };
        }
        self.pod = pod;
    }

    /// The object is gone.
    pub(crate) fn forget(&mut self) {
        let grace = match self.wish {
            Wish::Run => grace(&self.pod),
            Wish::Delete { grace } | Wish::Forget { grace } => grace,
        };
        self.wish = Wish::Forget { grace };
    }

    /// The node refuses the pod before anything of it was made.
    pub(crate) fn reject(&mut self, refusal: Refusal, out: &mut VecDeque<Effect>) {
        self.event(None, EventReason::Rejected, refusal.message.clone(), out);
        self.end(
            kedge_api::PodPhase::Failed,
            Some(refusal.reason),
            Some(refusal.message),
        );
    }

    /// The pod counts against the node's resources.
    pub(crate) fn holds_resources(&self) -> bool {
        self.admitted && self.terminal.is_none()
    }

    /// Something of the pod was made by an earlier life of this process.
    pub(crate) fn exists(&self) -> bool {
        !self.instances.sandboxes().is_empty()
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Whether this pod still occupies its name.
    pub(crate) fn occupies_name(&self) -> bool {
        !self.finished
    }

    /// A config map or a secret that the pod uses has changed.
    pub(crate) fn config_changed(&mut self) {
        if matches!(self.volumes, Volumes::Ready { .. }) {
            self.volumes = Volumes::Stale;
        }
        self.pod_trouble = None;
        self.trouble.retain(|_, trouble| trouble.reason != CONFIG_ERROR);
    }

    pub(crate) fn observe(&mut self, config: &Config, id: ObservationId, seen: Vec<ObservedSandbox>) {
        self.seen = Some(id);
        self.instances.observe(seen, &config.container_id_prefix);
        let running: Vec<_> = self
            .instances
            .all()
            .filter_map(|c| match c.state {
                ContainerState::Running { started_ms, .. } => {
                    Some((c.id.clone(), c.name.clone(), Time::from_ms(started_ms)))
                }
                ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => None,
            })
            .collect();
        let known = [
            self.pod.status.init_container_statuses.as_slice(),
            &self.pod.status.container_statuses,
        ]
        .concat();
        self.probes.follow(&self.pod, &running, &known);
    }

    /// An action ended; decide again on an observation from `fresh_after` on.
    pub(crate) fn outcome(&mut self, outcome: Outcome, now: Time, fresh_after: ObservationId) {
        self.busy = self.busy.saturating_sub(1);
        if self.busy == 0 {
            self.stopping_with = None;
        }
        match outcome {
            Outcome::Volumes(result) => return self.volumes_prepared(result, now),
            Outcome::Sandbox(Ok(())) => self.pod_trouble = None,
            Outcome::Sandbox(Err(refusal)) => self.refuse_pod(refusal, now),
            Outcome::Container { name, result: Ok(()) } => {
                self.trouble.remove(&name);
            }
            Outcome::Container {
                name,
                result: Err(refusal),
            } => self.refuse_container(name, refusal, now),
            Outcome::VolumesRemoved(Ok(())) => self.volumes = Volumes::Removed,
            Outcome::ContainersStopped(Ok(()))
            | Outcome::ContainersRemoved(Ok(()))
            | Outcome::SandboxStopped(Ok(()))
            | Outcome::SandboxesRemoved(Ok(())) => {}
            Outcome::ContainersStopped(Err(_))
            | Outcome::ContainersRemoved(Err(_))
            | Outcome::SandboxStopped(Err(_))
            | Outcome::SandboxesRemoved(Err(_))
            | Outcome::VolumesRemoved(Err(_)) => self.remove_retry_at = Some(now + REMOVE_RETRY),
        }
        self.fresh_after = fresh_after;
    }

    fn volumes_prepared(&mut self, result: Result<VolumesReady, Refusal>, now: Time) {
        match result {
            Ok(ready) => {
                self.pod_trouble = None;
                self.volumes = Volumes::Ready {
                    refresh_at: ready.refresh_at,
                };
            }
            Err(refusal) => {
                // Volumes that stood keep their old content; a running pod does not suffer from a failed refresh.
                if self.volumes == Volumes::Stale {
                    self.volumes = Volumes::Ready {
                        refresh_at: Some(now + CONFIG_RETRY),
                    };
                } else if let Volumes::Ready { refresh_at } = &mut self.volumes {
                    *refresh_at = Some(now + CONFIG_RETRY);
                } else {
                    self.refuse_pod(refusal, now);
                }
            }
        }
    }

    fn refuse_pod(&mut self, refusal: Refusal, now: Time) {
        let delay = match &self.pod_trouble {
            _ if refusal.reason == CONFIG_ERROR => CONFIG_RETRY,
            Some(trouble) => backoff::next(trouble.delay),
            None => SANDBOX_RETRY_MIN,
        };
        self.pod_trouble = Some(Trouble {
            reason: refusal.reason,
            message: refusal.message,
            since: now,
            delay,
        });
    }

    fn refuse_container(&mut self, name: String, refusal: Refusal, now: Time) {
        let delay = match self.trouble.get(&name) {
            _ if refusal.reason == CONFIG_ERROR => CONFIG_RETRY,
            Some(trouble) => backoff::next(trouble.delay),
            None => backoff::BACKOFF_MIN,
        };
        let trouble = Trouble {
            reason: refusal.reason,
            message: refusal.message,
            since: now,
            delay,
        };
        self.trouble.insert(name, trouble);
    }

    pub(crate) fn probe_answered(
        &mut self,
        id: &ProbeId,
        result: ProbeResult,
        now: Time,
        out: &mut VecDeque<Effect>,
    ) {
        match self.probes.answer(&self.pod, id, result, now) {
            Verdict::Nothing => {}
            Verdict::Unhealthy { container, message } => {
                self.event(Some(container), EventReason::Unhealthy, message, out);
            }
        }
    }

    /// Probes that are due go out; those that cannot be asked are answered at once.
    pub(crate) fn send_probes(&mut self, config: &Config, now: Time, out: &mut VecDeque<Effect>) {
        if self.wish != Wish::Run || self.terminal.is_some() {
            return;
        }
        let ip = if self.pod.spec.host_network {
            config
                .host_ips
                .first()
                .cloned()
                .or_else(|| Some("127.0.0.1".to_owned()))
        } else {
            self.instances
                .ready_sandbox()
                .and_then(|sandbox| sandbox.ips.first().cloned())
        };
        for due in self.probes.take_due(&Arc::clone(&self.pod), ip.as_deref(), now) {
            match due.target {
                Ok(target) => out.push_back(Effect::Probe {
                    id: due.id,
                    target,
                    timeout: due.timeout,
                }),
                Err(message) => self.probe_answered(&due.id, ProbeResult::Unsupported(message), now, out),
            }
        }
    }

    pub(crate) fn event(
        &self,
        container: Option<String>,
        reason: EventReason,
        message: String,
        out: &mut VecDeque<Effect>,
    ) {
        let uid = self.uid().to_owned();
        out.push_back(Effect::Event(PodEvent {
            key: self.key.clone(),
            uid,
            container,
            reason,
            message,
        }));
    }

    fn end(&mut self, phase: kedge_api::PodPhase, reason: Option<String>, message: Option<String>) {
        if self.terminal.is_none() {
            self.terminal = Some(Terminal {
                phase,
                reason,
                message,
            });
        }
    }

    fn send(&mut self, action: Action, out: &mut VecDeque<Effect>) {
        self.busy += 1;
        out.push_back(Effect::Do {
            pod: Arc::clone(&self.pod),
            action,
        });
    }

    /// When this worker wants to be looked at again.
    pub(crate) fn wake_at(&self, now: Time) -> Option<Time> {
        let mut moments: Vec<Time> = Vec::new();
        moments.extend(self.probes.next_due());
        moments.extend(self.report_retry_at);
        moments.extend(self.remove_retry_at);
        moments.extend(self.pod_trouble.as_ref().map(Trouble::retry_at));
        for trouble in self.trouble.values() {
            moments.push(trouble.retry_at());
            moments.push(trouble.since + crate::status::PULL_ERROR_SHOWN_FOR);
        }
        if let Volumes::Ready { refresh_at: Some(at) } = self.volumes {
            moments.push(at);
        }
        for (name, delay) in &self.crash_waits {
            if let Some(end) = self.instances.latest(name).and_then(crate::instances::end) {
                moments.push(end.finished + *delay);
            }
        }
        if self.terminal.is_none()
            && let Some(seconds) = self.deadline()
        {
            moments.push(self.start_time + seconds);
        }
        moments.extend(self.deleted_said.map(|at| at + DELETED_REPEAT));
        moments.into_iter().filter(|at| *at > now).min()
    }

    fn deadline(&self) -> Option<Duration> {
        let seconds = self.pod.spec.active_deadline_seconds?;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// The probe that ends this container, with the grace that it names.
    fn condemned(
        &self,
        container: &kedge_containers::ObservedContainer,
    ) -> Option<(ProbeKind, Option<Duration>)> {
        let kind = self.probes.condemned(&container.id)?;
        let spec = self.pod.container(&container.name)?;
        let probe = match kind {
            ProbeKind::Startup => spec.startup_probe.as_ref(),
            ProbeKind::Liveness => spec.liveness_probe.as_ref(),
            ProbeKind::Readiness => None,
        };
        Some((
            kind,
            probe
                .and_then(|p| p.termination_grace_period_seconds)
                .map(seconds),
        ))
    }
}

/// Reason of a container that waits for a config map or a secret.
const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The first wait after a sandbox could not be made.
const SANDBOX_RETRY_MIN: Duration = Duration::from_secs(2);

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// How long the pod's containers may take to end.
fn grace(pod: &Pod) -> Duration {
    pod.spec
        .termination_grace_period_seconds
        .map_or(GRACE_DEFAULT, seconds)
}

/// The same for a deleted pod.
fn deletion_grace(pod: &Pod) -> Duration {
    pod.metadata
        .deletion_grace_period_seconds
        .map_or_else(|| grace(pod), seconds)
}
