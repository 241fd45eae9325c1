//! How a connection to the API is made, and what is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_pki::certificate_pem;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An API server in another rack answers a TCP connect within milliseconds; the rest is a broken path.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A Kubernetes API. Cloning shares the connections.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: kube::Client,
    url: String,
    authority_pem: Option<Arc<str>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.url)
    }
}

/// What a connection is made of, all in PEM, for an API whose certificates we made ourselves.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// For example `https://127.0.0.1:6443`.
    pub url: &'a str,
    pub ca_pem: &'a str,
    pub client_certificate_pem: &'a str,
    pub client_key_pem: &'a str,
}

/// Why there is no connection to work with.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("kubeconfig {path} cannot be read: {source}")]
    Read {
        path: PathBuf,
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("kubeconfig cannot be used: {0}")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    #[error(
        "this process does not run in a Kubernetes pod with a service account: {0}; give a kubeconfig instead"
    )]
    InCluster(#[source] kube::config::InClusterError),
    #[error(
        "{url}: the kubeconfig switches certificate verification off; give its certificate-authority-data instead"
    )]
    Insecure { url: String },
    #[error("{url}: no certificate authority is given; only the kubeconfig's own authority is trusted")]
    NoAuthority { url: String },
    #[error("{url} is not an address such as https://10.0.0.1:6443: {source}")]
    Address {
        url: String,
        source: http::uri::InvalidUri,
    },
    #[error("{url}: plain http is taken from this machine only")]
    Plain { url: String },
    #[error(
        "the kubeconfig wants to run the program {command:?} for credentials; give a client certificate or a token file"
    )]
    Program { command: String },
    #[error("{url}: the credentials cannot be used: {source}")]
    Client { url: String, source: Box<kube::Error> },
}

impl Cluster {
    /// The current context of a kubeconfig file. Must be called inside a tokio runtime, as all three.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, ConnectError> {
        let kubeconfig = Kubeconfig::read_from(path).map_err(|source| ConnectError::Read {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Self::from_parsed(kubeconfig).await
    }

    /// The current context of a kubeconfig file, at another address than the file says.
    pub async fn from_kubeconfig_at(path: &Path, url: &str) -> Result<Self, ConnectError> {
        let kubeconfig = Kubeconfig::read_from(path).map_err(|source| ConnectError::Read {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mut config = Self::config_of(kubeconfig).await?;
        config.cluster_url = url.parse().map_err(|source| ConnectError::Address {
            url: url.to_owned(),
            source,
        })?;
        Self::from_config(config)
    }

    /// The service account that Kubernetes gives to every pod.
    pub async fn in_cluster() -> Result<Self, ConnectError> {
        Self::from_config(Config::incluster().map_err(ConnectError::InCluster)?)
    }

    /// An API whose address and certificates are known.
    pub async fn from_parts(parts: Parts<'_>) -> Result<Self, ConnectError> {
        Self::from_parsed(parts.kubeconfig()).await
    }

    /// The address of the API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificates of the authority that signed the API's, in PEM; `None` for a plain connection on loopback.
    pub fn authority_pem(&self) -> Option<&str> {
        self.authority_pem.as_deref()
    }

    async fn from_parsed(kubeconfig: Kubeconfig) -> Result<Self, ConnectError> {
        Self::from_config(Self::config_of(kubeconfig).await?)
    }

    async fn config_of(kubeconfig: Kubeconfig) -> Result<Config, ConnectError> {
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|source| ConnectError::Kubeconfig(Box::new(source)))
    }

    fn from_config(mut config: Config) -> Result<Self, ConnectError> {
        let url = config.cluster_url.to_string();
        refuse_weak(&config, &url)?;
        let authority_pem = config
            .root_cert
            .as_deref()
            .map(|chain| chain.iter().map(|der| certificate_pem(der)).collect::<String>());
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Time limits and retries belong to the call and to the watch, which know what they are doing.
        config.read_timeout = None;
        config.write_timeout = None;
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(|source| ConnectError::Client {
            url: url.clone(),
            source: Box::new(source),
        })?;
        Ok(Self {
            client,
            url,
            authority_pem: authority_pem.map(Arc::from),
        })
    }
}

fn refuse_weak(config: &Config, url: &str) -> Result<(), ConnectError> {
    let url = || url.to_owned();
    if config.accept_invalid_certs {
        return Err(ConnectError::Insecure { url: url() });
    }
    if let Some(exec) = &config.auth_info.exec {
        return Err(ConnectError::Program {
            command: exec.command.clone().unwrap_or_default(),
        });
    }
    let local = matches!(
        config.cluster_url.host(),
        Some("127.0.0.1" | "[::1]" | "localhost")
    );
    match config.cluster_url.scheme_str() {
        Some("https") if config.root_cert.is_none() => Err(ConnectError::NoAuthority { url: url() }),
        Some("https") => Ok(()),
        _plain if local => Ok(()),
        _plain => Err(ConnectError::Plain { url: url() }),
    }
}

impl Parts<'_> {
    /// The text of a kubeconfig with everything inside. Cluster and context are called `name`.
    pub fn kubeconfig_yaml(&self, name: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
             clusters:\n- name: {name}\n  cluster:\n    server: {url}\n    certificate-authority-data: {ca}\n\
             contexts:\n- name: {name}\n  context: {{cluster: {name}, user: {user}}}\n\
             users:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n",
            url = self.url,
            ca = BASE64.encode(self.ca_pem),
            certificate = BASE64.encode(self.client_certificate_pem),
            key = BASE64.encode(self.client_key_pem),
        )
    }

