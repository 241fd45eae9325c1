//! The columns of the built-in kinds.

use super::{Column, Printer, age, or_none, pod};
use crate::kinds::Kind;
use crate::meta::{self, at, items, text};
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::Value;

type Cells = fn(&Value, Timestamp) -> Vec<Value>;
/// Name, type, priority.
type Head = (&'static str, &'static str, i64);

const S: &str = "string";
const I: &str = "integer";

pub(super) fn printer(kind: &Kind) -> Printer {
    let (heads, cells): (&[Head], Cells) = match kind.group_resource().as_str() {
        "pods" => (
            &[
                ("Name", S, 0),
                ("Ready", S, 0),
                ("Status", S, 0),
                ("Restarts", S, 0),
                ("Age", S, 0),
                ("IP", S, 1),
                ("Node", S, 1),
                ("Nominated Node", S, 1),
                ("Readiness Gates", S, 1),
            ],
            pod::cells,
        ),
        "nodes" => (
            &[
                ("Name", S, 0),
                ("Status", S, 0),
                ("Roles", S, 0),
                ("Age", S, 0),
                ("Version", S, 0),
                ("Internal-IP", S, 1),
                ("External-IP", S, 1),
                ("OS-Image", S, 1),
                ("Kernel-Version", S, 1),
                ("Container-Runtime", S, 1),
            ],
            node,
        ),
        "deployments.apps" => (
            &[
                ("Name", S, 0),
                ("Ready", S, 0),
                ("Up-to-date", I, 0),
                ("Available", I, 0),
                ("Age", S, 0),
                ("Containers", S, 1),
                ("Images", S, 1),
                ("Selector", S, 1),
            ],
            deployment,
        ),
        "replicasets.apps" => (
            &[
                ("Name", S, 0),
                ("Desired", I, 0),
                ("Current", I, 0),
                ("Ready", I, 0),
                ("Age", S, 0),
                ("Containers", S, 1),
                ("Images", S, 1),
                ("Selector", S, 1),
            ],
            replica_set,
        ),
        "services" => (
            &[
                ("Name", S, 0),
                ("Type", S, 0),
                ("Cluster-IP", S, 0),
                ("External-IP", S, 0),
                ("Port(s)", S, 0),
                ("Age", S, 0),
                ("Selector", S, 1),
            ],
            service,
        ),
        "configmaps" => (&[("Name", S, 0), ("Data", I, 0), ("Age", S, 0)], |o, now| {
            vec![
                meta::name(o).into(),
                count(o, &["data", "binaryData"]),
                created(o, now),
            ]
        }),
        "secrets" => (
            &[("Name", S, 0), ("Type", S, 0), ("Data", I, 0), ("Age", S, 0)],
            |o, now| {
                vec![
                    meta::name(o).into(),
                    text(o, &["type"]).into(),
                    count(o, &["data"]),
                    created(o, now),
                ]
            },
        ),
        "serviceaccounts" => (&[("Name", S, 0), ("Secrets", I, 0), ("Age", S, 0)], |o, now| {
            vec![
                meta::name(o).into(),
                items(o, &["secrets"]).len().into(),
                created(o, now),
            ]
        }),
        "namespaces" => (&[("Name", S, 0), ("Status", S, 0), ("Age", S, 0)], |o, now| {
            vec![
                meta::name(o).into(),
                text(o, &["status", "phase"]).into(),
                created(o, now),
            ]
        }),
        "events" => (
            &[
                ("Last Seen", S, 0),
                ("Type", S, 0),
                ("Reason", S, 0),
                ("Object", S, 0),
                ("Subobject", S, 1),
                ("Source", S, 1),
                ("Message", S, 0),
                ("First Seen", S, 1),
                ("Count", S, 1),
                ("Name", S, 1),
            ],
            event,
        ),
        "leases.coordination.k8s.io" => (&[("Name", S, 0), ("Holder", S, 0), ("Age", S, 0)], |o, now| {
            vec![
                meta::name(o).into(),
                text(o, &["spec", "holderIdentity"]).into(),
                created(o, now),
            ]
        }),
        "customresourcedefinitions.apiextensions.k8s.io" => {
            (&[("Name", S, 0), ("Created At", "date", 0)], |o, _| {
                vec![
                    meta::name(o).into(),
                    text(o, &["metadata", "creationTimestamp"]).into(),
                ]
            })
        }
        "certificatesigningrequests.certificates.k8s.io" => (
            &[
                ("Name", S, 0),
                ("Age", S, 0),
                ("SignerName", S, 0),
                ("Requestor", S, 0),
                ("RequestedDuration", S, 0),
                ("Condition", S, 0),
            ],
            signing_request,
        ),
        "endpoints" => (&[("Name", S, 0), ("Endpoints", S, 0), ("Age", S, 0)], |o, now| {
            vec![meta::name(o).into(), endpoints(o), created(o, now)]
        }),
        "persistentvolumes" => (
            &[
                ("Name", S, 0),
                ("Capacity", S, 0),
                ("Access Modes", S, 0),
                ("Reclaim Policy", S, 0),
                ("Status", S, 0),
                ("Claim", S, 0),
                ("StorageClass", S, 0),
                ("Reason", S, 0),
                ("Age", S, 0),
                ("VolumeMode", S, 1),
            ],
            persistent_volume,
        ),
        "persistentvolumeclaims" => (
            &[
                ("Name", S, 0),
                ("Status", S, 0),
                ("Volume", S, 0),
                ("Capacity", S, 0),
                ("Access Modes", S, 0),
                ("StorageClass", S, 0),
                ("Age", S, 0),
                ("VolumeMode", S, 1),
            ],
            persistent_volume_claim,
        ),
        _ => (&[("Name", S, 0), ("Age", S, 0)], |o, now| {
            vec![meta::name(o).into(), created(o, now)]
        }),
    };
    let columns = heads
        .iter()
        .map(|(name, kind, priority)| Column::new(name, kind, *priority))
        .collect();
    Printer {
        columns,
        cells: Box::new(cells),
    }
}

