//! A tiny cloud: an authority that serves `/ca.crt` and `/edge.crt` over HTTPS on loopback.

use crate::CertificateConfig;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kedge_pki::{
    Authority, Certificate, ClientAuth, Identity, IdentityFiles, JoinToken, ServerNames, UnixTime,
};
use kedge_transport::{Listener, accept_tls};
use kedge_wire::NodeName;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const NODE: &str = "edge-1";

/// How the cloud misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    /// Shows another authority than the one that signed its own certificate.
    FalseAuthority,
    /// Every certificate is of another node.
    OtherNode,
    /// Refuses certificates, with a date of its own.
    LivesInThePast,
    Refuses,
    TooLong,
}

#[derive(Debug, Clone)]
pub(crate) struct Cloud {
    pub(crate) authority: Arc<Authority>,
    pub(crate) address: String,
    pub(crate) server: Identity,
}

impl Cloud {
    pub(crate) async fn start(mood: Mood) -> Self {
        Self::start_as("127.0.0.1", mood).await
    }

    pub(crate) async fn start_as(ip: &str, mood: Mood) -> Self {
        let now = UnixTime::now();
        let authority = Arc::new(Authority::create(now).unwrap());
        let names = ServerNames {
            ips: vec![ip.parse().unwrap()],
            dns: Vec::new(),
        };
        let server = authority.issue_server(&names, now).unwrap();
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_address().to_string();
        let cloud = Self {
            authority,
            address,
            server,
        };
        let tls = Arc::new(cloud.server.server_config(ClientAuth::Optional).unwrap());
        let served = cloud.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await;
                let (served, tls) = (served.clone(), Arc::clone(&tls));
                tokio::spawn(async move {
                    let Ok(stream) = accept_tls(tcp, tls).await else {
                        return;
                    };
                    let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let peer =
                        peer.map(|peer| Certificate::from_der(peer).unwrap().info().common_name.clone());
                    let service = service_fn(|request| served.answer(request, mood, peer.as_deref()));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        cloud
    }

    pub(crate) fn token(&self, expires_in_seconds: i64) -> String {
        let expires = UnixTime::now()
            .as_secs()
            .saturating_add_signed(expires_in_seconds);
        let expires = UnixTime::since_unix_epoch(Duration::from_secs(expires));
        JoinToken::issue(&self.authority, expires)
            .unwrap()
            .text()
            .to_owned()
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        mood: Mood,
        peer: Option<&str>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let bytes = |body: &[u8]| Response::new(Full::new(Bytes::copy_from_slice(body)));
        Ok(match (path.as_str(), mood) {
            ("/ca.crt", Mood::FalseAuthority) => {
                bytes(Authority::create(UnixTime::now()).unwrap().certificate().der())
            }
            ("/ca.crt", Mood::TooLong) => bytes(&vec![0; 2 * 1024 * 1024]),
            ("/ca.crt", _) => bytes(self.authority.certificate().der()),
            ("/edge.crt", Mood::Refuses) => refusal("the token is not valid", None),
            ("/edge.crt", Mood::LivesInThePast) => refusal("no", Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            ("/edge.crt", _) => {
                let node = NodeName::new(head.headers["nodename"].to_str().unwrap()).unwrap();
                let known = peer == Some(format!("system:node:{node}").as_str());
                if !known {
                    let bearer = head.headers["authorization"]
                        .to_str()
                        .unwrap()
                        .strip_prefix("Bearer ")
                        .unwrap();
                    JoinToken::verify_bearer(bearer, &self.authority, UnixTime::now()).unwrap();
                }
                bytes(self.sign(&body, &node, mood).der())
            }
            _ => refusal("unknown path", None),
        })
    }

    fn sign(&self, csr: &[u8], node: &NodeName, mood: Mood) -> Certificate {
        let (now, year) = (UnixTime::now(), Duration::from_secs(365 * 24 * 3600));
        if mood == Mood::OtherNode {
            let other = self
                .authority
                .issue_client("system:node:edge-9", &["system:nodes"], year, now)
                .unwrap();
            return other.certificate().clone();
        }
        self.authority.sign_node_request(csr, node, year, now).unwrap()
    }
}

fn refusal(text: &str, date: Option<&str>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    if let Some(date) = date {
        response
            .headers_mut()
            .insert(http::header::DATE, date.parse().unwrap());
    }
    response
}

/// A directory for certificate files that goes with its owner.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kedge-edgehub-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn files(&self) -> IdentityFiles {
        IdentityFiles::in_directories(&self.0.join("ca"), &self.0.join("certs"))
    }

    pub(crate) fn config(&self, cloud: &Cloud, token: Option<&str>) -> CertificateConfig {
        CertificateConfig {
            node: NodeName::new(NODE).unwrap(),
            http_server: format!("https://{}", cloud.address),
            token: token.map(str::to_owned),
            token_file: None,
            files: self.files(),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
