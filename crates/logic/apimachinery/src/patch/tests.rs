use super::*;
use crate::kinds::Registry;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

fn check(patch: PatchKind, object: Value, body: Value, expected: Expect) {
    let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
    let story = match apply(patch, &pods, &object, &body) {
        Ok(patched) => patched.to_string(),
        Err(status) => format!("{} {}", status.code(), status.message),
    };
    expected.assert_eq(&story);
}

fn pod() -> Value {
    json!({
        "metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]},
        "spec": {
            "containers": [
                {"name": "web", "image": "nginx:1", "ports": [{"containerPort": 80}], "args": ["-v"]},
                {"name": "side", "image": "log:1"},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "k"}],
        },
    })
}

#[test]
fn strategic_merges_lists_by_key() {
    check(
        PatchKind::Strategic,
        pod(),
        json!({"metadata": {"labels": {"a": null, "c": "3"}}, "spec": {"containers": [
            {"name": "web", "image": "nginx:2", "args": ["-q"], "ports": [{"containerPort": 443}]}, {"name": "new"}],
            "tolerations": [{"key": "l"}]}}),
        expect![[
            r#"{"metadata":{"labels":{"b":"2","c":"3"},"finalizers":["x","y"]},"spec":{"containers":[{"name":"web","image":"nginx:2","ports":[{"containerPort":80},{"containerPort":443}],"args":["-q"]},{"name":"side","image":"log:1"},{"name":"new"}],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"key":"l"}]}}"#
        ]],
    );
}

