//! Nodes: who is silent, what that means for taints and pods, and which addresses their pods get.

use super::{Pass, Settings};
use crate::meta::{self, at, items, text};
use crate::strategy::DeleteOptions;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

const SOURCE: &str = "node-controller";

/// A node that gave no sign of life for so long is not ready.
const NODE_MONITOR_GRACE_SECONDS: i64 = 40;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";

/// Bits of a node's share of the cluster network.
const NODE_PREFIX: u32 = 24;

/// Name of a node -> its pods.
type Pods<'a> = HashMap<&'a str, Vec<&'a Arc<Value>>>;

pub(super) fn run(pass: &mut Pass<'_>, settings: &Settings) {
    let world = pass.world;
    let mut free = free_networks(pass, settings);
    let mut pods = Pods::new();
    for pod in world.list("pods") {
        pods.entry(text(pod, &["spec", "nodeName"]))
            .or_default()
            .push(pod);
    }
    for node in world.list("nodes") {
        let name = meta::name(node);
        let unknown = is_silent(pass, node)
            .then(|| marked_unknown(pass, node))
            .flatten();
        if let Some(node) = &unknown {
            pass.update_status("nodes", node.clone());
            let message = format!("Node {name} status is now: NodeNotReady");
            pass.tell(node, "Normal", "NodeNotReady", &message, SOURCE);
        }
        let seen = unknown.as_ref().unwrap_or(node);
        let taints = changed_taints(pass, seen);
        let network = text(seen, &["spec", "podCIDR"])
            .is_empty()
            .then(|| free.next())
            .flatten();
        // Most nodes are as they should be, and copying thousands of them in each pass would take a while.
        let changed = (taints.is_some() || network.is_some()).then(|| {
            let mut node = seen.clone();
            if let Some(taints) = taints {
                set_taints(&mut node, taints);
            }
            if let Some(network) = network {
                meta::set(&mut node, &["spec", "podCIDR"], network.clone().into());
                meta::set(&mut node, &["spec", "podCIDRs"], json!([network]));
            }
            node
        });
        if let Some(node) = &changed {
            pass.update("nodes", node.clone());
        }
        let seen = changed.as_ref().unwrap_or(seen);
        pods_of(pass, seen, pods.get(name).map(Vec::as_slice).unwrap_or_default());
    }
}

fn is_silent(pass: &mut Pass<'_>, node: &Value) -> bool {
    let Some(heard) = pass.world.heard(node) else {
        return false;
    };
    if pass.now.as_second() - heard.as_second() > NODE_MONITOR_GRACE_SECONDS {
        return true;
    }
    pass.wake_after(heard, NODE_MONITOR_GRACE_SECONDS + 1);
    false
}

/// A silent node with its conditions Unknown; `None` when they are already.
fn marked_unknown(pass: &Pass<'_>, node: &Value) -> Option<Value> {
    const MESSAGE: &str = "The node stopped posting its status.";
    let mut marked = None;
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let status = meta::condition(node, kind).map(|c| text(c, &["status"]));
        if status != Some("Unknown") && (status.is_some() || kind == "Ready") {
            let node = marked.get_or_insert_with(|| node.clone());
            meta::set_condition(node, kind, "Unknown", "NodeStatusUnknown", MESSAGE, pass.now);
        }
    }
    marked
}

/// The taints of a node with those that mirror conditions up to date; `None` when they are.
fn changed_taints(pass: &Pass<'_>, node: &Value) -> Option<Vec<Value>> {
    let ready = meta::condition(node, "Ready").map(|c| text(c, &["status"]).to_owned());
    let unreachable = ready.as_deref() == Some("Unknown");
    let not_ready = !unreachable && ready.as_deref() != Some("True");
    let pressure = |kind: &str| meta::condition_true(node, kind);
    let wanted = [
        (NOT_READY, "NoSchedule", not_ready),
        (NOT_READY, "NoExecute", not_ready),
        (UNREACHABLE, "NoSchedule", unreachable),
        (UNREACHABLE, "NoExecute", unreachable),
        (
            CORDONED,
            "NoSchedule",
            at(node, &["spec", "unschedulable"]) == &Value::Bool(true),
        ),
        (
            "node.kubernetes.io/memory-pressure",
            "NoSchedule",
            pressure("MemoryPressure"),
        ),
        (
            "node.kubernetes.io/disk-pressure",
            "NoSchedule",
            pressure("DiskPressure"),
        ),
        (
            "node.kubernetes.io/pid-pressure",
            "NoSchedule",
            pressure("PIDPressure"),
        ),
    ];
    let before = items(node, &["spec", "taints"]).to_vec();
    let mut taints = before.clone();
    for (key, effect, on) in wanted {
        let is_this = |t: &Value| text(t, &["key"]) == key && text(t, &["effect"]) == effect;
        if !on {
            taints.retain(|t| !is_this(t));
        } else if !taints.iter().any(is_this) {
            let mut taint = json!({"key": key, "effect": effect});
            if effect == "NoExecute" {
                meta::set(&mut taint, &["timeAdded"], meta::time(pass.now).into());
            }
            taints.push(taint);
        }
    }
    (taints != before).then_some(taints)
}

