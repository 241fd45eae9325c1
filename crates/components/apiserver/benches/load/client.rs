//! A client that keeps its connection, and the certificates of both sides.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Pki {
    tls: Arc<rustls::ClientConfig>,
}

impl Pki {
    /// Makes a CA, a server certificate and an admin, and leaves for the server what is the server's.
    pub(crate) fn write(directory: &Path) -> Result<Self> {
        let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate()?)?;
        let sign = |names: &[&str], user: &str, group: &str| -> Result<(String, String)> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut parameters = rcgen::CertificateParams::new(names)?;
            parameters
                .distinguished_name
                .push(rcgen::DnType::CommonName, user);
            parameters
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, group);
            let key = rcgen::KeyPair::generate()?;
            Ok((parameters.signed_by(&key, &ca)?.pem(), key.serialize_pem()))
        };
        let server = sign(&["localhost"], "apiserver", "kedge")?;
        for (name, text) in [
            ("ca.crt", ca.pem()),
            ("server.crt", server.0),
            ("server.key", server.1),
            ("account.key", rcgen::KeyPair::generate()?.serialize_pem()),
        ] {
            std::fs::write(directory.join(name), text)?;
        }
        let admin = sign(&[], "admin", "system:masters")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(admin.0.as_bytes())?],
                PrivateKeyDer::from_pem_slice(admin.1.as_bytes())?,
            )?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { tls: Arc::new(tls) })
    }
}

pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
}

impl Caller {
    pub(crate) async fn connect(address: SocketAddr, pki: &Pki) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&pki.tls))
            .connect(name, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Response<Incoming>> {
        let kind = if kind.is_empty() { "application/json" } else { kind };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"))
            .header("content-type", kind);
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        Ok(self
            .sender
            .clone()
            .send_request(request.body(Full::new(bytes))?)
            .await?)
    }

    /// The body of the answer; a refusal is an error.
    pub(crate) async fn call(&self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Bytes> {
        let response = self.send(method, path, kind, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.is_success(), "{method} {path}: {status} {body:?}");
        Ok(body)
    }

    pub(crate) async fn watch(&self, path: &str) -> Result<Watch> {
        let response = self.send("GET", path, "", &Value::Null).await?;
        anyhow::ensure!(
            response.status().is_success(),
            "watch {path}: {}",
            response.status()
        );
        Ok(Watch {
            body: response.into_body(),
            rest: Vec::new(),
        })
    }
}

pub(crate) struct Watch {
    body: Incoming,
    rest: Vec<u8>,
}

impl Watch {
    /// Reads until so many lines with this text came.
    pub(crate) async fn lines_with(&mut self, text: &[u8], wanted: usize) -> Result<usize> {
        let mut seen = 0;
        while seen < wanted {
            let frame = self.body.frame().await.context("the watch ended")??;
            let data = frame.into_data().unwrap_or_default();
            self.rest.extend_from_slice(&data);
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                seen += usize::from(line.windows(text.len()).any(|part| part == text));
            }
        }
        Ok(seen)
    }
}
