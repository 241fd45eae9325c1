//! The built-in controllers at work.

use crate::client::{Client, Running};
use serde_json::{Value, json};

async fn add_node(admin: &Client, name: &str) {
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    admin.post("/api/v1/nodes", &node).await.ok();
    let now = jiff::Timestamp::now().to_string();
    let status = json!({"status": {
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
            "lastHeartbeatTime": now, "lastTransitionTime": now}],
    }});
    admin
        .patch(
            &format!("/api/v1/nodes/{name}/status"),
            "merge-patch+json",
            &status,
        )
        .await
        .ok();
    let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()}});
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
    admin.put(&path, &lease).await.ok();
}

fn deployment(replicas: u32) -> Value {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": "example/web:1"}]},
            },
        },
    })
}

#[tokio::test]
async fn a_deployment_becomes_pods_on_a_node() {
    let running = Running::start().await;
    let admin = running.admin();
    add_node(&admin, "edge-1").await;
    let mut pods = admin.watch("/api/v1/namespaces/default/pods?watch=1").await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    admin.post(path, &deployment(2)).await.ok();
    let bound = |pod: &Value| pod["spec"]["nodeName"] == "edge-1";
    let first = pods.until("a pod is bound", bound).await;
    let other = |pod: &Value| bound(pod) && pod["metadata"]["uid"] != first["metadata"]["uid"];
    pods.until("a second pod is bound", other).await;

    let scale = json!({"spec": {"replicas": 0}});
    let scaled = admin
        .patch(&format!("{path}/web/scale"), "merge-patch+json", &scale)
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 0);
    pods.until("a pod is asked to end", |pod| {
        pod["metadata"]["deletionTimestamp"].is_string()
    })
    .await;

    let mut events = admin.watch("/api/v1/namespaces/default/events?watch=1").await;
    events
        .until("the scheduler says so", |event| event["reason"] == "Scheduled")
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_deleted_namespace_takes_everything_with_it() {
    let running = Running::start().await;
    let admin = running.admin();
    admin
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "gone"}}))
        .await
        .ok();
    let map = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
    admin.post("/api/v1/namespaces/gone/configmaps", &map).await.ok();
    let mut watch = admin
        .watch("/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Dgone")
        .await;
    admin.delete("/api/v1/namespaces/gone").await.ok();
    while watch.event().await != "DELETED gone" {}
    assert_eq!(admin.get("/api/v1/namespaces/gone/configmaps/a").await.code, 404);
    running.stop().await;
}

#[tokio::test]
async fn every_namespace_gets_an_account_and_the_root_certificate() {
    let running = Running::start().await;
    let admin = running.admin();
    let mut accounts = admin
        .watch("/api/v1/namespaces/default/serviceaccounts?watch=1")
        .await;
    accounts
        .until("the default account", |account| {
            account["metadata"]["name"] == "default"
        })
        .await;
    let mut maps = admin.watch("/api/v1/namespaces/default/configmaps?watch=1").await;
    let map = maps
        .until("the certificate", |map| {
            map["metadata"]["name"] == "kube-root-ca.crt"
        })
        .await;
    assert!(
        map["data"]["ca.crt"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    running.stop().await;
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let running = Running::start().await;
    let admin = running.admin();
    let definition = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "lamps.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced", "names": {"plural": "lamps", "kind": "Lamp"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {"on": {"type": "boolean"}}}},
            }}}],
        },
    });
    admin
        .post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &definition,
        )
        .await
        .ok();
    let lamps = "/apis/example.org/v1/namespaces/default/lamps";
    let lamp = json!({"kind": "Lamp", "apiVersion": "example.org/v1", "metadata": {"name": "l"}, "spec": {"on": true}});
    admin.post(lamps, &lamp).await.ok();
    assert_eq!(admin.get(&format!("{lamps}/l")).await.ok()["spec"]["on"], true);
    let wrong =
        json!({"kind": "Lamp", "apiVersion": "example.org/v1", "metadata": {"name": "m"}, "spec": {"on": 1}});
    assert!((400..500).contains(&admin.post(lamps, &wrong).await.code));
    let mut watch = admin
        .watch("/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=1")
        .await;
    let established = |crd: &Value| {
        crd["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        })
    };
    watch.until("it is established", established).await;
    running.stop().await;
}

#[tokio::test]
async fn controllers_leave_alone_what_they_do_not_look_at() {
    let running = Running::start().await;
    let admin = running.admin();
    let mut nodes = admin.watch("/api/v1/nodes?watch=1").await;
    let node = json!({"metadata": {"name": "edge-1", "annotations": {"a": "b"}},
        "status": {"nodeInfo": {"osImage": "Edge OS"}, "images": [{"names": ["example/web:1"], "sizeBytes": 1}]}});
    admin.post("/api/v1/nodes", &node).await.ok();
    let tainted = |node: &Value| node["spec"]["podCIDR"].is_string() && node["spec"]["taints"].is_array();
    let seen = nodes.until("it has a network and a taint", tainted).await;
    assert_eq!(seen["metadata"]["annotations"]["a"], "b");
    assert_eq!(seen["status"]["nodeInfo"]["osImage"], "Edge OS");
    assert_eq!(seen["status"]["images"][0]["names"], json!(["example/web:1"]));

    let mut pods = admin.watch("/api/v1/pods?watch=1").await;
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "main", "image": "example/web:1",
        "env": [{"name": "A", "value": "b"}]}]}});
    admin.post("/api/v1/namespaces/default/pods", &pod).await.ok();
    let refused = |pod: &Value| pod["status"]["conditions"][0]["reason"] == "Unschedulable";
    let seen = pods.until("no node takes it", refused).await;
    assert_eq!(seen["spec"]["containers"][0]["env"][0]["value"], "b");
    assert_eq!(seen["status"]["qosClass"], "BestEffort");
    running.stop().await;
}
