//! An embedded API and a CloudCore in this process, on ports that the system chooses.

use kedge_apiserver::{ApiServer, StorageAt};
use kedge_cloudcore::wiring::{NodePorts, Running};
use kedge_cluster::{Cluster, Parts};
use kedge_config::cloudcore::CertificateFiles;
use kedge_config::{CloudCore, CloudFacts};
use kedge_pki::{Authority, Key, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Starts both; they end with `scope`. The client may do everything.
pub(crate) async fn start(scope: &Scope) -> (Cluster, Running) {
    let (cluster, node_ports) = start_api(scope).await;
    let facts = CloudFacts {
        primary_ip: "127.0.0.1".into(),
        hostname: "cloud".into(),
    };
    let (mut config, _) = CloudCore::from_yaml("", &facts).unwrap();
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.hub.websocket = Some(loopback);
    config.hub.https = loopback;
    config.monitor.address = loopback;
    config.hub.files = CertificateFiles::default();
    config.stream.tunnel_port = 0;
    let started = kedge_cloudcore::wiring::start(config, cluster.clone(), node_ports, scope).await;
    (cluster, started.unwrap())
}

async fn start_api(scope: &Scope) -> (Cluster, NodePorts) {
    let now = UnixTime::now();
    let authority = Authority::create_named("test", now).unwrap();
    let names = ServerNames {
        ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        dns: vec![],
    };
    let server = authority.issue_server_as("test-api", &names, now).unwrap();
    let (node_get_tx, gets) = ask::channel("test node gets", 8);
    let (node_connect_tx, connects) = ask::channel("test node connects", 8);
    let ports = kedge_apiserver::Ports {
        node_get: Some(node_get_tx),
        node_connect: Some(node_connect_tx),
    };
    let config = kedge_apiserver::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        storage: StorageAt::Memory,
        server_certificate_pem: server.chain_pem(),
        server_key_pem: server.key().pem(),
        client_ca_pem: authority.certificate().pem(),
        client_ca_key_pem: Some(authority.key().pkcs8_pem()),
        service_account_key_pem: Key::generate().unwrap().pkcs8_pem(),
        service_account_issuer: "https://kubernetes.default.svc".into(),
        root_ca_pem: authority.certificate().pem(),
        cluster_cidr: None,
        trusted_groups: Vec::new(),
        limits: kedge_apiserver::Limits::default(),
    };
    let api = ApiServer::open(config, ports).await.unwrap();
    let url = format!("https://{}", api.address());
    scope.spawn("api", api.run(scope.clone()));
    let admins = [kedge_pki::ADMINS_ORGANIZATION];
    let admin = authority.issue_client("admin", &admins, DAY, now).unwrap();
    let parts = Parts {
        url: &url,
        ca_pem: &authority.certificate().pem(),
        client_certificate_pem: &admin.chain_pem(),
        client_key_pem: &admin.key().pem(),
    };
    let node_ports = NodePorts { gets, connects };
    (Cluster::from_parts(parts).await.unwrap(), node_ports)
}
