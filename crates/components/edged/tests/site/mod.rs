//! A node in memory: edged with a runtime that can have troubles, and a cloud that answers.

#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)] // each test file uses a part of it; a test that cannot go on shall stop

mod troubled;

pub use troubled::{Pull, Troubled};

use kedge_containers::{ContainerState, ObservedContainer};
use kedge_edged::{Config, Edged, MachineStops, Ports};
use kedge_link::edge::RequestError;
use kedge_runtime::Runtime;
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
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What the cloud holds and was told.
#[derive(Default)]
pub struct CloudState {
    pub objects: BTreeMap<String, Value>,
    pub told: Vec<(Operation, ObjectKey, String)>,
}

pub type Cloud = Arc<Mutex<CloudState>>;
pub type LogAnswer = Result<queue::Receiver<bytes::Bytes>, String>;

pub struct Node {
    pub runtime: Arc<Troubled>,
    pub cloud: Cloud,
    pub online: latest::Sender<bool>,
    pub complete: latest::Sender<bool>,
    pub desired: keyed::Sender<ObjectKey, Option<Body>>,
    pub logs: ask::Sender<NodeGet, LogAnswer>,
    pub releases: queue::Sender<kedge_pods::Release>,
    pub stops: ask::Sender<MachineStops, ()>,
    pub scope: Scope,
    pub root: Arc<Root>,
}

/// A node's disk; it goes with the last node that was started on it.
#[derive(Debug)]
pub struct Root(PathBuf);

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

pub fn root() -> Arc<Root> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = std::env::current_exe().unwrap();
    let name = name.file_stem().unwrap().to_string_lossy().into_owned();
    let root = std::env::temp_dir().join(format!("kedge-edged-{name}-{}-{serial}", std::process::id()));
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&root).unwrap();
    Arc::new(Root(root))
}

/// How a node starts.
pub struct Start {
    pub runtime: Arc<Troubled>,
    pub root: Arc<Root>,
    pub cloud: Cloud,
    pub online: bool,
    pub initial: Vec<(ObjectKey, Body)>,
    /// Nothing that the cloud wants is missing from the store.
    pub complete: bool,
    pub configure: fn(&mut Config),
}

impl Default for Start {
    fn default() -> Self {
        Self {
            runtime: Arc::default(),
            root: root(),
            cloud: Cloud::default(),
            online: true,
            initial: Vec::new(),
            complete: true,
            configure: |_| {},
        }
    }
}

impl Start {
    /// With these pods in its store.
    pub fn with(pods: &[Value]) -> Self {
        Self {
            initial: pods.iter().map(|pod| object_of(ObjectKind::Pod, pod)).collect(),
            ..Self::default()
        }
    }

    /// Why edged cannot be made so, with the causes.
    pub fn refused(config: Config) -> String {
        let (_, desired) = keyed::channel("test-desired");
        let (cloud, _) = ask::channel("test-cloud", 1);
        let ports = Ports {
            desired,
            complete: latest::channel(true).1,
            cloud,
            online: latest::channel(false).1,
            node_get: ask::channel("test-logs", 1).1,
            node_connect: queue::channel("test-node-connects", 1).1,
            releases: queue::channel("test-releases", 1).1,
            shutdown: ask::channel("test-shutdown", 1).1,
            metrics: kedge_telemetry::metrics::Registry::default(),
        };
        let error = Edged::new(config, Arc::new(Troubled::default()), Vec::new(), ports).unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    pub fn node(self) -> Node {
        let scope = Scope::new();
        let (online, online_rx) = latest::channel(self.online);
        let (complete, complete_rx) = latest::channel(self.complete);
        let (desired, desired_rx) = keyed::channel("test-desired");
        let (requests_tx, requests) = ask::channel("test-cloud", 16);
        let (logs, node_get) = ask::channel("test-logs", 4);
        let (stops, shutdown) = ask::channel("test-shutdown", 1);
        let (releases_tx, releases) = queue::channel("test-releases", 4);
        let (_nobody_connects, node_connect) = queue::channel("test-node-connects", 1);
        scope.spawn_until_cancelled(
            "cloud",
            serve(Arc::clone(&self.cloud), requests, online_rx.clone()),
        );
        let mut config = Config {
            report_events: true,
            ..Config::new(
                NodeName::new("edge-1".to_owned()).unwrap(),
                self.root.to_path_buf(),
            )
        };
        (self.configure)(&mut config);
        let ports = Ports {
            desired: desired_rx,
            complete: complete_rx,
            cloud: requests_tx,
            online: online_rx,
            node_get,
            node_connect,
            releases,
            shutdown,
            metrics: kedge_telemetry::metrics::Registry::default(),
        };
        let runtime = Arc::clone(&self.runtime) as Arc<dyn Runtime>;
        let edged = Edged::new(config, runtime, self.initial, ports).unwrap();
        scope.spawn("edged", edged.run(scope.clone()));
        Node {
            runtime: self.runtime,
            cloud: self.cloud,
            online,
            complete,
            desired,
            logs,
            releases: releases_tx,
            stops,
            scope,
            root: self.root,
        }
    }
}

impl Node {
    pub fn set(&self, kind: ObjectKind, object: &Value) {
        let (key, body) = object_of(kind, object);
        self.desired.set(key, Some(body)).unwrap();
    }