#[test]
fn strategic_directives() {
    let delete = json!({"spec": {"containers": [{"name": "side", "$patch": "delete"}], "volumes": [{"$patch": "replace"}, {"name": "w"}]}});
    check(
        PatchKind::Strategic,
        pod(),
        delete,
        expect![[
            r#"{"metadata":{"labels":{"a":"1","b":"2"},"finalizers":["x","y"]},"spec":{"containers":[{"name":"web","image":"nginx:1","ports":[{"containerPort":80}],"args":["-v"]}],"volumes":[{"name":"w"}],"tolerations":[{"key":"k"}]}}"#
        ]],
    );
    let replace = json!({"metadata": {"labels": {"$patch": "replace", "z": "9"}, "$deleteFromPrimitiveList/finalizers": ["x"], "finalizers": ["z"]}});
    check(
        PatchKind::Strategic,
        pod(),
        replace,
        expect![[
            r#"{"metadata":{"labels":{"z":"9"},"finalizers":["y","z"]},"spec":{"containers":[{"name":"web","image":"nginx:1","ports":[{"containerPort":80}],"args":["-v"]},{"name":"side","image":"log:1"}],"volumes":[{"name":"v","emptyDir":{}}],"tolerations":[{"key":"k"}]}}"#
        ]],
    );
    let retain = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}});
    check(
        PatchKind::Strategic,
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
        retain,
        expect![[r#"{"spec":{"volumes":[{"name":"v","hostPath":{"path":"/x"}}]}}"#]],
    );
}

#[test]
fn strategic_element_order() {
    let object = json!({"spec": {"containers": [{"name": "a"}, {"name": "injected"}, {"name": "b"}]}});
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "new"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "new", "image": "i"}]}});
    check(
        PatchKind::Strategic,
        object.clone(),
        patch,
        expect![[
            r#"{"spec":{"containers":[{"name":"new","image":"i"},{"name":"injected"},{"name":"b"},{"name":"a"}]}}"#
        ]],
    );
    let alone = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}});
    check(
        PatchKind::Strategic,
        object,
        alone,
        expect![[r#"{"spec":{"containers":[{"name":"injected"},{"name":"b"},{"name":"a"}]}}"#]],
    );
}

#[test]
fn strategic_refusals() {
    check(
        PatchKind::Strategic,
        pod(),
        json!({"spec": {"containers": [{"image": "x"}]}}),
        expect![[
            r#"400 strategic merge patch at "spec.containers": an element of the list lacks its merge key "name""#
        ]],
    );
    check(
        PatchKind::Strategic,
        pod(),
        json!({"spec": {"$patch": "explode"}}),
        expect![[
            r#"400 strategic merge patch at "spec": $patch must be replace, delete or merge, not Some("explode")"#
        ]],
    );
    check(
        PatchKind::Strategic,
        pod(),
        json!([]),
        expect![[r#"400 strategic merge patch at "": the patch must be a map"#]],
    );
}

#[test]
fn json_and_merge_patches() {
    let object = json!({"a": {"b": 1, "c": [1, 2]}});
    check(
        PatchKind::Merge,
        object.clone(),
        json!({"a": {"b": null, "c": [3]}}),
        expect![[r#"{"a":{"c":[3]}}"#]],
    );
    check(
        PatchKind::Json,
        object.clone(),
        json!([{"op": "add", "path": "/a/c/-", "value": 3}, {"op": "remove", "path": "/a/b"}]),
        expect![[r#"{"a":{"c":[1,2,3]}}"#]],
    );
    check(
        PatchKind::Json,
        object.clone(),
        json!([{"op": "test", "path": "/a/b", "value": 2}]),
        expect![
            "422 the server rejected the JSON patch: operation '/0' failed at path '/a/b': value did not match"
        ],
    );
    check(
        PatchKind::Json,
        object,
        json!({"op": "add"}),
        expect!["400 error decoding JSON patch: invalid type: map, expected a sequence"],
    );
}

#[test]
fn media_types() {
    let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
    let of =
        |t: &str| PatchKind::from_content_type(&pods, t).map_err(|s| format!("{} {}", s.code(), s.message));
    assert_eq!(
        of("application/strategic-merge-patch+json; charset=utf-8"),
        Ok(PatchKind::Strategic)
    );
    expect![[r#"Err("415 server-side apply is not supported by this server; use client-side apply (kubectl apply without --server-side)")"#]]
        .assert_eq(&format!("{:?}", of("application/apply-patch+yaml")));
}

/// Any JSON without nulls, as stored objects are.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-d]", inner), 0..4)
                .prop_map(|v| Value::Object(v.into_iter().collect())),
        ]
    })
}

fn json_map() -> impl Strategy<Value = Value> {
    prop::collection::vec(("[a-d]", json_value()), 0..4).prop_map(|v| Value::Object(v.into_iter().collect()))
}

/// The merge patch from one value to another.
fn merge_difference(from: &Value, to: &Value) -> Value {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            let gone = from
                .keys()
                .filter(|k| !to.contains_key(*k))
                .map(|k| (k.clone(), Value::Null));
            let new = to.iter().filter(|(k, v)| from.get(*k) != Some(v)).map(|(k, v)| {
                (
                    k.clone(),
                    from.get(k).map_or_else(|| v.clone(), |f| merge_difference(f, v)),
                )
            });
            Value::Object(gone.chain(new).collect())
        }
        _ => to.clone(),
    }
}

fn containers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map("[a-e]", "[x-z]", 0..5)
        .prop_map(|m| m.into_iter().collect())
        .prop_shuffle()
}

fn with_containers(list: &[(String, String)]) -> Value {
    let list: Vec<Value> = list.iter().map(|(n, i)| json!({"name": n, "image": i})).collect();
    json!({"spec": {"containers": list}})
}

proptest! {
    #[test]
    fn a_merge_patch_of_the_difference_arrives(from in json_map(), to in json_map()) {
        let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
        let patched = apply(PatchKind::Merge, &pods, &from, &merge_difference(&from, &to)).unwrap();
        prop_assert_eq!(patched, to);
    }

    #[test]
    fn a_strategic_patch_of_the_difference_arrives(from in containers(), to in containers()) {
        let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
        let mut list: Vec<Value> = to.iter().map(|(n, i)| json!({"name": n, "image": i})).collect();
        list.extend(from.iter().filter(|(n, _)| !to.iter().any(|(m, _)| m == n)).map(|(n, _)| json!({"name": n, "$patch": "delete"})));
        let order: Vec<Value> = to.iter().map(|(n, _)| json!({"name": n})).collect();
        let patch = json!({"spec": {"containers": list, "$setElementOrder/containers": order}});
        let patched = apply(PatchKind::Strategic, &pods, &with_containers(&from), &patch).unwrap();
        prop_assert_eq!(patched, with_containers(&to));
    }

    #[test]
    fn no_patch_panics(object in json_map(), body in json_value()) {
        let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
        for patch in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic] {
            let _ = apply(patch, &pods, &object, &body);
        }
    }
}
