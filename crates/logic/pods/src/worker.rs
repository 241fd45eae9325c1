//! One pod: what it is, what is under way, and what comes next.

mod containers;
mod decide;
mod report;
mod seen;
mod stop;

use crate::admission::Rejection;
use crate::backoff::{CrashBackoff, Trouble};
use crate::clock::Clock;
use crate::instances::Instances;
use crate::probes::{Asked, Probes, Verdict};
use crate::shutdown;
use crate::static_pods;
use crate::status::Terminal;
use crate::{
    Action, Config, Effect, EventReason, Eviction, ObservationId, PodEvent, PodKey, PodSource, ProbeId,
    ProbeKind, ProbeResult,
};
use kedge_api::{Container, Pod, PodPhase, PodStatus, Timestamp};
use kedge_containers::{ContainerId, ObservedContainer, SandboxId};
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Kubernetes' default grace.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Nobody is killed without a moment for last words, also where a grace of zero is asked for.
const GRACE_MIN: Duration = Duration::from_secs(1);
/// A configuration that is missing is looked for again this often, and at once when one arrives.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// A stop or a removal that failed is tried again after this time.
const REMOVE_RETRY: Duration = Duration::from_secs(5);
/// A report that the cloud did not take is made again after this time.
const REPORT_RETRY: Duration = Duration::from_secs(10);
/// The cloud took the deletion, but the object is still desired: say it again after this time.
const DELETED_REPEAT: Duration = Duration::from_secs(60);
/// The first wait after a sandbox could not be made.
const SANDBOX_RETRY_MIN: Duration = Duration::from_secs(2);
/// KubeEdge's annotation of a pod that waits for its release.
const HOLD: &str = "edge.kubeedge.io/hold-upgrade";

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

/// Whether an update of the pod waits for its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Nobody asked for it.
    No,
    Held,
    Released,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: PodKey,
    pub(crate) pod: Arc<Pod>,
    pub(crate) source: PodSource,
    /// What shows a static pod in the cloud.
    mirror: Option<Arc<Pod>>,
    pub(crate) wish: Wish,
    hold: Hold,
    /// Actions under way: none or one, two while a stop is made faster.
    busy: u32,
    /// A container is being started, or nobody has looked since.
    starting: bool,
    /// The grace of the stop that is under way.
    stopping_with: Option<Duration>,
    /// When the pod as a whole began to stop: all its containers share its grace.
    stopping_since: Option<Time>,
    /// The preStop hooks of these have been ordered.
    hooks_sent: BTreeSet<ContainerId>,
    /// Decide only on an observation at least this new.
    fresh_after: ObservationId,
    seen: Option<ObservationId>,
    instances: Instances,
    probes: Probes,
    /// What the pod's containers have to themselves was asked for.
    allocated: bool,
    volumes: Volumes,
    /// Volumes or sandbox.
    pod_trouble: Option<Trouble>,
    trouble: BTreeMap<String, Trouble>,
    crash: BTreeMap<String, CrashBackoff>,
    crash_waits: BTreeMap<String, Duration>,
    /// When this process saw that an instance of a container had ended.
    ends_seen: BTreeMap<String, (ContainerId, Time)>,
    /// Instances that were stopped in order to be started again.
    replaced: BTreeSet<ContainerId>,
    /// Dead instances that were made until then are too many for the node.
    spare_until: Option<Time>,
    /// Dead sandboxes whose network was taken down.
    stopped_sandboxes: BTreeSet<SandboxId>,
    remove_retry_at: Option<Time>,
    backoff_told: BTreeMap<String, String>,
    terminal: Option<Terminal>,
    /// A shorter grace than the pod's own.
    evicted_with: Option<Duration>,
    born: Time,
    /// When the pod became this node's, by the clock of this process.
    start_time: Time,
    started_at: Option<Timestamp>,
    pub(crate) status: Arc<PodStatus>,
    reported: Option<Arc<PodStatus>>,
    report_retry_at: Option<Time>,
    deleted_said: Option<Time>,
    pub(crate) admitted: bool,
    /// Nothing of the pod is left on this node.
    pub(crate) finished: bool,
}

impl Worker {
    pub(crate) fn new(
        config: &Config,
        pod: Arc<Pod>,
        source: PodSource,
        clock: &Clock,
        fresh_after: ObservationId,
    ) -> Self {
        let status = pod.status.clone();
        let mut instances = Instances::default();
        instances.recall(&status.init_container_statuses);
        instances.recall(&status.container_statuses);
        instances.recall(&status.ephemeral_container_statuses);
        let terminal = Terminal::told(&status);
        let now = clock.now;
        let mut worker = Self {
            key: PodKey::of(&pod),
            source,
            mirror: None,
            wish: Wish::Run,
            hold: Hold::No,
            busy: 0,
            starting: false,
            stopping_with: None,
            stopping_since: None,
            hooks_sent: BTreeSet::new(),
            fresh_after,
            seen: None,
            instances,
            probes: Probes::new(now, config.seed),
            allocated: false,
            volumes: Volumes::Missing,
            pod_trouble: None,
            trouble: BTreeMap::new(),
            crash: BTreeMap::new(),
            crash_waits: BTreeMap::new(),
            ends_seen: BTreeMap::new(),
            replaced: BTreeSet::new(),
            spare_until: None,
            stopped_sandboxes: BTreeSet::new(),
            remove_retry_at: None,
            backoff_told: BTreeMap::new(),
            terminal,
            evicted_with: None,
            born: now,
            start_time: status.start_time.map_or(now, |at| clock.own(at)),
            started_at: status.start_time,
            admitted: status.start_time.is_some(),
            status: Arc::new(status),
            reported: None,
            report_retry_at: None,
            deleted_said: None,
            finished: false,
            pod: Arc::clone(&pod),
        };
        worker.want(pod);
        worker
    }

