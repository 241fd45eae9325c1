//! The listening side: TLS, then the WebSocket upgrade.

use crate::HANDSHAKE_TIMEOUT;
use crate::connection::{Connection, Io, Limits};
use crate::plug::Wire;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls_pki_types::CertificateDer;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// What a peer asks for in its upgrade.
#[derive(Debug)]
pub struct UpgradeRequest<'a> {
    pub path: &'a str,
    /// The peer's certificate, already verified; `None` when the server does not want one.
    pub certificate: Option<&'a CertificateDer<'static>>,
    headers: &'a HeaderMap,
}

impl UpgradeRequest<'_> {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The decision to take a connection, with whatever the owner read out of the request.
#[derive(Debug)]
pub struct Acceptance<T> {
    pub value: T,
    /// Headers of the answer.
    pub headers: Vec<(&'static str, &'static str)>,
}

/// The decision not to take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub text: String,
}

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the peer did not finish its {step} in time")]
    Timeout { step: &'static str },
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("the WebSocket upgrade failed: {0}")]
    Upgrade(String),
    #[error("the upgrade was refused: {0}")]
    Refused(String),
}

/// TLS on an accepted socket.
pub async fn accept_tls(
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
) -> Result<TlsStream<TcpStream>, AcceptError> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(tcp)).await {
        Err(_) => Err(AcceptError::Timeout {
            step: "TLS handshake",
        }),
        Ok(Err(error)) => Err(AcceptError::Tls(error)),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// TLS and upgrade on an accepted socket; `decide` sees the request and takes or refuses it.
pub async fn accept<T, D>(
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    limits: Limits,
    decide: D,
) -> Result<(Connection, T), AcceptError>
where
    D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
    T: Send,
{
    let stream = accept_tls(tcp, tls).await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .cloned();
    // The library wants an `Unpin` callback, which a box always is.
    let decide = Box::new(decide);
    let mut decided = None;
    let mut refused = None;
    let mut headers = HeaderMap::new();
    let upgrade = {
        // The library fixes the error type.
        #[allow(clippy::result_large_err)]
        let callback = |request: &Request, mut response: Response| {
            let asked = UpgradeRequest {
                path: request.uri().path(),
                certificate: certificate.as_ref(),
                headers: request.headers(),
            };
            match decide(&asked) {
                Ok(acceptance) => {
                    for (name, value) in acceptance.headers {
                        response
                            .headers_mut()
                            .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
                    }
                    headers = request.headers().clone();
                    decided = Some(acceptance.value);
                    Ok(response)
                }
                Err(refusal) => {
                    let answer = error_response(&refusal);
                    refused = Some(refusal.text);
                    Err(answer)
                }
            }
        };
        let stream = Box::new(stream) as Box<dyn Io>;
        let upgrade = accept_hdr_async_with_config(stream, callback, Some(limits.config()));
        tokio::time::timeout(HANDSHAKE_TIMEOUT, upgrade).await
    };
    match (upgrade, decided) {
        (Err(_), _) => Err(AcceptError::Timeout {
            step: "WebSocket upgrade",
        }),
        (Ok(Ok(socket)), Some(value)) => Ok((Connection::new(socket, limits, Wire::fixed(), headers), value)),
        (Ok(Ok(_)), None) => Err(AcceptError::Upgrade("the request was never read".into())),
        (Ok(Err(error)), _) => Err(match refused {
            Some(text) => AcceptError::Refused(text),
            None => AcceptError::Upgrade(error.to_string()),
        }),
    }
}

fn error_response(refusal: &Refusal) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(format!("{}\n", refusal.text)));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
    response.headers_mut().insert(
        "content-type",
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
        .headers_mut()
        .insert("connection", HeaderValue::from_static("close"));
    response
}
