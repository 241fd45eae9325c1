//! Deployments: one replica set for each version of the template, and the way from the old to the new one.

use super::Pass;
use super::replicaset::{self, Counts};
use crate::meta::{self, at, items, text};
use crate::selector::LabelSelector;
use crate::strategy::DeleteOptions;
use serde_json::{Value, json};
use std::sync::Arc;

const RESOURCE: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";
const SOURCE: &str = "deployment-controller";

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn run(pass: &mut Pass<'_>) {
    let world = pass.world;
    for deployment in world.list(RESOURCE) {
        if !meta::is_terminating(deployment) {
            reconcile(pass, deployment);
        }
    }
}

/// A replica set of the deployment with the numbers of its pods.
#[derive(Clone)]
struct Set<'a> {
    object: &'a Arc<Value>,
    wanted: i64,
    counts: Counts,
}

impl Set<'_> {
    /// Available pods that will stay; those that are about to be deleted do not count twice.
    fn available(&self) -> i64 {
        self.counts.available.min(self.wanted)
    }
}

struct Limits {
    wanted: i64,
    surge: i64,
    unavailable: i64,
}

fn limits(deployment: &Value) -> Limits {
    let wanted = meta::number(deployment, &["spec", "replicas"]).unwrap_or(1);
    let rolling = text(deployment, &["spec", "strategy", "type"]) != "Recreate";
    let of = |field: &str, round_up: bool| {
        if !rolling {
            return 0;
        }
        match at(deployment, &["spec", "strategy", "rollingUpdate", field]) {
            Value::String(text) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(25);
                let share = wanted.saturating_mul(percent);
                if round_up { (share + 99) / 100 } else { share / 100 }
            }
            number => number.as_i64().unwrap_or(1),
        }
    };
    let (surge, unavailable) = (of("maxSurge", true), of("maxUnavailable", false));
    // Both rounded to nothing would stop the world: one may be missing then.
    let unavailable = if rolling && surge == 0 && unavailable == 0 {
        1
    } else {
        unavailable
    };
    Limits {
        wanted,
        surge,
        unavailable: unavailable.min(wanted),
    }
}

fn reconcile(pass: &mut Pass<'_>, deployment: &Value) {
    let Ok(Some(selector)) = LabelSelector::from_object(at(deployment, &["spec", "selector"])) else {
        return;
    };
    if adopt(pass, deployment, &selector) {
        // The next pass sees them.
        return;
    }
    let mut sets: Vec<Set<'_>> = pass
        .controlled(SETS, meta::uid(deployment))
        .into_iter()
        .filter(|s| !meta::is_terminating(s))
        .map(|object| Set {
            object,
            wanted: meta::number(object, &["spec", "replicas"]).unwrap_or(1),
            counts: replicaset::counts(pass, object),
        })
        .collect();
    sets.sort_by_key(|s| {
        (
            revision(s.object),
            text(s.object, &["metadata", "creationTimestamp"]).to_owned(),
        )
    });
    let place = sets.iter().position(|s| same_template(deployment, s.object));
    let new = place.map(|place| sets.remove(place));
    let old = sets;
    let paused = at(deployment, &["spec", "paused"]) == &Value::Bool(true);
    let limits = limits(deployment);
    if paused {
        scale_paused(pass, deployment, new.as_ref(), &old, &limits);
    } else if text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
        recreate(pass, deployment, new.as_ref(), &old, &limits);
    } else {
        roll(pass, deployment, new.as_ref(), &old, &limits);
    }
    clean_up(pass, deployment, &old);
    write_revision(pass, deployment, new.as_ref(), &old, paused);
    write_status(pass, deployment, new.as_ref(), &old, &limits, paused);
}

/// Takes over replica sets that nobody controls and the selector selects.
fn adopt(pass: &mut Pass<'_>, deployment: &Value, selector: &LabelSelector) -> bool {
    let world = pass.world;
    let mut adopted = false;
    for set in world.list_in(SETS, meta::namespace(deployment)) {
        if meta::controller_of(set).is_none() && !meta::is_terminating(set) && selector.matches(set) {
            let mut owners = items(set, &["metadata", "ownerReferences"]).to_vec();
            owners.push(meta::controller_reference(deployment));
            let mut set = (**set).clone();
            meta::set(&mut set, &["metadata", "ownerReferences"], owners.into());
            pass.update(SETS, set);
            adopted = true;
        }
    }
    adopted
}

