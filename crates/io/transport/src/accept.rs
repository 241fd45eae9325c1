//! The listening side: TLS, then the upgrade.

use crate::HANDSHAKE_TIMEOUT;
use crate::connection::{Connection, Io, Limits};
use crate::frame::Carrier;
use crate::head::{self, Asked, HeadError};
use crate::packet::Framing;
use crate::plug::Wire;
use http::HeaderMap;
use rustls_pki_types::CertificateDer;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Encrypted bytes that may wait for one peer in the TLS layer: one record, since the next is made when it is needed.
const TLS_BUFFER_BYTES_MAX: usize = 18 * 1024;

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
    /// How packets travel from now on; [`Framing::Kedge`] only when the peer offered it and `headers` say yes.
    pub framing: Framing,
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
    #[error("too many handshakes at once: no turn within {after:?}")]
    NoTurn { after: Duration },
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("the upgrade failed: {0}")]
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
        Ok(Ok(mut stream)) => {
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
            Ok(stream)
        }
    }
}

/// TLS and upgrade on an accepted socket; `decide` sees the request and takes or refuses it. A server of many nodes uses
/// [`crate::Acceptor`], which does the same within limits.
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
    upgrade_tls(stream, limits, decide).await
}

/// The upgrade to WebSocket after TLS.
pub(crate) async fn upgrade_tls<T, D>(
    stream: TlsStream<TcpStream>,
    limits: Limits,
    decide: D,
) -> Result<(Connection, T), AcceptError>
where
    D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
    T: Send,
{
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .cloned();
    upgrade(stream, Carrier::WebSocketServer, certificate, limits, decide).await
}

/// The upgrade on an encrypted stream.
pub(crate) async fn upgrade<T, D>(
    io: impl Io + 'static,
    carrier: Carrier,
    certificate: Option<CertificateDer<'static>>,
    limits: Limits,
    decide: D,
) -> Result<(Connection, T), AcceptError>
where
    D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
    T: Send,
{
    let upgraded = answer(io, carrier, certificate, limits, decide);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, upgraded).await {
        Ok(upgraded) => upgraded,
        Err(_) => Err(AcceptError::Timeout { step: "upgrade" }),
    }
}

async fn answer<T, D>(
    mut io: impl Io + 'static,
    carrier: Carrier,
    certificate: Option<CertificateDer<'static>>,
    limits: Limits,
    decide: D,
) -> Result<(Connection, T), AcceptError>
where
    D: FnOnce(&UpgradeRequest<'_>) -> Result<Acceptance<T>, Refusal> + Send,
    T: Send,
{
    let failed = |error: HeadError| AcceptError::Upgrade(error.to_string());
    let Asked { path, headers } = head::read_request(&mut io).await.map_err(failed)?;
    let asked = UpgradeRequest {
        path: &path,
        certificate: certificate.as_ref(),
        headers: &headers,
    };
    let decided = head::agree(carrier, &headers)
        .and_then(|agreed| Ok((agreed, decide(&asked)?)))
        .and_then(|(agreed, acceptance)| match (carrier, acceptance.framing) {
            (Carrier::Stream, Framing::Official) => Err(Refusal {
                status: 400,
                text: "QUIC is spoken between two ends of kedge only, and this one did not offer that"
                    .to_owned(),
            }),
            _ => Ok((agreed, acceptance)),
        });
    let (agreed, acceptance) = match decided {
        Ok(decided) => decided,
        Err(refusal) => {
            // The peer may be gone already; it is refused all the same.
            let _ = head::write_refusal(&mut io, &refusal).await;
            return Err(AcceptError::Refused(refusal.text));
        }
    };
    head::write_agreement(&mut io, &agreed, &acceptance.headers)
        .await
        .map_err(|error| failed(error.into()))?;
    let connection = Connection::new(io, carrier, limits, acceptance.framing, Wire::fixed(), headers);
    Ok((connection, acceptance.value))
}