fn created(object: &Value, now: Timestamp) -> Value {
    age(object, &["metadata", "creationTimestamp"], now).into()
}

fn count(object: &Value, fields: &[&str]) -> Value {
    fields
        .iter()
        .map(|f| at(object, &[f]).as_object().map_or(0, serde_json::Map::len))
        .sum::<usize>()
        .into()
}

fn number(object: &Value, path: &[&str]) -> i64 {
    meta::number(object, path).unwrap_or(0)
}

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = match meta::condition(node, "Ready").map(|c| text(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = at(node, &["spec", "unschedulable"]) == &Value::Bool(true);
    let status = if cordoned {
        format!("{ready},SchedulingDisabled")
    } else {
        ready.to_owned()
    };
    let mut roles: Vec<&str> = meta::pairs(node, &["metadata", "labels"])
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ => (key == "kubernetes.io/role" && !value.is_empty()).then_some(value),
            },
        )
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = items(node, &["status", "addresses"])
            .iter()
            .find(|a| text(a, &["type"]) == kind);
        or_none(found.map(|a| text(a, &["address"])).unwrap_or_default())
    };
    let info = |field: &str| match text(node, &["status", "nodeInfo", field]) {
        "" => "<unknown>".into(),
        known => Value::from(known),
    };
    vec![
        meta::name(node).into(),
        status.into(),
        or_none(&roles.join(",")),
        created(node, now),
        text(node, &["status", "nodeInfo", "kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// Names and images of a template's containers, and the selector.
fn workload(object: &Value) -> [Value; 3] {
    let containers = items(object, &["spec", "template", "spec", "containers"]);
    let join = |field: &str| {
        containers
            .iter()
            .map(|c| text(c, &[field]))
            .collect::<Vec<_>>()
            .join(",")
    };
    let selector = LabelSelector::from_object(at(object, &["spec", "selector"]))
        .ok()
        .flatten();
    [
        join("name").into(),
        join("image").into(),
        or_none(&selector.map(|s| s.to_string()).unwrap_or_default()),
    ]
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = number(object, &["status", "readyReplicas"]);
    let mut cells = vec![
        meta::name(object).into(),
        format!("{ready}/{}", number(object, &["spec", "replicas"])).into(),
        number(object, &["status", "updatedReplicas"]).into(),
        number(object, &["status", "availableReplicas"]).into(),
        created(object, now),
    ];
    cells.extend(workload(object));
    cells
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        meta::name(object).into(),
        number(object, &["spec", "replicas"]).into(),
        number(object, &["status", "replicas"]).into(),
        number(object, &["status", "readyReplicas"]).into(),
        created(object, now),
    ];
    cells.extend(workload(object));
    cells
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(object, &["spec", "ports"])
        .iter()
        .map(|p| {
            let node = number(p, &["nodePort"]);
            let node = if node == 0 {
                String::new()
            } else {
                format!(":{node}")
            };
            format!("{}{node}/{}", number(p, &["port"]), text(p, &["protocol"]))
        })
        .collect();
    let kind = text(object, &["spec", "type"]);
    let mut external: Vec<&str> = items(object, &["spec", "externalIPs"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for ingress in items(object, &["status", "loadBalancer", "ingress"]) {
        external.push(
            at(ingress, &["ip"])
                .as_str()
                .unwrap_or_else(|| text(ingress, &["hostname"])),
        );
    }
    let external = match (kind, external.is_empty()) {
        ("ExternalName", _) => or_none(text(object, &["spec", "externalName"])),
        ("LoadBalancer", true) => "<pending>".into(),
        _ => or_none(&external.join(",")),
    };
    let selector = LabelSelector::from_map(at(object, &["spec", "selector"]));
    vec![
        meta::name(object).into(),
        kind.into(),
        or_none(text(object, &["spec", "clusterIP"])),
        external,
        or_none(&ports.join(",")),
        created(object, now),
        or_none(&selector.to_string()),
    ]
}

fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |paths: &[&[&str]]| -> Value {
        let known = paths.iter().find(|p| !text(object, p).is_empty());
        known
            .map_or_else(|| "<unknown>".to_owned(), |p| age(object, p, now))
            .into()
    };
    let created: &[&str] = &["metadata", "creationTimestamp"];
    let last = first_of(&[
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["eventTime"],
        created,
    ]);
    let first = first_of(&[&["firstTimestamp"], &["eventTime"], created]);
    let involved = at(object, &["involvedObject"]);
    let source = [
        text(object, &["source", "component"]),
        text(object, &["source", "host"]),
    ];
    let source: Vec<&str> = source.into_iter().filter(|s| !s.is_empty()).collect();
    let count = meta::number(object, &["series", "count"])
        .or(meta::number(object, &["count"]))
        .unwrap_or(1);
    vec![
        last,
        text(object, &["type"]).into(),
        text(object, &["reason"]).into(),
        format!(
            "{}/{}",
            text(involved, &["kind"]).to_lowercase(),
            text(involved, &["name"])
        )
        .into(),
        text(involved, &["fieldPath"]).into(),
        source.join(", ").into(),
        text(object, &["message"]).trim().into(),
        first,
        count.into(),
        meta::name(object).into(),
    ]
}

fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| meta::condition(object, kind).is_some();
    let mut state = match (has("Denied"), has("Approved"), has("Failed")) {
        (true, _, _) => "Denied".to_owned(),
        (_, true, _) => "Approved".to_owned(),
        (_, _, true) => "Failed".to_owned(),
        (false, false, false) => "Pending".to_owned(),
    };
    if !text(object, &["status", "certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    let lasts = meta::number(object, &["spec", "expirationSeconds"])
        .map(super::duration)
        .unwrap_or_default();
    vec![
        meta::name(object).into(),
        created(object, now),
        text(object, &["spec", "signerName"]).into(),
        text(object, &["spec", "username"]).into(),
        or_none(&lasts),
        state.into(),
    ]
}

/// At most this many endpoints are spelled out in a cell.
const ENDPOINTS_SHOWN_MAX: usize = 3;

fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(object, &["subsets"]) {
        for address in items(subset, &["addresses"]) {
            for port in items(subset, &["ports"]) {
                all.push(format!("{}:{}", text(address, &["ip"]), number(port, &["port"])));
            }
        }
    }
    let shown = all[..all.len().min(ENDPOINTS_SHOWN_MAX)].join(",");
    match all.len().saturating_sub(ENDPOINTS_SHOWN_MAX) {
        0 => or_none(&shown),
        more => format!("{shown} + {more} more...").into(),
    }
}

fn access_modes(modes: &[Value]) -> String {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    };
    modes.iter().map(short).collect::<Vec<_>>().join(",")
}

fn persistent_volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = at(object, &["spec", "claimRef"]);
    let claim = if claim.is_object() {
        format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"]))
    } else {
        String::new()
    };
    vec![
        meta::name(object).into(),
        text(object, &["spec", "capacity", "storage"]).into(),
        access_modes(items(object, &["spec", "accessModes"])).into(),
        text(object, &["spec", "persistentVolumeReclaimPolicy"]).into(),
        text(object, &["status", "phase"]).into(),
        claim.into(),
        text(object, &["spec", "storageClassName"]).into(),
        text(object, &["status", "reason"]).into(),
        created(object, now),
        text(object, &["spec", "volumeMode"]).into(),
    ]
}

fn persistent_volume_claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = if meta::is_terminating(object) {
        "Terminating"
    } else {
        text(object, &["status", "phase"])
    };
    vec![
        meta::name(object).into(),
        status.into(),
        text(object, &["spec", "volumeName"]).into(),
        text(object, &["status", "capacity", "storage"]).into(),
        access_modes(items(object, &["status", "accessModes"])).into(),
        text(object, &["spec", "storageClassName"]).into(),
        created(object, now),
        text(object, &["spec", "volumeMode"]).into(),
    ]
}
