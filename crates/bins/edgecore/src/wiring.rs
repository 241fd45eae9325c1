//! Every channel and every task of EdgeCore, in order.
//!
//! ```text
//!   cloud <══ edgehub ──store──> metamanager ──objects──> edged ──> runtime
//!                ^ ───────cloud──────┘  ^ ─────requests─────┘ ^
//!   cloud <══ edgestream ──────────────────────gets───────────┘
//! ```
//!
//! Pods start from the store before anything is dialled: the cloud may be away for days.

use anyhow::{Context, Result};
use kedge_config::EdgeCore;
use kedge_edged::Edged;
use kedge_edgehub::{CertificateConfig, EdgeHub, Identity, Network};
use kedge_edgestream::EdgeStream;
use kedge_metamanager::MetaManager;
use kedge_pki::{IdentityFiles, UnixTime};
use kedge_runtime::Runtime;
use kedge_store::meta::MetaStore;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest};
use kedge_telemetry::clock::process_seed;
use kedge_transport::Plug;
use kedge_wire::NodeName;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Object changes between hub and store: the cloud keeps at most this many unacknowledged anyway.
const ORDERS_WAITING_MAX: usize = 64;
/// Requests of edged on their way: a status for each of 110 pods at once, and a few of the node.
const REQUESTS_WAITING_MAX: usize = 128;
/// Log streams that begin at one time.
const GETS_WAITING_MAX: usize = 32;

/// An EdgeCore that runs.
#[derive(Debug)]
pub struct Running {
    /// Whether the cloud is connected.
    pub online: latest::Receiver<bool>,
}

/// Starts every part; they end with `scope`. `plug` is the cable to the cloud, which a demo or a test may pull.
pub async fn start(
    config: EdgeCore,
    runtime: Arc<dyn Runtime>,
    plug: Plug,
    scope: &Scope,
) -> Result<Running> {
    let node = NodeName::new(config.edged.node_name.clone()).context("modules.edged.hostnameOverride")?;
    let store = MetaStore::open(&PathBuf::from(&config.data_source))?;
    let meta_config = kedge_metamanager::Config {
        query_timeout: config.remote_query_timeout,
    };
    let (metamanager, held) = MetaManager::open(store, meta_config).await?;

    let (orders_tx, orders_rx) = ask::channel("store orders", ORDERS_WAITING_MAX);
    let (cloud_tx, cloud_rx) = ask::channel("cloud requests", REQUESTS_WAITING_MAX);
    let (requests_tx, requests_rx) = ask::channel("edged requests", REQUESTS_WAITING_MAX);
    let (gets_tx, gets_rx) = ask::channel("node gets", GETS_WAITING_MAX);
    let (objects_tx, objects_rx) = keyed::channel("desired objects");
    let (online_tx, online_rx) = latest::channel(false);

    let edged_ports = kedge_edged::Ports {
        desired: objects_rx,
        cloud: requests_tx,
        online: online_rx.clone(),
        node_get: gets_rx,
    };
    let edged = Edged::new(edged_config(&config, &node)?, runtime, held, edged_ports)?;
    scope.spawn_vital("edged", edged.run(scope.clone()));
    let meta_ports = kedge_metamanager::Ports {
        orders: orders_rx,
        requests: requests_rx,
        cloud: cloud_tx,
        online: online_rx.clone(),
        objects: objects_tx,
    };
    scope.spawn_vital("metamanager", metamanager.run(meta_ports, scope.clone()));

    let certificate = certificate_config(&config, &node);
    let identity = kedge_edgehub::bootstrap(&certificate, UnixTime::now()).await?;
    let (identity_tx, identity_rx) = latest::channel(identity.clone());
    let hub_ports = kedge_edgehub::Ports {
        store: orders_tx,
        requests: cloud_rx,
        online: online_tx,
        identity: identity_tx,
    };
    let hub = EdgeHub::new(
        hub_config(&config, certificate),
        identity,
        Network { plug: plug.clone() },
        hub_ports,
    )?;
    scope.spawn_vital("edgehub", hub.run(scope.clone()));
    if config.stream.enable {
        let stream = edge_stream(&config, node, identity_rx, gets_tx, plug)?;
        scope.spawn_vital("edgestream", stream.run(scope.clone()));
    }
    Ok(Running { online: online_rx })
}

fn edged_config(config: &EdgeCore, node: &NodeName) -> Result<kedge_edged::Config> {
    let edged = &config.edged;
    let taints = edged
        .taints
        .iter()
        .cloned()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>();
    let node_ip = match edged.node_ip.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .context("modules.edged.nodeIP is not an IP address")?,
        ),
    };
    Ok(kedge_edged::Config {
        log_dir: PathBuf::from(&edged.pod_logs_dir),
        report_events: edged.report_event,
        register_node: edged.register_node,
        node_ip,
        labels: edged.node_labels.iter().cloned().collect(),
        taints: taints.context("modules.edged.tailoredKubeletConfig.registerWithTaints")?,
        unschedulable: !edged.register_schedulable,
        cluster_dns: edged.cluster_dns.clone(),
        cluster_domain: edged.cluster_domain.clone(),
        pods_max: u32::try_from(edged.pods_max).unwrap_or(u32::MAX),
        lease_duration: edged.lease_duration,
        lease_interval: edged.lease_duration / 4,
        status_report_interval: edged.status_report_interval,
        ..kedge_edged::Config::new(node.clone(), PathBuf::from(&edged.root_directory))
    })
}

fn certificate_config(config: &EdgeCore, node: &NodeName) -> CertificateConfig {
    CertificateConfig {
        node: node.clone(),
        http_server: config.hub.http_server.clone(),
        token: (!config.hub.token.is_empty()).then(|| config.hub.token.clone()),
        files: IdentityFiles {
            authority: PathBuf::from(&config.hub.ca_file),
            certificate: PathBuf::from(&config.hub.cert_file),
            key: PathBuf::from(&config.hub.key_file),
        },
    }
}

fn hub_config(config: &EdgeCore, certificate: CertificateConfig) -> kedge_edgehub::Config {
    kedge_edgehub::Config {
        certificate,
        transport: match config.hub.transport {
            kedge_config::Transport::WebSocket => kedge_edgehub::Transport::WebSocket,
            kedge_config::Transport::Quic => kedge_edgehub::Transport::Quic,
        },
        // Several clouds stand behind one key, separated by commas.
        servers: config
            .hub
            .server
            .split(',')
            .map(|server| server.trim().to_owned())
            .collect(),
        handshake_timeout: config.hub.handshake_timeout,
        rates: kedge_edgehub::Rates::default(),
        project_id: config.hub.project_id.clone(),
        heartbeat: config.hub.heartbeat_interval,
        rotate_certificates: config.hub.rotate_certificates,
        seed: process_seed(),
    }
}

fn edge_stream(
    config: &EdgeCore,
    node: NodeName,
    identity: latest::Receiver<Identity>,
    gets: ask::Sender<kedge_wire::tunnel::NodeGet, kedge_edgestream::NodeAnswer>,
    plug: Plug,
) -> Result<EdgeStream> {
    let internal_ip = match config.edged.node_ip.as_str() {
        "" => kedge_host::facts()?
            .addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        text => text.to_owned(),
    };
    let stream = kedge_edgestream::Config {
        node,
        internal_ip,
        server: config.stream.server.clone(),
        seed: process_seed(),
    };
    Ok(EdgeStream::new(
        stream,
        kedge_edgestream::Ports { identity, gets, plug },
    ))
}

/// How long a drain may take before what is left is named and dropped.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
