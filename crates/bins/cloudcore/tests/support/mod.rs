//! An embedded Kubernetes API, and hands that a test wants on it.
#![allow(dead_code)] // each test binary uses a part of it

use kedge_apiserver::{ApiServer, StorageAt};
use kedge_cluster::{Cluster, Parts};
use kedge_config::{CloudCore, CloudFacts, CloudHub};
use kedge_pki::{Authority, Key, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_wire::Body;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) kubeconfig: String,
    scope: Scope,
}

impl Drop for World {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let now = UnixTime::now();
        let authority = Authority::create_named("test", now).unwrap();
        let names = ServerNames {
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            dns: vec![],
        };
        let server = authority.issue_server_as("test-api", &names, now).unwrap();
        let config = kedge_apiserver::Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            storage: StorageAt::Memory,
            server_certificate_pem: server.chain_pem(),
            server_key_pem: server.key().pem(),
            client_ca_pem: authority.certificate().pem(),
            client_ca_key_pem: None,
            service_account_key_pem: Key::generate().unwrap().pkcs8_pem(),
            service_account_issuer: "https://kubernetes.default.svc".into(),
            root_ca_pem: authority.certificate().pem(),
            cluster_cidr: None,
            trusted_groups: Vec::new(),
            limits: kedge_apiserver::Limits::default(),
        };
        let api = ApiServer::open(config, kedge_apiserver::Ports::default())
            .await
            .unwrap();
        let url = format!("https://{}", api.address());
        let scope = Scope::new();
        scope.spawn("api", api.run(scope.clone()));
        let admin = authority
            .issue_client("admin", &[kedge_pki::ADMINS_ORGANIZATION], DAY, now)
            .unwrap();
        let parts = Parts {
            url: &url,
            ca_pem: &authority.certificate().pem(),
            client_certificate_pem: &admin.chain_pem(),
            client_key_pem: &admin.key().pem(),
        };
        Self {
            kubeconfig: parts.kubeconfig_yaml("test", "test"),
            cluster: Cluster::from_parts(parts).await.unwrap(),
            scope,
        }
    }

    /// The authority that CloudCore makes there, or has made.
    pub(crate) async fn authority(&self) -> Authority {
        let material = kedge_cloudcore::material::load_or_create(&self.cluster, &hub("")).await;
        material.unwrap().authority
    }

    pub(crate) async fn namespace(&self) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeedge"}});
        let body = Body::from_value(&namespace).unwrap();
        self.cluster.create("/api/v1/namespaces", &body).await.unwrap();
    }

    pub(crate) async fn make_secret(&self, name: &str, data: Value) -> Value {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "namespace": "kubeedge"}, "data": data});
        let body = Body::from_value(&secret).unwrap();
        let made = self
            .cluster
            .create("/api/v1/namespaces/kubeedge/secrets", &body)
            .await;
        made.unwrap().parse().unwrap()
    }

    pub(crate) async fn put_secret(&self, secret: &Value) {
        let path = format!(
            "/api/v1/namespaces/kubeedge/secrets/{}",
            secret["metadata"]["name"].as_str().unwrap()
        );
        self.cluster
            .update(&path, &Body::from_value(secret).unwrap())
            .await
            .unwrap();
    }

    pub(crate) async fn secret(&self, name: &str) -> Option<Value> {
        let path = format!("/api/v1/namespaces/kubeedge/secrets/{name}");
        match self.cluster.get(&path).await {
            Ok(secret) => Some(secret.parse().unwrap()),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The hub's part of a configuration, with these lines below `modules.cloudHub` and no files of this machine.
pub(crate) fn hub(lines: &str) -> CloudHub {
    let mut text = String::from("modules:\n  cloudHub:\n");
    let none = ["tlsCAFile", "tlsCAKeyFile", "tlsCertFile", "tlsPrivateKeyFile"];
    for key in none.iter().filter(|key| !lines.contains(&format!("{key}:"))) {
        text.push_str(&format!("    {key}: ''\n"));
    }
    for line in lines.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    let facts = CloudFacts {
        primary_ip: "192.0.2.1".into(),
        hostname: "cloud".into(),
    };
    CloudCore::from_yaml(&text, &facts).unwrap().0.hub
}

pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-cloudcore-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
