//! The embedded Kubernetes API as a process of its own, with no CloudCore beside it: so that an official CloudCore may
//! be the first to write to it, and so that it lives on when a CloudCore is killed.
//!
//! `embedded-api DIRECTORY PORT` writes the kubeconfigs of the administrator and of CloudCore into the directory and serves until it is told to stop.

use anyhow::{Context, Result};
use kedge_apiserver::{ApiServer, Ports, StorageAt};
use kedge_interop::credentials::Credentials;
use kedge_telemetry::{Scope, logs, signals};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How long open answers may take at the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("the first argument is a directory")?);
    let port: u16 = arguments
        .next()
        .context("the second argument is a port")?
        .parse()?;
    logs::install("info", logs::Format::Text, logs::stderr());
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(serve(directory, port))
}

async fn serve(directory: PathBuf, port: u16) -> Result<()> {
    let stop = signals::stop_requested();
    let scope = Scope::new();
    let credentials = Credentials::create("kedge-interop")?;
    let server = credentials.server(&["kubernetes.default.svc"])?;
    let config = kedge_apiserver::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        storage: StorageAt::Memory,
        server_certificate_pem: server.chain_pem(),
        server_key_pem: server.key().pem(),
        client_ca_pem: credentials.authority_pem(),
        client_ca_key_pem: Some(credentials.authority_key_pem()),
        service_account_key_pem: kedge_pki::Key::generate()?.pkcs8_pem(),
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        root_ca_pem: credentials.authority_pem(),
        cluster_cidr: None,
        trusted_groups: Vec::new(),
        limits: kedge_apiserver::Limits::default(),
    };
    let api = ApiServer::open(config, Ports::default()).await?;
    let url = format!("https://{}", api.address());
    scope.spawn_vital("apiserver", api.run(scope.clone()));
    credentials.write_kubeconfigs(&directory, &url)?;
    tokio::select! {
        signal = stop => drop(signal?),
        failure = scope.failed() => anyhow::bail!("{failure}"),
    }
    scope.drain(DRAIN_DEADLINE).await;
    Ok(())
}
