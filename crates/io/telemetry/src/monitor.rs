//! The monitor server: `/healthz`, `/readyz`, `/metrics` over plain HTTP on an address that operators choose, by default
//! on loopback. It changes nothing and tells no secret.

use crate::Scope;
use crate::health::Health;
use crate::http::{Answer, Get, Limits, Server};
use crate::metrics::Registry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const LIMITS: Limits = Limits {
    // A scraper, a kubelet and some people.
    connections: 16,
    head: Duration::from_secs(10),
    stall: Duration::from_secs(30),
    // One connection, kept alive over several scrapes or not, is not kept longer than this.
    connection: Duration::from_secs(120),
};
/// What Prometheus asks for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A monitor server that listens.
#[derive(Debug)]
pub struct Monitor {
    server: Server,
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
        Ok(Self {
            server: Server::bind(address, LIMITS).await?,
            desk: Arc::new(Desk { health, metrics }),
        })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.server.local_address()
    }

    /// Answers until the scope ends.
    pub async fn run(self, scope: Scope) {
        let desk = self.desk;
        let answer = move |get: Get| {
            let answer = desk.answer(&get);
            async move { answer }
        };
        self.server.run("monitor connection", scope, answer).await;
    }
}

impl Desk {
    fn answer(&self, get: &Get) -> Answer {
        match get.path.as_str() {
            // Whoever can answer is alive.
            "/healthz" | "/livez" => Answer::text(200, "ok"),
            "/readyz" => {
                let status = if self.health.is_ready() { 200 } else { 503 };
                Answer::text(status, self.health.to_string())
            }
            "/metrics" => Answer::whole(200, METRICS_TYPE, self.metrics.text()),
            path => Answer::text(
                404,
                format!("there is no {path} here; there are /healthz, /livez, /readyz and /metrics\n"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

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
