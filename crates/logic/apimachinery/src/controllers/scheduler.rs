//! The scheduler: a node for every pod that has none.

use super::{Pass, Write};
use crate::meta::{self, at, items, text};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NAME: &str = "default-scheduler";
/// So many nodes that can take a pod are enough to choose among; in a large cluster the others are not looked at.
const CANDIDATES_ENOUGH: usize = 100;

/// What a node offers and what is taken.
struct Room<'a> {
    node: &'a Arc<Value>,
    used: BTreeMap<String, Quantity>,
    pods: i64,
    host_ports: BTreeSet<(i64, String)>,
    /// Owner's UID -> how many of its pods are here.
    owners: BTreeMap<String, i64>,
}

impl Room<'_> {
    fn take(&mut self, pod: &Value) {
        for (resource, amount) in requests(pod) {
            let used = self.used.entry(resource).or_default();
            *used = *used + amount;
        }
        self.pods += 1;
        self.host_ports.extend(host_ports(pod));
        if let Some(owner) = meta::controller_of(pod) {
            *self.owners.entry(text(owner, &["uid"]).to_owned()).or_default() += 1;
        }
    }

    fn allocatable(&self, resource: &str) -> Quantity {
        Quantity::of(at(self.node, &["status", "allocatable", resource])).unwrap_or_default()
    }
}

pub(super) fn run(pass: &mut Pass<'_>) {
    let world = pass.world;
    let waiting: Vec<&Arc<Value>> = world.list("pods").filter(|p| waits(p)).collect();
    if waiting.is_empty() {
        return;
    }
    let mut rooms = rooms(pass);
    // Priority first, then who waits longest.
    let mut waiting = waiting;
    waiting.sort_by_key(|p| {
        let priority = meta::number(p, &["spec", "priority"]).unwrap_or(0);
        (
            std::cmp::Reverse(priority),
            text(p, &["metadata", "creationTimestamp"]).to_owned(),
        )
    });
    // Each pod begins behind the last node that was looked at, so that all nodes get their share.
    let mut start = 0;
    for pod in waiting {
        start = schedule(pass, pod, &mut rooms, start);
    }
}

fn waits(pod: &Value) -> bool {
    text(pod, &["spec", "nodeName"]).is_empty()
        && !meta::is_terminating(pod)
        && matches!(text(pod, &["spec", "schedulerName"]), "" | NAME)
        && items(pod, &["spec", "schedulingGates"]).is_empty()
        && !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

fn rooms<'a>(pass: &Pass<'a>) -> Vec<Room<'a>> {
    let empty = |node| Room {
        node,
        used: BTreeMap::new(),
        pods: 0,
        host_ports: BTreeSet::new(),
        owners: BTreeMap::new(),
    };
    let mut rooms: Vec<Room<'a>> = pass.world.list("nodes").map(empty).collect();
    for pod in pass.world.list("pods") {
        let is_over = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
        let node = text(pod, &["spec", "nodeName"]);
        // Nodes come sorted by name.
        if let (false, Ok(place)) = (is_over, rooms.binary_search_by(|r| meta::name(r.node).cmp(node))) {
            rooms[place].take(pod);
        }
    }
    rooms
}

/// Gives the pod a node; returns where to begin with the next one.
fn schedule(pass: &mut Pass<'_>, pod: &Value, rooms: &mut [Room<'_>], start: usize) -> usize {
    let asks = requests(pod);
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, usize)> = None;
    let (mut candidates, mut looked) = (0, 0);
    for step in 0..rooms.len() {
        let place = (start + step) % rooms.len();
        let room = &rooms[place];
        looked += 1;
        let reasons = refuse(pod, &asks, room);
        if reasons.is_empty() {
            candidates += 1;
            let score = score(pod, &asks, room);
            // Of equals the first in the order of names, wherever we began.
            if best.is_none_or(|(top, first)| score > top || (score == top && place < first)) {
                best = Some((score, place));
            }
            if candidates == CANDIDATES_ENOUGH {
                break;
            }
        }
        for reason in reasons {
            *refusals.entry(reason).or_default() += 1;
        }
    }
    let next = (start + looked) % rooms.len().max(1);
    let Some((_, place)) = best else {
        unschedulable(pass, pod, rooms.len(), &refusals);
        return next;
    };
    let room = &mut rooms[place];
    room.take(pod);
    let node = meta::name(room.node).to_owned();
    let message = format!(
        "Successfully assigned {}/{} to {node}",
        meta::namespace(pod),
        meta::name(pod)
    );
    pass.write(Write::Bind {
        namespace: meta::namespace(pod).to_owned(),
        name: meta::name(pod).to_owned(),
        uid: meta::uid(pod).to_owned(),
        node,
    });
    pass.tell(pod, "Normal", "Scheduled", &message, NAME);
    next
}

