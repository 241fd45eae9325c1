//! Which nodes a pod may run on.

use crate::null;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Only what a node judges for itself is read; the rest is the scheduler's and is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<NodeAffinity>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Labels that the node must have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        skip_serializing_if = "Option::is_none"
    )]
    pub required: Option<NodeSelector>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One of the terms must hold. A selector without terms matches no node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    #[serde(deserialize_with = "null::default")]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

/// All of it must hold. An empty term matches no node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    #[serde(deserialize_with = "null::default", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Only `metadata.name` can be asked for.
    #[serde(deserialize_with = "null::default", skip_serializing_if = "Vec::is_empty")]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

impl NodeSelector {
    /// Whether a node of this name with these labels will do.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector_terms.iter().any(|term| {
            let empty = term.match_expressions.is_empty() && term.match_fields.is_empty();
            let labels_hold = term
                .match_expressions
                .iter()
                .all(|r| r.holds(labels.get(&r.key).map(String::as_str)));
            let fields_hold = term
                .match_fields
                .iter()
                .all(|r| r.key == "metadata.name" && r.holds(Some(name)));
            !empty && labels_hold && fields_hold
        })
    }
}

/// What is asked of one label or field.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeSelectorRequirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    #[serde(deserialize_with = "null::default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl NodeSelectorRequirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_one_of = |value: &str| self.values.iter().any(|known| known == value);
        let compared = || -> Option<std::cmp::Ordering> {
            let [limit] = self.values.as_slice() else {
                return None;
            };
            let value: i64 = value?.parse().ok()?;
            Some(value.cmp(&limit.parse().ok()?))
        };
        match self.operator.as_str() {
            "In" => value.is_some_and(is_one_of),
            "NotIn" => !value.is_some_and(is_one_of),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
            "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
            _ => false,
        }
    }
}
