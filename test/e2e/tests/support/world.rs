//! An embedded API and a CloudCore in this process, and the way an official edge joins them.

use kedge_cluster::Cluster;
use kedge_pki::{
    Bootstrap, Certificate, Identity, JoinToken, NodeRequest, UnixTime, anonymous_client_config,
};
use kedge_telemetry::Scope;
use kedge_transport::{Connection, Plug, Target, dial, dial_tls};
use kedge_wire::{Body, NodeName};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Every fact of these stories comes within a second; a loaded machine may be twenty times as slow.
pub(crate) const FACT_DEADLINE: Duration = Duration::from_secs(25);
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
/// The project in the path that official edges dial.
pub(crate) const PROJECT: &str = "e632aba927ea4ac2b575ec1603d56f10";

pub(crate) struct World {
    pub(crate) scope: Scope,
    pub(crate) cluster: Cluster,
    cloud: kedge_cloudcore::wiring::Running,
}

impl World {
    pub(crate) async fn start() -> Self {
        let scope = Scope::new();
        let (cluster, cloud) = super::cloud::start(&scope).await;
        Self {
            scope,
            cluster,
            cloud,
        }
    }

    /// The certificate for a join token, step by step as the official edge asks for it.
    pub(crate) async fn join(&self, node: &NodeName) -> Identity {
        let token = JoinToken::parse(&self.cloud.token).unwrap();
        let (tls, bootstrap) = Bootstrap::begin().unwrap();
        let fetched = self.https_get(tls, "/ca.crt", &[], &[]).await;
        let authority = bootstrap.accept(&fetched, &token, UnixTime::now()).unwrap();
        let request = NodeRequest::create(node).unwrap();
        let bearer = format!("Bearer {}", token.bearer());
        let headers = [("Authorization", bearer.as_str()), ("Nodename", node.as_str())];
        let tls = anonymous_client_config(&authority).unwrap();
        let signed = self.https_get(tls, "/edge.crt", &headers, request.der()).await;
        let certificate = Certificate::from_der(&signed).unwrap();
        Identity::new(vec![certificate], request.into_key(), authority).unwrap()
    }

    /// Dials the hub with the official headers and no others.
    pub(crate) async fn dial(&self, node: &NodeName, identity: &Identity) -> Connection {
        let target = Target::hub(&self.cloud.hub.unwrap().to_string(), PROJECT, node);
        dial(&target, Arc::new(identity.client_config().unwrap()), &Plug::new())
            .await
            .unwrap()
    }

    /// A GET with a body, as Go writes it; the body of the answer.
    async fn https_get(
        &self,
        tls: rustls::ClientConfig,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let address = self.cloud.https.to_string();
        let mut stream = dial_tls(&address, Arc::new(tls)).await.unwrap();
        let mut head =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Go-http-client/1.1\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "Content-Length: {}\r\nAccept-Encoding: gzip\r\n\r\n",
            body.len()
        ));
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without TLS goodbye has said everything all the same: the length is checked below.
        let _ = stream.read_to_end(&mut answer).await;
        let end = answer
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .expect("a head")
            + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{path}: {head}");
        assert!(
            head.contains(&format!("content-length: {}\r\n", answer.len() - end)),
            "{path}: {head}"
        );
        answer.split_off(end)
    }

    pub(crate) async fn create(&self, path: &str, object: &Value) -> Value {
        let made = self
            .cluster
            .create(path, &Body::from_value(object).unwrap())
            .await;
        made.unwrap_or_else(|error| panic!("create at {path}: {error}; {object}"))
            .parse()
            .unwrap()
    }
}