fn unschedulable(pass: &mut Pass<'_>, pod: &Value, nodes: usize, refusals: &BTreeMap<String, usize>) {
    let message = if nodes == 0 {
        "no nodes available to schedule pods".to_owned()
    } else {
        let reasons: Vec<String> = refusals
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
    };
    let mut object = pod.clone();
    if meta::set_condition(
        &mut object,
        "PodScheduled",
        "False",
        "Unschedulable",
        &message,
        pass.now,
    ) {
        pass.update_status("pods", object);
        pass.tell(pod, "Warning", "FailedScheduling", &message, NAME);
    }
}

/// Every reason why the pod cannot run there.
fn refuse(pod: &Value, asks: &BTreeMap<String, Quantity>, room: &Room<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    let node = room.node;
    let tolerates = |taint: &Value| {
        items(pod, &["spec", "tolerations"])
            .iter()
            .any(|t| super::nodes::tolerates(t, taint))
    };
    if meta::is_terminating(node) {
        reasons.push("node(s) were being deleted".to_owned());
    }
    let cordoned = at(node, &["spec", "unschedulable"]) == &Value::Bool(true);
    let cordon = || serde_json::json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    if cordoned && !tolerates(&cordon()) {
        reasons.push("node(s) were unschedulable".to_owned());
        return reasons;
    }
    let hard = |t: &&Value| matches!(text(t, &["effect"]), "NoSchedule" | "NoExecute");
    if let Some(taint) = items(node, &["spec", "taints"])
        .iter()
        .filter(hard)
        .find(|t| !tolerates(t))
    {
        reasons.push(format!(
            "node(s) had untolerated taint {{{}: {}}}",
            text(taint, &["key"]),
            text(taint, &["value"])
        ));
        return reasons;
    }
    if !affine(pod, node) {
        reasons.push("node(s) didn't match Pod's node affinity/selector".to_owned());
        return reasons;
    }
    if host_ports(pod).any(|p| room.host_ports.contains(&p)) {
        reasons.push("node(s) didn't have free ports for the requested pod ports".to_owned());
    }
    if Quantity::units(room.pods) + Quantity::units(1) > room.allocatable("pods") {
        reasons.push("Too many pods".to_owned());
    }
    for (resource, &amount) in asks {
        let used = room.used.get(resource).copied().unwrap_or_default();
        if amount > Quantity::ZERO && used + amount > room.allocatable(resource) {
            reasons.push(format!("Insufficient {resource}"));
        }
    }
    reasons
}

/// Node selector and required node affinity.
fn affine(pod: &Value, node: &Value) -> bool {
    let selected = meta::pairs(pod, &["spec", "nodeSelector"]).all(|(k, v)| meta::label(node, k) == Some(v));
    let path = [
        "spec",
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ];
    let required = at(pod, &path);
    selected
        && (required.is_null()
            || items(required, &["nodeSelectorTerms"])
                .iter()
                .any(|t| term_matches(t, node)))
}

fn term_matches(term: &Value, node: &Value) -> bool {
    let (labels, fields) = (items(term, &["matchExpressions"]), items(term, &["matchFields"]));
    let of_label = |e: &Value| expression_matches(e, meta::label(node, text(e, &["key"])));
    let of_field =
        |e: &Value| text(e, &["key"]) == "metadata.name" && expression_matches(e, Some(meta::name(node)));
    // A term without conditions selects nothing.
    !(labels.is_empty() && fields.is_empty()) && labels.iter().all(of_label) && fields.iter().all(of_field)
}

