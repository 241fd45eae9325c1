//! `kedge up`.

use crate::cli::Up;
use crate::data_dir::{DataDir, Held, Run};
use crate::preflight::{self, HubPorts};
use crate::progress::Progress;
use crate::status::is_ready;
use crate::{demo, edge_file, wiring};
use anyhow::{Context, Result, anyhow, bail};
use kedge_cluster::Cluster;
use kedge_config::EdgeCore;
use kedge_runtime::Runtime;
use kedge_telemetry::{Scope, logs, signals};
use kedge_transport::Plug;
use kedge_wire::NodeName;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a part may take to end before what is left is named and dropped.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// A node that is not ready by then will not be.
const NODE_READY_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at the node.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// A log larger than this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The parts, each with a scope of its own, so that they end in the reverse order of their start.
struct Scopes {
    api: Scope,
    cloud: Scope,
    edge: Scope,
}

impl Scopes {
    /// Completes when a vital task of any part has failed.
    async fn failed(&self) -> String {
        tokio::select! {
            failure = self.api.failed() => failure,
            failure = self.cloud.failed() => failure,
            failure = self.edge.failed() => failure,
        }
    }
}

/// Starts everything and stays until a signal.
pub(crate) async fn up(dir: &DataDir, up: &Up, json: bool) -> Result<()> {
    let mut progress = Progress::new(json);
    // A first Ctrl-C during the start must already drain.
    let stop = tokio::spawn(signals::stop_requested());
    let node_name = node_name(up)?;
    let mut held = dir.hold()?;
    let notes = preflight::check(up)?;
    install_log(dir, &up.log)?;
    let scopes = Scopes {
        api: Scope::new(),
        cloud: Scope::new(),
        edge: Scope::new(),
    };
    for note in notes {
        progress.note(&note);
    }
    let started = start(dir, up, &node_name, &mut held, &scopes, &mut progress);
    let outcome = tokio::select! {
        biased;
        signal = stop => signal.context("wait for signals")?.map(|_| ()).context("wait for signals"),
        failure = scopes.failed() => Err(anyhow!("{failure}; {} says more", dir.log_file().display())),
        outcome = started => outcome,
    };
    progress.begin_step();
    drain(&scopes, &mut progress).await;
    outcome
}

/// Starts the parts in order, plays the demo if asked, and never returns while all is well.
async fn start(
    dir: &DataDir,
    up: &Up,
    node_name: &NodeName,
    held: &mut Held,
    scopes: &Scopes,
    progress: &mut Progress,
) -> Result<()> {
    let ports = HubPorts::from(up.hub_port);
    let edge = edge_file::Edge {
        node_name: node_name.as_str(),
        ports,
        hollow: up.hollow,
    };
    let mut edge_config = edge_file::write(dir, &edge)?;

    let api = wiring::start_api(dir, up.api_port, &scopes.api).await?;
    progress.step("Kubernetes API", &api.url);
    let run = Run {
        pid: std::process::id(),
        api_url: api.url.clone(),
        node_name: node_name.to_string(),
        hollow: up.hollow,
    };
    held.record(&run)?;

    let cloud = wiring::start_cloud(ports, api.cloudcore, api.node_ports, &scopes.cloud).await?;
    let link = cloud.hub.expect("the wiring enables WebSocket");
    progress.step("CloudCore", &format!("link {link}, certificates {}", cloud.https));

    edge_config.hub.token = cloud.token;
    let (runtime, plug) = (kedge_edgecore::runtime::open(&edge_config).await?, Plug::new());
    let version = runtime.version().await?;
    progress.step(
        "container runtime",
        &format!("{} {}", version.name, version.version),
    );
    // The clock that edged writes into its lease.
    let since = i64::try_from(kedge_telemetry::clock::now_ms()).map(jiff::Timestamp::from_millisecond)??;
    start_edge(edge_config, &runtime, &plug, &scopes.edge).await?;
    progress.step("EdgeCore", node_name.as_str());
    wait_node_ready(&api.admin, node_name, since).await?;
    progress.step("node ready", node_name.as_str());

    if up.demo {
        let data_dir = dir.root().to_owned();
        let stage = demo::Stage {
            cluster: api.admin,
            runtime,
            plug,
            data_dir,
            hollow: up.hollow,
        };
        demo::play(&stage, progress).await?;
    }
    farewell(dir, progress);
    std::future::pending().await
}

