//! The roles that every cluster has from its first moment.

use super::{AUTHENTICATED, GROUP, MASTERS, Rule};
use crate::meta::{self, items};
use serde_json::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// Core resources of a namespace that may be seen by those who see no secrets.
const VIEWED: &[&str] = &[
    "configmaps",
    "endpoints",
    "events",
    "namespaces",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "pods/log",
    "pods/status",
    "serviceaccounts",
    "services",
    "services/status",
];
const WRITTEN: &[&str] = &[
    "configmaps",
    "endpoints",
    "events",
    "persistentvolumeclaims",
    "pods",
    "secrets",
    "serviceaccounts",
    "services",
];
/// Contents of these say who somebody is, so only those who may change things see them.
const CONFIDENTIAL: &[&str] = &[
    "secrets",
    "pods/attach",
    "pods/exec",
    "pods/portforward",
    "pods/proxy",
];
const WORKLOADS_VIEWED: &[&str] = &[
    "deployments",
    "deployments/scale",
    "deployments/status",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
];
const WORKLOADS_WRITTEN: &[&str] = &[
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
];

/// Whoever is known may ask what the server can do.
const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(paths: &[&str]) -> Value {
    json!({"nonResourceURLs": paths, "verbs": ["get"]})
}

fn view() -> Vec<Value> {
    vec![rule(&[""], VIEWED, READ), rule(&["apps"], WORKLOADS_VIEWED, READ)]
}

fn edit() -> Vec<Value> {
    let mut rules = view();
    rules.extend([
        rule(&[""], CONFIDENTIAL, READ),
        rule(&[""], WRITTEN, WRITE),
        rule(
            &[""],
            &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy"],
            WRITE,
        ),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&["apps"], WORKLOADS_WRITTEN, WRITE),
    ]);
    rules
}

fn admin() -> Vec<Value> {
    let mut rules = edit();
    let both: Vec<&str> = READ.iter().chain(WRITE).copied().collect();
    rules.extend([
        rule(&[GROUP], &["roles", "rolebindings"], &both),
        rule(
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews"],
            &["create"],
        ),
    ]);
    rules
}

fn named(kind: &str, name: &str) -> Value {
    json!({
        "kind": kind, "apiVersion": format!("{GROUP}/v1"),
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        },
    })
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    let mut role = named("ClusterRole", name);
    meta::set(&mut role, &["rules"], rules.into());
    role
}

fn binding(name: &str, groups: &[&str]) -> Value {
    let mut binding = named("ClusterRoleBinding", name);
    let subject = |group: &&str| json!({"kind": "Group", "apiGroup": GROUP, "name": group});
    let subjects: Vec<Value> = groups.iter().map(subject).collect();
    meta::set(&mut binding, &["subjects"], subjects.into());
    let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": name});
    meta::set(&mut binding, &["roleRef"], reference);
    binding
}

/// The default cluster roles and their bindings. Roles that in Kubernetes gather others (`admin`, `edit`, `view`) carry
/// their rules themselves; they know the built-in kinds only.
pub fn defaults() -> Vec<Value> {
    let reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    let everything = [Rule::everything().to_value(), Rule::every_path().to_value()];
    let own = vec![
        rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &reviews, &["create"]),
    ];
    vec![
        role("cluster-admin", everything.to_vec()),
        role("admin", admin()),
        role("edit", edit()),
        role("view", view()),
        role("system:basic-user", own),
        role("system:discovery", vec![paths(DISCOVERY)]),
        role("system:public-info-viewer", vec![paths(PUBLIC)]),
        binding("cluster-admin", &[MASTERS]),
        binding("system:basic-user", &[AUTHENTICATED]),
        binding("system:discovery", &[AUTHENTICATED]),
        binding(
            "system:public-info-viewer",
            &[AUTHENTICATED, "system:unauthenticated"],
        ),
    ]
}

/// A stored default role with the rules that it lacks; `None` when it has them all, or when its owner wants it left
/// alone (annotation `autoupdate` not `true`).
pub fn with_default_rules(stored: &Value, default: &Value) -> Option<Value> {
    if meta::annotation(stored, "rbac.authorization.kubernetes.io/autoupdate") != Some("true") {
        return None;
    }
    let mut rules = items(stored, &["rules"]).to_vec();
    let held = Rule::all(stored);
    let lacking: Vec<Value> = Rule::all(default)
        .iter()
        .filter(|rule| {
            super::rule::not_covered(&held, std::slice::from_ref(rule), usize::MAX)
                .is_none_or(|l| !l.is_empty())
        })
        .map(Rule::to_value)
        .collect();
    if lacking.is_empty() {
        return None;
    }
    rules.extend(lacking);
    let mut updated = stored.clone();
    meta::set(&mut updated, &["rules"], rules.into());
    Some(updated)
}
