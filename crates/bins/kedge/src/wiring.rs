//! How the three parts of kedge are put together: the embedded API, CloudCore, EdgeCore, in this order.
//!
//! ```text
//!   kubectl ──> apiserver <──HTTPS── cloudcore <══TLS══ edgecore ──> runtime
//!                   └──gets, connects (logs, exec, ports)──> cloudstream
//! ```
//!
//! They talk over loopback with certificates as they would over a network; only what the API asks of nodes takes channels,
//! because CloudCore has no kubelet endpoint (port 10003).

use crate::credentials::{Credentials, kubeconfig};
use crate::data_dir::DataDir;
use crate::preflight::HubPorts;
use anyhow::{Context, Result};
use kedge_apiserver::{ApiServer, StorageAt};
use kedge_cloudcore::wiring::NodePorts;
use kedge_cluster::{Cluster, Parts};
use kedge_config::cloudcore::CertificateFiles;
use kedge_config::{CloudCore, CloudFacts};
use kedge_pki::Identity;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use std::net::{Ipv4Addr, SocketAddr};

/// `kubectl logs` that begin at one time; more wait.
const NODE_GETS_WAITING_MAX: usize = 64;
/// The same of `kubectl exec` and the like.
const NODE_CONNECTS_WAITING_MAX: usize = 64;
/// Node addresses are given by each edge's own configuration; this network is what the API hands out for records.
const CLUSTER_CIDR: &str = "10.250.0.0/16";

/// The API with what its clients need.
pub(crate) struct Api {
    pub(crate) url: String,
    pub(crate) admin: Cluster,
    pub(crate) cloudcore: Cluster,
    pub(crate) node_ports: NodePorts,
}

/// Starts the embedded API and writes the admin kubeconfig.
pub(crate) async fn start_api(dir: &DataDir, port: u16, scope: &Scope) -> Result<Api> {
    let credentials = Credentials::load_or_create(&dir.pki())?;
    let (node_get_tx, gets) = ask::channel("node gets of the API", NODE_GETS_WAITING_MAX);
    let (node_connect_tx, connects) = ask::channel("node connects of the API", NODE_CONNECTS_WAITING_MAX);
    let config = api_config(dir, port, &credentials);
    let server = ApiServer::open(
        config,
        kedge_apiserver::Ports {
            node_get: Some(node_get_tx),
            node_connect: Some(node_connect_tx),
        },
    )
    .await?;
    let url = format!("https://{}", server.address());
    scope.spawn_vital("apiserver", server.run(scope.clone()));
    kedge_pki::write_private(&dir.kubeconfig(), kubeconfig(&url, &credentials.admin).as_bytes())?;
    Ok(Api {
        admin: client(&url, &credentials.admin).await?,
        cloudcore: client(&url, &credentials.cloudcore).await?,
        url,
        node_ports: NodePorts { gets, connects },
    })
}

/// Starts CloudCore beside the API.
pub(crate) async fn start_cloud(
    ports: HubPorts,
    cluster: Cluster,
    node_ports: NodePorts,
    scope: &Scope,
) -> Result<kedge_cloudcore::wiring::Running> {
    let facts = CloudFacts {
        primary_ip: Ipv4Addr::LOCALHOST.to_string(),
        hostname: "kedge".into(),
    };
    let (mut config, _) = CloudCore::from_yaml("", &facts).context("the defaults of CloudCore")?;
    config.hub.websocket = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, ports.link)));
    config.hub.https = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.bootstrap));
    // Certificates at the official places belong to an installation of KubeEdge on this machine, not to this one.
    config.hub.files = CertificateFiles::default();
    config.stream.tunnel_port = ports.tunnel;
    // Any port: several of these may run on one machine, and the log says which it is.
    config.monitor.address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    kedge_cloudcore::wiring::start(config, cluster, node_ports, scope).await
}

fn api_config(dir: &DataDir, port: u16, credentials: &Credentials) -> kedge_apiserver::Config {
    let authority = credentials.authority.certificate().pem();
    kedge_apiserver::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        storage: StorageAt::Directory(dir.api()),
        server_certificate_pem: credentials.server.chain_pem(),
        server_key_pem: credentials.server.key().pem(),
        client_ca_pem: authority.clone(),
        client_ca_key_pem: Some(credentials.authority.key().pkcs8_pem()),
        service_account_key_pem: credentials.service_account_key.pkcs8_pem(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        root_ca_pem: authority,
        cluster_cidr: Some(CLUSTER_CIDR.to_owned()),
        trusted_groups: Vec::new(),
        limits: kedge_apiserver::Limits::default(),
    }
}

async fn client(url: &str, identity: &Identity) -> Result<Cluster> {
    let parts = Parts {
        url,
        ca_pem: &identity.authority().pem(),
        client_certificate_pem: &identity.chain_pem(),
        client_key_pem: &identity.key().pem(),
    };
    Ok(Cluster::from_parts(parts).await?)
}
