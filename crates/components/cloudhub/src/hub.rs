//! The hub as a whole: its ports, and what runs behind them.

use crate::bootstrap::Bootstrap;
use crate::clock::Clock;
use crate::metrics::{Metrics, watch_door};
use crate::reception::{self, Shared};
use crate::registry::Registry;
use crate::{Config, Error, Ports};
use kedge_pki::ClientAuth;
use kedge_telemetry::Scope;
use kedge_transport::{Acceptor, HandshakeLimits, Listener, QuicListener};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// CloudHub with its ports open, ready to run.
pub struct CloudHub {
    /// At least one of the two is there.
    websocket: Option<Arc<Acceptor>>,
    quic: Option<Arc<QuicListener>>,
    bootstrap: Bootstrap,
    shared: Arc<Shared>,
    registry: Registry,
}

impl std::fmt::Debug for CloudHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CloudHub")
            .field("hub", &self.hub_address())
            .field("quic", &self.quic_address())
            .field("https", &self.https_address())
            .finish_non_exhaustive()
    }
}

impl CloudHub {
    /// Opens the ports. Nothing is served before [`CloudHub::run`].
    pub async fn bind(config: Config, ports: Ports) -> Result<Self, Error> {
        let (websocket, quic) = open_doors(&config).await?;
        let metrics = Arc::new(Metrics::new(&config.metrics));
        let bootstrap = Bootstrap::bind(&config, &ports, Arc::clone(&metrics)).await?;
        let (places, registry) = Registry::new(config.node_limit, Arc::clone(&metrics));
        let shared = Shared {
            places,
            attach: ports.attach,
            metrics,
            clock: Clock::start(),
            keepalive_timeout: config.keepalive_timeout,
            flow: config.flow,
            kubernetes_ca: config.kubernetes_ca.map(Arc::from),
            node_limit: config.node_limit,
            seed: config.seed,
            sessions: AtomicU64::new(0),
        };
        Ok(Self {
            websocket,
            quic,
            bootstrap,
            shared: Arc::new(shared),
            registry,
        })
    }

    /// Where edges connect over WebSocket, if they may.
    pub fn hub_address(&self) -> Option<SocketAddr> {
        self.websocket.as_ref().map(|door| door.local_address())
    }

    /// Where edges connect over QUIC, if they may.
    pub fn quic_address(&self) -> Option<SocketAddr> {
        self.quic.as_ref().map(|door| door.local_address())
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
        scope.spawn_vital("hub registry", self.registry.run());
        scope.spawn_vital("hub bootstrap", self.bootstrap.run(scope.clone()));
        if let Some(door) = self.websocket {
            let serving = reception::serve(door, Arc::clone(&self.shared), scope.clone());
            scope.spawn_vital("hub websocket", serving);
        }
        if let Some(door) = self.quic {
            let serving = reception::serve(door, Arc::clone(&self.shared), scope.clone());
            scope.spawn_vital("hub quic", serving);
        }
        scope.cancelled().await;
    }
}

/// The ways in that are enabled. Both ask for a certificate, and each has limits of its own.
async fn open_doors(config: &Config) -> Result<(Option<Arc<Acceptor>>, Option<Arc<QuicListener>>), Error> {
    let limits = HandshakeLimits::default();
    let tls = config.identity.server_config(ClientAuth::Required);
    let tls = Arc::new(tls.map_err(Error::Tls)?);
    let websocket = match config.hub_address {
        Some(address) => {
            let listener = Listener::bind(address).await.map_err(Error::Hub)?;
            let door = Arc::new(Acceptor::new(listener, Arc::clone(&tls), limits));
            let (waiting, turned_away) = (Acceptor::in_progress, Acceptor::refused);
            watch_door(&config.metrics, "websocket", &door, waiting, turned_away);
            Some(door)
        }
        None => None,
    };
    let quic = match config.quic_address {
        Some(address) => {
            let door = Arc::new(QuicListener::bind(address, &tls, limits).map_err(Error::Quic)?);
            let (waiting, turned_away) = (QuicListener::in_progress, QuicListener::refused);
            watch_door(&config.metrics, "quic", &door, waiting, turned_away);
            Some(door)
        }
        None => None,
    };
    match (&websocket, &quic) {
        (None, None) => Err(Error::NoWayIn),
        (Some(_), _) | (None, Some(_)) => Ok((websocket, quic)),
    }
}
