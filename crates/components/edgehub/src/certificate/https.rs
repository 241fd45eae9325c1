//! One HTTPS request to cloudcore: bounded in time and size.

use super::Error;
use bytes::Bytes;
use http::header::{DATE, HOST};
use http::{Request, Uri, request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use kedge_pki::{UnixTime, show_time};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The whole answer, once connected; official 30 s.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A certificate has about 500 bytes; official cap 1 MiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// What is shown of a refusal's text.
const REASON_CHARS_MAX: usize = 300;
/// A difference of the clocks below this is not the reason of a refusal.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(5 * 60);
const DEFAULT_PORT: u16 = 443;

/// Where cloudcore serves HTTPS.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    host: String,
    port: u16,
}

/// The head and body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    status: http::StatusCode,
    date: Option<UnixTime>,
    body: Bytes,
}

pub(super) fn empty() -> Full<Bytes> {
    Full::default()
}

pub(super) fn full(body: &[u8]) -> Full<Bytes> {
    Full::new(Bytes::copy_from_slice(body))
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let bad = || Error::Address {
            text: text.to_owned(),
        };
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        let host = uri
            .host()
            .filter(|_| uri.scheme_str() == Some("https"))
            .ok_or_else(bad)?;
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(DEFAULT_PORT),
        })
    }

    fn url(&self) -> String {
        format!("https://{}:{}", self.host, self.port)
    }

    pub(super) fn get(&self, path: &str) -> request::Builder {
        Request::get(path).header(HOST, format!("{}:{}", self.host, self.port))
    }

    pub(super) async fn send(
        &self,
        tls: rustls::ClientConfig,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Error> {
        let address = format!("{}:{}", self.host, self.port);
        let dialled = kedge_transport::dial_tls(&address, Arc::new(tls)).await;
        let stream = dialled.map_err(|error| Error::dial(self.url(), error))?;
        self.in_time(ANSWER_MAX, self.exchange(stream, request)).await
    }

    async fn in_time<T>(
        &self,
        after: Duration,
        act: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let silent = Error::Silent {
            url: self.url(),
            after,
        };
        tokio::time::timeout(after, act).await.unwrap_or(Err(silent))
    }

    async fn exchange(
        &self,
        stream: TlsStream<TcpStream>,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Error> {
        let protocol = |source| Error::Protocol {
            url: self.url(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(protocol)?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(protocol)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BODY_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| self.body_error(error))?;
            let date = head
                .headers
                .get(DATE)
                .and_then(|date| parse_date(date.to_str().ok()?));
            Ok(Answer {
                status: head.status,
                date,
                body: body.to_bytes(),
            })
        };
        // The connection is driven beside the request and dropped with it: no task outlives this call.
        tokio::pin!(asked);
        tokio::select! {
            biased;
            answer = &mut asked => answer,
            ended = connection => match ended {
                Err(source) => Err(protocol(source)),
                Ok(()) => asked.await,
            },
        }
    }

    fn body_error(&self, error: Box<dyn std::error::Error + Send + Sync>) -> Error {
        let url = self.url();
        if error.is::<LengthLimitError>() {
            return Error::TooLong {
                url,
                max: BODY_BYTES_MAX,
            };
        }
        match error.downcast::<hyper::Error>() {
            Ok(source) => Error::Protocol { url, source: *source },
            Err(other) => Error::Broken {
                url,
                why: other.to_string(),
            },
        }
    }
}

impl Answer {
    /// The body of a success, or why there is none.
    pub(super) fn success(self, act: &'static str, now: UnixTime) -> Result<Bytes, Error> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        if let Some(there) = self
            .date
            .filter(|there| apart(*there, now) > CLOCK_DIFFERENCE_MAX)
        {
            return Err(Error::Clock {
                here: show_time(now),
                there: show_time(there),
            });
        }
        let text = String::from_utf8_lossy(&self.body);
        let printable = text.trim().chars().filter(|c| !c.is_control());
        let reason = printable.take(REASON_CHARS_MAX).collect();
        let way_out = match self.status.as_u16() {
            401 | 403 => "; ask the cloud for a new token with `keadm gettoken`",
            _ => "; the cloudcore log says more",
        };
        Err(Error::Refused {
            act,
            status: self.status.as_u16(),
            reason,
            way_out,
        })
    }
}

fn apart(one: UnixTime, other: UnixTime) -> Duration {
    Duration::from_secs(one.as_secs().abs_diff(other.as_secs()))
}

fn parse_date(text: &str) -> Option<UnixTime> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(date.as_second()).ok()?,
    )))
}
