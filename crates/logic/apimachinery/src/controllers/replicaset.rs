//! Replica sets: as many pods as wanted.

use super::{Pass, is_controlled_by};
use crate::meta::{self, at, items, text};
use crate::selector::LabelSelector;
use crate::strategy::DeleteOptions;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

const RESOURCE: &str = "replicasets.apps";
const SOURCE: &str = "replicaset-controller";

/// Most pods that one replica set starts in one pass; the rest follows in the next.
const CREATES_MAX: usize = 100;
/// Longest part of the owner's name in a pod's name: the whole stays a valid label.
const NAME_PREFIX_MAX: usize = 63 - 1 - meta::NAME_SUFFIX_LENGTH;

pub(super) fn run(pass: &mut Pass<'_>) {
    let world = pass.world;
    for set in world.list(RESOURCE) {
        reconcile(pass, set);
    }
}

/// Pods of one replica set in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) replicas: i64,
    pub(super) fully_labeled: i64,
    pub(super) ready: i64,
    pub(super) available: i64,
}

/// The pods that count: controlled, not going, not over.
pub(super) fn active<'a>(pass: &Pass<'a>, set: &Value) -> Vec<&'a Arc<Value>> {
    let mut pods = pass.controlled("pods", meta::uid(set));
    pods.retain(|p| !meta::is_terminating(p) && !is_over(p));
    pods
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

pub(super) fn is_ready(pod: &Value) -> bool {
    meta::condition_true(pod, "Ready")
}

/// When a ready pod counts (or has counted since) as available.
fn available_at(pod: &Value, min_ready_seconds: i64) -> Option<Timestamp> {
    let ready = meta::condition(pod, "Ready").filter(|_| is_ready(pod))?;
    let since = meta::parse_time(text(ready, &["lastTransitionTime"])).unwrap_or(Timestamp::UNIX_EPOCH);
    since
        .checked_add(jiff::SignedDuration::from_secs(min_ready_seconds))
        .ok()
}

pub(super) fn counts(pass: &mut Pass<'_>, set: &Value) -> Counts {
    let template = LabelSelector::from_map(at(set, &["spec", "template", "metadata", "labels"]));
    let min_ready_seconds = meta::number(set, &["spec", "minReadySeconds"]).unwrap_or(0);
    let mut counts = Counts::default();
    for pod in active(pass, set) {
        counts.replicas += 1;
        counts.fully_labeled += i64::from(template.matches(pod));
        counts.ready += i64::from(is_ready(pod));
        match available_at(pod, min_ready_seconds) {
            // Waiting makes sense only where a minimum is asked for: a clock ahead of ours must not delay a pod.
            Some(at) if min_ready_seconds > 0 && at > pass.now => pass.wake(at),
            Some(_) => counts.available += 1,
            None => {}
        }
    }
    counts
}

fn reconcile(pass: &mut Pass<'_>, set: &Value) {
    let Ok(Some(selector)) = LabelSelector::from_object(at(set, &["spec", "selector"])) else {
        return;
    };
    if !meta::is_terminating(set) {
        adopt_and_release(pass, set, &selector);
        scale(pass, set, &selector);
    }
    let counts = counts(pass, set);
    write_status(pass, set, counts);
}

/// Takes over pods that nobody controls, lets go of those that the selector no longer selects.
fn adopt_and_release(pass: &mut Pass<'_>, set: &Value, selector: &LabelSelector) {
    let world = pass.world;
    for pod in world.list_in("pods", meta::namespace(set)) {
        let owned = is_controlled_by(pod, meta::uid(set));
        let matches = selector.matches(pod);
        let free = meta::controller_of(pod).is_none() && !meta::is_terminating(pod) && !is_over(pod);
        let mut owners = items(pod, &["metadata", "ownerReferences"]).to_vec();
        if owned && !matches {
            owners.retain(|o| text(o, &["uid"]) != meta::uid(set));
        } else if free && matches {
            owners.push(meta::controller_reference(set));
        } else {
            continue;
        }
        let mut pod = (**pod).clone();
        meta::set(&mut pod, &["metadata", "ownerReferences"], owners.into());
        pass.update("pods", pod);
    }
}

