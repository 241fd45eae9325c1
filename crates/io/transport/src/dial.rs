//! Dialling, with errors that say which step failed.

use crate::connection::{Connection, Io, Limits};
use crate::frame::Carrier;
use crate::head::{self, HeadError};
use crate::packet::Framing;
use crate::plug::{Plug, Wire};
use crate::{HANDSHAKE_TIMEOUT, options, quic};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use rustls::CertificateError;
use rustls_pki_types::{ServerName, UnixTime};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Name lookup and TCP connect; official edges wait 30 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How much of a refusal's text is shown.
const REFUSAL_CHARS_MAX: usize = 300;

/// Whom to dial and what to say in the upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port`; the host is also the name that the server's certificate must carry.
    pub address: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub limits: Limits,
    /// One of the headers, if it offers [`Framing::Kedge`]: a server that answers with the same header agrees.
    pub offer: Option<String>,
}

impl Target {
    /// The hub of CloudCore, as the official edge dials it. `project` must not be empty.
    pub fn hub(address: &str, project: &str, node: &kedge_wire::NodeName) -> Self {
        let headers = [
            ("node_id", node.as_str()),
            ("project_id", project),
            ("ConnectionUse", "msg"),
        ];
        Self {
            address: address.to_owned(),
            path: format!("/{project}/{node}/events"),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            limits: Limits::HUB,
            offer: None,
        }
    }

    /// The tunnel of CloudStream, as the official edge dials it.
    pub fn tunnel(address: &str, node: &kedge_wire::NodeName, internal_ip: &str) -> Self {
        let headers = [
            ("SessionHostNameOverride", node.as_str()),
            ("SessionInternalIP", internal_ip),
        ];
        Self {
            address: address.to_owned(),
            path: "/v1/kubeedge/connect".into(),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            limits: Limits::TUNNEL,
            offer: None,
        }
    }

    /// Says one header more.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Offers [`Framing::Kedge`] with a header. If the server echoes it, the connection has that framing.
    pub fn offering(self, name: &str, value: &str) -> Self {
        Self {
            offer: Some(name.to_owned()),
            ..self.with_header(name, value)
        }
    }

    /// What the server's answer means for the framing.
    fn agreed(&self, answer: &HeaderMap) -> Framing {
        let echoed = self.offer.as_ref().is_some_and(|offer| {
            let said = self.headers.iter().find(|(name, _)| name == offer);
            let heard = answer.get(offer).map(HeaderValue::as_bytes);
            said.map(|(_, value)| value.as_bytes()) == heard
        });
        if echoed { Framing::Kedge } else { Framing::Official }
    }
}

/// What is wrong between two certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsTrouble {
    #[error("its certificate is signed by an authority that this side does not know")]
    UnknownAuthority,
    #[error(
        "its certificate expired at {until} and the clock of this machine says {now}: renew it, or set the clock"
    )]
    Expired { until: String, now: String },
    #[error(
        "its certificate is valid from {from} on and the clock of this machine says {now}: set the clock"
    )]
    NotYetValid { from: String, now: String },
    #[error("its certificate does not carry the name that was dialled; it carries {carried}")]
    WrongName { carried: String },
    #[error("it does not accept the certificate of this side ({alert})")]
    RefusesUs { alert: String },
    #[error("{0}")]
    Other(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial {address}: the plug is pulled")]
    Unplugged { address: String },
    #[error("dial {address:?}: not of the form host:port")]
    Address { address: String },
    #[error("dial {address}: nobody listens there")]
    Refused { address: String },
    #[error("dial {address}: no answer within {after:?} ({step})")]
    Timeout {
        address: String,
        step: &'static str,
        after: Duration,
    },
    #[error("dial {address}: {source}")]
    Network { address: String, source: io::Error },
    #[error("dial {address}: {trouble}")]
    Tls { address: String, trouble: TlsTrouble },
    #[error("dial {address}: the server refuses with status {status}: {text}")]
    Rejected {
        address: String,
        status: u16,
        text: String,
    },
    #[error("dial {address}: the answer is not a WebSocket upgrade: {why}")]
    Handshake { address: String, why: String },
}

/// Opens a WebSocket over TLS.
pub async fn dial(
    target: &Target,
    tls: Arc<rustls::ClientConfig>,
    plug: &Plug,
) -> Result<Connection, DialError> {
    through(target, plug, async |wire| {
        let stream = dial_tls(&target.address, tls).await?;
        upgrade(stream, Carrier::WebSocketClient, target, wire).await
    })
    .await
}

/// Runs an attempt until it ends or the plug is pulled.
pub(crate) async fn through(
    target: &Target,
    plug: &Plug,
    attempt: impl AsyncFnOnce(Wire) -> Result<Connection, DialError>,
) -> Result<Connection, DialError> {
    let unplugged = || DialError::Unplugged {
        address: target.address.clone(),
    };
    let wire = plug.wire().ok_or_else(unplugged)?;
    tokio::select! {
        biased;
        () = wire.cut() => Err(unplugged()),
        connection = attempt(wire.clone()) => connection,
    }
}