fn expression_matches(expression: &Value, actual: Option<&str>) -> bool {
    let values = items(expression, &["values"]);
    let among = actual.is_some_and(|a| values.iter().any(|v| v == a));
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |wanted: std::cmp::Ordering| {
        let bound = values.first().and_then(Value::as_str).and_then(number);
        actual
            .and_then(number)
            .zip(bound)
            .is_some_and(|(a, b)| a.cmp(&b) == wanted)
    };
    match text(expression, &["operator"]) {
        "In" => among,
        "NotIn" => !among,
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compare(std::cmp::Ordering::Greater),
        "Lt" => compare(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// What the pod asks for: the sum of its containers, or its greediest init container if that is more.
fn requests(pod: &Value) -> BTreeMap<String, Quantity> {
    let of = |container: &Value| -> Vec<(String, Quantity)> {
        let requests = at(container, &["resources", "requests"])
            .as_object()
            .into_iter()
            .flatten();
        requests
            .filter_map(|(k, v)| Some((k.clone(), Quantity::of(v)?)))
            .collect()
    };
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut add = |container: &Value| {
        for (resource, amount) in of(container) {
            let total = sum.entry(resource).or_default();
            *total = *total + amount;
        }
    };
    items(pod, &["spec", "containers"]).iter().for_each(&mut add);
    let sidecar = |c: &&Value| text(c, &["restartPolicy"]) == "Always";
    items(pod, &["spec", "initContainers"])
        .iter()
        .filter(sidecar)
        .for_each(&mut add);
    for container in items(pod, &["spec", "initContainers"])
        .iter()
        .filter(|c| !sidecar(c))
    {
        for (resource, amount) in of(container) {
            let total = sum.entry(resource).or_default();
            *total = (*total).max(amount);
        }
    }
    for (resource, amount) in at(pod, &["spec", "overhead"]).as_object().into_iter().flatten() {
        let total = sum.entry(resource.clone()).or_default();
        *total = *total + Quantity::of(amount).unwrap_or_default();
    }
    sum
}

fn host_ports(pod: &Value) -> impl Iterator<Item = (i64, String)> {
    let ports = items(pod, &["spec", "containers"])
        .iter()
        .flat_map(|c| items(c, &["ports"]));
    ports.filter_map(|p| {
        let port = meta::number(p, &["hostPort"]).filter(|n| *n > 0)?;
        Some((port, text(p, &["protocol"]).to_owned()))
    })
}

/// Higher is better: free CPU and memory, few pods of the same owner, preferred affinity, no soft taints.
fn score(pod: &Value, asks: &BTreeMap<String, Quantity>, room: &Room<'_>) -> i64 {
    const SAME_OWNER: i64 = 20;
    const SOFT_TAINT: i64 = 50;
    let free: f64 = ["cpu", "memory"]
        .iter()
        .map(|r| {
            let used =
                room.used.get(*r).copied().unwrap_or_default() + asks.get(*r).copied().unwrap_or_default();
            1.0 - used.share_of(room.allocatable(r)).min(1.0)
        })
        .sum::<f64>()
        / 2.0;
    let same = meta::controller_of(pod)
        .and_then(|o| room.owners.get(text(o, &["uid"])))
        .copied()
        .unwrap_or(0);
    let preferred: i64 = items(
        pod,
        &[
            "spec",
            "affinity",
            "nodeAffinity",
            "preferredDuringSchedulingIgnoredDuringExecution",
        ],
    )
    .iter()
    .filter(|p| term_matches(at(p, &["preference"]), room.node))
    .filter_map(|p| meta::number(p, &["weight"]))
    .sum();
    let soft = items(room.node, &["spec", "taints"])
        .iter()
        .filter(|t| text(t, &["effect"]) == "PreferNoSchedule")
        .filter(|t| {
            !items(pod, &["spec", "tolerations"])
                .iter()
                .any(|tol| super::nodes::tolerates(tol, t))
        })
        .count();
    (free * 100.0) as i64 - SAME_OWNER * same + preferred
        - SOFT_TAINT * i64::try_from(soft).unwrap_or(0)
        - room.pods.min(SAME_OWNER)
}
