//! Pods: binding, eviction, and the parts of their status that only the server knows.

use super::DeleteOptions;
use crate::kinds::Kind;
use crate::meta::{self, at, text};
use crate::status::{FieldError, Status};
use jiff::Timestamp;
use serde_json::Value;

/// POST of `pods/<name>/binding` (and `bindings`): the pod on its node.
pub fn bind(kind: &Kind, pod: &Value, binding: &Value, now: Timestamp) -> Result<Value, Status> {
    let name = meta::name(pod);
    let node = text(binding, &["target", "name"]);
    let target = text(binding, &["target", "kind"]);
    let mut errors = Vec::new();
    if !matches!(target, "" | "Node") {
        errors.push(FieldError::unsupported("target.kind", target, &["Node"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(kind, name, &errors));
    }
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(pod) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(pod)
        );
        return Err(Status::conflict(kind, name, &why));
    }
    if meta::is_terminating(pod) {
        return Err(Status::conflict(
            kind,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let assigned = text(pod, &["spec", "nodeName"]);
    if !assigned.is_empty() {
        let why = format!("pod {name} is already assigned to node {assigned:?}");
        return Err(Status::conflict(kind, name, &why));
    }
    if !meta::items(pod, &["spec", "schedulingGates"]).is_empty() {
        return Err(Status::conflict(
            kind,
            name,
            &format!("pod {name} has scheduling gates, cannot be assigned to a host"),
        ));
    }
    let mut bound = pod.clone();
    meta::set(&mut bound, &["spec", "nodeName"], node.into());
    for (key, value) in meta::pairs(binding, &["metadata", "annotations"]) {
        meta::set(&mut bound, &["metadata", "annotations", key], value.into());
    }
    meta::set_condition(&mut bound, "PodScheduled", "True", "", "", now);
    if let Some(conditions) = bound
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
    {
        for condition in conditions
            .iter_mut()
            .filter(|c| text(c, &["type"]) == "PodScheduled")
        {
            meta::take(condition, &["reason"]);
            meta::take(condition, &["message"]);
        }
    }
    Ok(bound)
}

/// POST of `pods/<name>/eviction`: how the pod is deleted. There are no disruption budgets to ask.
pub fn evict_options(eviction: &Value) -> Result<DeleteOptions, Status> {
    DeleteOptions::parse(at(eviction, &["deleteOptions"]), |_| None)
}

/// The quality class is set once, at creation; a status without phase keeps the last one.
pub(super) fn keep_facts(object: &mut Value, old: &Value) {
    for field in ["qosClass", "phase"] {
        let stored = at(old, &["status", field]).clone();
        if !stored.is_null() && (field == "qosClass" || text(object, &["status", field]).is_empty()) {
            meta::set(object, &["status", field], stored);
        }
    }
}
