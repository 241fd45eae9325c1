//! The monitor server: `/healthz`, `/readyz`, `/metrics` over plain HTTP on an address that operators choose, by default
//! on loopback. It changes nothing and tells no secret.

use crate::Scope;
use crate::health::Health;
use crate::metrics::Registry;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A scraper, a kubelet and some people; more wait in the backlog.
const CONNECTIONS_MAX: usize = 16;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// One connection, kept alive over several scrapes or not, is not kept longer than this.
const CONNECTION_MAX: Duration = Duration::from_secs(120);
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Wait after a failed accept, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What Prometheus asks for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A monitor server that listens.
#[derive(Debug)]
pub struct Monitor {
    listener: TcpListener,
    address: SocketAddr,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Desk {
    health: Health,
    metrics: Registry,
}

impl Monitor {
    /// Listens; port 0 lets the system choose.
    pub async fn bind(address: SocketAddr, health: Health, metrics: Registry) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            desk: Arc::new(Desk { health, metrics }),
        })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the scope ends.
    pub async fn run(self, scope: Scope) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = Arc::clone(&connections)
                .acquire_owned()
                .await
                .expect("nobody closes this semaphore");
            let accepted = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "monitor connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let desk = Arc::clone(&self.desk);
            scope.spawn_until_cancelled("monitor connection", async move {
                let _permit = permit;
                if let Err(error) = serve(tcp, desk).await {
                    tracing::debug!(%peer, %error, "monitor connection ended");
                }
            });
        }
    }
}

async fn serve(tcp: TcpStream, desk: Arc<Desk>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let answer = desk.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(tcp), service);
    tokio::time::timeout(CONNECTION_MAX, connection)
        .await
        .unwrap_or(Ok(()))
}

impl Desk {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".into());
        }
        match request.uri().path() {
            // Whoever can answer is alive.
            "/healthz" | "/livez" => text(StatusCode::OK, "ok".into()),
            "/readyz" => {
                let status = match self.health.is_ready() {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                text(status, self.health.to_string())
            }
            "/metrics" => {
                let mut answer = text(StatusCode::OK, self.metrics.text());
                let kind = hyper::header::HeaderValue::from_static(METRICS_TYPE);
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                answer
            }
            path => text(
                StatusCode::NOT_FOUND,
                format!("there is no {path} here; there are /healthz, /livez, /readyz and /metrics\n"),
            ),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, line: &str) -> String {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: monitor\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        format!("{} {body}", head.split(' ').nth(1).unwrap())
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_served() {
        let (health, metrics, scope) = (Health::new(), Registry::new(), Scope::new());
        let part = health.part("watches");
        metrics.counter("kedge_test", "A test", &[]).inc();
        let monitor = Monitor::bind(([127, 0, 0, 1], 0).into(), health, metrics)
            .await
            .unwrap();
        let address = monitor.local_address();
        scope.spawn("monitor", monitor.run(scope.clone()));

        assert_eq!(ask(address, "GET /healthz").await, "200 ok");
        let unready = ask(address, "GET /readyz").await;
        assert!(
            unready.starts_with("503 [-]watches failed: starting"),
            "{unready}"
        );
        part.ready();
        let ready = ask(address, "GET /readyz").await;
        assert!(ready.starts_with("200 [+]watches ok"), "{ready}");
        assert!(ask(address, "GET /metrics").await.contains("kedge_test_total 1"));
        assert!(ask(address, "POST /metrics").await.starts_with("405"));
        assert!(ask(address, "GET /debug").await.starts_with("404"));
        assert!(scope.drain(Duration::from_secs(5)).await.left.is_empty());
    }
}
