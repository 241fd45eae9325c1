//! Runs the embedded API alone, with certificates made on the spot, and writes an admin kubeconfig.
//!
//! `cargo run -p kedge-apiserver --example serve -- <directory> [port]`

use anyhow::Context;
use base64::Engine;
use kedge_apiserver::{ApiServer, Config, Limits, Ports, StorageAt};
use kedge_telemetry::{Scope, signals};
use std::net::SocketAddr;
use std::path::PathBuf;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("the first argument is a directory")?);
    let port: u16 = arguments
        .next()
        .map_or(Ok(0), |text| text.parse())
        .context("the second is a port")?;
    let pki = Pki::new()?;
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        storage: StorageAt::Directory(directory.clone()),
        server_certificate_pem: pki.server.0.clone(),
        server_key_pem: pki.server.1.clone(),
        client_ca_pem: pki.ca.clone(),
        client_ca_key_pem: Some(pki.ca_key.clone()),
        service_account_key_pem: rcgen::KeyPair::generate()?.serialize_pem(),
        service_account_issuer: "https://kubernetes.default.svc".to_owned(),
        root_ca_pem: pki.ca.clone(),
        cluster_cidr: Some("10.42.0.0/16".to_owned()),
        trusted_groups: Vec::new(),
        limits: Limits::default(),
    };
    let server = ApiServer::open(config, Ports::default()).await?;
    let kubeconfig = directory.join("kubeconfig");
    std::fs::write(&kubeconfig, pki.kubeconfig(server.address()))?;
    println!("{}", kubeconfig.display());
    let scope = Scope::new();
    let inner = scope.clone();
    scope.spawn("apiserver", async move { server.run(inner).await });
    signals::stop_requested().await?;
    let report = scope.drain(std::time::Duration::from_secs(10)).await;
    anyhow::ensure!(report.left.is_empty(), "did not end: {:?}", report.left);
    Ok(())
}

/// One CA, one server certificate, one admin.
struct Pki {
    ca: String,
    ca_key: String,
    server: (String, String),
    admin: (String, String),
}

impl Pki {
    fn new() -> anyhow::Result<Self> {
        let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate()?)?;
        let sign = |names: &[&str], user: &str, group: &str| -> anyhow::Result<(String, String)> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut parameters = rcgen::CertificateParams::new(names)?;
            parameters
                .distinguished_name
                .push(rcgen::DnType::CommonName, user);
            parameters
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, group);
            let key = rcgen::KeyPair::generate()?;
            Ok((parameters.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        Ok(Self {
            ca: issuer.pem(),
            ca_key: issuer.key().serialize_pem(),
            server: sign(&["localhost", "127.0.0.1"], "apiserver", "kedge")?,
            admin: sign(&[], "admin", "system:masters")?,
        })
    }

    fn kubeconfig(&self, address: SocketAddr) -> String {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (ca, certificate, key) = (encode(&self.ca), encode(&self.admin.0), encode(&self.admin.1));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: kedge\n\
             clusters: [{{name: kedge, cluster: {{server: 'https://{address}', certificate-authority-data: {ca}}}}}]\n\
             users: [{{name: admin, user: {{client-certificate-data: {certificate}, client-key-data: {key}}}}}]\n\
             contexts: [{{name: kedge, context: {{cluster: kedge, user: admin}}}}]\n"
        )
    }
}
