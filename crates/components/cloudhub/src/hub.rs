//! The hub as a whole: its servers, its registry, its accept loop.

use crate::bootstrap::Bootstrap;
use crate::metrics::{Metrics, count};
use crate::registry::{Door, Enter, Entered, Registry};
use crate::session::Session;
use crate::{Config, Error, Ports};
use kedge_link::{OFFER_HEADER, OFFER_VERSION, Peer};
use kedge_pki::{ClientAuth, node_of_peer};
use kedge_telemetry::Scope;
use kedge_transport::{
    Acceptance, Close, CloseCode, Connection, Limits, Listener, Refusal, UpgradeRequest, accept,
};
use kedge_wire::NodeName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Handshakes at one time. Each costs two signatures; more of them at once only makes all of them late.
const HANDSHAKES_MAX: usize = 512;
/// A newcomer waits this long for the session it replaces; that one only has to notice.
const ENTER_TIMEOUT: Duration = Duration::from_secs(10);

/// CloudHub with its ports open, ready to run.
pub struct CloudHub {
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    bootstrap: Bootstrap,
    shared: Arc<Shared>,
    registry: Registry,
}

impl std::fmt::Debug for CloudHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CloudHub")
            .field("hub", &self.hub_address())
            .field("https", &self.https_address())
            .finish_non_exhaustive()
    }
}

struct Shared {
    door: Door,
    ports: Ports,
    metrics: Arc<Metrics>,
    keepalive_timeout: Duration,
    kubernetes_ca: Option<Arc<str>>,
    node_limit: usize,
    seed: u64,
    sessions: AtomicU64,
}

impl CloudHub {
    /// Opens both ports. Nothing is served before [`CloudHub::run`].
    pub async fn bind(config: Config, ports: Ports) -> Result<Self, Error> {
        let tls = Arc::new(
            config
                .identity
                .server_config(ClientAuth::Required)
                .map_err(Error::Tls)?,
        );
        let listener = Listener::bind(config.hub_address).await.map_err(Error::Hub)?;
        let metrics = Arc::new(Metrics::default());
        let bootstrap = Bootstrap::bind(&config, ports.node_exists.clone(), Arc::clone(&metrics)).await?;
        let (door, registry) = Registry::new(config.node_limit, Arc::clone(&metrics));
        let shared = Shared {
            door,
            ports,
            metrics,
            keepalive_timeout: config.keepalive_timeout,
            kubernetes_ca: config.kubernetes_ca.map(Arc::from),
            node_limit: config.node_limit,
            seed: config.seed,
            sessions: AtomicU64::new(0),
        };
        Ok(Self {
            listener,
            tls,
            bootstrap,
            shared: Arc::new(shared),
            registry,
        })
    }

    /// Where edges connect.
    pub fn hub_address(&self) -> SocketAddr {
        self.listener.local_address()
    }

    /// Where edges join.
    pub fn https_address(&self) -> SocketAddr {
        self.bootstrap.local_address()
    }

    /// The counters, which stay readable while the hub runs.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Serves until the scope ends; sessions say good-bye within its drain.
    pub async fn run(self, scope: Scope) {
        let Self {
            listener,
            tls,
            bootstrap,
            shared,
            registry,
        } = self;
        scope.spawn("hub registry", registry.run());
        scope.spawn("hub bootstrap", bootstrap.run(scope.clone()));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let permit = Arc::clone(&handshakes)
                .acquire_owned()
                .await
                .expect("nobody closes this semaphore");
            let (tcp, peer) = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (shared, tls, inner) = (Arc::clone(&shared), Arc::clone(&tls), scope.clone());
            scope.spawn("hub connection", async move {
                let entered = tokio::select! {
                    biased;
                    () = inner.cancelled() => return,
                    entered = shared.shake_hands(tcp, tls, peer) => entered,
                };
                drop(permit);
                if let Some((node, peer, connection)) = entered {
                    shared.serve(node, peer, connection, inner).await;
                }
            });
        }
    }
}

impl Shared {
    async fn shake_hands(
        &self,
        tcp: TcpStream,
        tls: Arc<rustls::ServerConfig>,
        address: SocketAddr,
    ) -> Option<(NodeName, Peer, Connection)> {
        match accept(tcp, tls, Limits::HUB, decide).await {
            Ok((connection, (node, peer))) => Some((node, peer, connection)),
            Err(kedge_transport::AcceptError::Refused(why)) => {
                count(&self.metrics.refused);
                tracing::warn!(%address, why, "edge refused");
                None
            }
            Err(error) => {
                count(&self.metrics.handshakes_failed);
                tracing::debug!(%address, %error, "handshake failed");
                None
            }
        }
    }

    async fn serve(&self, node: NodeName, peer: Peer, connection: Connection, scope: Scope) {
        let refuse = |code, reason: String| Close { code, reason };
        let refusal = match self.door.ask(Enter { node: node.clone() }, ENTER_TIMEOUT).await {
            Ok(Entered::Welcome(place)) => {
                let number = self.sessions.fetch_add(1, Ordering::Relaxed);
                let session = Session {
                    node,
                    peer,
                    keepalive_timeout: self.keepalive_timeout,
                    kubernetes_ca: self.kubernetes_ca.clone(),
                    // Two sessions never share a row of message ids.
                    seed: self.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                    ports: self.ports.clone(),
                    metrics: Arc::clone(&self.metrics),
                };
                return Box::pin(session.run(connection, place, scope)).await;
            }
            Ok(Entered::Full) => refuse(
                CloseCode::TryAgain,
                format!("the node limit of {} is reached", self.node_limit),
            ),
            Ok(Entered::Superseded) => refuse(
                CloseCode::Policy,
                "replaced by a newer connection of this node".into(),
            ),
            Err(error) => refuse(
                CloseCode::TryAgain,
                format!("the hub cannot take the session: {error}"),
            ),
        };
        count(&self.metrics.refused);
        tracing::warn!(%node, why = refusal.reason, "node refused");
        connection.close(&refusal).await;
    }
}

/// Who dials: the certificate says it, the headers must agree.
fn decide(request: &UpgradeRequest<'_>) -> Result<Acceptance<(NodeName, Peer)>, Refusal> {
    let refuse = |status, text: String| Refusal { status, text };
    let node = node_of_peer(request.certificate, "node_id", request.header("node_id"))
        .map_err(|text| refuse(403, text))?;
    if request.header("ConnectionUse") != Some("msg") {
        return Err(refuse(400, "header ConnectionUse must be msg".into()));
    }
    let offered = request.header(OFFER_HEADER) == Some(OFFER_VERSION);
    let (peer, headers) = if offered {
        (Peer::Kedge, vec![("kedge-link", OFFER_VERSION)])
    } else {
        (Peer::Official, Vec::new())
    };
    Ok(Acceptance {
        value: (node, peer),
        headers,
    })
}
