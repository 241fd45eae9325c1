//! The hollow edges of `edgemark` against a CloudCore and an embedded API in this process: certificates, TLS and the
//! link are real, so what they count is what a CloudCore does.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

#[path = "support/cloud.rs"]
mod cloud;

use kedge_cluster::{Cluster, Patch};
use kedge_edgehub::Transport;
use kedge_edgemark::hollow::{HollowEdge, Setting, Tally};
use kedge_edgemark::orders::{Gauges, Mark, Tick, Times};
use kedge_telemetry::Scope;
use kedge_wire::{Body, NodeName};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FACT_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
const EDGES: u64 = 3;

/// Everything that was counted so far.
struct Counted {
    tally: Arc<Tally>,
    now: Gauges,
    times: Times,
    errors: u64,
    commits: usize,
}

impl Counted {
    fn look(&mut self) {
        let Tick {
            now,
            times,
            errors,
            commits_us,
        } = self.tally.take();
        self.now = now;
        self.times.merge(&times);
        self.errors += errors.values().sum::<u64>();
        self.commits += commits_us.len();
    }

    async fn until(&mut self, what: &str, fact: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        loop {
            self.look();
            if fact(self) {
                return;
            }
            assert!(
                began.elapsed() < FACT_DEADLINE,
                "waited in vain for {what}; last: {:?}",
                self.now
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

async fn create(cluster: &Cluster, path: &str, object: Value) {
    cluster
        .create(path, &Body::from_value(&object).unwrap())
        .await
        .unwrap();
}

async fn pods_running(edges: &[HollowEdge], wanted: u64) {
    let began = Instant::now();
    loop {
        let mut running = 0;
        for edge in edges {
            running += edge.pods_running().await;
        }
        if running == wanted {
            return;
        }
        assert!(began.elapsed() < FACT_DEADLINE, "{running} pods run");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn pod(node: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("web-{node}")}, "spec": {
        "nodeName": format!("hollow-{node}"), "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
        "containers": [{"name": "web", "image": "web:1", "volumeMounts": [{"name": "config", "mountPath": "/config"}]}],
        "volumes": [{"name": "config", "configMap": {"name": "shared"}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hollow_edges_join_run_pods_take_changes_and_return() {
    let dir = std::env::temp_dir().join(format!("kedge-hollow-{}", std::process::id()));
    let (cloud_scope, edge_scope) = (Scope::new(), Scope::new());
    let (cluster, cloud) = cloud::start(&cloud_scope).await;
    let tally = Arc::new(Tally::default());
    let setting = Arc::new(Setting {
        hubs: vec![cloud.hub.unwrap().to_string()],
        transport: Transport::WebSocket,
        https: format!("https://{}", cloud.https),
        token: cloud.token.clone(),
        state: dir.join("certificates"),
        scratch: dir.join("nodes"),
        tally: Arc::clone(&tally),
    });
    let mut counted = Counted {
        tally: Arc::clone(&tally),
        now: Gauges::default(),
        times: Times::default(),
        errors: 0,
        commits: 0,
    };

    // They join: a certificate each, a connection, a node, a lease.
    let edges: Vec<HollowEdge> = (0..EDGES).map(|_| HollowEdge::new(&edge_scope)).collect();
    for (edge, number) in edges.iter().zip(0..) {
        let node = NodeName::new(format!("hollow-{number}")).unwrap();
        edge.join(Arc::clone(&setting), node, number).await;
    }
    counted
        .until("all edges joined", |c| {
            let told = c.times.join.count() == EDGES && c.times.lease.count() >= EDGES;
            c.now.joined == EDGES && c.now.online == EDGES && told
        })
        .await;
    let seen = [
        counted.times.certificate.count(),
        counted.times.connect.count(),
        counted.times.register.count(),
        counted.times.join.count(),
    ];
    assert_eq!(seen, [EDGES; 4]);

    // They run pods, and each commits a config map that changes.
    let namespace = "/api/v1/namespaces/default";
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"},
        "data": {"round": "first"}});
    create(&cluster, &format!("{namespace}/configmaps"), config_map).await;
    for number in 0..EDGES {
        create(&cluster, &format!("{namespace}/pods"), pod(number)).await;
    }
    pods_running(&edges, EDGES).await;
    tally.mark(Mark {
        key: "default/configmap/shared".to_owned(),
        text: "second".to_owned(),
    });
    let path = format!("{namespace}/configmaps/shared");
    let change = json!({"data": {"round": "second"}}).to_string();
    cluster.patch(&path, Patch::Merge, &change).await.unwrap();
    counted
        .until("all edges committed the change", |c| c.commits >= 3)
        .await;
    assert_eq!(counted.errors, 0, "nothing went wrong so far");

    // They lose their connections and return; a certificate is not asked for again.
    edges.iter().for_each(HollowEdge::drop_connection);
    counted.until("all edges are away", |c| c.now.online == 0).await;
    edges.iter().for_each(HollowEdge::let_back);
    counted
        .until("all edges are back", |c| {
            c.now.online == EDGES && c.times.back.count() == EDGES
        })
        .await;
    assert_eq!(counted.times.certificate.count(), EDGES);
    assert!(edges.iter().all(|edge| edge.failure().is_none()));

    assert!(
        edge_scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
        "the edges drain"
    );
    assert!(
        cloud_scope.drain(DRAIN_DEADLINE).await.left.is_empty(),
        "the cloud drains"
    );
    std::fs::remove_dir_all(dir).unwrap();
}
