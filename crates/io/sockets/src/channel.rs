//! A connection that is dialled when it is needed.

use crate::Address;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::body::Body;

/// A peer that does not accept within this time is away: local sockets accept at once.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after the first dial that failed.
const REDIAL_DELAY_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two dials. A runtime that comes back is found within it; a dial costs microseconds.
const REDIAL_DELAY_MAX: Duration = Duration::from_secs(1);
/// Headers carry the sentence of a failed call, which for a failed pull may hold a registry's whole answer.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;

/// Carries calls to one address over one connection, which all clones share.
///
/// Made without a connection: the first call dials. When the connection has died the next call dials again; after a
/// dial that failed, calls are refused with `UNAVAILABLE` and the reason until the pause is over.
#[derive(Clone, Debug)]
pub struct Channel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: Address,
    line: Mutex<Line>,
    connections: AtomicU64,
}

#[derive(Debug)]
enum Line {
    /// Nobody called yet, or the connection died: dial at the next call.
    Down,
    Up(SendRequest<Body>),
    /// The last dial failed.
    Waiting {
        until: Instant,
        delay: Duration,
        reason: String,
    },
}

impl Channel {
    /// Dials nothing yet; costs a few hundred bytes.
    pub fn new(address: Address) -> Self {
        let shared = Shared {
            address,
            line: Mutex::new(Line::Down),
            connections: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// How many connections were made so far. What was learned from the peer holds while this number stays: a peer
    /// that restarted may be another version.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn carry(&self, request: http::Request<Body>) -> Result<http::Response<Incoming>, Status> {
        let mut request = request;
        // Twice: the peer may have closed an idle connection just before this request, which then was not sent.
        for _ in 0..2 {
            let mut sender = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(&failed.into_error())),
                },
            }
        }
        Err(self.unavailable("the connection closes before a request is sent"))
    }

    async fn sender(&self) -> Result<SendRequest<Body>, Status> {
        let mut line = self.line.lock().await;
        let delay = match &*line {
            Line::Up(sender) if !sender.is_closed() => return Ok(sender.clone()),
            Line::Up(_) | Line::Down => REDIAL_DELAY_MIN,
            Line::Waiting { until, reason, .. } if Instant::now() < *until => {
                return Err(self.unavailable(reason));
            }
            Line::Waiting { delay, .. } => (*delay * 2).min(REDIAL_DELAY_MAX),
        };
        match self.dial().await {
            Ok(sender) => {
                self.connections.fetch_add(1, Ordering::Relaxed);
                *line = Line::Up(sender.clone());
                Ok(sender)
            }
            Err(reason) => {
                let refusal = self.unavailable(&reason);
                *line = Line::Waiting {
                    until: Instant::now() + delay,
                    delay,
                    reason,
                };
                Err(refusal)
            }
        }
    }

    async fn dial(&self) -> Result<SendRequest<Body>, String> {
        let dialled = timeout(DIAL_TIMEOUT, async {
            match &self.address {
                Address::Unix(path) => handshake(UnixStream::connect(path).await).await,
                Address::Tcp(address) => handshake(TcpStream::connect(address).await).await,
            }
        });
        match dialled.await {
            Ok(result) => result,
            Err(_) => Err(format!("no connection within {} s", DIAL_TIMEOUT.as_secs())),
        }
    }

    fn unavailable(&self, reason: &str) -> Status {
        Status::unavailable(format!("{}: {reason}", self.address))
    }

    fn broken(&self, error: &hyper::Error) -> Status {
        let cause = std::error::Error::source(error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        self.unavailable(&format!("the connection broke during a call: {error}{cause}"))
    }
}

async fn handshake<S>(connected: std::io::Result<S>) -> Result<SendRequest<Body>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = connected.map_err(|error| error.to_string())?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(HEADERS_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends when the peer closes, or with the last clone of the channel.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a local gRPC connection ended");
        }
    });
    Ok(sender)
}

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    /// Always ready: how much is asked at one time is decided by the callers, who know what a call costs.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.carry(request).await })
    }
}
