//! The litmus test of the house: an embedded API, a CloudCore and two EdgeCores run in one test process, with real TLS
//! on loopback and hollow containers. What owns a thread, a fixed port, an environment variable or a static fails here.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

#[path = "support/cloud.rs"]
mod cloud;

use kedge_cluster::{Cluster, Patch};
use kedge_config::{EdgeCore, EdgeFacts};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use kedge_transport::Plug;
use kedge_wire::Body;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FACT_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

struct World {
    dir: PathBuf,
    scope: Scope,
    cluster: Cluster,
    cloud: kedge_cloudcore::wiring::Running,
}

struct Edge {
    scope: Scope,
    plug: Plug,
    online: latest::Receiver<bool>,
}

impl World {
    async fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kedge-litmus-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let scope = Scope::new();
        let (cluster, cloud) = cloud::start(&scope).await;
        Self {
            dir,
            scope,
            cluster,
            cloud,
        }
    }

    async fn edge(&self, name: &str) -> Edge {
        let scope = Scope::new();
        let config = edge_config(&self.dir.join(name), name, &self.cloud);
        let runtime = kedge_edgecore::runtime::open(&config).await.unwrap();
        let plug = Plug::new();
        let running = kedge_edgecore::wiring::start(config, runtime, plug.clone(), &scope)
            .await
            .unwrap();
        Edge {
            scope,
            plug,
            online: running.online,
        }
    }

    async fn get(&self, path: &str) -> Value {
        self.cluster.get(path).await.unwrap().parse().unwrap()
    }

    async fn create(&self, path: &str, object: Value) {
        self.cluster
            .create(path, &Body::from_value(&object).unwrap())
            .await
            .unwrap();
    }

    async fn node_ready(&self, name: &str) {
        fact(&format!("node {name} ready"), || async {
            let nodes = self.get("/api/v1/nodes").await;
            let ready = items(&nodes)
                .iter()
                .any(|node| node["metadata"]["name"] == name && condition(node, "Ready") == "True");
            ready.then_some(()).ok_or(nodes)
        })
        .await;
    }

    async fn running_pods(&self, count: usize) -> Vec<Value> {
        fact(&format!("{count} pods running"), || async {
            let list = self.get("/api/v1/namespaces/default/pods").await;
            let running: Vec<Value> = items(&list)
                .iter()
                .filter(|pod| pod["status"]["phase"] == "Running")
                .cloned()
                .collect();
            if running.len() == count && items(&list).len() == count {
                Ok(running)
            } else {
                Err(list)
            }
        })
        .await
    }

    async fn end(self, edges: Vec<Edge>) {
        for edge in edges {
            assert!(
                edge.scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
                "an edge drains"
            );
        }
        assert!(
            self.scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
            "the cloud drains"
        );
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn edge_config(dir: &Path, name: &str, cloud: &kedge_cloudcore::wiring::Running) -> EdgeCore {
    let yaml = format!(
        "database: {{dataSource: {dir}/edgecore.db}}
modules:
  edgeHub:
    token: {token}
    httpServer: https://{https}
    websocket: {{server: '{hub}'}}
    tlsCaFile: {dir}/ca.crt
    tlsCertFile: {dir}/server.crt
    tlsPrivateKeyFile: {dir}/server.key
  edgeStream: {{server: '{tunnel}'}}
  edged:
    hostnameOverride: {name}
    rootDirectory: {dir}/kubelet
    tailoredKubeletConfig: {{containerRuntimeEndpoint: 'kedge://hollow', podLogsDir: {dir}/logs}}
",
        dir = dir.display(),
        token = cloud.token,
        https = cloud.https,
        hub = cloud.hub.unwrap(),
        tunnel = cloud.tunnel.unwrap(),
    );
    std::fs::create_dir_all(dir).unwrap();
    let facts = EdgeFacts {
        hostname: name.into(),
        primary_ip: "127.0.0.1".into(),
    };
    EdgeCore::from_yaml(&yaml, &facts).unwrap().0
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("-")
}

async fn fact<T, F: Future<Output = Result<T, Value>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(last) if began.elapsed() > FACT_DEADLINE => {
                panic!("waited in vain for {what}; last: {last:#}")
            }
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

fn deployment(replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "web:1", "envFrom": [{"configMapRef": {"name": "web"}}]}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_edges_and_a_cloud_in_one_process() {
    let world = World::start("two").await;
    let edges = vec![world.edge("edge-a").await, world.edge("edge-b").await];
    world.node_ready("edge-a").await;
    world.node_ready("edge-b").await;

    let config_map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"A": "1"}});
    world
        .create("/api/v1/namespaces/default/configmaps", config_map)
        .await;
    world
        .create("/apis/apps/v1/namespaces/default/deployments", deployment(4))
        .await;
    let pods = world.running_pods(4).await;
    let on = |node: &str| pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    assert_eq!((on("edge-a"), on("edge-b")), (2, 2), "the scheduler spreads");

    let name = pods[0]["metadata"]["name"].as_str().unwrap();
    let path = format!("/api/v1/namespaces/default/pods/{name}/log");
    fact("logs come through the tunnel", || async {
        match world.cluster.get_text(&path).await {
            Ok(log) if !log.is_empty() => Ok(()),
            other => Err(json!(format!("{other:?}"))),
        }
    })
    .await;

    // One edge loses its cable; the other one's pods come and go as if nothing had happened.
    let mut online = edges[0].online.clone();
    edges[0].plug.pull();
    tokio::time::timeout(FACT_DEADLINE, online.wait_for(|online| !online))
        .await
        .unwrap()
        .unwrap();
    let scale = |replicas: u32| json!({"spec": {"replicas": replicas}}).to_string();
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    world.cluster.patch(path, Patch::Merge, &scale(8)).await.unwrap();
    fact("the connected edge runs its new pods", || async {
        let list = world.get("/api/v1/namespaces/default/pods").await;
        let running_on_b = items(&list)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == "edge-b" && pod["status"]["phase"] == "Running")
            .count();
        (running_on_b >= 4).then_some(()).ok_or(list)
    })
    .await;
    edges[0].plug.insert();
    world.running_pods(8).await;

    // Everything goes when the deployment does: the garbage collector, both edges, the acknowledgements.
    world
        .cluster
        .delete(path, &Body::from_value(&json!({})).unwrap())
        .await
        .unwrap();
    world.running_pods(0).await;
    world.end(edges).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_restarts_without_a_cloud_runs_its_pods() {
    let world = World::start("offline").await;
    let edge = world.edge("edge-a").await;
    world.node_ready("edge-a").await;
    let config_map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"A": "1"}});
    world
        .create("/api/v1/namespaces/default/configmaps", config_map)
        .await;
    world
        .create("/apis/apps/v1/namespaces/default/deployments", deployment(2))
        .await;
    world.running_pods(2).await;

    let World {
        dir, scope, cloud, ..
    } = world;
    assert!(edge.scope.drain(DRAIN_DEADLINE).await.left.is_empty());
    assert!(scope.drain(DRAIN_DEADLINE).await.left.is_empty());

    // No cloud listens any more; the runtime is new and empty, as after a power cut.
    let scope = Scope::new();
    let config = edge_config(&dir.join("edge-a"), "edge-a", &cloud);
    let runtime = kedge_edgecore::runtime::open(&config).await.unwrap();
    let running = kedge_edgecore::wiring::start(config, runtime.clone(), Plug::new(), &scope)
        .await
        .unwrap();
    fact("two containers run without a cloud", || async {
        let sandboxes = runtime.list().await.unwrap();
        let count = sandboxes
            .iter()
            .flat_map(|sandbox| &sandbox.containers)
            .filter(|container| matches!(container.state, kedge_containers::ContainerState::Running { .. }));
        if count.count() == 2 {
            Ok(())
        } else {
            Err(json!(format!("{sandboxes:?}")))
        }
    })
    .await;
    assert!(!*running.online.borrow());
    assert!(scope.drain(DRAIN_DEADLINE).await.left.is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}