/// The upgrade on an encrypted stream.
pub(crate) async fn upgrade(
    mut io: impl Io + 'static,
    carrier: Carrier,
    target: &Target,
    wire: Wire,
) -> Result<Connection, DialError> {
    let headers = headers(target)?;
    let asked = async {
        let request = head::Request::new(carrier, &target.address, &target.path, &headers)?;
        let answered = request.exchange(&mut io).await?;
        if answered.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Ok(answered.headers));
        }
        let text = head::read_refusal(&mut io, &answered.headers).await;
        Ok(Err((answered.status, text)))
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, asked).await {
        Ok(Ok(Ok(answer))) => {
            let framing = target.agreed(&answer);
            Ok(Connection::new(io, carrier, target.limits, framing, wire, answer))
        }
        Ok(Ok(Err((status, text)))) => Err(DialError::Rejected {
            address: target.address.clone(),
            status: status.as_u16(),
            text: text.trim().chars().take(REFUSAL_CHARS_MAX).collect(),
        }),
        Ok(Err(HeadError::Io(error))) => Err(network_failure(&target.address, error)),
        Ok(Err(error @ (HeadError::TooLong | HeadError::Malformed(_)))) => Err(DialError::Handshake {
            address: target.address.clone(),
            why: error.to_string(),
        }),
        Err(_) => Err(DialError::Timeout {
            address: target.address.clone(),
            step: "upgrade",
            after: HANDSHAKE_TIMEOUT,
        }),
    }
}

/// Opens a TLS connection without anything on it, for HTTP.
pub async fn dial_tls(
    address: &str,
    tls: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let wrong = || DialError::Address {
        address: address.to_owned(),
    };
    let (host, _) = address.rsplit_once(':').ok_or_else(wrong)?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| wrong())?;
    let timeout = |step, after| DialError::Timeout {
        address: address.to_owned(),
        step,
        after,
    };
    let tcp = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Err(_) => return Err(timeout("TCP connect", CONNECT_TIMEOUT)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(DialError::Refused {
                address: address.to_owned(),
            });
        }
        Ok(Err(source)) => {
            return Err(DialError::Network {
                address: address.to_owned(),
                source,
            });
        }
        Ok(Ok(tcp)) => tcp,
    };
    options::prepare(&tcp);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(tls).connect(name, tcp)).await {
        Err(_) => Err(timeout("TLS handshake", HANDSHAKE_TIMEOUT)),
        Ok(Err(error)) => Err(network_failure(address, error)),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// The target's headers, and whether its address and path may stand in a request.
fn headers(target: &Target) -> Result<HeaderMap, DialError> {
    let wrong = || DialError::Address {
        address: target.address.clone(),
    };
    let _: Uri = format!("wss://{}{}", target.address, target.path)
        .parse()
        .map_err(|_| wrong())?;
    let mut headers = HeaderMap::new();
    for (name, value) in &target.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| wrong())?;
        headers.insert(name, HeaderValue::try_from(value.as_str()).map_err(|_| wrong())?);
    }
    Ok(headers)
}

/// A TLS failure hides inside an I/O error, also after the handshake: with TLS 1.3 a server refuses the client's
/// certificate only then.
fn network_failure(address: &str, error: io::Error) -> DialError {
    let inner = error.get_ref();
    if let Some(quic) = inner.and_then(|inner| inner.downcast_ref::<quinn::ConnectionError>()) {
        return quic::failed(address, quic.clone());
    }
    let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => DialError::Tls {
            address: address.to_owned(),
            trouble: trouble(tls),
        },
        None => DialError::Network {
            address: address.to_owned(),
            source: error,
        },
    }
}

fn trouble(error: &rustls::Error) -> TlsTrouble {
    // Foreign enums: what is not named here keeps the library's words.
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsTrouble::UnknownAuthority,
            CertificateError::ExpiredContext { time, not_after } => TlsTrouble::Expired {
                until: show(*not_after),
                now: show(*time),
            },
            CertificateError::NotValidYetContext { time, not_before } => TlsTrouble::NotYetValid {
                from: show(*not_before),
                now: show(*time),
            },
            CertificateError::NotValidForNameContext { presented, .. } => TlsTrouble::WrongName {
                carried: presented.join(", "),
            },
            other => TlsTrouble::Other(format!("its certificate is not valid: {other}")),
        },
        rustls::Error::AlertReceived(alert) => TlsTrouble::RefusesUs {
            alert: format!("{alert:?}"),
        },
        other => TlsTrouble::Other(other.to_string()),
    }
}

fn show(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |moment| moment.to_string())
}
