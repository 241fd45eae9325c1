//! The bootstrap server: authority certificate, node certificates, whether a node exists.
//!
//! ```text
//!   acceptor (who may wait, who is served) ── TLS ──> desk (one request, one answer, closed)
//! ```

mod desk;
mod rate;

use crate::metrics::{Metrics, watch_door};
use crate::{Config, Error, Ports};
use desk::{Desk, Rates, Tally, Visitor};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kedge_pki::{Certificate, ClientAuth};
use kedge_telemetry::Scope;
use kedge_transport::{AcceptError, Acceptor, HandshakeLimits, Listener};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How many connections there are at one time. One costs two signatures and some 40 KiB while it is served, and is over
/// after one answer.
const LIMITS: HandshakeLimits = HandshakeLimits {
    in_progress_max: 256,
    per_address_max: 128,
    accepted_max: 2048,
};
/// Request line and headers.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// An official edge sends five.
const HEADERS_MAX: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the TLS handshake to the end of the answer; one request a connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Bootstrap {
    acceptor: Arc<Acceptor>,
    desk: Arc<Desk>,
}

/// Why a connection ended without an answer.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error("read the certificate that was shown: {0}")]
    Certificate(#[source] kedge_pki::Error),
    #[error("exchange request and answer: {0}")]
    Http(#[source] hyper::Error),
    #[error("the request was not over within {REQUEST_TIMEOUT:?}")]
    Timeout,
}

impl Bootstrap {
    pub(crate) async fn bind(config: &Config, ports: &Ports, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let tls = config
            .identity
            .server_config(ClientAuth::Optional)
            .map_err(Error::Tls)?;
        let listener = Listener::bind(config.https_address)
            .await
            .map_err(Error::Bootstrap)?;
        let acceptor = Arc::new(Acceptor::new(listener, Arc::new(tls), LIMITS));
        watch_door(
            &config.metrics,
            "https",
            &acceptor,
            Acceptor::in_progress,
            Acceptor::refused,
        );
        let desk = Desk {
            authority: config.authority.clone(),
            certificate_lifetime: config.certificate_lifetime,
            node_exists: ports.node_exists.clone(),
            redeem: ports.redeem.clone(),
            metrics,
            tally: Tally::new(&config.metrics),
            rates: Rates::new(),
        };
        Ok(Self {
            acceptor,
            desk: Arc::new(desk),
        })
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.acceptor.local_address()
    }

    pub(crate) async fn run(self, scope: Scope) {
        loop {
            let handshake = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                handshake = self.acceptor.next() => handshake,
            };
            let (desk, address) = (Arc::clone(&self.desk), handshake.peer());
            scope.spawn_until_cancelled("hub bootstrap connection", async move {
                let served = handshake.serve_tls(|stream| serve(stream, desk, address)).await;
                if let Err(error) = served.map_err(ServeError::from).flatten() {
                    tracing::debug!(%address, %error, "bootstrap connection ended");
                }
            });
        }
    }
}

async fn serve(stream: TlsStream<TcpStream>, desk: Arc<Desk>, address: SocketAddr) -> Result<(), ServeError> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.map(|der| Certificate::from_der(der)).transpose();
    let visitor = Arc::new(Visitor {
        address: address.ip(),
        certificate: certificate.map_err(ServeError::Certificate)?,
    });
    let service = service_fn(move |request| {
        let (desk, visitor) = (Arc::clone(&desk), Arc::clone(&visitor));
        async move { Ok::<_, Infallible>(desk.answer(request, &visitor).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(REQUEST_TIMEOUT, connection).await {
        Ok(served) => served.map_err(ServeError::Http),
        Err(_) => Err(ServeError::Timeout),
    }
}