async fn start_edge(config: EdgeCore, runtime: &Arc<dyn Runtime>, plug: &Plug, scope: &Scope) -> Result<()> {
    kedge_edgecore::wiring::start(config, Arc::clone(runtime), plug.clone(), scope).await?;
    Ok(())
}

/// What a person types next.
fn farewell(dir: &DataDir, progress: &mut Progress) {
    let kubeconfig = dir.kubeconfig();
    progress.facts(json!({"up": true, "kubeconfig": kubeconfig, "total_s": progress.total_s()}));
    progress.people(&format!(
        "\nUp in {:.2} s. In another terminal:\n\n    export KUBECONFIG={}\n    kubectl get nodes -o wide\n    \
         kubectl get pods -o wide\n\nCtrl-C ends kedge; containers keep running and the next `up` finds them.\n\
         `kedge down` stops them too.",
        progress.total_s(),
        kubeconfig.display()
    ));
}

/// The host's name, or the one that was asked for.
fn node_name(up: &Up) -> Result<NodeName> {
    match &up.node_name {
        Some(name) => NodeName::new(name.clone()).context("--node-name"),
        None => {
            let name = kedge_host::facts()?.hostname.to_lowercase();
            NodeName::new(name).context("the host name cannot be a node's name; give one with --node-name")
        }
    }
}

fn install_log(dir: &DataDir, filter: &str) -> Result<()> {
    let path = dir.log_file();
    if path
        .metadata()
        .is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX)
    {
        std::fs::rename(&path, path.with_extension("log.1"))
            .with_context(|| format!("set {} aside", path.display()))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    logs::install(filter, logs::Format::Text, logs::file(file));
    Ok(())
}

/// Waits until the node is ready and its lease was renewed after `since`: what a former run said does not count.
async fn wait_node_ready(cluster: &Cluster, node: &NodeName, since: jiff::Timestamp) -> Result<()> {
    let began = Instant::now();
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
    let node_path = format!("/api/v1/nodes/{node}");
    loop {
        let last = match (cluster.get(&node_path).await, cluster.get(&lease).await) {
            (Ok(node), Ok(lease)) => {
                match (is_ready(&node.parse()?), renewed(&lease.parse()?) >= Some(since)) {
                    (true, true) => return Ok(()),
                    (true, false) => "its lease is of a former run".to_owned(),
                    (false, _) => "it is registered but not ready".to_owned(),
                }
            }
            (Err(error), _) | (Ok(_), Err(error)) => error.to_string(),
        };
        if began.elapsed() > NODE_READY_MAX {
            bail!(
                "node {node} is not ready after {NODE_READY_MAX:?}: {last}; DATA_DIR/kedge.log may tell why"
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn renewed(lease: &Value) -> Option<jiff::Timestamp> {
    lease["spec"]["renewTime"].as_str()?.parse().ok()
}

async fn drain(scopes: &Scopes, progress: &mut Progress) {
    for (name, scope) in [
        ("edge", &scopes.edge),
        ("cloud", &scopes.cloud),
        ("API", &scopes.api),
    ] {
        let left = scope.drain(DRAIN_DEADLINE).await.left;
        if !left.is_empty() {
            tracing::warn!(part = name, ?left, "tasks did not end in time");
            progress.note(&format!("{name}: still busy after {DRAIN_DEADLINE:?}: {left:?}"));
        }
    }
    progress.step("drained", "containers keep running");
}
