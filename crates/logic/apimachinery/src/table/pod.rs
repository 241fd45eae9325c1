//! How a pod is summed up in one line.

use super::{age, duration, or_none};
use crate::meta::{self, at, items, text};
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let statuses = items(pod, &["status", "containerStatuses"]);
    let ready = statuses.iter().filter(|s| is(s, &["ready"])).count();
    let total = items(pod, &["spec", "containers"]).len();
    let gates = items(pod, &["spec", "readinessGates"]);
    let passed = gates
        .iter()
        .filter(|g| meta::condition_true(pod, text(g, &["conditionType"])))
        .count();
    let gates_cell = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        format!("{passed}/{}", gates.len())
    };
    vec![
        meta::name(pod).into(),
        format!("{ready}/{total}").into(),
        phase(pod, now).into(),
        restarts(pod, now).into(),
        age(pod, &["metadata", "creationTimestamp"], now).into(),
        or_none(text(pod, &["status", "podIP"])),
        or_none(text(pod, &["spec", "nodeName"])),
        or_none(text(pod, &["status", "nominatedNodeName"])),
        gates_cell.into(),
    ]
}

fn is(value: &Value, path: &[&str]) -> bool {
    at(value, path) == &Value::Bool(true)
}

/// The STATUS column: the most telling of deletion, waiting reasons, exits and the phase.
pub(super) fn phase(pod: &Value, _now: Timestamp) -> String {
    let phase = text(pod, &["status", "phase"]);
    let pod_reason = text(pod, &["status", "reason"]);
    let gated =
        meta::condition(pod, "PodScheduled").is_some_and(|c| text(c, &["reason"]) == "SchedulingGated");
    let mut reason = match (pod_reason, gated) {
        ("", true) => "SchedulingGated".to_owned(),
        ("", false) => phase.to_owned(),
        (known, _) => known.to_owned(),
    };
    match init_reason(pod) {
        Some(init) => reason = init,
        None => reason = container_reason(pod, reason),
    }
    if meta::is_terminating(pod) {
        let is_over = matches!(phase, "Succeeded" | "Failed");
        return match (pod_reason, is_over) {
            ("NodeLost", _) => "Unknown".to_owned(),
            (_, false) => "Terminating".to_owned(),
            (_, true) => reason,
        };
    }
    if reason.is_empty() {
        "Unknown".to_owned()
    } else {
        reason
    }
}

/// What the first unfinished init container says; none when all are done.
fn init_reason(pod: &Value) -> Option<String> {
    let specs = items(pod, &["spec", "initContainers"]);
    for (place, status) in items(pod, &["status", "initContainerStatuses"])
        .iter()
        .enumerate()
    {
        let spec = specs
            .iter()
            .find(|s| text(s, &["name"]) == text(status, &["name"]));
        let sidecar = spec.is_some_and(|s| text(s, &["restartPolicy"]) == "Always");
        let ended = at(status, &["state", "terminated"]);
        if meta::number(ended, &["exitCode"]) == Some(0) || (sidecar && is(status, &["started"])) {
            continue;
        }
        if ended.is_object() {
            return Some(format!("Init:{}", exit_reason(ended)));
        }
        let waiting = text(status, &["state", "waiting", "reason"]);
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{place}/{}", specs.len()));
    }
    None
}

fn exit_reason(ended: &Value) -> String {
    let reason = text(ended, &["reason"]);
    let signal = meta::number(ended, &["signal"]).unwrap_or(0);
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", meta::number(ended, &["exitCode"]).unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The containers are asked from the last to the first; the first one listed has the last word.
fn container_reason(pod: &Value, phase: String) -> String {
    let mut reason = phase;
    let mut any_running = false;
    for status in items(pod, &["status", "containerStatuses"]).iter().rev() {
        let waiting = text(status, &["state", "waiting", "reason"]);
        let ended = at(status, &["state", "terminated"]);
        if !waiting.is_empty() {
            reason = waiting.to_owned();
        } else if ended.is_object() {
            reason = exit_reason(ended);
        } else if is(status, &["ready"]) && at(status, &["state", "running"]).is_object() {
            any_running = true;
        }
    }
    if reason == "Completed" && any_running {
        return if meta::condition_true(pod, "Ready") {
            "Running"
        } else {
            "NotReady"
        }
        .to_owned();
    }
    reason
}

/// Restarts of all containers, with the time of the last one.
fn restarts(pod: &Value, now: Timestamp) -> String {
    let statuses = || {
        let status = at(pod, &["status"]);
        items(status, &["initContainerStatuses"])
            .iter()
            .chain(items(status, &["containerStatuses"]))
    };
    let main = items(pod, &["status", "containerStatuses"]);
    let starting = init_reason(pod).is_some();
    let counted: i64 = if starting {
        statuses().collect::<Vec<_>>()
    } else {
        main.iter().collect()
    }
    .into_iter()
    .filter_map(|s| meta::number(s, &["restartCount"]))
    .sum();
    let last = statuses()
        .filter_map(|s| meta::parse_time(text(s, &["lastState", "terminated", "finishedAt"])))
        .max();
    match last {
        Some(last) if counted > 0 => {
            format!("{counted} ({} ago)", duration(now.as_second() - last.as_second()))
        }
        _ => counted.to_string(),
    }
}
