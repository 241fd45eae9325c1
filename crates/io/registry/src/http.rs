//! One request and its answer over a connection of its own.

use crate::{Client, Config, Error};
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A registry sends a blob's place, that place its mirror, that one a signed address; more are a circle.
const REDIRECTS_MAX: usize = 5;
/// From the dial to the head of the answer.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// What is read of a refusal, and shown of its reason.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;
const REASON_CHARS_MAX: usize = 300;
/// A document has to be here within so many times the wait for a piece of it: one that drips would hold a pull for ever.
const DOCUMENT_STALLS_MAX: u32 = 10;
/// Docker's registry has another name for machines than for people.
const DOCKER: &str = "docker.io";
const DOCKER_HOST: &str = "registry-1.docker.io";

/// A host and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// With its port if it has one.
    pub(crate) host: String,
    plain: bool,
}

impl Origin {
    pub(crate) fn new(host: &str, config: &Config) -> Self {
        let plain = config.plain_http.iter().any(|plain| plain == host);
        let host = if host == DOCKER { DOCKER_HOST } else { host };
        Self {
            host: host.to_owned(),
            plain,
        }
    }

    /// Of an address that a server gave: only TLS, or a host that was named as plain.
    fn of(uri: &Uri, config: &Config) -> Option<Self> {
        let host = uri.authority()?.as_str().to_owned();
        // A name and a password in an address would go to the log with it.
        if host.contains('@') {
            return None;
        }
        match uri.scheme_str()? {
            "https" => Some(Self { host, plain: false }),
            "http" if config.plain_http.contains(&host) => Some(Self { host, plain: true }),
            _other => None,
        }
    }

    fn address(&self) -> String {
        let port = if self.plain { 80 } else { 443 };
        match self.host.rsplit_once(':') {
            // The last part of an IPv6 address in brackets is no port.
            Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => self.host.clone(),
            Some(_) | None => format!("{}:{port}", self.host),
        }
    }
}

/// A request that may be sent again elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            target: target.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        // What cannot stand in a header is left out, and the server says what it misses.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// An answer whose body is still on its way.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Who answered, which after redirects is not who was asked.
    pub(crate) origin: Origin,
    body: Incoming,
    connection: Connection,
    stall: Duration,
}

impl Answer {
    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = self.connection.drive(self.body.frame());
            let frame = match tokio::time::timeout(self.stall, frame).await {
                Err(_) => {
                    return Err(Error::Stalled {
                        host: self.origin.host.clone(),
                        limit: self.stall,
                    });
                }
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|source| broken(&self.origin.host, source))?,
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body; one that is longer is a bad answer.
    pub(crate) async fn bytes(&mut self, max: u64) -> Result<Vec<u8>, Error> {
        let limit = self.stall * DOCUMENT_STALLS_MAX;
        let host = self.origin.host.clone();
        let read = tokio::time::timeout(limit, self.read_to_end(max)).await;
        read.unwrap_or(Err(Error::Slow { host, limit }))
    }

    async fn read_to_end(&mut self, max: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > max {
                return Err(Error::BadAnswer {
                    host: self.origin.host.clone(),
                    reason: format!("a document is longer than {max} bytes"),
                });
            }
        }
        Ok(bytes)
    }

    pub(crate) fn header(&self, name: HeaderName) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// The error of an answer that is none of success.
    pub(crate) async fn refusal(mut self, image: &str) -> Error {
        let host = self.origin.host.clone();
        let limit = self.stall;
        let reason = tokio::time::timeout(limit, self.reason()).await;
        let reason = reason.unwrap_or_else(|_| no_words(self.status));
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied {
                image: image.to_owned(),
                host,
                reason,
            },
            StatusCode::NOT_FOUND => Error::NotFound {
                image: image.to_owned(),
                host,
            },
            status
                if status == StatusCode::TOO_MANY_REQUESTS
                    || status.is_server_error() && self.headers.contains_key(RETRY_AFTER) =>
            {
                // A date instead of seconds is as good as nothing said: clocks of devices are wrong.
                let seconds = self.header(RETRY_AFTER).trim().parse().ok();
                Error::Busy {
                    host,
                    after: seconds.map(Duration::from_secs),
                }
            }
            status => Error::Status {
                host,
                status: status.as_u16(),
                reason,
            },
        }
    }

    /// The registry's own words, or the beginning of what it sent instead.
    async fn reason(&mut self) -> String {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            text.extend_from_slice(&chunk);
            if text.len() > REFUSAL_BYTES_MAX {
                break;
            }
        }
        let parsed: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let first = &parsed["errors"][0];
        let words = [&first["code"], &first["message"], &parsed["details"]];
        let words: Vec<&str> = words.iter().filter_map(|word| word.as_str()).collect();
        let words = if words.is_empty() {
            String::from_utf8_lossy(&text).trim().to_owned()
        } else {
            words.join(": ")
        };
        let shown: String = words
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(REASON_CHARS_MAX)
            .collect();
        if shown.is_empty() {
            no_words(self.status)
        } else {
            shown
        }
    }
}

/// What is told of a refusal that says nothing.
fn no_words(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("no reason").to_owned()
}

