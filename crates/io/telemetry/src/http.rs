//! A small server for people and scrapers: plain HTTP/1.1, GET and HEAD, no bodies of requests.
//!
//! Everything a stranger can make it hold is bounded: connections, the head of a request, the time until it is there,
//! the time an answer may stand still, and the time a connection may last.

mod stall;

use crate::Scope;
use crate::channel::queue;
use bytes::Bytes;
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use stall::Stall;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A request with a longer head is none of ours.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Wait after a failed accept, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Prometheus' text form.
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// What the server bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// More wait in the backlog.
    pub connections: usize,
    /// Until the head of a request is there; a connection that is kept alive without one ends after it, too.
    pub head: Duration,
    /// How long a peer may take nothing of an answer.
    pub stall: Duration,
    /// One connection in all.
    pub connection: Duration,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

/// A GET, or a HEAD, whose body is cut off by the server. Path and query are as sent, still percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// Whom the asker thinks to ask: a name or an address, with or without a port; empty when it was not said.
    pub host: String,
    pub path: String,
    pub query: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub content: Content,
}

/// The bytes of an answer.
#[derive(Debug)]
pub enum Content {
    Whole(Bytes),
    /// As they come; the answer ends when the sender is gone.
    Stream(queue::Receiver<Bytes>),
}

impl Get {
    /// Whether the asker named this machine by an address or as `localhost`. A name of somebody else's may lead here,
    /// too: so a page in a browser on this machine could read what only local programs shall read.
    pub fn is_for_address(&self) -> bool {
        let authority: Result<hyper::http::uri::Authority, _> = self.host.parse();
        let Ok(authority) = authority else {
            return self.host.is_empty();
        };
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
    }
}

impl Answer {
    /// Text with a status.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self::whole(status, PLAIN_TEXT, text.into())
    }

    /// Bytes of a kind with a status.
    pub fn whole(status: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type,
            content: Content::Whole(bytes.into()),
        }
    }
}

impl Server {
    /// Listens; port 0 lets the system choose.
    pub async fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            limits,
        })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the scope ends; `name` is for logs.
    pub async fn run<A, F>(self, name: &'static str, scope: Scope, answer: A)
    where
        A: Fn(Get) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let permit = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                permit = Arc::clone(&connections).acquire_owned() => permit.expect("nobody closes this semaphore"),
            };
            let accepted = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(server = name, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (answer, limits) = (answer.clone(), self.limits);
            scope.spawn_until_cancelled(name, async move {
                let _permit = permit;
                if let Err(error) = serve(tcp, limits, answer).await {
                    tracing::debug!(server = name, %peer, %error, "connection ended");
                }
            });
        }
    }
}

async fn serve<A, F>(tcp: TcpStream, limits: Limits, answer: A) -> Result<(), hyper::Error>
where
    A: Fn(Get) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(&request, answer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Stall::new(tcp, limits.stall)), service);
    tokio::time::timeout(limits.connection, connection)
        .await
        .unwrap_or(Ok(()))
}

async fn respond<A, F>(request: &Request<Incoming>, answer: A) -> Response<UnsyncBoxBody<Bytes, Infallible>>
where
    A: Fn(Get) -> F,
    F: Future<Output = Answer>,
{
    let answer = if request.method() != Method::GET && request.method() != Method::HEAD {
        Answer::text(405, "only GET is served here\n")
    } else if !request.body().is_end_stream() {
        Answer::text(413, "a request to this server has no body\n")
    } else {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        answer(Get {
            host: host.unwrap_or_default().to_owned(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
        })
        .await
    };
    let body = match answer.content {
        Content::Whole(bytes) => UnsyncBoxBody::new(Full::new(bytes)),
        Content::Stream(pieces) => UnsyncBoxBody::new(Pieces(pieces)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A body that is sent as it comes.
struct Pieces(queue::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMITS: Limits = Limits {
        connections: 2,
        head: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        connection: Duration::from_secs(20),
    };

    async fn echo(get: Get) -> Answer {
        match get.path.as_str() {
            "/stream" => {
                let (tx, rx) = queue::channel("test", 1);
                tokio::spawn(async move {
                    for piece in ["one ", "two"] {
                        let _ = tx.send(Bytes::from_static(piece.as_bytes())).await;
                    }
                });
                Answer {
                    status: 200,
                    content_type: PLAIN_TEXT,
                    content: Content::Stream(rx),
                }
            }
            "/large" => Answer::whole(200, PLAIN_TEXT, vec![b'x'; 64 * 1024 * 1024]),
            path => Answer::text(200, format!("{path} {}", get.query)),
        }
    }

    async fn start() -> (SocketAddr, Scope) {
        let scope = Scope::new();
        let server = Server::bind(([127, 0, 0, 1], 0).into(), LIMITS).await.unwrap();
        let address = server.local_address();
        scope.spawn("server", server.run("test", scope.clone(), echo));
        (address, scope)
    }

    async fn say(address: SocketAddr, words: &[u8]) -> String {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // A server that has heard enough closes while it is still being told more.
        let _ = tcp.write_all(words).await;
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn names_of_others_are_told_apart() {
        for (host, expected) in [
            ("", true),
            ("localhost", true),
            ("LocalHost:10350", true),
            ("127.0.0.1:10350", true),
            ("[::1]:10350", true),
            ("evil.example:10350", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("a b", false),
        ] {
            let get = Get {
                host: host.to_owned(),
                path: String::new(),
                query: String::new(),
            };
            assert_eq!(get.is_for_address(), expected, "{host:?}");
        }
    }

    #[tokio::test]
    async fn requests_are_answered_and_hostile_ones_are_refused() {
        let (address, scope) = start().await;
        let good = say(
            address,
            b"GET /a%20b?c=d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert!(
            good.starts_with("HTTP/1.1 200") && good.ends_with("/a%20b c=d"),
            "{good}"
        );
        let stream = say(
            address,
            b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert!(stream.contains("one ") && stream.contains("two"), "{stream}");
        let head = say(
            address,
            b"HEAD /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert!(
            head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(100_000));
        for (words, expected) in [
            (
                &b"POST /exec HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"[..],
                "405",
            ),
            (
                b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
                "413",
            ),
            (
                b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
                "400",
            ),
            (b"\x16\x03\x01\x02\x00\x01\x00", "400"),
            (b"GET http://[::1 HTTP/1.1\r\n\r\n", "400"),
            (long.as_bytes(), "4"),
            (b"GET / HTTP/1.1\r\nhost: x\r\n", ""),
        ] {
            let answer = say(address, words).await;
            let shown = String::from_utf8_lossy(&words[..words.len().min(60)]).into_owned();
            let status = answer.strip_prefix("HTTP/1.1 ").unwrap_or_default();
            assert!(status.starts_with(expected), "{shown:?}: {answer:?}");
        }
        assert!(scope.drain(Duration::from_secs(5)).await.left.is_empty());
    }

    #[tokio::test]
    async fn who_holds_connections_loses_them() {
        let (address, scope) = start().await;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut greedy = TcpStream::connect(address).await.unwrap();
        greedy
            .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        // Both places are taken, until the limits free them.
        let answer = say(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop((silent, greedy));
        assert!(scope.drain(Duration::from_secs(5)).await.left.is_empty());
    }
}