    /// The same as a kubeconfig, so that there is one way in.
    fn kubeconfig(&self) -> Kubeconfig {
        let mut cluster = json!({ "server": self.url });
        let mut user = json!({});
        if !self.ca_pem.is_empty() {
            cluster["certificate-authority-data"] = BASE64.encode(self.ca_pem).into();
        }
        if !self.client_certificate_pem.is_empty() {
            user["client-certificate-data"] = BASE64.encode(self.client_certificate_pem).into();
            user["client-key-data"] = BASE64.encode(self.client_key_pem).into();
        }
        let kubeconfig = json!({
            "clusters": [{ "name": "parts", "cluster": cluster }],
            "users": [{ "name": "parts", "user": user }],
            "contexts": [{ "name": "parts", "context": { "cluster": "parts", "user": "parts" } }],
            "current-context": "parts",
        });
        serde_json::from_value(kubeconfig).expect("a kubeconfig of text fields is well-formed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    async fn check(kubeconfig: serde_json::Value, expect: Expect) {
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        let line = match Cluster::from_parsed(kubeconfig).await {
            Ok(cluster) => format!("{cluster:?}"),
            Err(error) => error.to_string(),
        };
        expect.assert_eq(&line);
    }

    fn kubeconfig(cluster: serde_json::Value, user: serde_json::Value) -> serde_json::Value {
        json!({
            "clusters": [{ "name": "c", "cluster": cluster }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        })
    }

    #[tokio::test]
    async fn what_would_weaken_the_connection_is_refused_with_the_way_out() {
        check(
            kubeconfig(
                json!({"server": "https://a:6443", "insecure-skip-tls-verify": true}),
                json!({}),
            ),
            expect!["https://a:6443/: the kubeconfig switches certificate verification off; give its certificate-authority-data instead"],
        )
        .await;
        check(
            kubeconfig(json!({"server": "https://a:6443"}), json!({})),
            expect!["https://a:6443/: no certificate authority is given; only the kubeconfig's own authority is trusted"],
        )
        .await;
        check(
            kubeconfig(json!({"server": "http://a:8080"}), json!({})),
            expect!["http://a:8080/: plain http is taken from this machine only"],
        )
        .await;
        check(
            kubeconfig(json!({"server": "http://127.0.0.1:8001"}), json!({})),
            expect!["Cluster(http://127.0.0.1:8001/)"],
        )
        .await;
        let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}});
        check(kubeconfig(json!({"server": "https://a"}), exec), expect![[r#"the kubeconfig wants to run the program "aws" for credentials; give a client certificate or a token file"#]]).await;
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = Cluster::from_kubeconfig(Path::new("/nonexistent/kubeconfig"))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("kubeconfig /nonexistent/kubeconfig cannot be read"),
            "{error}"
        );
    }
}