fn scale(pass: &mut Pass<'_>, set: &Value, selector: &LabelSelector) {
    let wanted = usize::try_from(meta::number(set, &["spec", "replicas"]).unwrap_or(1)).unwrap_or(0);
    let mut pods = active(pass, set);
    pods.retain(|p| selector.matches(p));
    let adopted = pass.world.list_in("pods", meta::namespace(set)).filter(|p| {
        meta::controller_of(p).is_none() && selector.matches(p) && !meta::is_terminating(p) && !is_over(p)
    });
    let present = pods.len() + adopted.count();
    if present < wanted {
        for number in 0..(wanted - present).min(CREATES_MAX) {
            let pod = new_pod(pass, set, number);
            let message = format!("Created pod: {}", meta::name(&pod));
            pass.create("pods", pod);
            pass.tell(set, "Normal", "SuccessfulCreate", &message, SOURCE);
        }
        if wanted - present > CREATES_MAX {
            pass.wake(pass.now);
        }
    } else if present > wanted {
        pods.sort_by_key(|p| worth(p));
        for pod in pods.into_iter().take(present - wanted) {
            pass.delete("pods", pod, DeleteOptions::default());
            let message = format!("Deleted pod: {}", meta::name(pod));
            pass.tell(set, "Normal", "SuccessfulDelete", &message, SOURCE);
        }
    }
}

/// Order of deletion: without a node, not yet running, not ready, with more restarts, and the youngest go first.
fn worth(pod: &Value) -> impl Ord + use<> {
    let phase = match text(pod, &["status", "phase"]) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost: i64 = meta::annotation(pod, "controller.kubernetes.io/pod-deletion-cost")
        .and_then(|c| c.parse().ok())
        .unwrap_or(0);
    let restarts: i64 = items(pod, &["status", "containerStatuses"])
        .iter()
        .filter_map(|s| meta::number(s, &["restartCount"]))
        .sum();
    let born = text(pod, &["metadata", "creationTimestamp"]).to_owned();
    let assigned = !text(pod, &["spec", "nodeName"]).is_empty();
    (
        assigned,
        phase,
        is_ready(pod),
        cost,
        -restarts,
        std::cmp::Reverse(born),
        meta::name(pod).to_owned(),
    )
}

fn new_pod(pass: &Pass<'_>, set: &Value, number: usize) -> Value {
    let template = at(set, &["spec", "template"]);
    let prefix: String = meta::name(set).chars().take(NAME_PREFIX_MAX).collect();
    let salt = |attempt: u32| format!("{} {number} {attempt}", meta::uid(set));
    let free = |name: &String| pass.world.get("pods", meta::namespace(set), name).is_none();
    let name = (0..=u32::MAX)
        .map(|attempt| format!("{prefix}-{}", meta::name_suffix(pass.seed, &salt(attempt))))
        .find(free)
        .expect("there are more names than pods");
    let mut metadata = Map::new();
    metadata.insert("name".into(), name.into());
    metadata.insert("generateName".into(), format!("{prefix}-").into());
    metadata.insert("namespace".into(), meta::namespace(set).into());
    for field in ["labels", "annotations", "finalizers"] {
        let value = at(template, &["metadata", field]);
        if !value.is_null() {
            metadata.insert(field.into(), value.clone());
        }
    }
    metadata.insert("ownerReferences".into(), json!([meta::controller_reference(set)]));
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": at(template, &["spec"])})
}

fn write_status(pass: &mut Pass<'_>, set: &Value, counts: Counts) {
    let mut status = at(set, &["status"]).clone();
    let numbers = [
        ("replicas", counts.replicas),
        ("fullyLabeledReplicas", counts.fully_labeled),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        (
            "observedGeneration",
            meta::number(set, &["metadata", "generation"]).unwrap_or(0),
        ),
    ];
    for (field, number) in numbers {
        // Zero is left out, except for the one field that is always there.
        if number == 0 && field != "replicas" {
            meta::take(&mut status, &[field]);
        } else {
            meta::set(&mut status, &[field], number.into());
        }
    }
    if status != *at(set, &["status"]) {
        let mut set = set.clone();
        meta::set(&mut set, &["status"], status);
        pass.update_status(RESOURCE, set);
    }
}
