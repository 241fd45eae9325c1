//! The columns of the built-in kinds.

use super::{Column, Printer, age, or_none, pod};
use crate::kinds::Kind;
use crate::meta::{self, at, items, text};
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::Value;

type Cells = fn(&Value, Timestamp) -> Vec<Value>;
/// Column names, `|` between them; `#` behind a name is a whole number, `@` a date, `+` is shown by `-o wide` only.
type Heads = &'static str;

pub(super) fn printer(kind: &Kind) -> Printer {
    let (heads, cells): (Heads, Cells) = match kind.group_resource().as_str() {
        "pods" => (
            "Name|Ready|Status|Restarts|Age|IP+|Node+|Nominated Node+|Readiness Gates+",
            pod::cells,
        ),
        "nodes" => (
            "Name|Status|Roles|Age|Version|Internal-IP+|External-IP+|OS-Image+|Kernel-Version+|Container-Runtime+",
            node,
        ),
        "deployments.apps" => (
            "Name|Ready|Up-to-date#|Available#|Age|Containers+|Images+|Selector+",
            deployment,
        ),
        "replicasets.apps" => (
            "Name|Desired#|Current#|Ready#|Age|Containers+|Images+|Selector+",
            replica_set,
        ),
        "services" => ("Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector+", service),
        "configmaps" => ("Name|Data#|Age", |o, now| {
            vec![
                meta::name(o).into(),
                count(o, &["data", "binaryData"]),
                created(o, now),
            ]
        }),
        "secrets" => ("Name|Type|Data#|Age", |o, now| {
            vec![
                meta::name(o).into(),
                text(o, &["type"]).into(),
                count(o, &["data"]),
                created(o, now),
            ]
        }),
        "serviceaccounts" => ("Name|Secrets#|Age", |o, now| {
            vec![
                meta::name(o).into(),
                items(o, &["secrets"]).len().into(),
                created(o, now),
            ]
        }),
        "namespaces" => ("Name|Status|Age", |o, now| {
            vec![
                meta::name(o).into(),
                text(o, &["status", "phase"]).into(),
                created(o, now),
            ]
        }),
        "events" => (
            "Last Seen|Type|Reason|Object|Subobject+|Source+|Message|First Seen+|Count+|Name+",
            event,
        ),
        "leases.coordination.k8s.io" => ("Name|Holder|Age", |o, now| {
            vec![
                meta::name(o).into(),
                text(o, &["spec", "holderIdentity"]).into(),
                created(o, now),
            ]
        }),
        "customresourcedefinitions.apiextensions.k8s.io"
        | "roles.rbac.authorization.k8s.io"
        | "clusterroles.rbac.authorization.k8s.io" => ("Name|Created At@", name_and_date),
        "certificatesigningrequests.certificates.k8s.io" => (
            "Name|Age|SignerName|Requestor|RequestedDuration|Condition",
            signing_request,
        ),
        "endpoints" => ("Name|Endpoints|Age", |o, now| {
            vec![meta::name(o).into(), endpoints(o), created(o, now)]
        }),
        "persistentvolumes" => (
            "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|Reason|Age|VolumeMode+",
            persistent_volume,
        ),
        "persistentvolumeclaims" => (
            "Name|Status|Volume|Capacity|Access Modes|StorageClass|Age|VolumeMode+",
            persistent_volume_claim,
        ),
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            ("Name|Role|Age|Users+|Groups+|ServiceAccounts+", role_binding)
        }
        "storageclasses.storage.k8s.io" => (
            "Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age",
            storage_class,
        ),
        _ => ("Name|Age", |o, now| vec![meta::name(o).into(), created(o, now)]),
    };
    Printer {
        columns: heads.split('|').map(column).collect(),
        cells: Box::new(cells),
    }
}

fn name_and_date(object: &Value, _now: Timestamp) -> Vec<Value> {
    let created = text(object, &["metadata", "creationTimestamp"]);
    vec![meta::name(object).into(), created.into()]
}

fn column(head: &str) -> Column {
    let (head, priority) = head.strip_suffix('+').map_or((head, 0), |head| (head, 1));
    if let Some(name) = head.strip_suffix('#') {
        return Column::new(name, "integer", priority);
    }
    match head.strip_suffix('@') {
        Some(name) => Column::new(name, "date", priority),
        None => Column::new(head, "string", priority),
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

fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = at(object, &["roleRef"]);
    let subjects = |kind: &str| {
        let of_kind = items(object, &["subjects"])
            .iter()
            .filter(|s| text(s, &["kind"]) == kind);
        let names: Vec<String> = of_kind
            .map(|s| match text(s, &["namespace"]) {
                "" => text(s, &["name"]).to_owned(),
                namespace => format!("{namespace}/{}", text(s, &["name"])),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![
        meta::name(object).into(),
        format!("{}/{}", text(role, &["kind"]), text(role, &["name"])).into(),
        created(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        meta::name(object).into(),
        text(object, &["provisioner"]).into(),
        text(object, &["reclaimPolicy"]).into(),
        text(object, &["volumeBindingMode"]).into(),
        (at(object, &["allowVolumeExpansion"]) == &Value::Bool(true)).into(),
        created(object, now),
    ]
}