    pub fn unset(&self, kind: ObjectKind, name: &str) {
        let key = ObjectKey::namespaced(kind, "default", name);
        self.desired.set(key, None).unwrap();
    }

    pub async fn containers(&self) -> Vec<ObservedContainer> {
        let list = self.runtime.hollow.list().await.unwrap();
        list.into_iter().flat_map(|sandbox| sandbox.containers).collect()
    }

    pub async fn wait_running(&self, name: &str) -> ObservedContainer {
        let found = async || {
            self.containers()
                .await
                .into_iter()
                .find(|c| c.name == name && is_running(c))
        };
        wait(&format!("container {name} runs"), found).await
    }

    /// The newest thing told about an object that satisfies `fits`.
    pub async fn wait_told(&self, what: &str, fits: impl Fn(&Operation, &ObjectKey, &str) -> bool) -> String {
        wait(what, async || self.told(&fits)).await
    }

    pub fn told(&self, fits: impl Fn(&Operation, &ObjectKey, &str) -> bool) -> Option<String> {
        let state = self.cloud.lock().unwrap();
        let mut told = state.told.iter().rev();
        let found = told.find(|(operation, key, body)| fits(operation, key, body));
        found.map(|(_, _, body)| body.clone())
    }

    /// A status of the pod that holds all these texts.
    pub async fn wait_status(&self, pod: &str, texts: &[&str]) -> Value {
        let fits = |_: &Operation, key: &ObjectKey, body: &str| {
            key.kind == ObjectKind::PodPatch
                && key.name == pod
                && texts.iter().all(|text| body.contains(text))
        };
        let patch = self
            .wait_told(&format!("a status of {pod} with {texts:?}"), fits)
            .await;
        serde_json::from_str(&patch).unwrap()
    }

    /// An event that holds all these texts.
    pub async fn wait_event(&self, texts: &[&str]) -> Value {
        let fits = |_: &Operation, key: &ObjectKey, body: &str| {
            key.kind == ObjectKind::Event && texts.iter().all(|text| body.contains(text))
        };
        let event = self.wait_told(&format!("an event with {texts:?}"), fits).await;
        serde_json::from_str(&event).unwrap()
    }

    pub async fn stop(&self) {
        let report = self.scope.drain(Duration::from_secs(10)).await;
        assert!(report.left.is_empty(), "{report:?}");
    }
}

pub fn is_running(container: &ObservedContainer) -> bool {
    matches!(container.state, ContainerState::Running { .. })
}

/// Waits for a fact.
pub async fn wait<T>(what: &str, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
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
            (Operation::Delete, _) => {
                self.objects.remove(&key);
                json!("OK")
            }
            (_, _) => ok(&json!({ "metadata": {} })),
        }
    }
}

pub fn object_of(kind: ObjectKind, object: &Value) -> (ObjectKey, Body) {
    let name = object["metadata"]["name"].as_str().unwrap();
    (
        ObjectKey::namespaced(kind, "default", name),
        Body::from_value(object).unwrap(),
    )
}

/// A pod named `web`.
pub fn pod(uid: &str, spec: Value) -> Value {
    named("web", uid, spec)
}

pub fn named(name: &str, uid: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": uid, "labels": { "app": "web" } }, "spec": spec })
}

/// A pod of one container `c`.
pub fn plain() -> Value {
    json!({ "nodeName": "edge-1", "containers": [{ "name": "c", "image": "web:1" }] })
}

/// The same with more in its container.
pub fn with(more: &Value) -> Value {
    let mut spec = plain();
    for (key, value) in more.as_object().unwrap() {
        spec["containers"][0][key] = value.clone();
    }
    spec
}

/// The pod with a deletion timestamp.
pub fn deleted(mut pod: Value, grace_seconds: u32) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
    pod
}
