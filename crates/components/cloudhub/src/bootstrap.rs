//! The bootstrap server: authority certificate, node certificates, whether a node exists. It changes nothing.

use crate::metrics::{Metrics, count};
use crate::{Config, Error};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kedge_pki::{Authority, Certificate, ClientAuth, JoinToken, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use kedge_transport::{Listener, accept_tls};
use kedge_wire::NodeName;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// A certificate request has about 300 bytes; the official limit.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Request line and headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the TLS handshake to the end of the answer; one request a connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at one time; joining is rare and short.
const CONNECTIONS_MAX: usize = 256;
const NODE_EXISTS_TIMEOUT: Duration = Duration::from_secs(10);
/// `x509.ExtKeyUsageClientAuth` in the numbers of the official header `ExtKeyUsages`.
const CLIENT_AUTH_ONLY: &str = "[2]";

pub(crate) struct Bootstrap {
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    desk: Arc<Desk>,
}

/// What a request is answered from.
struct Desk {
    authority: Authority,
    certificate_lifetime: Duration,
    node_exists: ask::Sender<NodeName, bool>,
    metrics: Arc<Metrics>,
}

type Reply = Response<Full<Bytes>>;

/// An answer that is not success: status and one sentence.
struct Refused(StatusCode, String);

impl Bootstrap {
    pub(crate) async fn bind(
        config: &Config,
        node_exists: ask::Sender<NodeName, bool>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let tls = Arc::new(
            config
                .identity
                .server_config(ClientAuth::Optional)
                .map_err(Error::Tls)?,
        );
        let listener = Listener::bind(config.https_address)
            .await
            .map_err(Error::Bootstrap)?;
        let desk = Desk {
            authority: config.authority.clone(),
            certificate_lifetime: config.certificate_lifetime,
            node_exists,
            metrics,
        };
        Ok(Self {
            listener,
            tls,
            desk: Arc::new(desk),
        })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    pub(crate) async fn run(self, scope: Scope) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = Arc::clone(&connections)
                .acquire_owned()
                .await
                .expect("nobody closes this semaphore");
            let (tcp, peer) = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (desk, tls) = (Arc::clone(&self.desk), Arc::clone(&self.tls));
            scope.spawn_until_cancelled("hub bootstrap connection", async move {
                let _permit = permit;
                if let Err(why) = serve(tcp, tls, desk, peer).await {
                    tracing::debug!(%peer, why, "bootstrap connection ended");
                }
            });
        }
    }
}

