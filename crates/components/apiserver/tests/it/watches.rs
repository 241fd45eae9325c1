//! Watches as clients see them.

use crate::client::Running;
use kedge_apiserver::Limits;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, tier: &str) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"app": "test", "tier": tier}}, "data": {"k": "1"},
    })
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_or_after_a_version() {
    let running = Running::start().await;
    let admin = running.admin();
    admin.post(MAPS, &map("a", "x")).await.ok();
    let list = admin.get(MAPS).await.ok();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = admin.watch(&format!("{MAPS}?watch=true&labelSelector=app")).await;
    assert_eq!(all.event().await, "ADDED a");
    let mut after = admin
        .watch(&format!(
            "{MAPS}?watch=true&labelSelector=app&resourceVersion={version}"
        ))
        .await;
    let mut legacy = admin.watch("/api/v1/watch/namespaces/default/configmaps/b").await;
    admin.post(MAPS, &map("b", "x")).await.ok();
    admin.delete(&format!("{MAPS}/a")).await.ok();
    for watch in [&mut all, &mut after] {
        assert_eq!(watch.event().await, "ADDED b");
        assert_eq!(watch.event().await, "DELETED a");
    }
    assert_eq!(legacy.event().await, "ADDED b");
    running.stop().await;
}

#[tokio::test]
async fn an_object_enters_and_leaves_a_selector() {
    let running = Running::start().await;
    let admin = running.admin();
    let mut watch = admin
        .watch(&format!("{MAPS}?watch=true&labelSelector=tier%3Dx"))
        .await;
    admin.post(MAPS, &map("a", "y")).await.ok();
    for tier in ["x", "x2", "x", "x"] {
        let patch = json!({"metadata": {"labels": {"tier": tier}}, "data": {"tier": tier}});
        admin
            .patch(&format!("{MAPS}/a"), "merge-patch+json", &patch)
            .await
            .ok();
    }
    admin
        .patch(
            &format!("{MAPS}/a"),
            "merge-patch+json",
            &json!({"data": {"k": "2"}}),
        )
        .await
        .ok();
    admin.delete(&format!("{MAPS}/a")).await.ok();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(watch.event().await);
    }
    assert_eq!(
        seen,
        ["ADDED a", "DELETED a", "ADDED a", "MODIFIED a", "DELETED a"]
    );
    running.stop().await;
}

#[tokio::test]
async fn a_streamed_list_says_where_it_ends() {
    let running = Running::start().await;
    let admin = running.admin();
    admin.post(MAPS, &map("a", "x")).await.ok();
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = admin.watch(&format!("{MAPS}?{query}&labelSelector=app")).await;
    assert_eq!(watch.event().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    running.stop().await;
}

#[tokio::test]
async fn what_is_too_old_is_gone_and_time_ends_a_watch() {
    let running = Running::with_limits(Limits {
        window_changes: 20,
        ..Limits::default()
    })
    .await;
    let admin = running.admin();
    admin.post(MAPS, &map("a", "x")).await.ok();
    for n in 0..21 {
        let patch = json!({"data": {"k": n.to_string()}});
        admin
            .patch(&format!("{MAPS}/a"), "merge-patch+json", &patch)
            .await
            .ok();
    }
    let gone = admin.get(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    assert_eq!(
        (gone.code, gone.json()["reason"].clone()),
        (410, json!("Expired"))
    );
    let future = admin
        .get(&format!("{MAPS}?watch=1&resourceVersion=99999999"))
        .await;
    assert_eq!(future.code, 410);
    assert_eq!(
        admin.get(&format!("{MAPS}?watch=1&resourceVersion=x")).await.code,
        400
    );
    let mut short = admin
        .watch(&format!("{MAPS}?watch=1&timeoutSeconds=1&labelSelector=app"))
        .await;
    assert_eq!(short.event().await, "ADDED a");
    assert_eq!(short.event().await, "end");
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_harms_nobody() {
    let running = Running::start().await;
    let admin = running.admin();
    let _stuck = admin.watch(&format!("{MAPS}?watch=1&labelSelector=app")).await;
    let mut healthy = admin.watch(&format!("{MAPS}?watch=1&labelSelector=app")).await;
    let big = "x".repeat(200_000);
    for n in 0..40 {
        let mut object = map(&format!("m{n:02}"), "x");
        object["data"]["big"] = json!(big);
        admin.post(MAPS, &object).await.ok();
        assert_eq!(healthy.event().await, format!("ADDED m{n:02}"));
    }
    running.stop().await;
}
