//! The controllers between a small API server and the sessions of two nodes.

#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_cluster::peer::Peer;
use kedge_controllers::{Answer, Attach, Config, Controllers};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed};
use kedge_wire::{Body, NodeName, Object, ObjectKey, ObjectKind, Request};
use serde_json::{Value, json};
use std::time::Duration;

/// Far more than anything here takes; only a broken test reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    peer: Peer,
    attach: ask::Sender<Attach, Vec<(ObjectKey, Object)>>,
    scope: Scope,
}

struct Session {
    desired: keyed::Receiver<ObjectKey, Option<Object>>,
    requests: ask::Sender<Request, Answer>,
    first: Vec<(ObjectKey, Object)>,
}

impl World {
    async fn new(objects: &[(String, Value)]) -> Self {
        let peer = Peer::start().await.unwrap();
        for (path, object) in objects {
            peer.put(path, object.clone());
        }
        let (attach, attached) = ask::channel("test.attach", 8);
        let config = Config {
            advertise_address: Some("10.0.0.1".to_owned()),
            ..Config::default()
        };
        let controllers = Controllers::new(config, peer.cluster().await.unwrap(), attached);
        let scope = Scope::new();
        scope.spawn("controllers", controllers.run(scope.clone()));
        Self { peer, attach, scope }
    }

    async fn session(&self, node: &str) -> Session {
        let (tell, desired) = keyed::channel("test.desired");
        let (requests, receive) = ask::channel("test.requests", 64);
        let attach = Attach {
            node: NodeName::new(node).unwrap(),
            desired: tell,
            requests: receive,
        };
        let first = self.attach.ask(attach, PATIENCE).await.unwrap();
        Session {
            desired,
            requests,
            first,
        }
    }
}

impl Session {
    fn check_first(&self, expect: Expect) {
        let lines: Vec<String> = self
            .first
            .iter()
            .map(|(key, object)| format!("{key} {}\n", object.uid))
            .collect();
        expect.assert_eq(&lines.concat());
    }

    async fn next_change(&mut self) -> String {
        let (key, object) = tokio::time::timeout(PATIENCE, self.desired.recv())
            .await
            .unwrap()
            .unwrap();
        match object {
            Some(object) => format!("{key} is {}", object.uid),
            None => format!("{key} is gone"),
        }
    }

    async fn check(&self, request: Request, expect: Expect) {
        let answer = self.requests.ask(request, PATIENCE).await.unwrap();
        let kind = if answer.silent {
            "silence"
        } else if answer.error {
            "error"
        } else {
            "response"
        };
        let version = answer
            .version
            .map(|version| format!(" at {version}"))
            .unwrap_or_default();
        expect.assert_eq(&format!("{kind}{version}: {}", answer.body.json()));
    }
}

fn pod(name: &str, node: &str, config_map: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid") },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "containers": [{ "name": "c", "envFrom": [{ "configMapRef": { "name": config_map } }] }],
        },
    });
    (format!("/api/v1/namespaces/default/pods/{name}"), object)
}

fn config_map(name: &str) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": "default", "uid": format!("{name}-uid") },
        "data": { "a": "1" },
    });
    (format!("/api/v1/namespaces/default/configmaps/{name}"), object)
}

