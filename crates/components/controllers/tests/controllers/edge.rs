//! What a node holds, what it asks, and that it disturbs nobody.

use crate::world::{PATIENCE, World, body, config_map, key, node, pod};
use expect_test::expect;
use kedge_wire::{NodeName, ObjectKey, ObjectKind, Request};
use serde_json::{Value, json};

#[tokio::test]
async fn a_node_gets_its_own_objects_and_every_later_change() {
    let world = World::new(&[
        config_map("app"),
        config_map("unused"),
        pod("web", "edge-1", "app"),
        pod("other", "edge-2", "unused"),
    ])
    .await;
    let mut session = world.session("edge-1").await;
    session.check_first(expect![[r#"
        default/configmap/app app-uid
        default/pod/web web-uid
    "#]]);

    let (path, object) = pod("db", "edge-1", "app");
    world.api.put(&path, object);
    assert_eq!(session.next_change().await, "default/pod/db is db-uid");
    let (path, mut object) = config_map("app");
    object["data"]["a"] = "2".into();
    world.api.put(&path, object);
    assert_eq!(session.next_change().await, "default/configmap/app is app-uid");
    // Not for this node, and so not told: the next thing it hears is about its own pod.
    let (path, mut object) = pod("other", "edge-2", "unused");
    object["metadata"]["labels"] = json!({"a": "b"});
    world.api.put(&path, object);
    world.api.remove("/api/v1/namespaces/default/pods/db");
    assert_eq!(session.next_change().await, "default/pod/db is gone");
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

#[tokio::test]
async fn what_a_node_asks_is_done_and_answered_as_official_edges_expect() {
    let world = World::new(&[
        config_map("app"),
        config_map("unused"),
        pod("web", "edge-1", "app"),
    ])
    .await;
    let session = world.session("edge-1").await;
    let node = NodeName::new("edge-1").unwrap();

    let register = Request::insert(
        ObjectKey::cluster(ObjectKind::Node, "edge-1"),
        body(json!({"metadata": {"name": "edge-1", "labels": null}})),
    );
    session.check(register.clone(), expect![[r#"response: {"Object":{"metadata":{"name":"edge-1","labels":{"node-role.kubernetes.io/edge":""},"annotations":{"cloudcore":"10.0.0.1"},"resourceVersion":"4","uid":"uid-4"},"apiVersion":"v1","kind":"Node"},"Err":null}"#]]).await;
    session.check(register, expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"\"edge-1\" already exists","reason":"AlreadyExists","code":409,"kind":"Status","apiVersion":"v1","metadata":{}}}}"#]]).await;
    session
        .check(Request::query(key(ObjectKind::ConfigMap, "app")), expect![[r#"response at 1: {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"app","namespace":"default","uid":"app-uid","resourceVersion":"1"},"data":{"a":"1"}}"#]])
        .await;
    session
        .check(
            Request::query(key(ObjectKind::ConfigMap, "unused")),
            expect![[r#"error: "edge-1 may not query default/configmap/unused: no pod of this node uses it (403 Forbidden)""#]],
        )
        .await;
    session
        .check(
            Request::patch_pod_status("default", "web", r#"{"status":{"phase":"Running"}}"#),
            expect![[r#"response at 5: {"Object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default","uid":"web-uid","resourceVersion":"5"},"spec":{"nodeName":"edge-1","serviceAccountName":"default","containers":[{"name":"c","envFrom":[{"configMapRef":{"name":"app"}}]}]},"status":{"phase":"Running"}},"Err":null}"#]],
        )
        .await;
    session
        .check(
            Request::patch_pod_status("default", "ghost", r#"{"status":{}}"#),
            expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"pods \"ghost\" not found","reason":"NotFound","code":404,"metadata":{},"details":{"name":"ghost","kind":"pods"}}}}"#]],
        )
        .await;
    session
        .check(
            Request::patch_node_status(&node, r#"{"status":{"x":1}}"#),
            expect![[r#"response at 6: {"Object":{"metadata":{"name":"edge-1","labels":{"node-role.kubernetes.io/edge":""},"annotations":{"cloudcore":"10.0.0.1"},"resourceVersion":"6","uid":"uid-4"},"apiVersion":"v1","kind":"Node","status":{"x":1}},"Err":null}"#]],
        )
        .await;
    let event = json!({"metadata": {"name": "e", "namespace": "default"}});
    session
        .check(
            Request::insert(key(ObjectKind::Event, "e"), body(event)),
            expect!["silence: null"],
        )
        .await;
    let delete = |uid: &str| {
        let options = body(json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}));
        Request::delete(key(ObjectKind::Pod, "web"), options)
    };
    session
        .check(delete("older-uid"), expect![[r#"response: "OK""#]])
        .await;
    session
        .check(delete("web-uid"), expect![[r#"response: "OK""#]])
        .await;
    assert!(world.api.object("/api/v1/namespaces/default/pods/web").is_none());
    // A pod that is not placed here is gone as far as this node is concerned: OK, and nothing is touched.
    let gone = Request::delete(
        key(ObjectKind::Pod, "ghost"),
        body(json!({"preconditions": {"uid": "u"}})),
    );
    let calls = world.api.calls().len();
    session.check(gone, expect![[r#"response: "OK""#]]).await;
    assert_eq!(world.api.calls().len(), calls);
}

#[tokio::test]
async fn a_stuck_node_keeps_its_lease_and_disturbs_nobody() {
    let world = World::new(&[pod("web", "edge-1", "app"), pod("db", "edge-2", "app")]).await;
    let (one, two) = (world.session("edge-1").await, world.session("edge-2").await);
    let lease = |node: &str| {
        let lease = json!({"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": {}});
        Request::update(ObjectKey::lease(&NodeName::new(node).unwrap()), body(lease))
    };

    // Every call slot of edge-1 hangs, and more requests wait behind them.
    let (path, _) = pod("web", "edge-1", "app");
    world.api.hold(&path);
    for n in 0..12 {
        let name = format!("stuck-{n}");
        world.api.hold(&format!("/api/v1/persistentvolumes/{name}"));
        let request = Request::query(ObjectKey::cluster(ObjectKind::PersistentVolume, &name));
        let requests = one.requests.clone();
        world.scope.spawn_until_cancelled("asker", async move {
            let _ = requests.ask(request, PATIENCE).await;
        });
    }
    let stuck = |calls: &[String]| calls.iter().filter(|call| call.contains("stuck-")).count();
    tokio::time::timeout(PATIENCE, world.api.until_calls(|calls| stuck(calls) >= 8))
        .await
        .unwrap();

    for (session, node) in [(&one, "edge-1"), (&two, "edge-2")] {
        let answer = session.ask(lease(node)).await;
        assert!(answer.contains("coordination.k8s.io/v1"), "{answer:?}");
    }
    let patch = Request::patch_pod_status("default", "db", r#"{"status":{"phase":"Running"}}"#);
    assert!(two.ask(patch).await.contains("Running"));
    assert_eq!(
        stuck(&world.api.calls()),
        8,
        "never more than the limit at one time"
    );
    world.api.let_go();
    tokio::time::timeout(PATIENCE, world.api.until_calls(|calls| stuck(calls) == 12))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_new_session_takes_over_from_the_old_one() {
    let world = World::new(&[pod("web", "edge-1", "app")]).await;
    let old = world.session("edge-1").await;
    let mut new = world.session("edge-1").await;
    drop(old);
    let (path, object) = pod("db", "edge-1", "app");
    world.api.put(&path, object);
    assert_eq!(new.next_change().await, "default/pod/db is db-uid");
}

#[tokio::test]
async fn a_node_that_connects_to_another_replica_has_no_session_here() {
    let config = kedge_controllers::Config {
        replica: Some("a".to_owned()),
        ..kedge_controllers::Config::default()
    };
    let mut there = node("edge-1");
    there.1["metadata"]["annotations"] = json!({"kedge.io/replica": "b"});
    let world = World::with(config, std::slice::from_ref(&there), |_| {}).await;
    // The name that stands there is older than this session, and is replaced.
    let mut session = world.session("edge-1").await;
    let path = "/api/v1/nodes/edge-1";
    let ours = |node: Option<&Value>| {
        node.is_some_and(|node| node["metadata"]["annotations"]["kedge.io/replica"] == "a")
    };
    world.api.until_object(path, ours).await;
    assert_eq!(session.next_change().await, "null/node/edge-1 is edge-1-uid");
    // The node goes to the other one.
    world.api.put(path, there.1);
    while session.change().await.is_some() {}
}

#[tokio::test]
async fn a_node_that_is_deleted_has_no_session_and_may_come_back() {
    let world = World::new(&[node("edge-1"), pod("web", "edge-1", "app")]).await;
    let mut session = world.session("edge-1").await;
    session.check_first(expect![[r#"
        null/node/edge-1 edge-1-uid
        default/pod/web web-uid
    "#]]);
    world.api.remove("/api/v1/nodes/edge-1");
    assert_eq!(session.change().await, None);

    let session = world.session("edge-1").await;
    let register = Request::insert(
        ObjectKey::cluster(ObjectKind::Node, "edge-1"),
        body(json!({"metadata": {"name": "edge-1"}})),
    );
    assert!(session.ask(register).await.contains(r#""Err":null"#));
}

#[tokio::test]
async fn a_pod_of_the_same_name_and_another_uid_is_another_pod() {
    let world = World::new(&[pod("web", "edge-1", "app")]).await;
    let mut session = world.session("edge-1").await;
    let (path, mut object) = pod("web", "edge-1", "app");
    object["metadata"]["uid"] = "second-uid".into();
    world
        .api
        .change_unseen(vec![(path.clone(), None), (path.clone(), Some(object))]);
    // The newest value of a key: the link deletes the old uid before it sends the new one.
    assert_eq!(session.next_change().await, "default/pod/web is second-uid");
    let calls = world.calls(&format!("{path}/status")).len();
    let patch = |uid: &str| {
        let patch = format!(r#"{{"metadata":{{"uid":"{uid}"}},"status":{{"phase":"Running"}}}}"#);
        Request::patch_pod_status("default", "web", &patch)
    };
    session.check(patch("web-uid"), expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"Operation cannot be fulfilled on pods \"web\": the pod of this name has uid second-uid now","reason":"Conflict","code":409,"metadata":{},"details":{"name":"web","kind":"pods"}}}}"#]]).await;
    assert_eq!(world.calls(&format!("{path}/status")).len(), calls);
    assert!(session.ask(patch("second-uid")).await.contains(r#""Err":null"#));
}

#[tokio::test]
async fn events_are_switchable_and_limited_by_node() {
    let event = |n: usize| {
        let name = format!("e{n}");
        let event = body(json!({"metadata": {"name": name, "namespace": "default"}}));
        Request::insert(key(ObjectKind::Event, &name), event)
    };
    let world = World::new(&[]).await;
    let session = world.session("edge-1").await;
    for n in 0..200 {
        assert_eq!(session.ask(event(n)).await, "silence: null");
    }
    let dropped = r#"kedge_controllers_requests_total{class="event",result="dropped"}"#;
    let number = |world: &World| {
        let series = world.series(dropped).concat();
        series.rsplit(' ').next().unwrap_or_default().parse().unwrap_or(0)
    };
    assert!((100..200).contains(&number(&world)), "{} dropped", number(&world));

    let config = kedge_controllers::Config {
        events: false,
        ..kedge_controllers::Config::default()
    };
    let world = World::with(config, &[], |_| {}).await;
    let session = world.session("edge-1").await;
    assert_eq!(session.ask(event(0)).await, "silence: null");
    assert_eq!(number(&world), 1);
    assert!(world.calls("/api/v1/namespaces/default/events").is_empty());
}

#[tokio::test]
async fn a_node_is_told_what_others_say_about_its_pod_and_not_what_it_said_itself() {
    let (path, mut web) = pod("web", "edge-1", "app");
    let world = World::new(&[(path.clone(), web.clone())]).await;
    let mut session = world.session("edge-1").await;
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let patch = json!({"metadata": {"uid": "web-uid"}, "status": status}).to_string();
    let answer = session
        .ask(Request::patch_pod_status("default", "web", &patch))
        .await;
    assert!(answer.contains(r#""Err":null"#), "{answer}");
    // Its own words are not told: the next thing that it hears is about another pod.
    let (other, object) = pod("db", "edge-1", "app");
    world.api.put(&other, object);
    assert_eq!(session.next_change().await, "default/pod/db is db-uid");
    // As the node controller does when a node was silent.
    web["status"] = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    world.api.put(&path, web);
    assert_eq!(session.next_change().await, "default/pod/web is web-uid");
}
