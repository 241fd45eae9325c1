//! The node's own object and its lease.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_containers::RuntimeStatus;
use kedge_wire::{ObjectKey, ObjectKind, Operation};
use serde_json::{Value, json};
use site::{Node, Start, wait};
use std::time::Duration;
use tokio::time::Instant;

fn is_status(operation: &Operation, key: &ObjectKey) -> bool {
    *operation == Operation::Patch && key.kind == ObjectKind::NodePatch
}

fn is_lease(_: &Operation, key: &ObjectKey) -> bool {
    key.kind == ObjectKind::Lease
}

/// How often something of this kind was told.
fn count(node: &Node, of: fn(&Operation, &ObjectKey) -> bool) -> usize {
    let state = node.cloud.lock().unwrap();
    state
        .told
        .iter()
        .filter(|(operation, key, _)| of(operation, key))
        .count()
}

async fn wait_more(node: &Node, what: &str, of: fn(&Operation, &ObjectKey) -> bool, than: usize) {
    wait(what, async || (count(node, of) > than).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_registered_ready_and_alive() {
    let start = Instant::now();
    let node = Start {
        configure: |config| {
            config.node.labels.insert("site".to_owned(), "roof".to_owned());
            config.node.unschedulable = true;
            config.node.pods_per_core = 1;
            config.node.kubelet_port = 10255;
            config.node.ip = Some("198.51.100.7".parse().unwrap());
        },
        ..Start::default()
    }
    .node();
    wait_more(&node, "the status is told", is_status, 0).await;
    wait_more(&node, "the lease is made", is_lease, 0).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let made = node.cloud.lock().unwrap().objects["null/node/edge-1"].clone();
    let (meta, status) = (&made["metadata"], &made["status"]);
    assert_eq!(meta["labels"]["node-role.kubernetes.io/edge"], "");
    assert_eq!(meta["labels"]["site"], "roof");
    assert_eq!(
        meta["annotations"]["volumes.kubernetes.io/controller-managed-attach-detach"],
        "true"
    );
    assert_eq!(made["spec"]["unschedulable"], true);
    assert_eq!(
        made["spec"]["taints"][0]["key"],
        "node.kubernetes.io/unschedulable"
    );
    assert_eq!(
        status["addresses"],
        json!([{ "type": "InternalIP", "address": "198.51.100.7" }, { "type": "Hostname", "address": "edge-1" }])
    );
    assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10255);
    assert_eq!(
        status["capacity"]["pods"], status["capacity"]["cpu"],
        "one pod a core"
    );
    assert!(status["capacity"]["ephemeral-storage"].is_string());
    assert_eq!(status.get("images"), None);
    let version = status["nodeInfo"]["kubeletVersion"].as_str().unwrap();
    assert!(version.starts_with("v1.32.10-kubeedge-v1.23.1"), "{version}");
    let ready = &status["conditions"][3];
    assert_eq!(ready["message"], "edge is posting ready status");
    let lease = node.cloud.lock().unwrap().objects["kube-node-lease/lease/edge-1"].clone();
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"],
        "made-by-the-cloud"
    );
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_rest_there_is_a_lease_every_ten_seconds_and_a_status_every_five_minutes() {
    let node = Start::default().node();
    wait_more(&node, "the status is told", is_status, 0).await;
    wait_more(&node, "the lease is made", is_lease, 1).await;
    let (statuses, leases) = (count(&node, is_status), count(&node, is_lease));
    tokio::time::sleep(Duration::from_secs(295)).await;
    let renewed = count(&node, is_lease) - leases;
    assert!((28..=30).contains(&renewed), "{renewed}");
    assert_eq!(count(&node, is_status), statuses, "nothing changed");
    wait_more(&node, "a sign of life", is_status, statuses).await;
    let sign = node.told(|operation, key, _| is_status(operation, key)).unwrap();
    let sign: Value = serde_json::from_str(&sign).unwrap();
    let fields: Vec<&String> = sign["status"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["conditions"]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_exists_gets_what_it_lacks_and_keeps_the_rest() {
    let start = Start::default();
    let known = json!({ "metadata": { "name": "edge-1", "uid": "u" } });
    start
        .cloud
        .lock()
        .unwrap()
        .objects
        .insert("null/node/edge-1".to_owned(), known.clone());
    let node = start.node();
    let patch = node
        .wait_told("labels are given", |operation, key, body| {
            is_status(operation, key) && body.contains("\"labels\"")
        })
        .await;
    let patch: Value = serde_json::from_str(&patch).unwrap();
    assert_eq!(patch["metadata"]["labels"]["kubernetes.io/hostname"], "edge-1");
    assert_eq!(patch.as_object().unwrap().len(), 1, "{patch}");
    assert_eq!(node.cloud.lock().unwrap().objects["null/node/edge-1"], known);
    wait_more(&node, "the lease is made", is_lease, 1).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn troubles_of_the_runtime_are_told_at_once_and_so_is_their_end() {
    let node = Start::default().node();
    wait_more(&node, "the status is told", is_status, 0).await;
    let trouble = "NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized";
    node.runtime.hollow.set_status(RuntimeStatus {
        network_trouble: Some(trouble.to_owned()),
        ..RuntimeStatus::default()
    });
    let told = node
        .wait_told("the node is not ready", |operation, key, body| {
            is_status(operation, key) && body.contains("KubeletNotReady")
        })
        .await;
    assert!(
        told.contains(&format!("container runtime network not ready: {trouble}")),
        "{told}"
    );
    node.wait_event(&["NodeNotReady", "Node edge-1 status is now: NodeNotReady"])
        .await;
    node.runtime.hollow.set_status(RuntimeStatus::default());
    let start = Instant::now();
    let statuses = count(&node, is_status);
    wait_more(&node, "the node is ready again", is_status, statuses).await;
    assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
    let told = node.told(|operation, key, _| is_status(operation, key)).unwrap();
    assert!(told.contains("edge is posting ready status"), "{told}");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_hours_without_cloud_the_truth_is_told_at_once() {
    let node = Start {
        online: false,
        ..Start::default()
    }
    .node();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(node.cloud.lock().unwrap().told.is_empty());
    let at_once = async |what: &str| {
        let start = Instant::now();
        let (statuses, leases) = (count(&node, is_status), count(&node, is_lease));
        node.online.send_replace(true);
        wait_more(&node, what, is_status, statuses).await;
        wait_more(&node, what, is_lease, leases).await;
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{what}: {:?}",
            start.elapsed()
        );
        let told = node.told(|operation, key, _| is_status(operation, key)).unwrap();
        assert!(told.contains("nodeInfo"), "everything is told: {told}");
    };
    at_once("the first connection").await;
    node.online.send_replace(false);
    tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
    at_once("the second connection").await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_takes_neither_the_lease_nor_the_status_with_it() {
    let node = Start::default().node();
    wait_more(&node, "the status is told", is_status, 0).await;
    node.runtime.set_hung(true);
    let told = node
        .wait_told("the runtime is down", |operation, key, body| {
            is_status(operation, key) && body.contains("container runtime is down")
        })
        .await;
    assert!(told.contains("KubeletNotReady"), "{told}");
    let leases = count(&node, is_lease);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        count(&node, is_lease) >= leases + 5,
        "the lease does not wait for the runtime"
    );
    node.runtime.set_hung(false);
    let statuses = count(&node, is_status);
    wait("the node is ready again", async || {
        let told = node.told(|operation, key, _| is_status(operation, key))?;
        (count(&node, is_status) > statuses && told.contains("edge is posting ready status")).then_some(())
    })
    .await;
    node.stop().await;
}
