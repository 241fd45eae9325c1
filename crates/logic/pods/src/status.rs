//! The pod's status, computed as a kubelet does.

use crate::Config;
use crate::instances::{self, Instances};
use crate::probes::Probes;
use crate::{backoff::Trouble, qos};
use kedge_api::{
    Container, ContainerState, ContainerStatus, Pod, PodCondition, PodIp, PodPhase, PodStatus, RestartPolicy,
    Timestamp,
};
use kedge_containers::{ContainerState as Observed, ObservedContainer};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// A failed pull is shown under its own name this long, then as a back-off.
pub(crate) const PULL_ERROR_SHOWN_FOR: Duration = Duration::from_secs(2);

/// What the status is made from.
pub(crate) struct Facts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) prefix: &'a str,
    pub(crate) pod: &'a Pod,
    pub(crate) instances: &'a Instances,
    pub(crate) probes: &'a Probes,
    pub(crate) start_time: Time,
    /// Volumes or sandbox.
    pub(crate) pod_trouble: Option<&'a Trouble>,
    pub(crate) trouble: &'a BTreeMap<String, Trouble>,
    /// Crash back-off: the container waits until then, so many seconds in all.
    pub(crate) crash_waits: &'a BTreeMap<String, Duration>,
    /// How the pod ended, if it has.
    pub(crate) terminal: Option<&'a Terminal>,
    pub(crate) initialized: bool,
    pub(crate) stopping: bool,
    pub(crate) before: &'a PodStatus,
    pub(crate) now: Time,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) phase: PodPhase,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

/// Computes the status.
pub(crate) fn compute(facts: &Facts<'_>) -> PodStatus {
    let spec = &facts.pod.spec;
    let init: Vec<ContainerStatus> = spec
        .init_containers
        .iter()
        .map(|c| container_status(facts, c, true))
        .collect();
    let main: Vec<ContainerStatus> = spec
        .containers
        .iter()
        .map(|c| container_status(facts, c, false))
        .collect();
    let phase = facts
        .terminal
        .map_or_else(|| phase(facts, &main), |terminal| terminal.phase);
    let ips = pod_ips(facts);
    let host_ips: Vec<PodIp> = facts
        .config
        .host_ips
        .iter()
        .map(|ip| PodIp { ip: ip.clone() })
        .collect();
    PodStatus {
        phase: Some(phase),
        conditions: conditions(facts, phase, &init, &main),
        message: facts.terminal.and_then(|t| t.message.clone()),
        reason: facts.terminal.and_then(|t| t.reason.clone()),
        host_ip: host_ips.first().map(|ip| ip.ip.clone()),
        host_ips,
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: ips,
        start_time: Some(Timestamp::from_ms(facts.start_time.as_ms())),
        init_container_statuses: init,
        container_statuses: main,
        qos_class: Some(qos::qos_class(facts.pod)),
    }
}

/// The addresses of the newest sandbox; those of the node with its network. A finished pod keeps its last ones.
fn pod_ips(facts: &Facts<'_>) -> Vec<PodIp> {
    let sandbox = facts.instances.ready_sandbox();
    let own = sandbox.map(|sandbox| {
        sandbox
            .ips
            .iter()
            .map(|ip| PodIp { ip: ip.clone() })
            .collect::<Vec<_>>()
    });
    match own {
        Some(_) if facts.pod.spec.host_network => facts
            .config
            .host_ips
            .iter()
            .map(|ip| PodIp { ip: ip.clone() })
            .collect(),
        Some(ips) => ips,
        None if facts.terminal.is_some() || facts.stopping => facts.before.pod_ips.clone(),
        None => Vec::new(),
    }
}

