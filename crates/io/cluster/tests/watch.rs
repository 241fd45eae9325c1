//! A watch against a server that behaves badly.

#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use kedge_cluster::peer::{Peer, status};
use kedge_cluster::{Watch, WatchItem, Watched};
use kedge_wire::Body;
use serde_json::{Value, json};

struct World {
    peer: Peer,
    watch: Watch,
}

impl World {
    async fn new(pods: &[&str]) -> Self {
        let peer = Peer::start().await.unwrap();
        for pod in pods {
            peer.put(&path(pod), self::pod(pod));
        }
        let watched = Watched {
            path: "/api/v1/pods".to_owned(),
            api_version: "v1",
            kind: "Pod",
        };
        let watch = Watch::new(peer.cluster().await.unwrap(), watched);
        Self { peer, watch }
    }

    /// Everything that is told up to and including the first item for which `last` holds.
    async fn told_until(&mut self, last: &str, expect: Expect) {
        let mut lines = String::new();
        loop {
            let line = describe(&self.watch.next().await);
            lines.push_str(&line);
            lines.push('\n');
            if line == last {
                return expect.assert_eq(&lines);
            }
        }
    }

    /// The next item, and nothing before it.
    async fn told(&mut self, line: &str) {
        assert_eq!(describe(&self.watch.next().await), line);
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}})
}

fn describe(item: &WatchItem) -> String {
    let object = |body: &Body| {
        let value: Value = body.parse().unwrap();
        assert_eq!(
            (&value["apiVersion"], &value["kind"]),
            (&json!("v1"), &json!("Pod"))
        );
        format!(
            "{} {}",
            value["metadata"]["name"].as_str().unwrap(),
            value["metadata"]["uid"].as_str().unwrap()
        )
    };
    match item {
        WatchItem::Applied(body) => format!("applied {}", object(body)),
        WatchItem::Deleted(body) => format!("deleted {}", object(body)),
        WatchItem::Synced { .. } => "synced".to_owned(),
    }
}

#[tokio::test]
async fn a_list_in_pages_then_changes_as_they_come() {
    let names: Vec<String> = (0..600).map(|n| format!("p{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names).await;
    let mut told = 0;
    while !matches!(world.watch.next().await, WatchItem::Synced { .. }) {
        told += 1;
    }
    assert_eq!(told, 600);
    assert_eq!(world.peer.calls().len(), 3, "{:?}", world.peer.calls());

    world.peer.put(&path("web"), pod("web"));
    world.told("applied web uid-601").await;
    world.peer.remove(&path("web"));
    world.told("deleted web uid-601").await;
}

#[tokio::test]
async fn a_stream_that_ends_is_followed_from_where_it_stood() {
    let mut world = World::new(&["a"]).await;
    world
        .told_until(
            "synced",
            expect![[r#"
        applied a uid-1
        synced
    "#]],
        )
        .await;
    world.peer.put(&path("b"), pod("b"));
    world.told("applied b uid-2").await;
    world.peer.end_streams();
    world.peer.put(&path("c"), pod("c"));
    world.told("applied c uid-3").await;
    let lists = world
        .peer
        .calls()
        .iter()
        .filter(|call| call.contains("limit="))
        .count();
    assert_eq!(lists, 1);
}

#[tokio::test]
async fn after_the_server_forgot_everything_that_vanished_is_told() {
    let mut world = World::new(&["a", "b", "c"]).await;
    world
        .told_until(
            "synced",
            expect![[r#"
        applied a uid-1
        applied b uid-2
        applied c uid-3
        synced
    "#]],
        )
        .await;
    // a vanishes, b stays, c is replaced by another of its name, d is new.
    let another = |name: &str| (path(name), Some(pod(name)));
    world.peer.change_unseen(vec![
        (path("a"), None),
        (path("c"), None),
        another("c"),
        another("d"),
    ]);
    world
        .told_until(
            "synced",
            expect![[r#"
        applied b uid-2
        deleted c uid-3
        applied c uid-6
        applied d uid-7
        deleted a uid-1
        synced
    "#]],
        )
        .await;
    world.peer.put(&path("e"), pod("e"));
    world.told("applied e uid-9").await;
}

#[tokio::test]
async fn a_list_that_breaks_between_pages_begins_again() {
    let names: Vec<String> = (0..300).map(|n| format!("p{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new(&names).await;
    // The first page was told; then its token is forgotten and an object of that page vanishes.
    while !matches!(world.watch.next().await, WatchItem::Applied(body) if body.json().contains("p249")) {}
    world
        .peer
        .refuse_once("GET", "/api/v1/pods", status(410, "Expired", "the page is gone"));
    world.peer.change_unseen(vec![(path("p000"), None)]);
    let mut deleted = Vec::new();
    loop {
        match world.watch.next().await {
            WatchItem::Synced { .. } => break,
            WatchItem::Deleted(body) => deleted.push(body.object_meta().unwrap().name),
            WatchItem::Applied(_) => {}
        }
    }
    assert_eq!(deleted, ["p000"]);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again() {
    let mut world = World::new(&["a"]).await;
    world.peer.refuse_once(
        "GET",
        "/api/v1/pods",
        status(503, "ServiceUnavailable", "starting"),
    );
    world
        .peer
        .refuse_once("GET", "/api/v1/pods", status(500, "InternalError", "oops"));
    world
        .told_until(
            "synced",
            expect![[r#"
        applied a uid-1
        synced
    "#]],
        )
        .await;
}

#[tokio::test]
async fn calls_keep_the_servers_status() {
    let peer = Peer::start().await.unwrap();
    let cluster = peer.cluster().await.unwrap();
    let body = |value: Value| Body::from_value(&value).unwrap();
    let pods = "/api/v1/namespaces/default/pods";

    assert!(cluster.get(&path("web")).await.unwrap_err().is_not_found());
    let made = cluster.create(pods, &body(pod("web"))).await.unwrap();
    assert_eq!(made.object_meta().unwrap().name, "web");
    let again = cluster.create(pods, &body(pod("web"))).await.unwrap_err();
    assert!(again.refusal().unwrap().is_already_exists());
    expect![[r#"POST /api/v1/namespaces/default/pods: "web" already exists (409 AlreadyExists)"#]]
        .assert_eq(&again.to_string());

    let patch = r#"{"status":{"phase":"Running"}}"#;
    let patched = cluster
        .patch(
            &format!("{}/status", path("web")),
            kedge_cluster::Patch::Strategic,
            patch,
        )
        .await;
    assert_eq!(
        patched.unwrap().parse::<Value>().unwrap()["status"]["phase"],
        "Running"
    );

    let stale = cluster
        .delete(&path("web"), &body(json!({"preconditions": {"uid": "other"}})))
        .await
        .unwrap_err();
    assert!(stale.refusal().unwrap().is_conflict());
    cluster.delete(&path("web"), &body(json!({}))).await.unwrap();

    drop(peer);
    let gone = cluster.get(&path("web")).await.unwrap_err();
    assert!(gone.refusal().is_none());
    assert_eq!(gone.to_status().code, 503);
}
