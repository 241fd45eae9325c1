//! Every channel and every task of CloudCore, in order.
//!
//! ```text
//!   cluster ──watch──> controllers <──attach── cloudhub <── edges
//!                          │ node_exists ────────^
//!   node_get ──> cloudstream <── tunnels of edges
//! ```

use crate::material::{self, Material};
use anyhow::{Context, Result};
use kedge_cloudhub::CloudHub;
use kedge_cloudstream::CloudStream;
use kedge_cluster::Cluster;
use kedge_controllers::Controllers;
use kedge_pki::ServerNames;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{NodeName, Object, ObjectKey};
use std::net::{IpAddr, SocketAddr};

/// Sessions that wait to be attached at one time: the hub admits handshakes at about this rate a second.
const ATTACH_WAITING_MAX: usize = 256;
/// Questions "does this node exist" at one time; each is one small API call of a joining edge.
const NODE_EXISTS_WAITING_MAX: usize = 64;

/// Everything that a node must hold.
type Desired = Vec<(ObjectKey, Object)>;

/// A GET to a node's kubelet port, and its stream of bytes or the sentence why there is none.
pub type NodeGetPort = ask::Receiver<(NodeName, NodeGet), Result<queue::Receiver<bytes::Bytes>, String>>;

/// A CloudCore that runs.
#[derive(Debug, Clone)]
pub struct Running {
    pub hub: SocketAddr,
    pub https: SocketAddr,
    /// `None` when `modules.cloudStream.enable` is false.
    pub tunnel: Option<SocketAddr>,
    /// The join token of this moment, also in the secret `kubeedge/tokensecret`.
    pub token: String,
}

/// Starts every part; they end with `scope`.
pub async fn start(
    config: kedge_config::CloudCore,
    cluster: Cluster,
    node_get: NodeGetPort,
    scope: &Scope,
) -> Result<Running> {
    let names = server_names(&config.hub)?;
    let material = material::load_or_create(&cluster, &names).await?;
    let token =
        material::publish_token(&cluster, &material.authority, config.hub.token_refresh_interval).await?;

    let (attach_tx, attach_rx) = ask::channel("attach", ATTACH_WAITING_MAX);
    let (hub_attach_tx, hub_attach_rx) = ask::channel("hub attach", ATTACH_WAITING_MAX);
    let (node_exists_tx, node_exists_rx) = ask::channel("node exists", NODE_EXISTS_WAITING_MAX);

    let hub_ports = kedge_cloudhub::Ports {
        attach: hub_attach_tx,
        node_exists: node_exists_tx,
    };
    let hub = CloudHub::bind(hub_config(&config.hub, &material)?, hub_ports).await?;
    let (hub_address, https_address) = (hub.hub_address(), hub.https_address());
    let stream = match config.stream.enable {
        true => {
            let address = SocketAddr::new(ip(&config.hub.websocket_address)?, config.stream.tunnel_port);
            let stream_config = kedge_cloudstream::Config {
                address,
                identity: material.server.clone(),
            };
            Some(CloudStream::bind(stream_config, kedge_cloudstream::Ports { gets: node_get }).await?)
        }
        false => None,
    };
    let tunnel = stream.as_ref().map(CloudStream::local_address);

    let controllers_config = kedge_controllers::Config {
        advertise_address: config.hub.advertise_addresses.first().cloned(),
        ..kedge_controllers::Config::default()
    };
    let controllers = Controllers::new(controllers_config, cluster.clone(), attach_rx);
    scope.spawn_vital("controllers", controllers.run(scope.clone()));
    scope.spawn_vital("attach adapter", adapt_attach(hub_attach_rx, attach_tx));
    scope.spawn_until_cancelled("node exists", answer_node_exists(cluster.clone(), node_exists_rx));
    scope.spawn_vital("cloudhub", hub.run(scope.clone()));
    if let Some(stream) = stream {
        scope.spawn_vital("cloudstream", stream.run(scope.clone()));
    }
    let refresh = refresh_token(cluster, material, config.hub.token_refresh_interval);
    scope.spawn_until_cancelled("join token refresh", refresh);

    Ok(Running {
        hub: hub_address,
        https: https_address,
        tunnel,
        token: token.text().to_owned(),
    })
}

fn hub_config(hub: &kedge_config::CloudHub, material: &Material) -> Result<kedge_cloudhub::Config> {
    Ok(kedge_cloudhub::Config {
        hub_address: SocketAddr::new(ip(&hub.websocket_address)?, hub.websocket_port),
        https_address: SocketAddr::new(ip(&hub.https_address)?, hub.https_port),
        authority: material.authority.clone(),
        identity: material.server.clone(),
        node_limit: hub.node_limit,
        keepalive_timeout: hub.keepalive_timeout,
        certificate_lifetime: hub.edge_cert_duration,
        kubernetes_ca: None,
        seed: kedge_telemetry::clock::process_seed(),
    })
}

fn ip(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| format!("address {text}"))
}

/// Edges on this machine dial it as localhost.
fn server_names(hub: &kedge_config::CloudHub) -> Result<ServerNames> {
    let mut ips = vec![IpAddr::from([127, 0, 0, 1])];
    for address in &hub.advertise_addresses {
        let address = ip(address).context("modules.cloudHub.advertiseAddress")?;
        if !ips.contains(&address) {
            ips.push(address);
        }
    }
    let mut dns = vec!["localhost".to_owned()];
    dns.extend(hub.dns_names.iter().cloned());
    Ok(ServerNames { ips, dns })
}

/// The hub and the controllers do not know each other: the same three ends, under each one's own name.
async fn adapt_attach(
    mut hub: ask::Receiver<kedge_cloudhub::Attach, Desired>,
    controllers: ask::Sender<kedge_controllers::Attach, Desired>,
) {
    while let Some(ask::Question { question, reply }) = hub.recv().await {
        let kedge_cloudhub::Attach {
            node,
            desired,
            requests,
        } = question;
        let attach = kedge_controllers::Attach {
            node,
            desired,
            requests,
        };
        if controllers
            .forward(ask::Question {
                question: attach,
                reply,
            })
            .await
            .is_err()
        {
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

async fn refresh_token(cluster: Cluster, material: Material, interval: std::time::Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = material::publish_token(&cluster, &material.authority, interval).await {
            tracing::warn!(error = format!("{error:#}"), "the join token was not refreshed");
        }
    }
}
