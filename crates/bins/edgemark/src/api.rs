//! The embedded API of `bench`, in a process of its own, so that what it uses is not taken for CloudCore's.

use crate::processes;
use anyhow::{Context, Result};
use kedge_apiserver::{ApiServer, StorageAt};
use kedge_cluster::Parts;
use kedge_pki::{ADMINS_ORGANIZATION, Authority, Key, ServerNames, UnixTime, write_private};
use kedge_telemetry::Scope;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the process says once it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    pub url: String,
    pub admin_kubeconfig: PathBuf,
    pub cloudcore_kubeconfig: PathBuf,
}

/// Serves until standard input ends.
pub fn main(dir: &Path) -> Result<()> {
    processes::end_with_parent()?;
    crate::proc::raise_descriptor_limit().context("raise the limit of file descriptors")?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    tokio.block_on(serve(dir))
}

async fn serve(dir: &Path) -> Result<()> {
    let now = UnixTime::now();
    let authority = Authority::create_named("edgemark", now)?;
    let names = ServerNames {
        ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        dns: vec!["localhost".into()],
    };
    let server = authority.issue_server_as("edgemark-api", &names, now)?;
    let config = kedge_apiserver::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        storage: StorageAt::Memory,
        server_certificate_pem: server.chain_pem(),
        server_key_pem: server.key().pem(),
        client_ca_pem: authority.certificate().pem(),
        client_ca_key_pem: Some(authority.key().pkcs8_pem()),
        service_account_key_pem: Key::generate()?.pkcs8_pem(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        root_ca_pem: authority.certificate().pem(),
        cluster_cidr: None,
        trusted_groups: Vec::new(),
        limits: kedge_apiserver::Limits::default(),
    };
    let api = ApiServer::open(config, kedge_apiserver::Ports::default()).await?;
    let url = format!("https://{}", api.address());
    let scope = Scope::new();
    scope.spawn_vital("apiserver", api.run(scope.clone()));

    let (mut input, mut output) = processes::standard_pipes()?;
    let listening = Listening {
        admin_kubeconfig: client(&authority, &url, dir, "admin", now)?,
        cloudcore_kubeconfig: client(&authority, &url, dir, "cloudcore", now)?,
        url,
    };
    let line = serde_json::to_string(&listening)? + "\n";
    output.write_all(line.as_bytes()).await?;
    let mut nothing = [0];
    tokio::select! {
        failure = scope.failed() => anyhow::bail!("{failure}"),
        read = input.read(&mut nothing) => read.map(drop).context("wait for the end"),
    }
}

/// A client that may do everything, and its kubeconfig.
fn client(authority: &Authority, url: &str, dir: &Path, name: &str, now: UnixTime) -> Result<PathBuf> {
    let identity = authority.issue_client(name, &[ADMINS_ORGANIZATION], LIFETIME, now)?;
    let path = dir.join(format!("{name}.kubeconfig"));
    let parts = Parts {
        url,
        ca_pem: &identity.authority().pem(),
        client_certificate_pem: &identity.chain_pem(),
        client_key_pem: &identity.key().pem(),
    };
    write_private(&path, parts.kubeconfig_yaml("edgemark", name).as_bytes())?;
    Ok(path)
}
