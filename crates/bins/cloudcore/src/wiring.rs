//! Every channel and every task of CloudCore, in order.
//!
//! ```text
//!   cluster ──watch──> controllers <──attach── cloudhub <── edges
//!      ^ budget, election  │ one-time tokens ────^
//!      └───────────────────┘ node exists ────────┘
//!   gets, connects ──> cloudstream <── tunnels of edges
//!   monitor ──> health, metrics
//! ```
//!
//! Doors that are visible and closed: devices, rules, node jobs and the API for applications on edges come in the upstream
//! messages that the hub counts as without effect; the kubelet endpoint of an API server elsewhere asks through [`NodePorts`].

use crate::material::{self, Material};
use crate::tokens::{self, one_time};
use anyhow::{Context, Result};
use kedge_cloudhub::CloudHub;
use kedge_cloudstream::CloudStream;
use kedge_cluster::{Budget, BudgetConfig, Cluster, Leadership};
use kedge_controllers::Controllers;
use kedge_link::cloud::Attached;
use kedge_telemetry::channel::{ask, latest};
use kedge_telemetry::health::{Health, Part};
use kedge_telemetry::metrics::Registry;
use kedge_telemetry::monitor::Monitor;
use kedge_telemetry::{Scope, clock};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{NodeConnect, NodeGet};
use std::net::SocketAddr;

/// Sessions that wait to be attached at one time: the hub admits handshakes at about this rate a second.
const ATTACH_WAITING_MAX: usize = 256;
/// Questions "does this node exist" at one time; each is one small API call of a joining edge.
const NODE_EXISTS_WAITING_MAX: usize = 64;
/// Nodes that show a one-time token at one time; each is two small API calls.
const REDEEM_WAITING_MAX: usize = 64;
/// Calls to the API without an answer, on behalf of all nodes. An API server answers one in some milliseconds, so this
/// is thousands a second; more would only wait there instead of here, where the fair line is.
const API_CALLS_MAX: usize = 64;
/// The Lease through which replicas find out who does what only one may do.
const LEADER_LEASE: (&str, &str) = ("kubeedge", "cloudcore");

/// What is asked of nodes' kubelet ports, through their tunnels.
#[derive(Debug)]
pub struct NodePorts {
    /// A GET, and its stream of bytes or the sentence why there is none.
    pub gets: ask::Receiver<(NodeName, NodeGet), kedge_cloudstream::NodeAnswer>,
    /// A connection, and the bytes after the head of its request, both ways.
    pub connects: ask::Receiver<(NodeName, NodeConnect), kedge_cloudstream::ConnectAnswer>,
}

impl NodePorts {
    /// Nobody asks.
    pub fn closed() -> Self {
        let (_, gets) = ask::channel("node gets", 1);
        let (_, connects) = ask::channel("node connects", 1);
        Self { gets, connects }
    }
}

/// A CloudCore that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// `None` when `modules.cloudHub.websocket.enable` is false.
    pub hub: Option<SocketAddr>,
    /// `None` unless `modules.cloudHub.quic.enable` is true.
    pub quic: Option<SocketAddr>,
    pub https: SocketAddr,
    /// `None` when `modules.cloudStream.enable` is false.
    pub tunnel: Option<SocketAddr>,
    /// `/healthz`, `/readyz`, `/metrics`.
    pub monitor: SocketAddr,
    /// The join token of this moment, also in the secret `kubeedge/tokensecret`.
    pub token: String,
}

/// Starts every part; they end with `scope`.
pub async fn start(
    config: kedge_config::CloudCore,
    cluster: Cluster,
    node_ports: NodePorts,
    scope: &Scope,
) -> Result<Running> {
    // First what operators look at, so that they see a start that hangs.
    let (metrics, health) = (Registry::new(), Health::new());
    let (hub_ready, watches_ready) = (health.part("hub"), health.part("watches"));
    let monitor = Monitor::bind(config.monitor.address, health, metrics.clone())
        .await
        .with_context(|| {
            format!(
                "commonConfig.monitorServer.bindAddress: listen on {}",
                config.monitor.address
            )
        })?;
    let monitor_address = monitor.local_address();
    scope.spawn_vital("monitor", monitor.run(scope.clone()));

    let material = material::load_or_create(&cluster, &config.hub).await?;
    let refresh_interval = config.hub.token_refresh_interval;
    let token = tokens::shared::current(&cluster, &material.authority, refresh_interval).await?;
    let budget = Budget::start(budget_config(&config.kube_api), &metrics, scope);
    let leads = leadership(&config.replica).start(cluster.clone(), scope);

    let (attach_tx, attach_rx) = ask::channel("attach", ATTACH_WAITING_MAX);
    let (hub_attach_tx, hub_attach_rx) = ask::channel("hub attach", ATTACH_WAITING_MAX);
    let (node_exists_tx, node_exists_rx) = ask::channel("node exists", NODE_EXISTS_WAITING_MAX);
    let (redeem_tx, redeem_rx) = ask::channel("redeem", REDEEM_WAITING_MAX);

    let hub_ports = kedge_cloudhub::Ports {
        attach: hub_attach_tx,
        node_exists: node_exists_tx,
        redeem: redeem_tx,
    };
    let hub = CloudHub::bind(hub_config(&config.hub, &material, &cluster, &metrics), hub_ports).await?;
    let (hub_address, quic, https) = (hub.hub_address(), hub.quic_address(), hub.https_address());
    let stream = match config.stream.enable {
        true => {
            let address = SocketAddr::new(config.hub.https.ip(), config.stream.tunnel_port);
            let identity = material.server.clone();
            let stream_config = kedge_cloudstream::Config { address, identity };
            let NodePorts { gets, connects } = node_ports;
            let ports = kedge_cloudstream::Ports { gets, connects };
            Some(CloudStream::bind(stream_config, ports).await?)
        }
        false => None,
    };
    let tunnel = stream.as_ref().map(CloudStream::local_address);

    let hands = kedge_controllers::Hands {
        cluster: cluster.clone(),
        budget,
        metrics,
        leads,
    };
    let controllers = Controllers::new(controllers_config(&config), hands, attach_rx);
    let synced = controllers.synced();
    scope.spawn_vital("controllers", controllers.run(scope.clone()));
    scope.spawn_vital("attach adapter", adapt_attach(hub_attach_rx, attach_tx));
    scope.spawn_until_cancelled("node exists", answer_node_exists(cluster.clone(), node_exists_rx));
    scope.spawn_until_cancelled("one-time tokens", one_time::answer(cluster.clone(), redeem_rx));
    let keep = tokens::keep(cluster, material.authority, refresh_interval);
    scope.spawn_until_cancelled("join tokens", keep);
    scope.spawn_vital("cloudhub", hub.run(scope.clone()));
    if let Some(stream) = stream {
        scope.spawn_vital("cloudstream", stream.run(scope.clone()));
    }
    hub_ready.ready();
    scope.spawn(
        "readiness",
        tell_readiness(synced, watches_ready, hub_ready, scope.clone()),
    );

    Ok(Running {
        hub: hub_address,
        quic,
        https,
        tunnel,
        monitor: monitor_address,
        token: token.text().to_owned(),
    })
}