fn revision(object: &Value) -> i64 {
    meta::annotation(object, REVISION)
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// Whether the set was made from the deployment's template, the hash label aside.
fn same_template(deployment: &Value, set: &Value) -> bool {
    let mut template = at(set, &["spec", "template"]).clone();
    meta::take(&mut template, &["metadata", "labels", HASH_LABEL]);
    bare(template) == bare(at(deployment, &["spec", "template"]).clone())
}

/// Empty parts and a null creation time say nothing.
fn bare(mut template: Value) -> Value {
    meta::take(&mut template, &["metadata", "creationTimestamp"]);
    for part in ["labels", "annotations"] {
        if at(&template, &["metadata", part])
            .as_object()
            .is_some_and(serde_json::Map::is_empty)
        {
            meta::take(&mut template, &["metadata", part]);
        }
    }
    template
}

fn new_set(pass: &Pass<'_>, deployment: &Value, replicas: i64, revision: i64, limits: &Limits) -> Value {
    let template = at(deployment, &["spec", "template"]);
    let namespace = meta::namespace(deployment);
    // A name that is taken by a set of another template: hash again with a salt.
    let (name, hash) = (0..=u32::MAX)
        .map(|salt| {
            let hash = if salt == 0 {
                meta::value_hash(template)
            } else {
                meta::value_hash(&json!([template, salt]))
            };
            (format!("{}-{hash}", meta::name(deployment)), hash)
        })
        .find(|(name, _)| pass.world.get(SETS, namespace, name).is_none())
        .expect("there are more hashes than replica sets");
    let mut template = template.clone();
    meta::set(
        &mut template,
        &["metadata", "labels", HASH_LABEL],
        hash.clone().into(),
    );
    let mut selector = at(deployment, &["spec", "selector"]).clone();
    meta::set(&mut selector, &["matchLabels", HASH_LABEL], hash.into());
    let mut set = json!({
        "kind": "ReplicaSet",
        "apiVersion": "apps/v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": at(&template, &["metadata", "labels"]),
            "annotations": inherited_annotations(deployment),
            "ownerReferences": [meta::controller_reference(deployment)],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    });
    meta::set(
        &mut set,
        &["metadata", "annotations", REVISION],
        revision.to_string().into(),
    );
    mark_limits(&mut set, limits);
    if let Some(seconds) = meta::number(deployment, &["spec", "minReadySeconds"]) {
        meta::set(&mut set, &["spec", "minReadySeconds"], seconds.into());
    }
    set
}

/// Annotations of the deployment that its replica sets carry too.
fn inherited_annotations(deployment: &Value) -> Value {
    let mut annotations = at(deployment, &["metadata", "annotations"]).clone();
    let fields = meta::map(&mut annotations);
    for own in [LAST_APPLIED, REVISION, DESIRED, MAXIMUM] {
        fields.shift_remove(own);
    }
    annotations
}

fn mark_limits(set: &mut Value, limits: &Limits) {
    meta::set(
        set,
        &["metadata", "annotations", DESIRED],
        limits.wanted.to_string().into(),
    );
    meta::set(
        set,
        &["metadata", "annotations", MAXIMUM],
        (limits.wanted + limits.surge).to_string().into(),
    );
}

fn next_revision(old: &[Set<'_>]) -> i64 {
    old.iter().map(|s| revision(s.object)).max().unwrap_or(0) + 1
}

fn start(pass: &mut Pass<'_>, deployment: &Value, replicas: i64, old: &[Set<'_>], limits: &Limits) {
    let set = new_set(pass, deployment, replicas, next_revision(old), limits);
    let message = format!("Scaled up replica set {} from 0 to {replicas}", meta::name(&set));
    pass.create(SETS, set);
    if replicas > 0 {
        pass.tell(deployment, "Normal", "ScalingReplicaSet", &message, SOURCE);
    }
}

fn scale(pass: &mut Pass<'_>, deployment: &Value, set: &Set<'_>, replicas: i64, limits: &Limits) {
    if set.wanted == replicas {
        return;
    }
    let way = if replicas > set.wanted { "up" } else { "down" };
    let message = format!(
        "Scaled {way} replica set {} from {} to {replicas}",
        meta::name(set.object),
        set.wanted
    );
    let mut object = (**set.object).clone();
    meta::set(&mut object, &["spec", "replicas"], replicas.into());
    mark_limits(&mut object, limits);
    pass.update(SETS, object);
    pass.tell(deployment, "Normal", "ScalingReplicaSet", &message, SOURCE);
}

/// While paused nothing rolls, but the number of replicas is kept on the newest set that has any.
fn scale_paused(
    pass: &mut Pass<'_>,
    deployment: &Value,
    new: Option<&Set<'_>>,
    old: &[Set<'_>],
    limits: &Limits,
) {
    let all: Vec<&Set<'_>> = old.iter().chain(new).collect();
    let total: i64 = all.iter().map(|s| s.wanted).sum();
    let newest = all.iter().rev().find(|s| s.wanted > 0).or(all.last()).copied();
    if let (Some(set), true) = (newest, total != limits.wanted) {
        scale(
            pass,
            deployment,
            set,
            (set.wanted + limits.wanted - total).max(0),
            limits,
        );
    }
}

fn recreate(
    pass: &mut Pass<'_>,
    deployment: &Value,
    new: Option<&Set<'_>>,
    old: &[Set<'_>],
    limits: &Limits,
) {
    for set in old {
        scale(pass, deployment, set, 0, limits);
    }
    // No pod of the old version may be left, not even one that is going.
    let left = old.iter().any(|s| {
        let pods = pass.controlled("pods", meta::uid(s.object));
        pods.iter()
            .any(|p| !matches!(text(p, &["status", "phase"]), "Succeeded" | "Failed"))
    });
    if left {
        return;
    }
    match new {
        Some(set) => scale(pass, deployment, set, limits.wanted, limits),
        None => start(pass, deployment, limits.wanted, old, limits),
    }
}

fn roll(pass: &mut Pass<'_>, deployment: &Value, new: Option<&Set<'_>>, old: &[Set<'_>], limits: &Limits) {
    let old_wanted: i64 = old.iter().map(|s| s.wanted).sum();
    let room = (limits.wanted + limits.surge - old_wanted).max(0);
    let Some(new) = new else {
        start(pass, deployment, limits.wanted.min(room), old, limits);
        return;
    };
    let more = (room - new.wanted).max(0);
    if new.wanted > limits.wanted {
        scale(pass, deployment, new, limits.wanted, limits);
    } else if new.wanted < limits.wanted && more > 0 {
        scale(
            pass,
            deployment,
            new,
            limits.wanted.min(new.wanted + more),
            limits,
        );
    } else if old_wanted > 0 {
        shrink_old(pass, deployment, new, old, limits);
    }
}

/// Takes from the old sets what may go: first pods that do not work anyway, then as many as the new ones replace.
fn shrink_old(pass: &mut Pass<'_>, deployment: &Value, new: &Set<'_>, old: &[Set<'_>], limits: &Limits) {
    let least = limits.wanted - limits.unavailable;
    let total: i64 = new.wanted + old.iter().map(|s| s.wanted).sum::<i64>();
    let mut may_go = total - least - (new.wanted - new.available());
    let mut spare = new.available() + old.iter().map(Set::available).sum::<i64>() - least;
    for set in old {
        let broken = (set.wanted - set.available()).min(may_go).max(0);
        let working = set.available().min(may_go - broken).min(spare).max(0);
        may_go -= broken + working;
        spare -= working;
        scale(pass, deployment, set, set.wanted - broken - working, limits);
    }
}

/// Keeps only so many empty sets of old revisions.
fn clean_up(pass: &mut Pass<'_>, deployment: &Value, old: &[Set<'_>]) {
    let kept = meta::number(deployment, &["spec", "revisionHistoryLimit"]).unwrap_or(10);
    let empty: Vec<&Set<'_>> = old
        .iter()
        .filter(|s| s.wanted == 0 && s.counts.replicas == 0)
        .collect();
    let surplus = empty.len().saturating_sub(usize::try_from(kept).unwrap_or(0));
    for set in empty.into_iter().take(surplus) {
        pass.delete(SETS, set.object, DeleteOptions::default());
    }
}

/// The newest revision stands on the deployment; a set that is used again (rollback) becomes the newest.
fn write_revision(
    pass: &mut Pass<'_>,
    deployment: &Value,
    new: Option<&Set<'_>>,
    old: &[Set<'_>],
    paused: bool,
) {
    let Some(new) = new else { return };
    let wanted = next_revision(old);
    let mut current = revision(new.object);
    let scaled = pass.decision.writes.iter().any(|w| matches!(w, super::Write::Update { resource, object } if resource == SETS && meta::uid(object) == meta::uid(new.object)));
    if current < wanted && !paused && !scaled {
        let mut object = (**new.object).clone();
        meta::set(
            &mut object,
            &["metadata", "annotations", REVISION],
            wanted.to_string().into(),
        );
        pass.update(SETS, object);
        current = wanted;
    }
    if revision(deployment) != current && current > 0 {
        let mut object = deployment.clone();
        meta::set(
            &mut object,
            &["metadata", "annotations", REVISION],
            current.to_string().into(),
        );
        pass.update(RESOURCE, object);
    }
}

fn write_status(
    pass: &mut Pass<'_>,
    deployment: &Value,
    new: Option<&Set<'_>>,
    old: &[Set<'_>],
    limits: &Limits,
    paused: bool,
) {
    let sum = |of: fn(&Counts) -> i64| old.iter().chain(new).map(|s| of(&s.counts)).sum::<i64>();
    let total = sum(|c| c.replicas);
    let available = sum(|c| c.available);
    let updated = new.map_or(0, |s| s.counts.replicas);
    let numbers = [
        (
            "observedGeneration",
            meta::number(deployment, &["metadata", "generation"]).unwrap_or(0),
        ),
        ("replicas", total),
        ("updatedReplicas", updated),
        ("readyReplicas", sum(|c| c.ready)),
        ("availableReplicas", available),
        (
            "unavailableReplicas",
            (limits.wanted.max(total) - available).max(0),
        ),
    ];
    let mut object = deployment.clone();
    for (field, number) in numbers {
        if number == 0 {
            meta::take(&mut object, &["status", field]);
        } else {
            meta::set(&mut object, &["status", field], number.into());
        }
    }
    let before = |field: &str| meta::number(deployment, &["status", field]).unwrap_or(0);
    let after = |field: &str| meta::number(&object, &["status", field]).unwrap_or(0);
    let grew = ["updatedReplicas", "readyReplicas", "availableReplicas"]
        .iter()
        .any(|f| after(f) > before(f));
    let moved = grew || total - updated < before("replicas") - before("updatedReplicas") || new.is_none();
    if available >= limits.wanted - limits.unavailable {
        condition(
            pass,
            &mut object,
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Enough replicas are available.",
            false,
        );
    } else {
        condition(
            pass,
            &mut object,
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Too few replicas are available.",
            false,
        );
    }
    let complete =
        updated == limits.wanted && total == limits.wanted && available == limits.wanted && new.is_some();
    progress(pass, &mut object, new, complete, moved, paused);
    if object["status"] != *at(deployment, &["status"]) {
        pass.update_status(RESOURCE, object);
    }
}

/// The condition Progressing, from which `kubectl rollout status` reads success and failure.
fn progress(
    pass: &mut Pass<'_>,
    object: &mut Value,
    new: Option<&Set<'_>>,
    complete: bool,
    moved: bool,
    paused: bool,
) {
    let set = new.map_or("", |s| meta::name(s.object)).to_owned();
    let reason = meta::condition(object, "Progressing")
        .map(|c| text(c, &["reason"]))
        .unwrap_or_default()
        .to_owned();
    if paused {
        return condition(
            pass,
            object,
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "The deployment is paused.",
            false,
        );
    }
    if complete {
        let message = format!("Replica set {set:?} has all its replicas.");
        return condition(
            pass,
            object,
            "Progressing",
            "True",
            "NewReplicaSetAvailable",
            &message,
            reason != "NewReplicaSetAvailable",
        );
    }
    let restarted = matches!(
        reason.as_str(),
        "" | "DeploymentPaused" | "NewReplicaSetAvailable"
    ) && (moved || reason.is_empty());
    if moved || restarted {
        let message = format!("Replica set {set:?} is progressing.");
        return condition(
            pass,
            object,
            "Progressing",
            "True",
            "ReplicaSetUpdated",
            &message,
            true,
        );
    }
    if reason == "NewReplicaSetAvailable" || reason == "ProgressDeadlineExceeded" {
        // Losing pods after a finished rollout is no rollout.
        return;
    }
    let deadline = meta::number(object, &["spec", "progressDeadlineSeconds"]).unwrap_or(600);
    let last =
        meta::condition(object, "Progressing").and_then(|c| meta::parse_time(text(c, &["lastUpdateTime"])));
    let Some(last) = last else { return };
    if pass.now.as_second() - last.as_second() > deadline {
        let message = format!("Replica set {set:?} made no progress for {deadline} seconds.");
        condition(
            pass,
            object,
            "Progressing",
            "False",
            "ProgressDeadlineExceeded",
            &message,
            true,
        );
    } else {
        pass.wake_after(last, deadline + 1);
    }
}

fn condition(
    pass: &Pass<'_>,
    object: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    touch: bool,
) {
    let changed = meta::set_condition(object, kind, status, reason, message, pass.now);
    let conditions = object
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut);
    if let Some(found) = conditions
        .into_iter()
        .flatten()
        .find(|c| text(c, &["type"]) == kind)
        && (changed || touch)
    {
        meta::set(found, &["lastUpdateTime"], meta::time(pass.now).into());
    }
}
