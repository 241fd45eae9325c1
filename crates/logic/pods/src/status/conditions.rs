//! The pod's conditions, in the words of a kubelet.

use super::Facts;
use crate::qos;
use kedge_api::{ContainerStatus, PodCondition, PodPhase};

/// What is true of a condition, and why.
type Judged = (bool, Option<(&'static str, String)>);

const DISRUPTION: &str = "DisruptionTarget";
/// KubeEdge's own: an update of the pod waits for its release.
pub(crate) const HELD: &str = "HeldUpgrade";

pub(super) fn conditions(
    facts: &Facts<'_>,
    phase: PodPhase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(facts, phase, init, main);
    let ready = if containers_ready.0 {
        gates(facts)
    } else {
        containers_ready.clone()
    };
    let sandbox = facts.instances.ready_sandbox().is_some();
    let own = [
        ("PodReadyToStartContainers", (sandbox, None)),
        ("Initialized", initialized(facts, phase, init)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, None)),
    ];
    let judged = own
        .into_iter()
        .map(|(type_, judged)| condition(facts, type_, judged));
    disruption(facts)
        .into_iter()
        .chain(held(facts))
        .chain(judged)
        .collect()
}

/// A pod that was ended by the node says so together with its end.
fn disruption(facts: &Facts<'_>) -> Option<PodCondition> {
    let why = facts.ended().and_then(|terminal| terminal.disruption.clone());
    match why {
        Some(message) => Some(condition(
            facts,
            DISRUPTION,
            (true, Some(("TerminationByKubelet", message))),
        )),
        None => facts
            .before
            .conditions
            .iter()
            .find(|c| c.type_ == DISRUPTION)
            .cloned(),
    }
}

fn held(facts: &Facts<'_>) -> Option<PodCondition> {
    let why = match facts.held? {
        true => ("HoldUpgradeEnabled", String::new()),
        false => ("HoldUpgradeReleased", String::new()),
    };
    Some(condition(facts, HELD, (facts.held?, Some(why))))
}

fn initialized(facts: &Facts<'_>, phase: PodPhase, init: &[ContainerStatus]) -> Judged {
    if phase == PodPhase::Succeeded {
        return (true, Some(("PodCompleted", String::new())));
    }
    if facts.initialized {
        return (true, None);
    }
    let done = |status: &&ContainerStatus| {
        if is_sidecar(facts, &status.name) {
            status.started == Some(true)
        } else {
            status.ready
        }
    };
    let incomplete = init.iter().filter(|status| !done(status));
    let incomplete: Vec<&str> = incomplete.map(|status| status.name.as_str()).collect();
    if incomplete.is_empty() {
        return (true, None);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    (false, Some(("ContainersNotInitialized", message)))
}

fn is_sidecar(facts: &Facts<'_>, name: &str) -> bool {
    let mut init = facts.pod.spec.init_containers.iter();
    init.any(|c| c.name == name && qos::is_sidecar(c))
}

fn containers_ready(
    facts: &Facts<'_>,
    phase: PodPhase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Judged {
    match phase {
        PodPhase::Succeeded => return (false, Some(("PodCompleted", String::new()))),
        PodPhase::Failed => return (false, Some(("PodFailed", String::new()))),
        PodPhase::Pending | PodPhase::Running | PodPhase::Unknown => {}
    }
    let sidecars = init.iter().filter(|s| is_sidecar(facts, &s.name));
    let bad: Vec<&str> = sidecars
        .chain(main)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    if bad.is_empty() {
        return (true, None);
    }
    let message = format!("containers with unready status: [{}]", bad.join(" "));
    (false, Some(("ContainersNotReady", message)))
}

/// What others say about the pod counts as well.
fn gates(facts: &Facts<'_>) -> Judged {
    let told = &facts.pod.status.conditions;
    let mut missing = Vec::new();
    for gate in &facts.pod.spec.readiness_gates {
        let name = &gate.condition_type;
        match told.iter().find(|c| c.type_ == *name) {
            None => missing.push(format!(
                "corresponding condition of pod readiness gate \"{name}\" does not exist."
            )),
            Some(c) if c.status != "True" => missing.push(format!(
                "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return (true, None);
    }
    (false, Some(("ReadinessGatesNotReady", missing.join(", "))))
}

/// A condition keeps its time of transition while its status stays.
fn condition(facts: &Facts<'_>, type_: &str, (status, why): Judged) -> PodCondition {
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
        last_transition_time: old.and_then(|c| c.last_transition_time).or(Some(facts.wall)),
        reason,
        message: message.filter(|m| !m.is_empty()),
    }
}
