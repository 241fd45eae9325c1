//! The parts of requests that are looked into.

use crate::references::PodSpec;
use kedge_wire::{Body, NodeName, Uid};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Marks the API's picture of a pod that a node runs from a file.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

#[derive(Deserialize)]
pub(super) struct EventPatch {
    pub(super) event: Box<RawValue>,
    #[serde(rename = "patchData")]
    pub(super) patch_data: String,
}

#[derive(Deserialize)]
pub(super) struct EventView {
    #[serde(default)]
    source: Option<EventSource>,
}

#[derive(Deserialize)]
struct EventSource {
    #[serde(default)]
    host: Option<String>,
}

impl EventView {
    pub(super) fn host(self) -> Option<String> {
        self.source?.host.filter(|host| !host.is_empty())
    }
}

#[derive(Deserialize)]
pub(super) struct TokenRequest {
    pub(super) spec: TokenSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenSpec {
    #[serde(default)]
    pub(super) bound_object_ref: Option<BoundObject>,
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct BoundObject {
    kind: String,
    pub(super) name: String,
    pub(super) uid: Uid,
}

impl Default for BoundObject {
    fn default() -> Self {
        Self {
            kind: String::new(),
            name: String::new(),
            uid: Uid::new(""),
        }
    }
}

impl BoundObject {
    pub(super) fn is_pod(&self) -> bool {
        self.kind == "Pod" && !self.name.is_empty() && !self.uid.as_str().is_empty()
    }
}

#[derive(Deserialize)]
pub(super) struct StatusPatch<'a> {
    #[serde(borrow, default)]
    pub(super) status: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct PlacedPod {
    metadata: PlacedMetadata,
    spec: PlacedSpec,
}

#[derive(Deserialize)]
struct PlacedMetadata {
    uid: Uid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlacedSpec {
    #[serde(default)]
    node_name: String,
}

impl PlacedPod {
    pub(super) fn is(&self, node: &NodeName, uid: &Uid) -> bool {
        self.metadata.uid == *uid && self.spec.node_name == node.as_str()
    }
}

#[derive(Deserialize)]
pub(super) struct MirrorPod {
    metadata: MirrorMetadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
struct MirrorMetadata {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl MirrorPod {
    pub(super) fn check(&self, node: &NodeName) -> Result<(), &'static str> {
        let annotations = self.metadata.annotations.as_ref();
        if !annotations.is_some_and(|annotations| annotations.contains_key(MIRROR_ANNOTATION)) {
            return Err("a node creates only mirror pods of its static pods");
        }
        if self.spec.node_name.as_deref() != Some(node.as_str()) {
            return Err("a mirror pod must name this node");
        }
        let references = self.spec.references("");
        let names_account = self.spec.names_account();
        if !references.needs.is_empty() || !references.claims.is_empty() || names_account {
            return Err("a mirror pod may not refer to secrets, config maps, claims or service accounts");
        }
        Ok(())
    }
}

pub(super) fn json_object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// A merge patch of what an edge may say about its node outside of status.
pub(super) fn labels_and_annotations(node: &Body) -> Option<String> {
    let node = json_object(node.json())?;
    let metadata = node.get("metadata")?.as_object()?;
    let told = |name: &str| metadata.get(name).filter(|value| value.is_object()).cloned();
    let mut patch = Map::new();
    for name in ["labels", "annotations"] {
        if let Some(value) = told(name) {
            patch.insert(name.to_owned(), value);
        }
    }
    Some(json!({ "metadata": patch }).to_string())
}
