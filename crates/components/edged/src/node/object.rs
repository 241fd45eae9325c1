//! The Node object as it is registered.

use crate::config::Config;
use kedge_api::{Node, NodeSpec, NodeStatus, ObjectMeta, Taint};
use kedge_host::Facts;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The node as this configuration wants it.
pub(super) fn node(config: &Config, facts: &Facts, status: NodeStatus) -> Node {
    let own = &config.node;
    let mut annotations = own.annotations.clone();
    if own.controller_attach_detach {
        annotations.insert(ATTACH_DETACH.to_owned(), "true".to_owned());
    }
    Node {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        metadata: ObjectMeta {
            name: config.node_name.to_string(),
            labels: labels(config, facts),
            annotations,
            ..ObjectMeta::default()
        },
        spec: NodeSpec {
            taints: taints(config),
            unschedulable: own.unschedulable.then_some(true),
            ..NodeSpec::default()
        },
        status,
    }
}

pub(super) fn labels(config: &Config, facts: &Facts) -> BTreeMap<String, String> {
    let (os, arch) = (facts.operating_system.as_str(), facts.architecture.as_str());
    let fixed = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", os),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", os),
        ("beta.kubernetes.io/arch", arch),
        ("node-role.kubernetes.io/edge", ""),
        ("node-role.kubernetes.io/agent", ""),
    ];
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut labels = config.node.labels.clone();
    labels.extend(fixed);
    labels
}

pub(super) fn taints(config: &Config) -> Vec<Taint> {
    let mut taints = config.node.taints.clone();
    let has = |taint: &Taint| taint.key == UNSCHEDULABLE && taint.effect == "NoSchedule";
    if config.node.unschedulable && !taints.iter().any(has) {
        taints.push(Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints
}

/// The patch that gives an existing node the labels and annotations that it lacks. What others added stays, and so does
/// who may be scheduled: that is decided when a node is made.
pub(super) fn missing(wanted: &Node, known: &Node) -> Option<Value> {
    let lacking = |wanted: &BTreeMap<String, String>, known: &BTreeMap<String, String>| {
        let rows = wanted
            .iter()
            .filter(|(name, value)| known.get(*name) != Some(*value));
        rows.map(|(name, value)| (name.clone(), value.clone()))
            .collect::<BTreeMap<String, String>>()
    };
    let labels = lacking(&wanted.metadata.labels, &known.metadata.labels);
    let annotations = lacking(&wanted.metadata.annotations, &known.metadata.annotations);
    let mut metadata = serde_json::Map::new();
    for (name, rows) in [("labels", labels), ("annotations", annotations)] {
        if !rows.is_empty() {
            metadata.insert(name.to_owned(), json!(rows));
        }
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}
