//! What the bootstrap server answers. It changes nothing in the cluster, but for marking a one-time token as used.

use super::rate::Rate;
use crate::metrics::Metrics;
use crate::ports::{Redeem, Redeemed};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Request, Response, StatusCode};
use kedge_pki::{Authority, Certificate, CheckedRequest, JoinClaims, JoinToken, TokenId, UnixTime};
use kedge_telemetry::channel::ask;
use kedge_telemetry::metrics::{Counter, Registry};
use kedge_wire::NodeName;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A certificate request has about 300 bytes; one with the largest key that is taken stays far below.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// One or two small calls of the Kubernetes API.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// `x509.ExtKeyUsageClientAuth` in the numbers of the official header `ExtKeyUsages`.
const CLIENT_AUTH_ONLY: &str = "[2]";
/// `keadm join` asks once for each node, perhaps for a whole site behind one address at once. Somebody who tries names
/// learns four a second.
const LOOKUPS_AT_ONCE: u32 = 64;
const LOOKUP_INTERVAL: Duration = Duration::from_millis(250);
/// Refusals that are logged as warnings for each address; more of them say nothing new and would fill the disk.
const COMPLAINTS_AT_ONCE: u32 = 10;
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// How much is quoted of what somebody sent.
const QUOTE_CHARS_MAX: usize = 200;

/// Everything that answers are made of.
pub(super) struct Desk {
    pub(super) authority: Authority,
    pub(super) certificate_lifetime: Duration,
    pub(super) node_exists: ask::Sender<NodeName, bool>,
    pub(super) redeem: ask::Sender<Redeem, Redeemed>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tally: Tally,
    pub(super) rates: Mutex<Rates>,
}

/// What each address has a limited number of.
pub(super) struct Rates {
    lookups: Rate,
    complaints: Rate,
}

impl Rates {
    pub(super) fn new() -> Mutex<Self> {
        Mutex::new(Self {
            lookups: Rate::new(LOOKUP_INTERVAL, LOOKUPS_AT_ONCE),
            complaints: Rate::new(COMPLAINT_INTERVAL, COMPLAINTS_AT_ONCE),
        })
    }
}

/// Who asks.
pub(super) struct Visitor {
    pub(super) address: IpAddr,
    /// Verified by TLS.
    pub(super) certificate: Option<Certificate>,
}

pub(super) type Reply = Response<Full<Bytes>>;

/// An answer that is not success: status, one sentence, and a header that tells what to do.
struct Refused {
    status: StatusCode,
    sentence: String,
    header: Option<(HeaderName, &'static str)>,
}

impl Refused {
    fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
            header: None,
        }
    }

    fn with(self, header: HeaderName, value: &'static str) -> Self {
        Self {
            header: Some((header, value)),
            ..self
        }
    }

    /// The cluster could not be asked; the edge comes again by itself.
    fn later(what: &str, why: ask::NoAnswer) -> Self {
        let sentence = format!("{what} cannot be told now: {why}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, sentence).with(RETRY_AFTER, "5")
    }
}

/// What may be asked. Every route says here who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    /// `/ca.crt`: anybody; it is public, and the token tells an edge whether to believe it.
    Authority,
    /// `/edge.crt`: a join token, or a certificate of the same node.
    Certificate,
    /// `/node/{name}`: anybody, at a low rate; `keadm` has nothing to show at this point.
    Node(&'a str),
    /// Where old edges post the outcome of node jobs: a node certificate.
    Report,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        match path {
            "/ca.crt" => Some(Self::Authority),
            "/edge.crt" => Some(Self::Certificate),
            "/nodeupgrade" => Some(Self::Report),
            other if other.starts_with("/task/") => Some(Self::Report),
            other => other.strip_prefix("/node/").map(Self::Node),
        }
    }

    /// The one method that it takes.
    fn method(self) -> &'static str {
        match self {
            Self::Authority | Self::Certificate | Self::Node(_) => "GET",
            Self::Report => "POST",
        }
    }
}