/// The other half of a connection: it moves while somebody waits for an answer on it, and needs no task of its own.
struct Connection(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Connection {
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Some(connection) = &mut self.0
                && connection.as_mut().poll(context).is_ready()
            {
                self.0 = None;
            }
            work.as_mut().poll(context)
        })
        .await
    }
}

impl Client {
    /// Prepares TLS.
    ///
    /// # Errors
    /// When a file with authorities cannot be read. A system without any is no error: registries without TLS and mirrors
    /// with an authority of their own can still be reached.
    pub fn new(config: Config) -> Result<Self, Error> {
        let mut roots = rustls::RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        for path in &config.authorities {
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Authorities {
                path: path.clone(),
                source,
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.into()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| failed(error.into()))?;
                roots.add(certificate).map_err(|error| failed(error.into()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the ciphers of TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            tls: Arc::new(tls),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Sends a request and follows redirects. Credentials stay with the host they were meant for, wherever in the request
    /// they stand.
    pub(crate) async fn send(&self, origin: &Origin, asked: Asked) -> Result<Answer, Error> {
        let (mut origin, mut asked) = (origin.clone(), asked);
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.exchange(&origin, &asked).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let bad = |reason: &str| Error::BadAnswer {
                host: answer.origin.host.clone(),
                reason: reason.to_owned(),
            };
            let place: Uri = answer
                .header(LOCATION)
                .parse()
                .map_err(|_| bad("it redirects to nowhere"))?;
            asked.target = place
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string);
            if place.authority().is_some() {
                let next = Origin::of(&place, self.config())
                    .ok_or_else(|| bad("it redirects to an address without TLS, which is not followed"))?;
                if next != origin {
                    if !asked.body.is_empty() {
                        return Err(bad(
                            "it redirects a secret to another host, which is not followed",
                        ));
                    }
                    asked.headers.remove(AUTHORIZATION);
                }
                origin = next;
            }
        }
        Err(Error::BadAnswer {
            host: origin.host,
            reason: format!("it redirects more than {REDIRECTS_MAX} times"),
        })
    }

    /// To an address that a challenge names.
    pub(crate) fn origin_of(&self, uri: &Uri) -> Option<Origin> {
        Origin::of(uri, self.config())
    }

    async fn exchange(&self, origin: &Origin, asked: &Asked) -> Result<Answer, Error> {
        let limit = HEAD_MAX.min(self.config.stall);
        let answer = tokio::time::timeout(limit, self.dial_and_ask(origin, asked)).await;
        answer.unwrap_or_else(|_| {
            Err(Error::Stalled {
                host: origin.host.clone(),
                limit,
            })
        })
    }

    async fn dial_and_ask(&self, origin: &Origin, asked: &Asked) -> Result<Answer, Error> {
        let address = origin.address();
        let failed = |source| Error::Connect {
            host: origin.host.clone(),
            source,
        };
        if origin.plain {
            let stream = TcpStream::connect(&address).await;
            let stream =
                stream.map_err(|source| failed(kedge_transport::DialError::Network { address, source }))?;
            self.ask(stream, origin, asked).await
        } else {
            let stream = kedge_transport::dial_tls(&address, Arc::clone(&self.tls)).await;
            self.ask(stream.map_err(failed)?, origin, asked).await
        }
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        origin: &Origin,
        asked: &Asked,
    ) -> Result<Answer, Error> {
        let failed = |source| broken(&origin.host, source);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // What goes wrong with the connection is told by the request that waits on it.
        let mut connection = Connection(Some(Box::pin(async { drop(connection.await) })));
        let mut request = Request::new(Full::new(asked.body.clone()));
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = asked.target.parse().map_err(|_| Error::BadAnswer {
            host: origin.host.clone(),
            reason: format!("{:?} is no path", asked.target),
        })?;
        *request.headers_mut() = asked.headers.clone();
        let agent = HeaderValue::from_static(concat!("kedge/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        if let Ok(host) = HeaderValue::from_str(&origin.host) {
            request.headers_mut().insert(HOST, host);
        }
        let response = connection.drive(sender.send_request(request)).await;
        let (head, body) = response.map_err(failed)?.into_parts();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            origin: origin.clone(),
            body,
            connection,
            stall: self.config.stall,
        })
    }
}

fn broken(host: &str, source: hyper::Error) -> Error {
    Error::Broken {
        host: host.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let config = Config {
            plain_http: vec!["10.0.0.1:5000".to_owned()],
            ..Config::new("amd64")
        };
        let address = |host: &str| Origin::new(host, &config).address();
        assert_eq!(address("docker.io"), "registry-1.docker.io:443");
        assert_eq!(address("r.example:5000"), "r.example:5000");
        assert_eq!(address("[::1]"), "[::1]:443");
        assert!(Origin::new("10.0.0.1:5000", &config).plain);
        let followed = |text: &str| Origin::of(&text.parse().unwrap(), &config).is_some();
        assert!(followed("https://cdn.example/x?y=z"));
        assert!(followed("http://10.0.0.1:5000/x"));
        assert!(!followed("http://cdn.example/x"));
        assert!(!followed("https://user:word@cdn.example/x"));
    }
}
