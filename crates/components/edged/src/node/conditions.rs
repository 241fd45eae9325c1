//! The conditions of the node, in the words of a kubelet.

use kedge_api::{NodeCondition, Timestamp};
use kedge_pods::eviction::Pressures;
use kedge_wire::Time;
use std::time::Duration;

/// A list of containers that fails for this long is called unhealthy with a number of minutes, as a kubelet does.
const PLEG_SILENCE_MAX: Duration = Duration::from_secs(180);
/// A runtime that does not answer for this long is down.
const RUNTIME_SILENCE_MAX: Duration = Duration::from_secs(30);

/// What is known about the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RuntimeSight {
    /// When it last told its status; `None`: never.
    pub(super) answered: Option<Time>,
    /// Whether it did so at the last question.
    pub(super) answers: bool,
    pub(super) runtime_trouble: Option<String>,
    pub(super) network_trouble: Option<String>,
    /// Since when its containers cannot be listed, and why.
    pub(super) list_trouble: Option<(Time, String)>,
}

impl RuntimeSight {
    /// Everything that is wrong with it.
    pub(super) fn troubles(&self, now: Time) -> Vec<String> {
        let mut troubles = Vec::new();
        let silent = self.answered.map(|at| now.since(at));
        let is_down = silent.is_some_and(|silent| silent >= RUNTIME_SILENCE_MAX);
        if silent.is_none() {
            troubles.push("container runtime status check may not have completed yet".to_owned());
        } else if is_down && !self.answers {
            troubles.push("container runtime is down".to_owned());
        }
        if let Some((since, why)) = &self.list_trouble {
            let silent = now.since(*since);
            if silent >= PLEG_SILENCE_MAX {
                // Told in whole thresholds, so that the message does not change at every look.
                let minutes = silent.as_secs() / PLEG_SILENCE_MAX.as_secs() * 3;
                troubles.push(format!(
                    "PLEG is not healthy: pleg was last seen active {minutes}m0s ago; threshold is 3m0s"
                ));
            } else if troubles.is_empty() {
                troubles.push(format!("PLEG is not healthy: {why}"));
            }
        }
        if let Some(why) = &self.runtime_trouble {
            troubles.push(format!("container runtime not ready: {why}"));
        }
        if let Some(why) = &self.network_trouble {
            troubles.push(format!("container runtime network not ready: {why}"));
        }
        troubles
    }
}

/// The four conditions. `before` are those of the look before, by which changes are known.
pub(super) fn conditions(
    pressures: Pressures,
    troubles: &[String],
    before: &[NodeCondition],
    wall: Time,
) -> Vec<NodeCondition> {
    let rows = [
        memory(pressures.memory),
        disk(pressures.disk),
        pid(pressures.pid),
        ready(troubles),
    ];
    let changed_at = |row: &Row| {
        let old = before.iter().find(|old| old.type_ == row.type_)?;
        if old.status == row.status {
            old.last_transition_time
        } else {
            Some(Timestamp::from_ms(wall.as_ms()))
        }
    };
    let condition = |row: Row| NodeCondition {
        last_transition_time: changed_at(&row),
        type_: row.type_.to_owned(),
        status: row.status.to_owned(),
        last_heartbeat_time: None,
        reason: row.reason.to_owned(),
        message: row.message,
    };
    rows.into_iter().map(condition).collect()
}

struct Row {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn row(type_: &'static str, is: bool, reasons: (&'static str, &'static str), messages: (&str, &str)) -> Row {
    Row {
        type_,
        status: if is { "True" } else { "False" },
        reason: if is { reasons.0 } else { reasons.1 },
        message: if is { messages.0 } else { messages.1 }.to_owned(),
    }
}

fn memory(is: bool) -> Row {
    row(
        "MemoryPressure",
        is,
        ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
        (
            "kubelet has insufficient memory available",
            "kubelet has sufficient memory available",
        ),
    )
}

fn disk(is: bool) -> Row {
    row(
        "DiskPressure",
        is,
        ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
        ("kubelet has disk pressure", "kubelet has no disk pressure"),
    )
}

fn pid(is: bool) -> Row {
    row(
        "PIDPressure",
        is,
        ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
        (
            "kubelet has insufficient PID available",
            "kubelet has sufficient PID available",
        ),
    )
}

fn ready(troubles: &[String]) -> Row {
    let (reason, message) = match troubles {
        [] => ("EdgeReady", "edge is posting ready status".to_owned()),
        [one] => ("KubeletNotReady", one.clone()),
        several => ("KubeletNotReady", format!("[{}]", several.join(", "))),
    };
    Row {
        type_: "Ready",
        status: if troubles.is_empty() { "True" } else { "False" },
        reason,
        message,
    }
}

/// The event that tells of a condition's change: its reason, which stands in its message as well.
pub(super) fn event_reason(condition: &NodeCondition) -> Option<&'static str> {
    let is = condition.status == "True";
    let reasons = match condition.type_.as_str() {
        "MemoryPressure" => ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        "DiskPressure" => ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        "PIDPressure" => ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
        "Ready" => ("NodeReady", "NodeNotReady"),
        _told_by_others => return None,
    };
    Some(if is { reasons.0 } else { reasons.1 })
}
