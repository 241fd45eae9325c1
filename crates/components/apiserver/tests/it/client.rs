//! A server on a free port with certificates of its own, and an HTTPS client for it.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kedge_apiserver::{ApiServer, Config, Limits, Ports, StorageAt};
use kedge_telemetry::Scope;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Nothing here takes longer unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A CA and what it signed.
pub(crate) struct Pki {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    account_key: String,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        Self {
            issuer,
            account_key: rcgen::KeyPair::generate().unwrap().serialize_pem(),
        }
    }

    fn sign(&self, names: &[&str], user: &str, group: &str) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, user);
        parameters
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, group);
        let key = rcgen::KeyPair::generate().unwrap();
        (
            parameters.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    pub(crate) fn config(&self, storage: StorageAt) -> Config {
        let (certificate, key) = self.sign(&["localhost"], "apiserver", "kedge");
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            storage,
            server_certificate_pem: certificate,
            server_key_pem: key,
            client_ca_pem: self.issuer.pem(),
            client_ca_key_pem: Some(self.issuer.key().serialize_pem()),
            service_account_key_pem: self.account_key.clone(),
            service_account_issuer: "https://kubernetes.default.svc".to_owned(),
            root_ca_pem: self.issuer.pem(),
            cluster_cidr: Some("10.42.0.0/16".to_owned()),
            trusted_groups: vec!["kedge:cloudcore".to_owned()],
            limits: Limits::default(),
        }
    }
}

/// A running server.
pub(crate) struct Running {
    pub(crate) pki: Arc<Pki>,
    pub(crate) address: SocketAddr,
    pub(crate) scope: Scope,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with(Arc::new(Pki::new()), StorageAt::Memory, Ports::default()).await
    }

    pub(crate) async fn with(pki: Arc<Pki>, storage: StorageAt, ports: Ports) -> Self {
        let config = pki.config(storage);
        Self::with_config(pki, config, ports).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let pki = Arc::new(Pki::new());
        let config = Config {
            limits,
            ..pki.config(StorageAt::Memory)
        };
        Self::with_config(pki, config, Ports::default()).await
    }

    async fn with_config(pki: Arc<Pki>, config: Config, ports: Ports) -> Self {
        let server = ApiServer::open(config, ports).await.unwrap();
        let address = server.address();
        let scope = Scope::new();
        let inner = scope.clone();
        scope.spawn("apiserver", async move { server.run(inner).await });
        Self { pki, address, scope }
    }

    pub(crate) async fn stop(self) {
        let report = self.scope.drain(PATIENCE).await;
        assert!(report.left.is_empty(), "{report:?}");
    }

    pub(crate) fn admin(&self) -> Client {
        self.client(Some(("admin", "system:masters")))
    }

    /// Somebody who holds a token.
    pub(crate) fn bearer(&self, token: &str) -> Client {
        Client {
            token: Some(token.to_owned()),
            ..self.client(None)
        }
    }

    pub(crate) fn client(&self, who: Option<(&str, &str)>) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pki.issuer.pem().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match who {
            Some((user, group)) => {
                let (certificate, key) = self.pki.sign(&[], user, group);
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Client {
            address: self.address,
            tls: Arc::new(tls),
            token: None,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    pub(crate) token: Option<String>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// Fails with the server's words unless it went well.
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{} {:?}", self.code, self.body);
        self.json()
    }
}

impl Client {
    /// A connection for a client that writes HTTP/1.1 by itself.
    pub(crate) async fn connect_for_http1(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        connector.connect(name, stream).await.unwrap()
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let builder = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"));
        match &self.token {
            Some(token) => builder.header("authorization", format!("Bearer {token}")),
            None => builder,
        }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let mut builder = self.request(method, path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let exchange = async {
            let response = self.open(builder.body(Full::new(body)).unwrap()).await;
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer {
                code: head.status.as_u16(),
                headers: head.headers,
                body,
            }
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("the server answers")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(Method::GET, path, &[(ACCEPT.as_str(), accept)], Bytes::new())
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[], body.to_string().into()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, &[], body.to_string().into()).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let media_type = format!("application/{kind}");
        self.send(
            Method::PATCH,
            path,
            &[(CONTENT_TYPE.as_str(), &media_type)],
            body.to_string().into(),
        )
        .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// Begins a watch.
    pub(crate) async fn watch(&self, path: &str) -> Lines {
        let request = self.request(Method::GET, path).body(Full::default()).unwrap();
        let response = self.open(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }
}

/// A streamed answer, line by line.
pub(crate) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next line as JSON; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let line = self.line().await?;
        Some(serde_json::from_slice(&line).unwrap())
    }

    pub(crate) async fn line(&mut self) -> Option<Vec<u8>> {
        let read = async {
            loop {
                if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.rest.drain(..=end).collect();
                    return Some(line);
                }
                match self.body.frame().await {
                    Some(frame) => self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                    None => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a line comes")
    }

    /// The next event as `ADDED name`.
    pub(crate) async fn event(&mut self) -> String {
        match self.next().await {
            Some(event) => {
                let name = event["object"]["metadata"]["name"]
                    .as_str()
                    .unwrap_or("-")
                    .to_owned();
                format!("{} {name}", event["type"].as_str().unwrap())
            }
            None => "end".to_owned(),
        }
    }

    /// Waits for an event whose object is as wished.
    pub(crate) async fn until(&mut self, what: &str, wished: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self
                .next()
                .await
                .unwrap_or_else(|| panic!("the watch ended before: {what}"));
            if wished(&event["object"]) {
                return event["object"].clone();
            }
        }
    }
}

/// A directory that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-apiserver-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
