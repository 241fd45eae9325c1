//! edged with the hollow runtime and a cloud in memory, on a paused clock.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_containers::RuntimeStatus;
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{ObjectKind, Operation};
use serde_json::{Value, json};
use site::{Node, PATIENCE, Start, deleted, is_running, named, plain, pod, wait};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn pods_start_from_the_held_set_without_a_cloud() {
    let start = Instant::now();
    let node = Start {
        online: false,
        ..Start::with(&[pod("u1", plain())])
    }
    .node();
    node.wait_running("c").await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(node.cloud.lock().unwrap().told.is_empty());
    node.online.send_replace(true);
    let patch = node
        .wait_told("the status is reported", |_, key, body| {
            key.kind == ObjectKind::PodPatch && body.contains("Running")
        })
        .await;
    let patch: Value = serde_json::from_str(&patch).unwrap();
    assert_eq!(patch["metadata"]["uid"], "u1");
    assert_eq!(patch["status"]["containerStatuses"][0]["ready"], true);
    assert_eq!(patch["status"]["qosClass"], "BestEffort");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_ready_at_once_and_keeps_its_lease() {
    let start = Instant::now();
    let node = Start {
        online: false,
        ..Start::default()
    }
    .node();
    node.online.send_replace(true);
    node.wait_told("the node is Ready", |operation, key, body| {
        *operation == Operation::Patch && key.kind == ObjectKind::NodePatch && body.contains("EdgeReady")
    })
    .await;
    node.wait_told("the lease is made", |op, key, _| {
        *op == Operation::Insert && key.kind == ObjectKind::Lease
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let state = |node: &Node| node.cloud.lock().unwrap().objects.clone();
    let made = &state(&node)["null/node/edge-1"];
    assert_eq!(made["metadata"]["labels"]["node-role.kubernetes.io/edge"], "");
    assert!(
        made["status"]["nodeInfo"]["kubeletVersion"]
            .as_str()
            .unwrap()
            .starts_with("v1.32.10-kubeedge-v1.23.1")
    );
    let lease = &state(&node)["kube-node-lease/lease/edge-1"];
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"],
        "made-by-the-cloud"
    );
    let first = lease["spec"]["renewTime"].clone();
    let renewed = async || {
        let now = state(&node)["kube-node-lease/lease/edge-1"]["spec"]["renewTime"].clone();
        (now != first).then_some(())
    };
    wait("the lease is renewed", renewed).await;
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_running_containers() {
    let node = Start::with(&[pod("u1", plain())]).node();
    let before = node.wait_running("c").await;
    node.wait_told("Running", |_, key, body| {
        key.kind == ObjectKind::PodPatch && body.contains("Running")
    })
    .await;
    node.stop().await;
    assert_eq!(node.wait_running("c").await.id, before.id);

    let again = Start {
        runtime: Arc::clone(&node.runtime),
        root: Arc::clone(&node.root),
        ..Start::with(&[pod("u1", plain())])
    }
    .node();
    again
        .wait_told("Running", |_, key, body| {
            key.kind == ObjectKind::PodPatch && body.contains("Running")
        })
        .await;
    let after = again.containers().await;
    assert_eq!(after.len(), 1);
    assert_eq!((&after[0].id, after[0].attempt), (&before.id, 0));
    again.stop().await;
}

/// Of two pods that run the store has lost one: it goes on, however long the cloud stays away, and beyond the first
/// connection until the cloud has sent what it wants.
#[tokio::test(start_paused = true)]
async fn after_damage_to_the_store_what_runs_and_is_not_held_goes_on_until_the_cloud_has_spoken() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (kept, lost, unwanted) = (
        pod("u1", plain()),
        named("db", "u2", plain()),
        named("old", "u3", plain()),
    );
    let node = Start::with(&[kept.clone(), lost.clone(), unwanted]).node();
    for name in ["web", "db", "old"] {
        node.wait_status(name, &["\"phase\":\"Running\""]).await;
    }
    let mut before = running(&node).await;
    node.stop().await;

    let again = Start {
        runtime: Arc::clone(&node.runtime),
        root: Arc::clone(&node.root),
        online: false,
        complete: false,
        ..Start::with(&[kept])
    }
    .node();
    tokio::time::sleep(DAY).await;
    assert_eq!(running(&again).await, before);
    again.online.send_replace(true);
    again.wait_status("web", &["\"phase\":\"Running\""]).await;
    assert_eq!(running(&again).await, before);
    again.set(ObjectKind::Pod, &lost);
    again
        .wait_status("db", &["\"phase\":\"Running\"", "\"restartCount\":0"])
        .await;
    tokio::time::sleep(DAY).await;
    assert_eq!(
        running(&again).await,
        before,
        "the cloud has not said that this is all"
    );
    again.complete.send_replace(true);
    // What the cloud has not named by now is an orphan.
    let gone = async || (running(&again).await.len() == 2).then_some(());
    wait("the unwanted pod ends", gone).await;
    let after = running(&again).await;
    before.retain(|id| after.contains(id));
    assert_eq!(before, after);
    again.stop().await;
}

async fn running(node: &Node) -> Vec<String> {
    let all = node.containers().await.into_iter().filter(is_running);
    let mut ids: Vec<String> = all.map(|container| container.id.0).collect();
    ids.sort();
    ids
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_stopped_and_told() {
    let node = Start::with(&[pod("u1", plain())]).node();
    node.wait_running("c").await;
    node.set(ObjectKind::Pod, &deleted(pod("u1", plain()), 1));
    let options = node
        .wait_told("the deletion", |operation, _, _| *operation == Operation::Delete)
        .await;
    let options: Value = serde_json::from_str(&options).unwrap();
    assert_eq!(
        (&options["gracePeriodSeconds"], &options["preconditions"]["uid"]),
        (&json!(0), &json!("u1"))
    );
    assert!(node.containers().await.is_empty());
    assert!(!node.root.join("pods/u1").exists());
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn volumes_hold_what_the_pod_names_and_follow_changes() {
    let map = |value: &str| json!({ "metadata": { "name": "settings", "namespace": "default" }, "data": { "a": value } });
    let spec = json!({
        "serviceAccountName": "robot",
        "volumes": [
            { "name": "settings", "configMap": { "name": "settings" } },
            { "name": "all", "projected": { "sources": [
                { "serviceAccountToken": { "path": "token" } },
                { "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
                { "secret": { "name": "none", "optional": true } },
            ] } },
        ],
        "containers": [{ "name": "c", "image": "web:1", "volumeMounts": [{ "name": "settings", "mountPath": "/s" }] }],
    });
    let node = Start::with(&[pod("u1", spec)]).node();
    node.wait_status("web", &["ContainerCreating"]).await;
    node.wait_event(&["FailedMount", "configmap \\\"settings\\\" not found"])
        .await;
    node.set(ObjectKind::ConfigMap, &map("1"));
    node.wait_running("c").await;
    let volumes = node.root.join("pods/u1/volumes");
    let file = volumes.join("kubernetes.io~configmap/settings/a");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    let all = volumes.join("kubernetes.io~projected/all");
    assert_eq!(std::fs::read_to_string(all.join("token")).unwrap(), "a-token");
    assert_eq!(
        std::fs::read_to_string(all.join("labels")).unwrap(),
        "app=\"web\""
    );
    node.set(ObjectKind::ConfigMap, &map("2"));
    wait("the file changes", async || {
        (std::fs::read_to_string(&file).unwrap() == "2").then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_told_and_the_log_is_served() {
    let node = Start::with(&[pod("u1", plain())]).node();
    let first = node.wait_running("c").await;
    let get = |query: &str| NodeGet {
        path: "/containerLogs/default/web/c".to_owned(),
        query: query.to_owned(),
    };
    let ask = async |get: NodeGet| node.logs.ask(get, PATIENCE).await.unwrap();
    node.wait_status("web", &["\"phase\":\"Running\""]).await;
    let mut follow = ask(get("follow=true")).await.unwrap();
    assert!(!follow.recv().await.unwrap().is_empty());
    node.runtime.hollow.exit_container(&first.id, 3).unwrap();
    assert!(follow.recv().await.is_none(), "following ends with the container");
    node.wait_told("the crash", |_, key, body| {
        key.kind == ObjectKind::PodPatch
            && body.contains("\"restartCount\":1")
            && body.contains("\"exitCode\":3")
    })
    .await;
    let mut previous = ask(get("previous=true&tailLines=1")).await.unwrap();
    assert!(!previous.recv().await.unwrap().is_empty());
    let refused = ask(NodeGet {
        path: "/containerLogs/default/web/x".to_owned(),
        query: String::new(),
    })
    .await;
    assert!(refused.unwrap_err().contains("\"x\""));
    node.wait_told("events", |_, key, body| {
        key.kind == ObjectKind::Event && body.contains("Started container c")
    })
    .await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_class_has_a_handler_or_the_pod_does_not_run() {
    let classed = |name: &str, uid: &str, class: &str| {
        let mut spec = plain();
        spec["runtimeClassName"] = json!(class);
        named(name, uid, spec)
    };
    let start = Start::with(&[
        classed("by-object", "u1", "vm"),
        classed("by-name", "u2", "kata"),
        classed("unknown", "u3", "gone"),
        classed("left-out", "u4", "wasm"),
    ]);
    let handlers = vec!["kata".to_owned(), "runc".to_owned()];
    start.runtime.hollow.set_status(RuntimeStatus {
        handlers,
        missing_handlers: [("wasm".to_owned(), "built without the feature wasm".to_owned())].into(),
        ..RuntimeStatus::default()
    });
    let class = json!({ "metadata": { "name": "vm" }, "handler": "kata" });
    let key = "null/runtimeclass/vm".to_owned();
    start.cloud.lock().unwrap().objects.insert(key, class);
    let node = start.node();
    node.wait_status("by-object", &["\"phase\":\"Running\""]).await;
    node.wait_status("by-name", &["\"phase\":\"Running\""]).await;
    let not_found = "RuntimeClass \\\"gone\\\" not found";
    node.wait_event(&["FailedCreatePodSandBox", not_found, "kata, runc"])
        .await;
    node.wait_event(&["FailedCreatePodSandBox", "built without the feature wasm"])
        .await;
    assert_eq!(node.runtime.count("sandbox u1 under \"kata\""), 1);
    assert_eq!(node.runtime.count("sandbox u2 under \"kata\""), 1);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_update_waits_for_its_release() {
    let mut held = named("later", "u3", plain());
    held["metadata"]["annotations"] = json!({ "edge.kubeedge.io/hold-upgrade": "true" });
    held["status"] = json!({ "phase": "Pending" });
    let node = Start::with(&[pod("u1", plain())]).node();
    node.wait_running("c").await;
    node.set(ObjectKind::Pod, &held);
    node.wait_status("later", &["HeldUpgrade"]).await;
    assert_eq!(node.runtime.count("create u3/c"), 0);
    let key = kedge_pods::PodKey::new("default", "later");
    node.releases.send(kedge_pods::Release::Pod(key)).await.unwrap();
    node.wait_status("later", &["\"phase\":\"Running\""]).await;
    node.stop().await;
}