fn set_taints(node: &mut Value, taints: Vec<Value>) {
    if taints.is_empty() {
        meta::take(node, &["spec", "taints"]);
    } else {
        meta::set(node, &["spec", "taints"], taints.into());
    }
}

/// Whether a toleration covers a taint.
pub(super) fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (key, effect) = (text(toleration, &["key"]), text(toleration, &["effect"]));
    if !effect.is_empty() && effect != text(taint, &["effect"]) {
        return false;
    }
    if !key.is_empty() && key != text(taint, &["key"]) {
        return false;
    }
    match text(toleration, &["operator"]) {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(toleration, &["value"]) == text(taint, &["value"]),
        _ => false,
    }
}

/// Pods of a node that is not ready are not ready either, and leave when they no longer tolerate its taints.
fn pods_of(pass: &mut Pass<'_>, node: &Value, pods: &[&Arc<Value>]) {
    let unknown = meta::condition(node, "Ready").is_some_and(|c| text(c, &["status"]) == "Unknown");
    let taints: Vec<Value> = items(node, &["spec", "taints"])
        .iter()
        .filter(|t| text(t, &["effect"]) == "NoExecute")
        .cloned()
        .collect();
    if !unknown && taints.is_empty() {
        return;
    }
    for &pod in pods {
        if unknown && meta::condition_true(pod, "Ready") {
            let mut object = (**pod).clone();
            meta::set_condition(
                &mut object,
                "Ready",
                "False",
                "NodeNotReady",
                "The node is not ready.",
                pass.now,
            );
            pass.update_status("pods", object);
        }
        if meta::is_terminating(pod) {
            continue;
        }
        match evict_at(pass, pod, &taints) {
            Some(at) if at <= pass.now => {
                pass.delete("pods", pod, DeleteOptions::default());
                let message = format!(
                    "Marking for deletion Pod {}/{}",
                    meta::namespace(pod),
                    meta::name(pod)
                );
                pass.tell(
                    pod,
                    "Normal",
                    "TaintManagerEviction",
                    &message,
                    "taint-eviction-controller",
                );
            }
            Some(at) => pass.wake(at),
            None => {}
        }
    }
}

/// When the pod must leave because of these taints; none: never.
fn evict_at(pass: &Pass<'_>, pod: &Value, taints: &[Value]) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let covering: Vec<&Value> = items(pod, &["spec", "tolerations"])
            .iter()
            .filter(|t| tolerates(t, taint))
            .collect();
        let since = meta::parse_time(text(taint, &["timeAdded"])).unwrap_or(pass.now);
        // Of several tolerations the shortest counts; one without seconds tolerates for ever.
        let seconds = covering
            .iter()
            .filter_map(|t| meta::number(t, &["tolerationSeconds"]))
            .min();
        let leaves = match (covering.is_empty(), seconds) {
            (true, _) => Some(pass.now),
            (false, Some(seconds)) => since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok(),
            (false, None) => None,
        };
        if let Some(leaves) = leaves {
            earliest = Some(earliest.map_or(leaves, |e| e.min(leaves)));
        }
    }
    earliest
}

/// The networks of the cluster that no node has yet.
fn free_networks(pass: &Pass<'_>, settings: &Settings) -> impl Iterator<Item = String> + use<> {
    let taken: HashSet<String> = pass
        .world
        .list("nodes")
        .map(|n| text(n, &["spec", "podCIDR"]).to_owned())
        .collect();
    let cluster = settings.cluster_cidr.as_deref().and_then(parse_network);
    let (base, count) = match cluster {
        Some((base, prefix)) => (u32::from(base), 1_u64 << NODE_PREFIX.saturating_sub(prefix)),
        None => (0, 0),
    };
    (0..count)
        .filter_map(move |place| {
            let offset = u32::try_from(place << (32 - NODE_PREFIX)).ok()?;
            Some(format!(
                "{}/{NODE_PREFIX}",
                Ipv4Addr::from(base.checked_add(offset)?)
            ))
        })
        .filter(move |network| !taken.contains(network))
}

fn parse_network(text: &str) -> Option<(Ipv4Addr, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix: u32 = prefix.parse().ok().filter(|p| (1..=NODE_PREFIX).contains(p))?;
    let address: Ipv4Addr = address.parse().ok()?;
    Some((
        Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix))),
        prefix,
    ))
}
