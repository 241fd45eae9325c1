//! edged with the hollow runtime and a cloud in memory, on a paused clock.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop
use kedge_containers::{ContainerState, ObservedContainer};
use kedge_edged::{Config, Edged, Ports};
use kedge_link::edge::RequestError;
use kedge_runtime::{Hollow, Runtime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{
    Body, Group, NodeName, ObjectKey, ObjectKind, Operation, Reply, Request, Resource, Route, Source,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// No fact that a test waits for takes longer, by the paused clock.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the cloud holds and was told.
#[derive(Default)]
struct CloudState {
    objects: BTreeMap<String, Value>,
    told: Vec<(Operation, ObjectKey, String)>,
}

type Cloud = Arc<Mutex<CloudState>>;
type LogAnswer = Result<queue::Receiver<bytes::Bytes>, String>;

struct Node {
    runtime: Arc<Hollow>,
    cloud: Cloud,
    online: latest::Sender<bool>,
    desired: keyed::Sender<ObjectKey, Option<Body>>,
    logs: ask::Sender<NodeGet, LogAnswer>,
    scope: Scope,
    root: Arc<Root>,
}

/// A node's disk; it goes with the last node that was started on it.
#[derive(Debug)]
struct Root(PathBuf);

impl std::ops::Deref for Root {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn root() -> Arc<Root> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    let root = std::env::temp_dir().join(format!("kedge-edged-test-{}-{serial}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    Arc::new(Root(root))
}

impl Node {
    fn start(online: bool, initial: Vec<(ObjectKey, Body)>) -> Self {
        Self::start_on(Arc::new(Hollow::new()), root(), Cloud::default(), online, initial)
    }

    fn start_on(
        runtime: Arc<Hollow>,
        root: Arc<Root>,
        cloud: Cloud,
        online: bool,
        initial: Vec<(ObjectKey, Body)>,
    ) -> Self {
        let scope = Scope::new();
        let (online, online_rx) = latest::channel(online);
        let (desired, desired_rx) = keyed::channel("test-desired");
        let (requests_tx, requests) = ask::channel("test-cloud", 16);
        let (logs, node_get) = ask::channel("test-logs", 4);
        scope.spawn_until_cancelled("cloud", serve(Arc::clone(&cloud), requests, online_rx.clone()));
        let config = Config {
            report_events: true,
            ..Config::new(NodeName::new("edge-1".to_owned()).unwrap(), root.to_path_buf())
        };
        let ports = Ports {
            desired: desired_rx,
            cloud: requests_tx,
            online: online_rx,
            node_get,
        };
        let edged = Edged::new(config, Arc::clone(&runtime) as Arc<dyn Runtime>, initial, ports).unwrap();
        scope.spawn("edged", edged.run(scope.clone()));
        Self {
            runtime,
            cloud,
            online,
            desired,
            logs,
            scope,
            root,
        }
    }

    fn set(&self, kind: ObjectKind, object: &Value) {
        let (key, body) = object_of(kind, object);
        self.desired.set(key, Some(body)).unwrap();
    }

    async fn containers(&self) -> Vec<ObservedContainer> {
        self.runtime
            .list()
            .await
            .unwrap()
            .into_iter()
            .flat_map(|sandbox| sandbox.containers)
            .collect()
    }

    async fn wait_running(&self, name: &str) -> ObservedContainer {
        let found = async || {
            let running = |c: &ObservedContainer| matches!(c.state, ContainerState::Running { .. });
            self.containers()
                .await
                .into_iter()
                .find(|c| c.name == name && running(c))
        };
        wait(&format!("container {name} runs"), found).await
    }

    /// The newest thing told about an object that satisfies `fits`.
    async fn wait_told(&self, what: &str, fits: impl Fn(&Operation, &ObjectKey, &str) -> bool) -> String {
        let find = async || {
            let state = self.cloud.lock().unwrap();
            let told = state
                .told
                .iter()
                .rev()
                .find(|(operation, key, body)| fits(operation, key, body));
            told.map(|(_, _, body)| body.clone())
        };
        wait(what, find).await
    }

    async fn stop(&self) {
        let report = self.scope.drain(Duration::from_secs(10)).await;
        assert!(report.left.is_empty(), "{report:?}");
    }
}

/// Waits for a fact.
async fn wait<T>(what: &str, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = fact().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers as CloudCore does.
async fn serve(
    cloud: Cloud,
    mut requests: ask::Receiver<Request, Result<Reply, RequestError>>,
    online: latest::Receiver<bool>,
) {
    while let Some(question) = requests.recv().await {
        let request = question.question;
        if !*online.borrow() {
            question.reply.send(Err(RequestError::Offline));
            continue;
        }
        let answer = cloud.lock().unwrap().answer(&request);
        let route = Route::new(
            Source::EdgeController,
            Group::Resource,
            Operation::Response,
            Resource::Object(request.key.clone()),
        );
        question.reply.send(Ok(Reply {
            route,
            version: None,
            body: Body::from_value(&answer).unwrap(),
        }));
    }
}

impl CloudState {
    fn answer(&mut self, request: &Request) -> Value {
        let key = request.key.to_string();
        self.told.push((
            request.route.operation.clone(),
            request.key.clone(),
            request.body.content_data(),
        ));
        let status =
            |code: u16| json!({ "Object": null, "Err": { "ErrStatus": { "code": code, "message": "no" } } });
        let ok = |object: &Value| json!({ "Object": object, "Err": null });
        match (&request.route.operation, &request.key.kind) {
            (Operation::Query, ObjectKind::ServiceAccountToken) => {
                json!({ "spec": {}, "status": { "token": "a-token", "expirationTimestamp": "2100-01-01T00:00:00Z" } })
            }
            (Operation::Query, ObjectKind::Lease) => self.objects.get(&key).map_or(status(404), ok),
            (Operation::Query, _) => self
                .objects
                .get(&key)
                .cloned()
                .unwrap_or(json!({ "ErrStatus": { "code": 404 } })),
            (Operation::Insert, _) if self.objects.contains_key(&key) => status(409),
            (Operation::Insert | Operation::Update, _) => {
                let mut object: Value = request.body.parse().unwrap();
                object["metadata"]["uid"] = json!("made-by-the-cloud");
                self.objects.insert(key, object.clone());
                ok(&object)
            }
            (Operation::Delete, _) => json!("OK"),
            (_, _) => ok(&json!({ "metadata": {} })),
        }
    }
}

fn object_of(kind: ObjectKind, object: &Value) -> (ObjectKey, Body) {
    let name = object["metadata"]["name"].as_str().unwrap();
    (
        ObjectKey::namespaced(kind, "default", name),
        Body::from_value(object).unwrap(),
    )
}

fn pod(uid: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "default", "uid": uid, "labels": { "app": "web" } }, "spec": spec })
}

fn plain() -> Value {
    json!({ "nodeName": "edge-1", "containers": [{ "name": "c", "image": "web:1" }] })
}

#[tokio::test(start_paused = true)]
async fn pods_start_from_the_held_set_without_a_cloud() {
    let start = Instant::now();
    let node = Node::start(false, vec![object_of(ObjectKind::Pod, &pod("u1", plain()))]);
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
    let node = Node::start(false, Vec::new());
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
    let initial = || vec![object_of(ObjectKind::Pod, &pod("u1", plain()))];
    let node = Node::start(true, initial());
    let before = node.wait_running("c").await;
    node.wait_told("Running", |_, key, body| {
        key.kind == ObjectKind::PodPatch && body.contains("Running")
    })
    .await;
    node.stop().await;
    assert_eq!(node.wait_running("c").await.id, before.id);

    let cloud = Cloud::default();
    let again = Node::start_on(
        Arc::clone(&node.runtime),
        Arc::clone(&node.root),
        cloud,
        true,
        initial(),
    );
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

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_stopped_and_told() {
    let node = Node::start(true, vec![object_of(ObjectKind::Pod, &pod("u1", plain()))]);
    node.wait_running("c").await;
    let mut deleted = pod("u1", plain());
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    node.set(ObjectKind::Pod, &deleted);
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
    let node = Node::start(true, vec![object_of(ObjectKind::Pod, &pod("u1", spec))]);
    node.wait_told("the missing config map is named", |_, key, body| {
        key.kind == ObjectKind::PodPatch
            && body.contains("CreateContainerConfigError")
            && body.contains("configmap \\\"settings\\\" not found")
    })
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
    let node = Node::start(true, vec![object_of(ObjectKind::Pod, &pod("u1", plain()))]);
    let first = node.wait_running("c").await;
    let get = |query: &str| NodeGet {
        path: "/containerLogs/default/web/c".to_owned(),
        query: query.to_owned(),
    };
    let ask = async |get: NodeGet| node.logs.ask(get, PATIENCE).await.unwrap();
    let mut follow = ask(get("follow=true")).await.unwrap();
    assert!(!follow.recv().await.unwrap().is_empty());
    node.runtime.exit_container(&first.id, 3).unwrap();
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