/// What allows a node to have a certificate.
enum Proof {
    Certificate,
    SharedToken,
    OneTimeToken(TokenId),
}

impl Desk {
    pub(super) async fn answer<B>(&self, request: Request<B>, visitor: &Visitor) -> Reply
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path().to_owned();
        let quoted: String = path.chars().take(QUOTE_CHARS_MAX).collect();
        let answered = match Route::of(&path) {
            None => Err(Refused::new(
                StatusCode::NOT_FOUND,
                format!("there is no {} {quoted} here", request.method()),
            )),
            Some(route) if *request.method() != route.method() => {
                let (taken, shown) = (route.method(), request.method());
                let sentence = format!("{quoted} takes {taken} only, not {shown}");
                Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, sentence).with(ALLOW, taken))
            }
            Some(Route::Authority) => Ok(binary(self.authority.certificate().der())),
            Some(Route::Certificate) => self.sign(request, visitor).await,
            Some(Route::Node(name)) => self.node(name, visitor).await,
            Some(Route::Report) => Err(report(visitor)),
        };
        let reply = answered.unwrap_or_else(|refused| self.refuse(refused, &quoted, visitor));
        self.tally.count(reply.status());
        reply
    }

    fn refuse(&self, refused: Refused, path: &str, visitor: &Visitor) -> Reply {
        let Refused {
            status,
            sentence,
            header,
        } = refused;
        let (address, code) = (visitor.address, status.as_u16());
        if self.rates().complaints.take(address, Instant::now()) {
            tracing::warn!(%address, path, status = code, why = sentence, "bootstrap request refused");
        } else {
            tracing::debug!(%address, path, status = code, why = sentence, "bootstrap request refused");
        }
        let mut reply = text(status, &sentence);
        if let Some((name, value)) = header {
            reply.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        reply
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sign<B>(&self, request: Request<B>, visitor: &Visitor) -> Result<Reply, Refused>
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let node = asking_node(&head.headers)?;
        let proof = self.proof(&head.headers, visitor.certificate.as_ref(), &node)?;
        check_usages(&head.headers)?;
        let body = read_body(body).await?;
        let request = CheckedRequest::read(&body, &node)
            .map_err(|error| Refused::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        let shown = match proof {
            Proof::Certificate => "certificate",
            Proof::SharedToken => "shared token",
            Proof::OneTimeToken(token) => {
                self.spend(token, &node, request.fingerprint()).await?;
                "one-time token"
            }
        };
        let signed = self
            .authority
            .sign_checked(request, self.certificate_lifetime, UnixTime::now())
            .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        self.metrics.certificates.inc();
        tracing::info!(%node, shown, "certificate signed");
        Ok(binary(signed.der()))
    }

    /// A certificate of the same node, which TLS has verified, or a join token. A certificate that is shown decides.
    fn proof(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Certificate>,
        node: &NodeName,
    ) -> Result<Proof, Refused> {
        let refuse = |sentence: String| Refused::new(StatusCode::UNAUTHORIZED, sentence);
        if let Some(certificate) = certificate {
            let name = &certificate.info().common_name;
            return match certificate.info().node() {
                Some(shown) if shown == *node => Ok(Proof::Certificate),
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
        match JoinToken::verify_bearer(bearer.trim(), &self.authority, UnixTime::now()) {
            Ok(JoinClaims::Shared) => Ok(Proof::SharedToken),
            Ok(JoinClaims::OneTime { id, node: bound }) if bound == *node => Ok(Proof::OneTimeToken(id)),
            Ok(JoinClaims::OneTime { node: bound, .. }) => Err(refuse(format!(
                "the join token is for node {bound}, not for node {node}"
            ))),
            Err(error) => Err(refuse(error.to_string())),
        }
    }

    /// Marks a one-time token as used with this key, which every replica sees.
    async fn spend(&self, token: TokenId, node: &NodeName, key: &str) -> Result<(), Refused> {
        let redeem = Redeem {
            token,
            node: node.clone(),
            key: key.to_owned(),
        };
        let refuse = |sentence: String| Err(Refused::new(StatusCode::UNAUTHORIZED, sentence));
        match self.redeem.ask(redeem, QUESTION_TIMEOUT).await {
            Ok(Redeemed::Granted) => Ok(()),
            Ok(Redeemed::Spent) => refuse(format!(
                "the join token of node {node} was used before, with another key; make a new one with `cloudcore \
                 token --node {node}`"
            )),
            Ok(Redeemed::Unknown) => refuse(format!(
                "the join token of node {node} is not valid any more; make a new one with `cloudcore token --node \
                 {node}`"
            )),
            Err(why) => Err(Refused::later("whether the join token was used", why)),
        }
    }

    /// Official texts, spelling included, because `keadm` may look at them.
    async fn node(&self, name: &str, visitor: &Visitor) -> Result<Reply, Refused> {
        let allowed = self.rates().lookups.take(visitor.address, Instant::now());
        if !allowed {
            let sentence = "too many questions for nodes from this address; ask again in a second";
            return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, sentence).with(RETRY_AFTER, "1"));
        }
        let node =
            NodeName::new(name).map_err(|error| Refused::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        match self.node_exists.ask(node, QUESTION_TIMEOUT).await {
            Ok(true) => Ok(text(StatusCode::OK, "Node founded")),
            Ok(false) => Ok(text(StatusCode::NOT_FOUND, "Node not found")),
            Err(why) => Err(Refused::later("whether the node exists", why)),
        }
    }
}

fn report(visitor: &Visitor) -> Refused {
    let node = visitor.certificate.as_ref().and_then(|shown| shown.info().node());
    match node {
        None => Refused::new(
            StatusCode::UNAUTHORIZED,
            "a report of a node job needs the certificate of the node",
        ),
        Some(_) => Refused::new(
            StatusCode::NOT_FOUND,
            "node jobs are not part of this version; their reports are not taken",
        ),
    }
}

async fn read_body<B>(body: B) -> Result<Bytes, Refused>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let whole = read.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let sentence = format!("the certificate request is larger than {BODY_BYTES_MAX} bytes");
            return Refused::new(StatusCode::PAYLOAD_TOO_LARGE, sentence);
        }
        let sentence = format!("the certificate request did not arrive whole: {error}");
        Refused::new(StatusCode::BAD_REQUEST, sentence)
    })?;
    Ok(whole.to_bytes())
}

fn asking_node(headers: &HeaderMap) -> Result<NodeName, Refused> {
    let refuse = |sentence: String| Refused::new(StatusCode::BAD_REQUEST, sentence);
    let mut names = headers.get_all("NodeName").iter();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(refuse("header NodeName must be there once".into()));
    };
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
            let other: String = other.chars().take(QUOTE_CHARS_MAX).collect();
            let sentence =
                format!("header ExtKeyUsages is {other} but only {CLIENT_AUTH_ONLY} (client) is given");
            Err(Refused::new(StatusCode::BAD_REQUEST, sentence))
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

/// Answers by what they were.
pub(super) struct Tally {
    answered: Counter,
    refused: Counter,
    failed: Counter,
}

impl Tally {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |outcome| {
            registry.counter(
                "kedge_cloudhub_join_requests",
                "Requests to the bootstrap server by outcome",
                &[("outcome", outcome)],
            )
        };
        Self {
            answered: counter("answered"),
            refused: counter("refused"),
            failed: counter("failed"),
        }
    }

    fn count(&self, status: StatusCode) {
        if status.is_server_error() {
            self.failed.inc();
        } else if status.is_client_error() {
            self.refused.inc();
        } else {
            self.answered.inc();
        }
    }
}