fn container_status(facts: &Facts<'_>, spec: &Container, init: bool) -> ContainerStatus {
    let latest = facts.instances.latest(&spec.name);
    let past = facts.instances.past(&spec.name);
    let prefix = facts.prefix;
    let state = state(facts, spec, latest, init);
    let running = state.running.is_some();
    let id = latest.map(|c| &c.id);
    let started = running && id.is_some_and(|id| facts.probes.started(id));
    let sidecar = spec.restart_policy == Some(RestartPolicy::Always);
    let ready = if init && !sidecar {
        state.terminated.as_ref().is_some_and(|t| t.exit_code == 0)
    } else {
        running && !facts.stopping && id.is_some_and(|id| facts.probes.ready(id))
    };
    ContainerStatus {
        name: spec.name.clone(),
        last_state: last_state(facts, spec, &state, latest),
        state,
        ready,
        restart_count: past.map_or(0, |past| past.attempt),
        image: latest.map_or_else(|| spec.image.clone(), |c| c.image.clone()),
        image_id: past.map(|p| p.image_id.clone()).unwrap_or_default(),
        container_id: latest
            .map(|c| format!("{prefix}{}", c.id.0))
            .or_else(|| past.and_then(|past| past.container_id.clone())),
        started: Some(started),
    }
}

fn state(
    facts: &Facts<'_>,
    spec: &Container,
    latest: Option<&ObservedContainer>,
    init: bool,
) -> ContainerState {
    let idle = || {
        if facts.initialized || init {
            "ContainerCreating"
        } else {
            "PodInitializing"
        }
    };
    if let Some(Observed::Running { started_ms, .. }) = latest.map(|c| &c.state) {
        return ContainerState::running(Timestamp::from_ms(*started_ms));
    }
    let ended = latest
        .and_then(|c| instances::terminated(c, facts.prefix))
        .or_else(|| {
            facts
                .instances
                .past(&spec.name)
                .and_then(|p| p.terminated.clone())
                .filter(|_| latest.is_none())
        });
    if facts.terminal.is_some() || facts.stopping {
        return match ended {
            Some(ended) => ContainerState::terminated(ended),
            None => ContainerState::waiting(idle(), None),
        };
    }
    if let Some(waiting) = waiting(facts, spec, latest) {
        return waiting;
    }
    match ended {
        Some(ended) => ContainerState::terminated(ended),
        None => ContainerState::waiting(idle(), None),
    }
}

/// A container that waits for something with a name.
fn waiting(
    facts: &Facts<'_>,
    spec: &Container,
    latest: Option<&ObservedContainer>,
) -> Option<ContainerState> {
    if let Some(trouble) = facts.trouble.get(&spec.name) {
        return Some(trouble_state(facts, spec, trouble));
    }
    if latest.is_none()
        && let Some(trouble) = facts.pod_trouble
    {
        return Some(ContainerState::waiting(
            &trouble.reason,
            Some(trouble.message.clone()),
        ));
    }
    let delay = facts.crash_waits.get(&spec.name)?;
    let key = crate::PodKey::of(facts.pod);
    let message = format!(
        "back-off {}s restarting failed container={} pod={}_{}({})",
        delay.as_secs(),
        spec.name,
        key.name,
        key.namespace,
        facts.pod.uid()
    );
    Some(ContainerState::waiting("CrashLoopBackOff", Some(message)))
}

fn trouble_state(facts: &Facts<'_>, spec: &Container, trouble: &Trouble) -> ContainerState {
    let pull = trouble.reason == "ErrImagePull";
    if pull && facts.now >= trouble.since + PULL_ERROR_SHOWN_FOR {
        let message = format!(
            "Back-off pulling image \"{}\": ErrImagePull: {}",
            spec.image, trouble.message
        );
        return ContainerState::waiting("ImagePullBackOff", Some(message));
    }
    ContainerState::waiting(&trouble.reason, Some(trouble.message.clone()))
}

/// How the instance before this one ended; or this one, while its restart waits.
fn last_state(
    facts: &Facts<'_>,
    spec: &Container,
    state: &ContainerState,
    latest: Option<&ObservedContainer>,
) -> ContainerState {
    let past = || {
        facts
            .instances
            .past(&spec.name)
            .and_then(|past| past.terminated.clone())
    };
    let previous = || {
        facts
            .instances
            .previous(&spec.name)
            .and_then(|c| instances::terminated(c, facts.prefix))
    };
    let of_latest = latest.and_then(|c| instances::terminated(c, facts.prefix));
    let last = if state.waiting.is_some() {
        of_latest.or_else(past)
    } else if state.terminated.is_some() {
        previous()
    } else {
        previous().or_else(past)
    };
    last.map(ContainerState::terminated).unwrap_or_default()
}

