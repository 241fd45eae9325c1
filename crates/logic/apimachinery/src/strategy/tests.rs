use super::*;
use crate::kinds::Registry;
use expect_test::{Expect, expect};
use std::sync::Arc;

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn kind(group_resource: &str) -> Arc<Kind> {
    Registry::builtin().by_group_resource(group_resource).unwrap()
}

fn create_in(resource: &str, namespace: &str, object: Value) -> Result<Admitted, Status> {
    let creation = Creation {
        namespace,
        uid: "uid-1",
        suffix: "abcde",
        now: now(),
        validation: FieldValidation::Strict,
    };
    create(&kind(resource), object, &creation)
}

fn pod() -> Value {
    let mut pod = create_in(
        "pods",
        "default",
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "b:1"}]}}),
    )
    .unwrap()
    .object;
    meta::set(&mut pod, &["metadata", "resourceVersion"], "5".into());
    pod
}

fn story<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(status) => format!("{} {}", status.code(), status.message),
    }
}

fn check<T: std::fmt::Debug>(result: Result<T, Status>, expected: Expect) {
    expected.assert_eq(&story(result));
}

#[test]
fn creation_completes_metadata() {
    let object = json!({"metadata": {"generateName": "web-", "uid": "mine", "labels": {"a": "b"}}, "data": {"k": "v"}});
    check(
        create_in("configmaps", "default", object).map(|a| a.object.to_string()),
        expect![[
            r#""{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"generateName\":\"web-\",\"uid\":\"uid-1\",\"labels\":{\"a\":\"b\"},\"namespace\":\"default\",\"name\":\"web-abcde\",\"creationTimestamp\":\"2026-11-21T10:00:00Z\"},\"data\":{\"k\":\"v\"}}""#
        ]],
    );
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hello"}});
    check(
        create_in("secrets", "default", secret).map(|a| a.object["data"].to_string()),
        expect![[r#""{\"password\":\"aGVsbG8=\"}""#]],
    );
}

#[test]
fn creation_refusals() {
    check(
        create_in("pods", "default", json!({"kind": "Node"})),
        expect![[r#"400 kind of the body is "Node", but the address serves "Pod""#]],
    );
    check(
        create_in("pods", "default", json!({"metadata": {"namespace": "other"}})),
        expect!["400 the namespace of the provided object does not match the namespace sent on the request"],
    );
    check(
        create_in(
            "configmaps",
            "default",
            json!({"metadata": {"name": "a", "resourceVersion": "1"}}),
        ),
        expect!["400 resourceVersion should not be set on objects to be created"],
    );
    check(
        create_in("configmaps", "default", json!({})),
        expect![[
            r#"422 ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required"#
        ]],
    );
    check(
        create_in("configmaps", "default", json!([])),
        expect!["400 the body must be a ConfigMap object"],
    );
}

#[test]
fn new_pods_tolerate_lost_nodes_for_a_while() {
    let pod = pod();
    expect![[r#"[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300},{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]"#]]
        .assert_eq(&pod["spec"]["tolerations"].to_string());
    expect![[r#"{"phase":"Pending","qosClass":"BestEffort"}"#]].assert_eq(&pod["status"].to_string());
}

#[test]
fn updates() {
    let pods = kind("pods");
    let change = |path: &[&str], value: Value| {
        let mut body = pod();
        meta::set(&mut body, path, value);
        update(&pods, body, &pod(), FieldValidation::Strict).map(|a| a.object)
    };
    assert_eq!(
        change(&["metadata", "resourceVersion"], "5".into()).unwrap(),
        pod(),
        "nothing changes"
    );
    check(
        change(&["metadata", "resourceVersion"], "4".into()),
        expect![[
            r#"409 Operation cannot be fulfilled on pods "web": the object has been modified; please apply your changes to the latest version and try again"#
        ]],
    );
    check(
        change(&["metadata", "uid"], "other".into()),
        expect![[
            r#"409 Operation cannot be fulfilled on pods "web": Precondition failed: UID in precondition: other, UID in object meta: uid-1"#
        ]],
    );
    check(
        change(&["metadata", "name"], "db".into()),
        expect!["400 the name of the object (db) does not match the name on the URL (web)"],
    );
    let labelled = change(&["metadata", "labels"], json!({"a": "b"})).unwrap();
    assert_eq!(
        labelled["metadata"]["generation"], 1,
        "metadata is no desired state"
    );
    assert_eq!(
        change(&["spec", "activeDeadlineSeconds"], 5.into()).unwrap()["metadata"]["generation"],
        2
    );
    let with_status = change(&["status", "phase"], "Running".into()).unwrap();
    assert_eq!(
        with_status["status"]["phase"], "Pending",
        "the status has its own address"
    );
}

#[test]
fn a_manifest_without_assigned_fields_may_be_put() {
    let mut bound = pod();
    meta::set(&mut bound, &["spec", "nodeName"], "edge-1".into());
    let manifest = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "b:2"}], "tolerations": bound["spec"]["tolerations"].clone()}});
    let updated = update(&kind("pods"), manifest, &bound, FieldValidation::Strict)
        .unwrap()
        .object;
    assert_eq!(updated["spec"]["nodeName"], "edge-1");
    assert_eq!(updated["spec"]["containers"][0]["image"], "b:2");
}

#[test]
fn status_updates_change_the_status_only() {
    let mut body = pod();
    meta::set(
        &mut body,
        &["status"],
        json!({"phase": "Running", "podIP": "10.0.0.1"}),
    );
    meta::set(&mut body, &["spec", "nodeName"], "edge-9".into());
    let updated = update_status(&kind("pods"), body, &pod(), FieldValidation::Strict)
        .unwrap()
        .object;
    assert!(updated["spec"].get("nodeName").is_none());
    expect![[r#"{"phase":"Running","podIP":"10.0.0.1","qosClass":"BestEffort"}"#]]
        .assert_eq(&updated["status"].to_string());
}

#[test]
fn binding() {
    let pods = kind("pods");
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "edge-1"}});
    let bound = bind(&pods, &pod(), &binding, now()).unwrap();
    expect![[
        r#""edge-1" [{"type":"PodScheduled","status":"True","lastTransitionTime":"2026-11-21T10:00:00Z"}]"#
    ]]
    .assert_eq(&format!(
        "{} {}",
        bound["spec"]["nodeName"], bound["status"]["conditions"]
    ));
    check(
        bind(&pods, &bound, &binding, now()),
        expect![[
            r#"409 Operation cannot be fulfilled on pods "web": pod web is already assigned to node "edge-1""#
        ]],
    );
    check(
        bind(&pods, &pod(), &json!({}), now()),
        expect![[r#"422 Pod "web" is invalid: target.name: Required value"#]],
    );
}

fn delete(resource: &str, object: &Value, options: &DeleteOptions) -> String {
    match begin_delete(&kind(resource), object, options, now()) {
        Ok(Deletion::Deleted) => "deleted".to_owned(),
        Ok(Deletion::Unchanged) => "unchanged".to_owned(),
        Ok(Deletion::MarkedTerminating { object }) => {
            let m = &object["metadata"];
            format!(
                "terminating until {} grace {} finalizers {}",
                m["deletionTimestamp"], m["deletionGracePeriodSeconds"], m["finalizers"]
            )
        }
        Err(status) => format!("{} {}", status.code(), status.message),
    }
}

#[test]
fn pods_get_time_only_on_a_node() {
    let ask = |grace| DeleteOptions {
        grace_period_seconds: grace,
        ..DeleteOptions::default()
    };
    assert_eq!(delete("pods", &pod(), &ask(None)), "deleted");
    let mut bound = pod();
    meta::set(&mut bound, &["spec", "nodeName"], "edge-1".into());
    expect![[r#"terminating until "2026-11-21T10:00:30Z" grace 30 finalizers null"#]].assert_eq(&delete(
        "pods",
        &bound,
        &ask(None),
    ));
    assert_eq!(delete("pods", &bound, &ask(Some(0))), "deleted");
    let Ok(Deletion::MarkedTerminating { object: going }) =
        begin_delete(&kind("pods"), &bound, &ask(None), now())
    else {
        panic!()
    };
    assert_eq!(delete("pods", &going, &ask(None)), "unchanged");
    expect![[r#"terminating until "2026-11-21T10:00:05Z" grace 5 finalizers null"#]].assert_eq(&delete(
        "pods",
        &going,
        &ask(Some(5)),
    ));
    assert_eq!(
        delete("pods", &going, &ask(Some(60))),
        "unchanged",
        "time is never added"
    );
    assert_eq!(delete("pods", &going, &ask(Some(0))), "deleted");
    assert!(!is_finished(&kind("pods"), &going));
    meta::set(&mut bound, &["status", "phase"], "Succeeded".into());
    assert_eq!(
        delete("pods", &bound, &ask(None)),
        "deleted",
        "nothing runs any more"
    );
}

#[test]
fn finalizers_hold_objects() {
    let map = create_in("configmaps", "default", json!({"metadata": {"name": "a"}}))
        .unwrap()
        .object;
    let how = |propagation| DeleteOptions {
        propagation: Some(propagation),
        ..DeleteOptions::default()
    };
    assert_eq!(
        delete("configmaps", &map, &how(Propagation::Background)),
        "deleted"
    );
    expect![[r#"terminating until "2026-11-21T10:00:00Z" grace 0 finalizers ["foregroundDeletion"]"#]]
        .assert_eq(&delete("configmaps", &map, &how(Propagation::Foreground)));
    expect![[r#"terminating until "2026-11-21T10:00:00Z" grace 0 finalizers ["orphan"]"#]]
        .assert_eq(&delete("configmaps", &map, &how(Propagation::Orphan)));
    let Ok(Deletion::MarkedTerminating { mut object }) =
        begin_delete(&kind("configmaps"), &map, &how(Propagation::Orphan), now())
    else {
        panic!()
    };
    meta::take(&mut object, &["metadata", "finalizers"]);
    assert!(is_finished(&kind("configmaps"), &object));
    let wrong = DeleteOptions {
        precondition_uid: Some("x".into()),
        ..DeleteOptions::default()
    };
    expect![[r#"409 Operation cannot be fulfilled on configmaps "a": Precondition failed: UID in precondition: x, UID in object meta: uid-1"#]].assert_eq(&delete("configmaps", &map, &wrong));
}

#[test]
fn namespaces_are_emptied_first() {
    let namespace = create_in("namespaces", "", json!({"metadata": {"name": "shop"}}))
        .unwrap()
        .object;
    let Ok(Deletion::MarkedTerminating { object }) =
        begin_delete(&kind("namespaces"), &namespace, &DeleteOptions::default(), now())
    else {
        panic!()
    };
    assert_eq!(object["status"]["phase"], "Terminating");
    let finalized = finalize_namespace(
        &kind("namespaces"),
        &json!({"metadata": {"name": "shop"}, "spec": {}}),
        &object,
    )
    .unwrap();
    assert!(is_finished(&kind("namespaces"), &finalized));
    let default = create_in("namespaces", "", json!({"metadata": {"name": "default"}}))
        .unwrap()
        .object;
    expect![[r#"403 namespaces "default" is forbidden: this namespace may not be deleted"#]]
        .assert_eq(&delete("namespaces", &default, &DeleteOptions::default()));
}

#[test]
fn delete_options() {
    let body =
        json!({"gracePeriodSeconds": 3, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}});
    let options = DeleteOptions::parse(&body, |_| None).unwrap();
    assert_eq!(
        (options.grace_period_seconds, options.propagation),
        (Some(3), Some(Propagation::Foreground))
    );
    assert_eq!(
        DeleteOptions::parse(&options.to_value(), |_| None).unwrap(),
        options
    );
    let query = |name: &str| (name == "gracePeriodSeconds").then(|| "soon".to_owned());
    check(
        DeleteOptions::parse(&Value::Null, query),
        expect![[r#"400 gracePeriodSeconds: "soon" is no number"#]],
    );
}

#[test]
fn scaling() {
    let deployments = kind("deployments.apps");
    let object = json!({"metadata": {"name": "web", "resourceVersion": "7"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
    expect![[r#"{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"web","resourceVersion":"7"},"spec":{"replicas":3},"status":{"replicas":2,"selector":"app=web"}}"#]]
        .assert_eq(&scale(&deployments, &object).unwrap().to_string());
    assert_eq!(
        apply_scale(&deployments, &json!({"spec": {"replicas": 5}}), &object).unwrap()["spec"]["replicas"],
        5
    );
    check(
        apply_scale(&deployments, &json!({"spec": {"replicas": -5}}), &object),
        expect![[
            r#"422 Deployment.apps "web" is invalid: spec.replicas: Invalid value: -5: must be greater than or equal to 0"#
        ]],
    );
}

mod any_body {
    use super::*;
    use proptest::prelude::*;

    /// JSON made of the field names that matter, with values that mostly do not fit.
    fn body() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop_oneof!["[a-z]{0,4}", Just("25%".to_owned()), Just("ClientIP".to_owned())]
                .prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "metadata",
            "spec",
            "status",
            "name",
            "labels",
            "containers",
            "template",
            "ports",
            "port",
            "replicas",
            "selector",
            "strategy",
            "volumes",
            "configMap",
            "versions",
            "names",
            "taints",
            "data",
            "generateName",
        ]);
        leaf.prop_recursive(5, 48, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5)
                    .prop_map(|v| Value::Object(v.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn is_taken_or_refused(mut body in body()) {
            for kind in Registry::builtin().iter() {
                meta::take(&mut body, &["kind"]);
                let creation = Creation { namespace: "default", uid: "u", suffix: "abcde", now: now(), validation: FieldValidation::Ignore };
                if let Ok(admitted) = create(kind, body.clone(), &creation) {
                    let again = update(kind, admitted.object.clone(), &admitted.object, FieldValidation::Strict).unwrap();
                    prop_assert_eq!(&again.object, &admitted.object, "an update with the same changes nothing");
                    crate::table::table(kind, [&admitted.object], json!({}), Default::default(), true, now());
                    begin_delete(kind, &admitted.object, &DeleteOptions::default(), now()).ok();
                }
            }
        }
    }
}

#[test]
fn what_a_crash_may_undo() {
    let registry = Registry::builtin();
    let lease =
        |holder: &str, renewed: &str| json!({"spec": {"holderIdentity": holder, "renewTime": renewed}});
    let leases = registry.lookup("coordination.k8s.io", "v1", "leases").unwrap();
    let lost = |before: Option<&Value>, after: Option<&Value>| may_be_lost(&leases, before, after);
    let (a1, a2, b) = (lease("a", "1"), lease("a", "2"), lease("b", "3"));
    assert!(lost(Some(&a1), Some(&a2)), "a renewal");
    assert!(!lost(Some(&a2), Some(&b)), "another holder");
    assert!(!lost(None, Some(&a1)), "the first");
    assert!(!lost(Some(&a1), None), "the end");
    let events = registry.lookup("", "v1", "events").unwrap();
    assert!(may_be_lost(&events, None, Some(&json!({}))));
    let pods = registry.lookup("", "v1", "pods").unwrap();
    assert!(!may_be_lost(
        &pods,
        Some(&json!({})),
        Some(&json!({"status": {}}))
    ));
}

#[test]
fn the_server_says_who_asks_for_a_certificate() {
    let mut request =
        json!({"spec": {"username": "root", "groups": ["system:masters"], "uid": "x", "extra": {}}});
    requested_by(
        &mut request,
        &crate::rbac::User::authenticated("anna", Vec::new()),
    );
    expect![[r#"{"spec":{"username":"anna","groups":["system:authenticated"]}}"#]]
        .assert_eq(&request.to_string());
}