fn budget_config(api: &kedge_config::cloudcore::KubeApi) -> BudgetConfig {
    BudgetConfig {
        calls_per_second: api.qps,
        burst: api.burst,
        concurrent_max: API_CALLS_MAX,
    }
}

fn leadership(replica: &str) -> Leadership {
    let (namespace, name) = LEADER_LEASE;
    Leadership {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        // A replica that was started anew is another candidate: it knows nothing of what the former one was doing.
        identity: format!("{replica}_{:016x}", clock::process_seed()),
    }
}

fn controllers_config(config: &kedge_config::CloudCore) -> kedge_controllers::Config {
    kedge_controllers::Config {
        replica: Some(config.replica.clone()),
        advertise_address: config.hub.advertise_addresses.first().map(ToString::to_string),
        events: config.edge_controller.events,
        serving_certificates: config.edge_controller.serving_certificates,
        object_syncs: config.sync_controller.enable,
        seed: clock::process_seed(),
        ..kedge_controllers::Config::default()
    }
}

fn hub_config(
    hub: &kedge_config::CloudHub,
    material: &Material,
    cluster: &Cluster,
    metrics: &Registry,
) -> kedge_cloudhub::Config {
    kedge_cloudhub::Config {
        hub_address: hub.websocket,
        quic_address: hub.quic,
        https_address: hub.https,
        authority: material.authority.clone(),
        identity: material.server.clone(),
        node_limit: hub.node_limit,
        flow: kedge_cloudhub::FlowLimits::default(),
        keepalive_timeout: hub.keepalive_timeout,
        certificate_lifetime: hub.edge_certificate_lifetime,
        kubernetes_ca: cluster.authority_pem().map(str::to_owned),
        seed: clock::process_seed(),
        metrics: metrics.clone(),
    }
}

/// Ready when the watches have told everything; not ready any more once the process drains, so that load balancers send
/// no new edges while the old ones are told to go.
async fn tell_readiness(mut synced: latest::Receiver<bool>, watches: Part, hub: Part, scope: Scope) {
    let complete = async move {
        // The controllers are vital: when they end, so does the process.
        if synced.wait_for(|synced| *synced).await.is_ok() {
            watches.ready();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = scope.cancelled() => {}
        () = complete => {}
    }
    hub.not_ready("draining");
}

/// The hub and the controllers do not know each other: the same ends, under each one's own name.
async fn adapt_attach(
    mut hub: ask::Receiver<kedge_cloudhub::Attach, Attached>,
    controllers: ask::Sender<kedge_controllers::Attach, Attached>,
) {
    while let Some(ask::Question { question, reply }) = hub.recv().await {
        let kedge_cloudhub::Attach {
            node,
            peer,
            desired,
            requests,
            acked,
        } = question;
        let attach = kedge_controllers::Attach {
            node,
            peer,
            desired,
            requests,
            acked,
        };
        let question = ask::Question {
            question: attach,
            reply,
        };
        if controllers.forward(question).await.is_err() {
            return;
        }
    }
}

async fn answer_node_exists(cluster: Cluster, mut asked: ask::Receiver<NodeName, bool>) {
    while let Some(ask::Question { question, reply }) = asked.recv().await {
        match cluster.get(&format!("/api/v1/nodes/{question}")).await {
            Ok(_) => reply.send(true),
            Err(error) if error.is_not_found() => reply.send(false),
            // No answer is the answer: the hub says that it does not know.
            Err(error) => tracing::warn!(node = %question, %error, "cannot tell whether the node exists"),
        }
    }
}