fn body(value: Value) -> Body {
    Body::from_value(&value).unwrap()
}

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey::namespaced(kind, "default", name)
}

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
    world.peer.put(&path, object);
    assert_eq!(session.next_change().await, "default/pod/db is db-uid");
    let (path, mut object) = config_map("app");
    object["data"]["a"] = "2".into();
    world.peer.put(&path, object);
    assert_eq!(session.next_change().await, "default/configmap/app is app-uid");
    // Not for this node, and so not told: the next thing it hears is about its own pod.
    let (path, mut object) = pod("other", "edge-2", "unused");
    object["metadata"]["labels"] = json!({"a": "b"});
    world.peer.put(&path, object);
    world.peer.remove("/api/v1/namespaces/default/pods/db");
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
        .check(Request::query(ObjectKey::lease(&node)), expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"\"edge-1\" not found","reason":"NotFound","code":404,"kind":"Status","apiVersion":"v1","metadata":{}}}}"#]])
        .await;
    let lease = json!({"metadata": {"name": "edge-1", "namespace": "kube-node-lease"}, "spec": {}});
    session
        .check(
            Request::insert(ObjectKey::lease(&node), body(lease)),
            expect![[r#"response: {"Object":{"metadata":{"name":"edge-1","namespace":"kube-node-lease","resourceVersion":"5","uid":"uid-5"},"spec":{},"apiVersion":"coordination.k8s.io/v1","kind":"Lease"},"Err":null}"#]],
        )
        .await;
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
            expect![[r#"response at 6: {"Object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default","uid":"web-uid","resourceVersion":"6"},"spec":{"nodeName":"edge-1","serviceAccountName":"default","containers":[{"name":"c","envFrom":[{"configMapRef":{"name":"app"}}]}]},"status":{"phase":"Running"}},"Err":null}"#]],
        )
        .await;
    session
        .check(
            Request::patch_pod_status("default", "ghost", r#"{"status":{}}"#),
            expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"edge-1 may not patch default/podpatch/ghost: no such pod is placed on this node","reason":"Forbidden","code":403,"metadata":{}}}}"#]],
        )
        .await;
    session
        .check(
            Request::patch_node_status(&node, r#"{"status":{"x":1}}"#),
            expect![[r#"response at 7: {"Object":{"metadata":{"name":"edge-1","labels":{"node-role.kubernetes.io/edge":""},"annotations":{"cloudcore":"10.0.0.1"},"resourceVersion":"7","uid":"uid-4"},"apiVersion":"v1","kind":"Node","status":{"x":1}},"Err":null}"#]],
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
    assert!(world.peer.object("/api/v1/namespaces/default/pods/web").is_none());
    // A pod that is not placed here is gone as far as this node is concerned: OK, and nothing is touched.
    let gone = Request::delete(
        key(ObjectKind::Pod, "ghost"),
        body(json!({"preconditions": {"uid": "u"}})),
    );
    let calls = world.peer.calls().len();
    session.check(gone, expect![[r#"response: "OK""#]]).await;
    assert_eq!(world.peer.calls().len(), calls);
}

#[tokio::test]
async fn a_stuck_node_keeps_its_lease_and_disturbs_nobody() {
    let world = World::new(&[pod("web", "edge-1", "app"), pod("db", "edge-2", "app")]).await;
    let (one, two) = (world.session("edge-1").await, world.session("edge-2").await);
    let lease = |node: &str| {
        world.peer.put(
            &format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"),
            json!({"metadata": {"name": node, "uid": format!("{node}-lease")}}),
        );
        Request::query(ObjectKey::lease(&NodeName::new(node).unwrap()))
    };
    let (lease_one, lease_two) = (lease("edge-1"), lease("edge-2"));

    // Every call slot of edge-1 hangs, and more requests wait behind them.
    for n in 0..12 {
        let name = format!("stuck-{n}");
        world
            .peer
            .hold(&format!("/api/v1/namespaces/default/events/{name}"));
        let event = body(json!({"metadata": {"name": name, "namespace": "default"}}));
        let request = Request::update(key(ObjectKind::Event, &name), event);
        let requests = one.requests.clone();
        world.scope.spawn_until_cancelled("asker", async move {
            let _ = requests.ask(request, PATIENCE).await;
        });
    }
    let stuck = |calls: &[String]| calls.iter().filter(|call| call.contains("stuck-")).count();
    tokio::time::timeout(PATIENCE, world.peer.until_calls(|calls| stuck(calls) >= 8))
        .await
        .unwrap();

    for (session, lease) in [(&one, lease_one), (&two, lease_two)] {
        let answer = session.requests.ask(lease, PATIENCE).await.unwrap();
        assert!(answer.body.json().contains("-lease"), "{answer:?}");
    }
    let patch = Request::patch_pod_status("default", "db", r#"{"status":{"phase":"Running"}}"#);
    assert!(!two.requests.ask(patch, PATIENCE).await.unwrap().error);
    assert_eq!(
        stuck(&world.peer.calls()),
        8,
        "never more than the limit at one time"
    );
    world.peer.let_go();
    tokio::time::timeout(PATIENCE, world.peer.until_calls(|calls| stuck(calls) == 12))
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
    world.peer.put(&path, object);
    assert_eq!(new.next_change().await, "default/pod/db is db-uid");
}
