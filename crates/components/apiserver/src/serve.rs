//! The listener: connections, TLS, HTTP, and the end of all three.

use crate::config::{Config, OpenError, Ports};
use crate::controllers;
use crate::handlers::{self, Server};
use crate::signing::CertificateSigner;
use crate::storage::Storage;
use crate::tls;
use crate::token::Signer;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kedge_apimachinery::rbac::User;
use kedge_telemetry::Scope;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Open connections. A client holds one or two; beyond this new ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 4096;
/// A client that has not finished its handshake by then holds a place for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the head of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams on one HTTP/2 connection: client-go puts all its watches on one.
const STREAMS_MAX: u32 = 512;
/// How long connections may take to finish their answers at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failed accept (out of descriptors), so that the loop does not burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The embedded Kubernetes API, open but not yet serving.
pub struct ApiServer {
    server: Arc<Server>,
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Takes the port, opens the objects and makes what every cluster has. Requests that arrive before
    /// [`ApiServer::run`] wait.
    pub async fn open(config: Config, ports: Ports) -> Result<Self, OpenError> {
        let acceptor = TlsAcceptor::from(tls::server_config(&config)?);
        let signer = Signer::new(&config.service_account_key_pem, &config.service_account_issuer)?;
        let certificates = CertificateSigner::of(&config)?;
        let listener = listen(config.listen).await?;
        let address = listener.local_addr().map_err(|source| OpenError::Listen {
            address: config.listen,
            source,
        })?;
        let (at, window) = (config.storage.clone(), config.limits.window_changes);
        let storage = tokio::task::spawn_blocking(move || Storage::open(&at, window))
            .await
            .map_err(|error| OpenError::Bootstrap {
                what: "storage".to_owned(),
                detail: error.to_string(),
            })??;
        let keys = handlers::Keys { signer, certificates };
        let server = Arc::new(Server::new(storage, keys, ports, address, config));
        handlers::bootstrap(&server).await?;
        Ok(Self {
            server,
            listener,
            address,
            acceptor,
        })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the scope ends: refuses new connections, ends watches, lets answers finish, closes the file.
    pub async fn run(self, scope: Scope) {
        let Self {
            server,
            listener,
            acceptor,
            address,
        } = self;
        tracing::info!(%address, "API server serves");
        let workers = scope.child();
        controllers::start(&server, &workers);
        let connections = scope.child();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned();
            let next = async { (place.await, listener.accept().await) };
            tokio::select! {
                biased; // The end comes first: nobody new is let in once it was asked for.
                () = scope.cancelled() => break,
                (Ok(place), accepted) = next => match accepted {
                    Ok((stream, peer)) => {
                        let serve = connection(
                            Arc::clone(&server), acceptor.clone(), stream, peer, connections.clone(),
                        );
                        connections.spawn("apiserver connection", async move {
                            serve.await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        for (part, child) in [("connections", connections), ("controllers", workers)] {
            let report = child.drain(DRAIN_TIMEOUT).await;
            if !report.left.is_empty() {
                tracing::warn!(part, left = ?report.left, "did not end in time");
            }
        }
        server.storage.clone().close().await;
        tracing::info!("API server ended");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, OpenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => OpenError::PortInUse { address },
            _ => OpenError::Listen { address, source },
        })
}

/// One connection from handshake to end. Whatever goes wrong here concerns this client only.
async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    scope: Scope,
) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = tokio::select! {
        biased;
        () = scope.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, "TLS handshake took too long");
                return;
            }
        },
    };
    let who: Option<Arc<User>> = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| tls::identity(chain.first()?))
        .map(Arc::new);
    let ending = scope.clone();
    let service = service_fn(move |request| {
        let (server, who, scope) = (Arc::clone(&server), who.clone(), scope.clone());
        async move { Ok::<_, Infallible>(handlers::answer(server, who, scope, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX);
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        biased;
        () = ending.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        result = serving.as_mut() => result,
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
