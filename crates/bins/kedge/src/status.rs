//! `kedge status`.

use crate::data_dir::DataDir;
use anyhow::{Context, Result, bail};
use kedge_cluster::Cluster;
use serde_json::{Value, json};

/// Tells whether kedge runs, and its nodes and pods.
pub(crate) async fn status(dir: &DataDir, json: bool) -> Result<()> {
    let Some(run) = dir.run()? else {
        bail!(
            "kedge does not run on {}; start it with `kedge up`",
            dir.root().display()
        );
    };
    let cluster = Cluster::from_kubeconfig(&dir.kubeconfig()).await?;
    let nodes = items(&cluster, "/api/v1/nodes").await?;
    let pods = items(&cluster, "/api/v1/pods").await?;
    if json {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|node| json!({"name": name(node), "ready": is_ready(node)}))
            .collect();
        let pods: Vec<Value> = pods.iter().map(pod).collect();
        let status =
            json!({"pid": run.pid, "api": run.api_url, "hollow": run.hollow, "nodes": nodes, "pods": pods});
        println!("{status}");
        return Ok(());
    }
    println!(
        "kedge runs (process {}) on {}, API {}",
        run.pid,
        dir.root().display(),
        run.api_url
    );
    for node in &nodes {
        println!(
            "node  {:<40} {}",
            name(node),
            if is_ready(node) { "Ready" } else { "NotReady" }
        );
    }
    for seen in pods.iter().map(pod) {
        let text = |key: &str| seen[key].as_str().unwrap_or("-").to_owned();
        let place = format!("{}/{}", text("namespace"), text("name"));
        println!(
            "pod   {place:<40} {:<10} restarts {} on {}",
            text("phase"),
            seen["restarts"],
            text("node")
        );
    }
    Ok(())
}

async fn items(cluster: &Cluster, path: &str) -> Result<Vec<Value>> {
    let list: Value = cluster
        .get(path)
        .await
        .with_context(|| format!("read {path}"))?
        .parse()?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether the node says so.
pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn pod(pod: &Value) -> Value {
    let containers = pod["status"]["containerStatuses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let restarts: u64 = containers
        .iter()
        .filter_map(|container| container["restartCount"].as_u64())
        .sum();
    json!({"namespace": pod["metadata"]["namespace"], "name": name(pod), "phase": pod["status"]["phase"],
        "node": pod["spec"]["nodeName"], "restarts": restarts})
}
