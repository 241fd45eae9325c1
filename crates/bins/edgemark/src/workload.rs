//! Pods and a config map for the hollow nodes, in a namespace of their own.

use crate::watch::Target;
use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use kedge_cluster::{ApiError, Cluster, Patch};
use kedge_wire::Body;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

const NAMESPACE: &str = "edgemark";
const CONFIG_MAP: &str = "shared";
/// Calls at one time: enough to keep an API busy, few enough to leave it room for CloudCore.
const CALLS_MAX: usize = 16;
/// A cluster makes the service account of a new namespace at once; without it pods are refused.
const ACCOUNT_MAX: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What the config map carries besides the mark: a usual size.
const FILLER_BYTES: usize = 1024;

/// What is created for a run.
#[derive(Debug)]
pub struct Workload {
    cluster: Cluster,
    /// Differs between runs, so that an old config map is never taken for a new one.
    run: u64,
}

impl Workload {
    /// Creates the namespace; `None` without a client of the API.
    pub async fn prepare(target: &Target, run: u64) -> Result<Option<Self>> {
        let Some(cluster) = target.cluster.clone() else {
            return Ok(None);
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        unless_there(cluster.create("/api/v1/namespaces", &body(&namespace)?).await)
            .context("create namespace edgemark")?;
        let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
        let began = Instant::now();
        while cluster.get(&account).await.is_err() && began.elapsed() < ACCOUNT_MAX {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(Some(Self { cluster, run }))
    }

    /// Creates `each` pods on each of the nodes `<prefix>-0` and following.
    pub async fn create_pods(&self, prefix: &str, nodes: u32, each: u32, with_config: bool) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let pods = (0..nodes).flat_map(|node| (0..each).map(move |number| (node, number)));
        let created = pods.map(|(node, number)| {
            let pod = pod(&format!("{prefix}-{node}"), number, with_config);
            let path = &path;
            async move { unless_there(self.cluster.create(path, &body(&pod)?).await).context("create a pod") }
        });
        stream::iter(created)
            .buffer_unordered(CALLS_MAX)
            .try_collect()
            .await
    }

    /// What stands in the config map after change `round`, and never before.
    pub fn mark(&self, round: u32) -> String {
        format!("edgemark-{:x}-round-{round}.", self.run)
    }

    /// `<namespace>/<kind>/<name>` of the config map.
    pub fn config_map_key() -> String {
        format!("{NAMESPACE}/configmap/{CONFIG_MAP}")
    }

    /// Creates the config map or changes it.
    pub async fn set_config_map(&self, round: u32) -> Result<()> {
        let data = json!({"round": self.mark(round), "filler": "x".repeat(FILLER_BYTES)});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE}, "data": data});
        let collection = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        if round == 0 {
            let patch = json!({"data": data}).to_string();
            self.cluster
                .create_or_merge(&collection, CONFIG_MAP, &body(&object)?, &patch)
                .await
                .context("create config map edgemark/shared")?;
            return Ok(());
        }
        let patch = json!({"data": {"round": self.mark(round)}}).to_string();
        self.cluster
            .patch(&format!("{collection}/{CONFIG_MAP}"), Patch::Merge, &patch)
            .await
            .context("change config map edgemark/shared")?;
        Ok(())
    }

    /// Removes everything: pods, nodes and the namespace.
    pub async fn remove(&self, nodes: &[String], pods_each: u32) -> Result<()> {
        let now = json!({"gracePeriodSeconds": 0});
        let pods = nodes.iter().flat_map(|node| {
            (0..pods_each)
                .map(move |number| format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", pod_name(node, number)))
        });
        let leases = nodes
            .iter()
            .map(|node| format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"));
        let nodes = nodes.iter().map(|node| format!("/api/v1/nodes/{node}"));
        let namespace = [format!("/api/v1/namespaces/{NAMESPACE}")];
        // Pods go first: without their node nobody says that they have ended.
        for paths in [
            pods.collect::<Vec<_>>(),
            nodes.collect(),
            leases.collect(),
            namespace.to_vec(),
        ] {
            let options = &body(&now)?;
            let removed = paths.iter().map(|path| async move {
                match self.cluster.delete(path, options).await {
                    Err(error) if !error.is_not_found() => Err(error).context("remove what was created"),
                    Ok(_) | Err(_) => Ok(()),
                }
            });
            stream::iter(removed)
                .buffer_unordered(CALLS_MAX)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }
}

fn pod_name(node: &str, number: u32) -> String {
    format!("{node}-{number}")
}

/// A pod that is bound already: the scheduler is not what is measured.
fn pod(node: &str, number: u32, with_config: bool) -> Value {
    let mut container =
        json!({"name": "hollow", "image": "edgemark/hollow:1", "imagePullPolicy": "IfNotPresent"});
    let mut spec = json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
        "tolerations": [{"operator": "Exists"}],
    });
    if with_config {
        container["volumeMounts"] = json!([{"name": "config", "mountPath": "/etc/shared"}]);
        spec["volumes"] = json!([{"name": "config", "configMap": {"name": CONFIG_MAP}}]);
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod_name(node, number), "namespace": NAMESPACE, "labels": {"app": "edgemark"}},
        "spec": spec})
}

fn body(value: &Value) -> Result<Body> {
    Body::from_value(value).context("write an object")
}

/// What is there from an earlier run will do.
fn unless_there(created: Result<Body, ApiError>) -> Result<()> {
    match created {
        Err(error) if !error.is_already_exists() => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}