    pub(crate) fn uid(&self) -> &str {
        self.pod.uid()
    }

    /// The newest desired pod of this UID.
    pub(crate) fn want(&mut self, pod: Arc<Pod>) {
        if pod.metadata.deletion_timestamp.is_some() {
            self.wish = Wish::Delete {
                grace: deletion_grace(&pod),
            };
        }
        self.hold = self.hold_of(&pod);
        if self.wish == Wish::Run
            && let Some(terminal) = Terminal::told(&pod.status)
        {
            // Somebody in the cloud ended it; or it is what this node reported.
            self.end(terminal);
        }
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        let renamed = old.labels != new.labels || old.annotations != new.annotations;
        if renamed && shows_itself(&pod) && matches!(self.volumes, Volumes::Ready { .. }) {
            self.volumes = Volumes::Stale;
        }
        self.pod = pod;
    }

    /// Says that resources of containers are not changed while they run.
    pub(crate) fn tell_resize(&self, pod: &Pod, out: &mut VecDeque<Effect>) {
        let resized = |new: &&Container| {
            let old = self.pod.container(&new.name);
            old.is_some_and(|old| old.resources != new.resources)
        };
        let running = |new: &&Container| self.instances.alive().any(|container| container.name == new.name);
        for container in pod.all_containers().filter(resized).filter(running) {
            let message = "Resources are not changed while a container runs on this node; they hold from its next start";
            let name = Some(container.name.clone());
            self.event(name, EventReason::ResizeInfeasible, message.to_owned(), out);
        }
    }

    /// A pod that has not begun is held as long as its annotation asks for it and nobody releases it. A release is kept
    /// in the pod's conditions, so that it outlives this process.
    fn hold_of(&self, pod: &Pod) -> Hold {
        let asked = pod
            .metadata
            .annotations
            .get(HOLD)
            .is_some_and(|value| value == "true");
        let condition = |c: &&kedge_api::PodCondition| c.type_ == crate::status::HELD;
        let told = pod.status.conditions.iter().find(condition);
        let released = self.hold == Hold::Released || told.is_some_and(|c| c.status == "False");
        match (asked, released) {
            (true, true) => Hold::Released,
            (true, false) => Hold::Held,
            (false, _) if told.is_some() || self.hold != Hold::No => Hold::Released,
            (false, _) => Hold::No,
        }
    }

    /// Whether the pod waits for its release: nothing of it is made.
    pub(crate) fn is_held(&self) -> bool {
        let pending = self
            .pod
            .status
            .phase
            .is_none_or(|phase| phase == PodPhase::Pending);
        self.hold == Hold::Held && self.wish == Wish::Run && pending && !self.exists() && !self.is_terminal()
    }

    /// The operator releases the pod.
    pub(crate) fn release(&mut self) {
        if self.hold == Hold::Held {
            self.hold = Hold::Released;
        }
    }

