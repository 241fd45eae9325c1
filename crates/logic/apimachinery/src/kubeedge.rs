//! The definitions of KubeEdge's own kinds, written once: the embedded API installs them at its start, and
//! `manifests/crds` is printed from them for other clusters.

use serde_json::{Value, json};

/// What the cloud sent last to an edge and what the edge acknowledged, one object for each.
const SYNCS: &str = "reliablesyncs.kubeedge.io";

/// Every definition, as a CustomResourceDefinition.
pub fn definitions() -> Vec<Value> {
    vec![
        sync("ObjectSync", "objectsyncs", "Namespaced"),
        sync("ClusterObjectSync", "clusterobjectsyncs", "Cluster"),
    ]
}

fn sync(kind: &str, plural: &str, scope: &str) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let schema = json!({
        "type": "object",
        "description": "Says which version of an object a node has acknowledged. Its name is the node, a dot, and the UID of the object.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "properties": {
                    "objectAPIVersion": text("API version of the object"),
                    "objectKind": text("Kind of the object"),
                    "objectName": text("Name of the object"),
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "objectResourceVersion": text("Version that the node acknowledged last; 0 before the first"),
                },
            },
        },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{SYNCS}")},
        "spec": {
            "group": SYNCS,
            "scope": scope,
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{Registry, Subresource};

    #[test]
    fn every_definition_can_be_served_and_has_its_status_apart() {
        let mut registry = Registry::builtin();
        for definition in definitions() {
            let kinds = registry.register_crd(&definition).unwrap();
            assert!(kinds.iter().all(|kind| kind.has(Subresource::Status)));
        }
        let sync = registry.lookup(SYNCS, "v1alpha1", "clusterobjectsyncs").unwrap();
        assert!(!sync.namespaced);
    }
}
