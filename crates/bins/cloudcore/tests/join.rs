//! A whole CloudCore beside the embedded Kubernetes API, and edges that join it.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use kedge_cloudcore::material;
use kedge_cloudcore::tokens::one_time;
use kedge_cloudcore::wiring::{self, Running};
use kedge_config::cloudcore::CertificateFiles;
use kedge_config::{CloudCore, CloudFacts};
use kedge_edgehub::CertificateConfig;
use kedge_pki::{IdentityFiles, UnixTime};
use kedge_telemetry::Scope;
use kedge_wire::NodeName;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use support::{Directory, World};

const HOUR: Duration = Duration::from_secs(3600);

fn config() -> CloudCore {
    let facts = CloudFacts {
        primary_ip: "127.0.0.1".into(),
        hostname: "cloud".into(),
    };
    let (mut config, _) = CloudCore::from_yaml("", &facts).unwrap();
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.monitor.address = free;
    config.hub.websocket = Some(free);
    config.hub.https = free;
    config.hub.files = CertificateFiles::default();
    config.stream.enable = false;
    config
}

async fn replica(world: &World, scope: &Scope) -> Running {
    start(config(), world, scope).await
}

async fn start(config: CloudCore, world: &World, scope: &Scope) -> Running {
    let nobody_asks = wiring::NodePorts::closed();
    let started = wiring::start(config, world.cluster.clone(), nobody_asks, scope).await;
    started.unwrap_or_else(|error| panic!("{}", kedge_flags::told(error.chain())))
}

fn edge(directory: &Directory, device: &str, node: &str, cloud: &Running, token: &str) -> CertificateConfig {
    let home = directory.0.join(device);
    CertificateConfig {
        node: NodeName::new(node).unwrap(),
        http_server: format!("https://{}", cloud.https),
        token: Some(token.to_owned()),
        token_file: None,
        files: IdentityFiles::in_directories(&home.join("ca"), &home.join("certs")),
    }
}

async fn join(edge: &CertificateConfig) -> String {
    match kedge_edgehub::bootstrap(edge, UnixTime::now()).await {
        Ok(identity) => identity.certificate().info().common_name.clone(),
        Err(error) => kedge_flags::told(anyhow::Error::from(error).chain()),
    }
}

/// A device joins one replica and loses the answer; it and a thief ask the other replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_given_again_to_the_same_device_only() {
    let world = World::start().await;
    let (scope, directory) = (Scope::new(), Directory::new("join"));
    let (one, two) = (replica(&world, &scope).await, replica(&world, &scope).await);
    assert_eq!(one.token, two.token);
    let authority = material::load_authority(&world.cluster, &config().hub)
        .await
        .unwrap();
    let node = NodeName::new("gate-7").unwrap();
    let token = one_time::issue(&world.cluster, &authority, &node, HOUR, UnixTime::now())
        .await
        .unwrap();

    // A file lies where the certificate should go: it arrives, but cannot be kept.
    let mut device = edge(&directory, "device", "gate-7", &one, token.text());
    device.files.certificate = directory.0.join("blocked/server.crt");
    std::fs::write(directory.0.join("blocked"), "").unwrap();
    let lost = join(&device).await;
    assert!(lost.contains("blocked/server.crt"), "{lost}");
    std::fs::remove_file(directory.0.join("blocked")).unwrap();

    let thief = edge(&directory, "thief", "gate-7", &two, token.text());
    let other = edge(&directory, "other", "gate-8", &two, token.text());
    device.http_server = format!("https://{}", two.https);
    let shared = edge(&directory, "shared", "gate-8", &two, &one.token);
    let told = [
        join(&thief).await,
        join(&other).await,
        join(&device).await,
        join(&shared).await,
    ];
    expect_test::expect![[r#"
        the cloud refused to let this node get a certificate for this node (401: the join token of node gate-7 was used before, with another key; make a new one with `cloudcore token --node gate-7`); ask the cloud for a new token with `keadm gettoken`
        the cloud refused to let this node get a certificate for this node (401: the join token is for node gate-7, not for node gate-8); ask the cloud for a new token with `keadm gettoken`
        system:node:gate-7
        system:node:gate-8"#]].assert_eq(&told.join("\n"));
    scope.drain(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_may_be_given_quic_only() {
    let world = World::start().await;
    let scope = Scope::new();
    let mut config = config();
    config.hub.quic = config.hub.websocket.take();
    let running = start(config, &world, &scope).await;
    assert_eq!((running.hub.is_some(), running.quic.is_some()), (false, true));
    scope.drain(Duration::from_secs(10)).await;
}