async fn serve(
    tcp: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    desk: Arc<Desk>,
    peer: SocketAddr,
) -> Result<(), String> {
    let stream = accept_tls(tcp, tls).await.map_err(|error| error.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.map(|der| Certificate::from_der(der)).transpose();
    let certificate = Arc::new(certificate.map_err(|error| error.to_string())?);
    let service = service_fn(move |request| {
        let (desk, certificate) = (Arc::clone(&desk), Arc::clone(&certificate));
        async move { Ok::<_, Infallible>(desk.answer(request, certificate.as_ref().as_ref(), peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST_TIMEOUT, connection).await {
        Ok(served) => served.map_err(|error| error.to_string()),
        Err(_) => Err("the request took too long".into()),
    }
}

impl Desk {
    async fn answer(
        &self,
        request: Request<Incoming>,
        certificate: Option<&Certificate>,
        peer: SocketAddr,
    ) -> Reply {
        let path = request.uri().path().to_owned();
        let answered = match (request.method(), path.as_str()) {
            (&Method::GET, "/ca.crt") => Ok(binary(self.authority.certificate().der())),
            (&Method::GET, "/edge.crt") => self.sign(request, certificate).await,
            (&Method::GET, other) if other.starts_with("/node/") => self.node(&other["/node/".len()..]).await,
            _ => Err(Refused(
                StatusCode::NOT_FOUND,
                format!("there is no {} {path} here", request.method()),
            )),
        };
        match answered {
            Ok(reply) => reply,
            Err(Refused(status, sentence)) => {
                tracing::warn!(%peer, path, status = status.as_u16(), why = sentence, "bootstrap request refused");
                text(status, &sentence)
            }
        }
    }

    async fn sign(
        &self,
        request: Request<Incoming>,
        certificate: Option<&Certificate>,
    ) -> Result<Reply, Refused> {
        let (head, body) = request.into_parts();
        let node = asking_node(&head.headers)?;
        self.authorize(&head.headers, certificate, &node)?;
        check_usages(&head.headers)?;
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    let sentence = format!("the certificate request is larger than {BODY_BYTES_MAX} bytes");
                    return Refused(StatusCode::PAYLOAD_TOO_LARGE, sentence);
                }
                Refused(
                    StatusCode::BAD_REQUEST,
                    format!("the certificate request did not arrive whole: {error}"),
                )
            })?;
        let signed = self.authority.sign_node_request(
            &body.to_bytes(),
            &node,
            self.certificate_lifetime,
            UnixTime::now(),
        );
        match signed {
            Ok(certificate) => {
                count(&self.metrics.certificates);
                tracing::info!(%node, "certificate signed");
                Ok(binary(certificate.der()))
            }
            Err(error @ kedge_pki::Error::Request(_)) => {
                Err(Refused(StatusCode::BAD_REQUEST, error.to_string()))
            }
            Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    /// A certificate of the same node, which TLS has verified, or a join token. A certificate that is shown decides.
    fn authorize(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Certificate>,
        node: &NodeName,
    ) -> Result<(), Refused> {
        let refuse = |sentence: String| Refused(StatusCode::UNAUTHORIZED, sentence);
        if let Some(certificate) = certificate {
            let name = &certificate.info().common_name;
            return match certificate.info().node() {
                Some(shown) if shown == *node => Ok(()),
                Some(_) | None => Err(refuse(format!(
                    "the certificate of {name:?} cannot renew node {node}"
                ))),
            };
        }
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refuse("neither a join token nor a node certificate was shown".into()))?;
        JoinToken::verify_bearer(bearer.trim(), &self.authority, UnixTime::now())
            .map_err(|error| refuse(error.to_string()))
    }

    /// Official texts, spelling included, because `keadm` may look at them.
    async fn node(&self, name: &str) -> Result<Reply, Refused> {
        let node =
            NodeName::new(name).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))?;
        match self.node_exists.ask(node, NODE_EXISTS_TIMEOUT).await {
            Ok(true) => Ok(text(StatusCode::OK, "Node founded")),
            Ok(false) => Ok(text(StatusCode::NOT_FOUND, "Node not found")),
            Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }
}

fn asking_node(headers: &HeaderMap) -> Result<NodeName, Refused> {
    let refuse = |sentence: String| Refused(StatusCode::BAD_REQUEST, sentence);
    let name = headers
        .get("NodeName")
        .ok_or_else(|| refuse("header NodeName is missing".into()))?;
    let name = name
        .to_str()
        .map_err(|_| refuse("header NodeName is not text".into()))?;
    NodeName::new(name).map_err(|error| refuse(error.to_string()))
}

/// A node certificate is for clients; nobody chooses its usages but the authority.
fn check_usages(headers: &HeaderMap) -> Result<(), Refused> {
    let wanted: Option<String> = headers
        .get("ExtKeyUsages")
        .map(|value| value.to_str().unwrap_or("?").split_whitespace().collect());
    match wanted.as_deref() {
        None | Some("" | "[]" | CLIENT_AUTH_ONLY) => Ok(()),
        Some(other) => {
            let sentence =
                format!("header ExtKeyUsages is {other} but only {CLIENT_AUTH_ONLY} (client) is given");
            Err(Refused(StatusCode::BAD_REQUEST, sentence))
        }
    }
}

fn binary(bytes: &[u8]) -> Reply {
    let mut reply = Response::new(Full::from(bytes.to_vec()));
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

fn text(status: StatusCode, sentence: &str) -> Reply {
    let mut reply = Response::new(Full::from(sentence.to_owned()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    reply
}
