//! What controllers look at.
//!
//! Thousands of nodes and pods are kept parsed between passes, and most of what such an object says (images, addresses,
//! environment, probes) concerns nobody here. A view has the same shape with less in it. Whoever writes a changed view
//! back must write the difference only ([`difference`]).

use crate::meta;
use serde_json::{Map, Value};

/// What is kept of an object, as a tree of fields: `true` keeps everything below.
enum Kept {
    All,
    Fields(&'static [(&'static str, Kept)]),
    /// The same of each element of a list.
    Each(&'static [(&'static str, Kept)]),
}

use Kept::{All, Each, Fields};

const METADATA: Kept = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("deletionGracePeriodSeconds", All),
    ("labels", All),
    ("ownerReferences", All),
    ("finalizers", All),
]);

const NODE: Kept = Fields(&[
    ("apiVersion", All),
    ("kind", All),
    ("metadata", METADATA),
    ("spec", All),
    ("status", Fields(&[("allocatable", All), ("conditions", All)])),
]);

const CONTAINER: &[(&str, Kept)] = &[
    ("restartPolicy", All),
    ("resources", Fields(&[("requests", All)])),
    ("ports", Each(&[("hostPort", All), ("protocol", All)])),
];

const POD: Kept = Fields(&[
    ("apiVersion", All),
    ("kind", All),
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("namespace", All),
            ("uid", All),
            ("resourceVersion", All),
            ("creationTimestamp", All),
            ("deletionTimestamp", All),
            ("deletionGracePeriodSeconds", All),
            ("labels", All),
            (
                "annotations",
                Fields(&[("controller.kubernetes.io/pod-deletion-cost", All)]),
            ),
            ("ownerReferences", All),
            ("finalizers", All),
        ]),
    ),
    (
        "spec",
        Fields(&[
            ("affinity", All),
            ("containers", Each(CONTAINER)),
            ("initContainers", Each(CONTAINER)),
            ("nodeName", All),
            ("nodeSelector", All),
            ("overhead", All),
            ("priority", All),
            ("schedulerName", All),
            ("schedulingGates", All),
            ("tolerations", All),
        ]),
    ),
    (
        "status",
        Fields(&[
            ("phase", All),
            ("conditions", All),
            ("containerStatuses", Each(&[("restartCount", All)])),
        ]),
    ),
]);

const LEASE: Kept = Fields(&[
    ("apiVersion", All),
    ("kind", All),
    ("metadata", METADATA),
    ("spec", Fields(&[("renewTime", All)])),
]);

const EVENT: Kept = Fields(&[
    ("apiVersion", All),
    ("kind", All),
    ("metadata", METADATA),
    ("count", All),
    ("series", All),
    ("lastTimestamp", All),
]);

const METADATA_ONLY: Kept = Fields(&[("apiVersion", All), ("kind", All), ("metadata", METADATA)]);

/// The view of an object of that resource (`pods`, `deployments.apps` ...).
pub fn view(resource: &str, object: Value) -> Value {
    let kept = match resource {
        "nodes" => &NODE,
        "pods" => &POD,
        "leases.coordination.k8s.io" => &LEASE,
        "events" => &EVENT,
        "secrets" => &METADATA_ONLY,
        // Of config maps only the one that we write ourselves is looked into.
        "configmaps" if meta::name(&object) != super::accounts::CA_NAME => &METADATA_ONLY,
        _ => return object,
    };
    keep(kept, object)
}

fn keep(kept: &Kept, value: Value) -> Value {
    match (kept, value) {
        (Fields(fields), Value::Object(mut object)) => {
            let mut left = Map::new();
            for (name, kept) in *fields {
                if let Some(value) = object.shift_remove(*name) {
                    left.insert((*name).to_owned(), keep(kept, value));
                }
            }
            Value::Object(left)
        }
        (Each(fields), Value::Array(elements)) => {
            let each = elements.into_iter().map(|element| keep(&Fields(fields), element));
            Value::Array(each.collect())
        }
        (All | Fields(_) | Each(_), value) => value,
    }
}

/// The JSON merge patch that makes `new` of `old`. Lists that differ are replaced as a whole.
pub fn difference(old: &Value, new: &Value) -> Value {
    let (Some(before), Some(after)) = (old.as_object(), new.as_object()) else {
        return new.clone();
    };
    let mut patch = Map::new();
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in after {
        match before.get(name) {
            Some(same) if same == value => {}
            Some(other) => {
                patch.insert(name.clone(), difference(other, value));
            }
            None => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_view_keeps_what_decisions_need() {
        let pod = json!({
            "kind": "Pod", "metadata": {"name": "web", "annotations": {"a": "b"}, "labels": {"app": "web"}},
            "spec": {"nodeName": "e", "containers": [{"name": "main", "image": "x", "ports": [{"hostPort": 80, "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        expect![[r#"{"kind":"Pod","metadata":{"name":"web","labels":{"app":"web"},"annotations":{}},"spec":{"containers":[{"ports":[{"hostPort":80}]}],"nodeName":"e"},"status":{"phase":"Running"}}"#]]
            .assert_eq(&view("pods", pod).to_string());
        let map = json!({"kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"k": "v"}});
        expect![[r#"{"kind":"ConfigMap","metadata":{"name":"big"}}"#]]
            .assert_eq(&view("configmaps", map).to_string());
        let service = json!({"kind": "Service", "spec": {"anything": 1}});
        assert_eq!(view("services", service.clone()), service);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..9).prop_map(Value::from),
            "[a-c]".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            let map = proptest::collection::btree_map("[a-d]", inner.clone(), 0..4);
            prop_oneof![
                map.prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
                proptest::collection::vec(inner, 0..3).prop_map(Value::from),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_to_the_other(old in tree(), new in tree()) {
            let (mut object, wanted) = (json!({"x": old}), json!({"x": new}));
            let patch = difference(&object, &wanted);
            json_patch::merge(&mut object, &patch);
            prop_assert_eq!(object, wanted);
        }
    }
}