    /// What shows this static pod in the cloud has come or gone.
    pub(crate) fn set_mirror(&mut self, mirror: Option<&Arc<Pod>>) {
        let known = self.mirror.as_ref().map(|mirror| mirror.uid());
        if known != mirror.map(|mirror| mirror.uid()) {
            self.reported = None;
        }
        self.mirror = mirror.cloned();
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
    pub(crate) fn reject(&mut self, rejection: &Rejection, out: &mut VecDeque<Effect>) {
        let reason = EventReason::Rejected(rejection.reason.clone());
        self.event(None, reason, rejection.message.clone(), out);
        let refusal = rejection.refusal();
        self.volumes = Volumes::Removed;
        self.end(Terminal {
            reason: Some(refusal.reason),
            message: Some(refusal.message),
            rejected: true,
            ..Terminal::of_phase(PodPhase::Failed)
        });
    }

    /// The pod must go now.
    pub(crate) fn evict(&mut self, eviction: &Eviction, out: &mut VecDeque<Effect>) {
        if self.terminal.is_some() || self.wish != Wish::Run {
            return;
        }
        let (event, disruption) = match eviction.reason.as_str() {
            PREEMPTING => (
                Some(EventReason::Preempting),
                "Pod was preempted by Kubelet to accommodate a critical pod.",
            ),
            // The node tells of it, once for all pods.
            shutdown::REASON => (None, eviction.message.as_str()),
            _evicted => (Some(EventReason::Evicted), eviction.message.as_str()),
        };
        if let Some(event) = event {
            self.event(None, event, eviction.message.clone(), out);
        }
        self.evicted_with = Some(eviction.grace);
        self.end(Terminal {
            reason: Some(eviction.reason.clone()),
            message: Some(eviction.message.clone()),
            disruption: Some(disruption.to_owned()),
            ..Terminal::of_phase(PodPhase::Failed)
        });
    }

    /// The pod counts against the node's resources: it was taken, and it has not ended yet.
    pub(crate) fn holds_resources(&self) -> bool {
        self.admitted && (self.terminal.is_none() || self.starting || self.instances.alive().next().is_some())
    }

    /// It holds resources now, but not for long.
    pub(crate) fn is_leaving(&self) -> bool {
        self.wish != Wish::Run || self.terminal.is_some()
    }

    /// The node took the pod.
    pub(crate) fn admit(&mut self) {
        self.admitted = true;
    }

    /// Something of the pod was made by an earlier life of this process.
    pub(crate) fn exists(&self) -> bool {
        !self.instances.sandboxes().is_empty()
    }

    /// It had to go for what the node needs. A preempted pod is none: it went for its promise, not for what it wrote.
    fn is_evicted(&self) -> bool {
        let reason = self
            .terminal
            .as_ref()
            .and_then(|terminal| terminal.reason.as_deref());
        reason == Some(EVICTED)
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
        self.trouble.retain(|_, trouble| !trouble.is_config());
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
            Verdict::Told {
                container,
                reason,
                message,
            } => self.event(Some(container), reason, message, out),
        }
    }

    /// Which probes are asked in the pod's present state.
    fn asked(&self) -> Asked {
        if self.wish != Wish::Run || self.terminal.is_some() {
            Asked::Readiness
        } else {
            Asked::All
        }
    }

    /// Probes that are due go out; those that cannot be asked are answered at once.
    pub(crate) fn send_probes(&mut self, config: &Config, now: Time, out: &mut VecDeque<Effect>) {
        for id in self.probes.take_lost(self.pod.uid(), now) {
            self.probe_answered(&id, ProbeResult::Failure("no answer".to_owned()), now, out);
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
        let asked = self.asked();
        for due in self
            .probes
            .take_due(&Arc::clone(&self.pod), ip.as_deref(), asked, now)
        {
            match due.target {
                Ok(target) => out.push_back(Effect::Probe {
                    id: due.id,
                    target,
                    timeout: due.timeout,
                }),
                Err(message) => self.probe_answered(&due.id, ProbeResult::Error(message), now, out),
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

    fn end(&mut self, terminal: Terminal) {
        self.terminal.get_or_insert(terminal);
    }

    fn send(&mut self, action: Action, out: &mut VecDeque<Effect>) {
        self.busy += 1;
        self.starting |= matches!(action, Action::StartContainer { .. });
        out.push_back(Effect::Do {
            pod: Arc::clone(&self.pod),
            action,
        });
    }

    /// When this worker wants to be looked at again.
    pub(crate) fn wake_at(&self, now: Time) -> Option<Time> {
        let mut moments: Vec<Time> = Vec::new();
        moments.extend(self.probes.next_due(self.asked()));
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
            moments.extend(self.waits_until(name, *delay));
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
        self.pod.spec.active_deadline_seconds.map(seconds)
    }

    /// The probe that ends this container, with the grace that it names.
    fn condemned(&self, container: &ObservedContainer) -> Option<(ProbeKind, Option<Duration>)> {
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

    /// Whom the reports of a static pod are about.
    pub(crate) fn mirror_uid(&self) -> Option<&str> {
        self.mirror.as_ref().map(|mirror| mirror.uid())
    }

    /// The hash of the static pod, for its mirror.
    pub(crate) fn hash(&self) -> Option<&str> {
        static_pods::hash(&self.pod)
    }
}

/// The reason of a pod that had to make room.
pub(crate) const PREEMPTING: &str = "Preempting";
/// The reason of a pod that the node could not afford any more.
const EVICTED: &str = "Evicted";

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// How long the pod's containers may take to end.
fn grace(pod: &Pod) -> Duration {
    pod.spec
        .termination_grace_period_seconds
        .map_or(GRACE_DEFAULT, seconds)
        .max(GRACE_MIN)
}

/// The same for a deleted pod.
fn deletion_grace(pod: &Pod) -> Duration {
    pod.metadata
        .deletion_grace_period_seconds
        .map_or_else(|| grace(pod), seconds)
        .max(GRACE_MIN)
}

/// Whether a volume shows the pod's own labels and annotations, which may change while it runs.
fn shows_itself(pod: &Pod) -> bool {
    pod.spec.volumes.iter().any(|volume| {
        let mut projected = volume.projected.iter().flat_map(|projected| &projected.sources);
        volume.downward_api.is_some() || projected.any(|source| source.downward_api.is_some())
    })
}