fn phase(facts: &Facts<'_>, main: &[ContainerStatus]) -> PodPhase {
    if !facts.initialized {
        return PodPhase::Pending;
    }
    let new = |s: &ContainerStatus| s.state.waiting.is_some() && s.last_state.terminated.is_none();
    if main.is_empty() || main.iter().any(new) {
        return PodPhase::Pending;
    }
    over(facts.pod.spec.restart_policy, main).unwrap_or(PodPhase::Running)
}

/// The phase of a pod whose containers have all ended and are not started again: right after a restart of this process
/// the status must not go back to `Running`.
fn over(policy: RestartPolicy, main: &[ContainerStatus]) -> Option<PodPhase> {
    let codes: Option<Vec<i32>> = main
        .iter()
        .map(|s| s.state.terminated.as_ref().map(|t| t.exit_code))
        .collect();
    let failed = codes?.iter().any(|code| *code != 0);
    match policy {
        RestartPolicy::Always => None,
        RestartPolicy::OnFailure if failed => None,
        RestartPolicy::OnFailure => Some(PodPhase::Succeeded),
        RestartPolicy::Never if failed => Some(PodPhase::Failed),
        RestartPolicy::Never => Some(PodPhase::Succeeded),
    }
}

fn conditions(
    facts: &Facts<'_>,
    phase: PodPhase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let succeeded = phase == PodPhase::Succeeded;
    let done = Some(("PodCompleted", String::new()));
    let not_ready = unready(facts, phase, init, main);
    let incomplete: Vec<&str> = init
        .iter()
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let initialized = if facts.initialized || succeeded {
        (true, done.clone().filter(|_| succeeded))
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        (false, Some(("ContainersNotInitialized", message)))
    };
    let sandbox = facts.instances.ready_sandbox().is_some();
    [
        ("PodReadyToStartContainers", (sandbox, None)),
        ("Initialized", initialized),
        ("Ready", not_ready.clone()),
        ("ContainersReady", not_ready),
        ("PodScheduled", (true, None)),
    ]
    .into_iter()
    .map(|(type_, (status, why))| condition(facts, type_, status, why))
    .collect()
}

type Judged = (bool, Option<(&'static str, String)>);

fn unready(facts: &Facts<'_>, phase: PodPhase, init: &[ContainerStatus], main: &[ContainerStatus]) -> Judged {
    match phase {
        PodPhase::Succeeded => return (false, Some(("PodCompleted", String::new()))),
        PodPhase::Failed => return (false, Some(("PodFailed", String::new()))),
        PodPhase::Pending | PodPhase::Running | PodPhase::Unknown => {}
    }
    let sidecar = |name: &str| {
        facts
            .pod
            .spec
            .init_containers
            .iter()
            .any(|c| c.name == name && c.restart_policy == Some(RestartPolicy::Always))
    };
    let sidecars = init.iter().filter(|s| sidecar(&s.name));
    let bad: Vec<&str> = sidecars
        .chain(main)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    if bad.is_empty() {
        return (true, None);
    }
    (
        false,
        Some((
            "ContainersNotReady",
            format!("containers with unready status: [{}]", bad.join(" ")),
        )),
    )
}

/// A condition keeps its time of transition while its status stays.
fn condition(facts: &Facts<'_>, type_: &str, status: bool, why: Option<(&str, String)>) -> PodCondition {
    let status = if status { "True" } else { "False" };
    let old = facts
        .before
        .conditions
        .iter()
        .find(|c| c.type_ == type_ && c.status == status);
    let (reason, message) = why.map_or((None, None), |(reason, message)| {
        (Some(reason.to_owned()), Some(message))
    });
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        last_transition_time: old
            .and_then(|c| c.last_transition_time)
            .or(Some(Timestamp::from_ms(facts.now.as_ms()))),
        reason,
        message: message.filter(|m| !m.is_empty()),
    }
}
