//! The pod's status, computed as a kubelet does.

mod conditions;
mod containers;

use crate::instances::Instances;
use crate::probes::Probes;
use crate::{Config, backoff::Trouble, qos};
pub(crate) use conditions::HELD;
use conditions::conditions;
use containers::container_status;
use kedge_api::{ContainerStatus, Pod, PodIp, PodPhase, PodStatus, Timestamp};
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
    pub(crate) start_time: Option<Timestamp>,
    pub(crate) trouble: &'a BTreeMap<String, Trouble>,
    /// Crash back-off: the container waits until then, so many seconds in all.
    pub(crate) crash_waits: &'a BTreeMap<String, Duration>,
    /// How the pod ended, if it has.
    pub(crate) terminal: Option<&'a Terminal>,
    /// What was started last has not been seen yet.
    pub(crate) starting: bool,
    pub(crate) initialized: bool,
    pub(crate) stopping: bool,
    /// Whether an update of the pod is held back, and whether it was.
    pub(crate) held: Option<bool>,
    pub(crate) before: &'a PodStatus,
    pub(crate) now: Time,
    /// The same moment as others read it.
    pub(crate) wall: Timestamp,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) phase: PodPhase,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    /// It was ended although it could have gone on; this is why.
    pub(crate) disruption: Option<String>,
    /// The node did not take it: nothing of it ever was here.
    pub(crate) rejected: bool,
}

impl Terminal {
    /// The end that a status tells.
    pub(crate) fn told(status: &PodStatus) -> Option<Self> {
        let phase = status.phase.filter(|phase| phase.is_terminal())?;
        Some(Self {
            phase,
            reason: status.reason.clone(),
            message: status.message.clone(),
            disruption: None,
            // Such a pod never had a container, and says so.
            rejected: status.container_statuses.is_empty(),
        })
    }

    pub(crate) fn of_phase(phase: PodPhase) -> Self {
        Self {
            phase,
            reason: None,
            message: None,
            disruption: None,
            rejected: false,
        }
    }
}

/// Computes the status.
pub(crate) fn compute(facts: &Facts<'_>) -> PodStatus {
    if let Some(terminal) = facts.terminal.filter(|terminal| terminal.rejected) {
        return rejected(facts, terminal);
    }
    let spec = &facts.pod.spec;
    let of = |list: &[kedge_api::Container], init: bool| -> Vec<ContainerStatus> {
        list.iter().map(|c| container_status(facts, c, init)).collect()
    };
    let init = of(&spec.init_containers, true);
    let main = of(&spec.containers, false);
    // What still runs has not ended: the last word about a pod comes when nothing of it is left running.
    let terminal = facts.ended();
    let phase = match terminal {
        Some(terminal) => terminal.phase,
        None => phase(facts, &main),
    };
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
        message: terminal.and_then(|t| t.message.clone()),
        reason: terminal.and_then(|t| t.reason.clone()),
        host_ip: host_ips.first().map(|ip| ip.ip.clone()),
        host_ips,
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: ips,
        start_time: facts.start_time,
        init_container_statuses: init,
        container_statuses: main,
        ephemeral_container_statuses: of(&spec.ephemeral_containers, false),
        qos_class: Some(
            facts
                .pod
                .status
                .qos_class
                .unwrap_or_else(|| qos::qos_class(facts.pod)),
        ),
    }
}

impl Facts<'_> {
    /// How the pod ended, when nothing of it runs any more.
    pub(super) fn ended(&self) -> Option<&Terminal> {
        self.terminal.filter(|_| self.is_quiet())
    }

    /// Nothing of the pod runs, and nothing is about to.
    fn is_quiet(&self) -> bool {
        !self.starting && self.instances.alive().next().is_none()
    }
}

fn rejected(facts: &Facts<'_>, terminal: &Terminal) -> PodStatus {
    PodStatus {
        phase: Some(terminal.phase),
        reason: terminal.reason.clone(),
        message: terminal.message.clone(),
        start_time: facts.start_time,
        qos_class: Some(qos::qos_class(facts.pod)),
        ..PodStatus::default()
    }
}

/// The addresses of the newest sandbox; those of the node with its network. A finished pod keeps its last ones.
fn pod_ips(facts: &Facts<'_>) -> Vec<PodIp> {
    let list = |ips: &[String]| ips.iter().map(|ip| PodIp { ip: ip.clone() }).collect();
    if facts.pod.spec.host_network {
        return list(&facts.config.host_ips);
    }
    match facts.instances.ready_sandbox() {
        Some(sandbox) => list(&sandbox.ips),
        None if facts.terminal.is_some() || facts.stopping => facts.before.pod_ips.clone(),
        None => Vec::new(),
    }
}

fn phase(facts: &Facts<'_>, main: &[ContainerStatus]) -> PodPhase {
    // While the last of it is being stopped, an ended pod stays what it was; and what was told to be over is never told
    // to go on.
    if facts.terminal.is_some() {
        return facts.before.phase.unwrap_or(PodPhase::Running);
    }
    if !facts.initialized {
        return PodPhase::Pending;
    }
    let new = |s: &ContainerStatus| s.state.waiting.is_some() && s.last_state.terminated.is_none();
    if main.is_empty() || main.iter().any(new) {
        return PodPhase::Pending;
    }
    PodPhase::Running
}
