//! From a connection to a session: who is it, and may it come in?
//!
//! ```text
//!   door ── handshake in a task of its own ── decide (certificate, path, headers) ── registry ── session
//! ```

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::ports::{Attach, Attached};
use crate::registry::{Enter, Entered, Places};
use crate::session::{FlowLimits, Guest, Session};
use futures_util::future::BoxFuture;
use kedge_link::{OFFER_HEADER, OFFER_VERSION, Peer};
use kedge_pki::node_of_peer;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use kedge_transport::{
    AcceptError, Acceptance, Acceptor, Close, CloseCode, Connection, Framing, Limits, QuicListener, Refusal,
    UpgradeRequest,
};
use kedge_wire::NodeName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A newcomer waits this long for the session it replaces; that one only has to notice.
const ENTER_TIMEOUT: Duration = Duration::from_secs(10);

/// So many refusals are logged each; of later ones every doubling.
const REFUSALS_LOGGED: u64 = 100;

/// What all connections and sessions of a hub share.
pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) attach: ask::Sender<Attach, Attached>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) flow: FlowLimits,
    pub(crate) kubernetes_ca: Option<Arc<str>>,
    pub(crate) node_limit: usize,
    pub(crate) seed: u64,
    /// Sessions begun.
    pub(crate) sessions: AtomicU64,
}

/// A finished handshake.
type Shaken = Result<(Connection, (NodeName, Peer)), AcceptError>;

/// Where edges come in, whatever carries them.
pub(crate) trait Door: Send + Sync + 'static {
    const CARRIER: &'static str;

    /// The next connection: its address, and its handshake, which is to be run in a task of its own. Cancel safe.
    fn next(&self) -> impl Future<Output = (SocketAddr, BoxFuture<'static, Shaken>)> + Send;
}

impl Door for Acceptor {
    const CARRIER: &'static str = "websocket";

    async fn next(&self) -> (SocketAddr, BoxFuture<'static, Shaken>) {
        let handshake = Acceptor::next(self).await;
        (handshake.peer(), Box::pin(handshake.run(Limits::HUB, decide)))
    }
}

impl Door for QuicListener {
    const CARRIER: &'static str = "quic";

    async fn next(&self) -> (SocketAddr, BoxFuture<'static, Shaken>) {
        let handshake = QuicListener::next(self).await;
        (handshake.peer(), Box::pin(handshake.run(Limits::HUB, decide)))
    }
}

/// Receives whoever comes through `door`, until the scope ends.
pub(crate) async fn serve<D: Door>(door: Arc<D>, shared: Arc<Shared>, scope: Scope) {
    loop {
        let (address, shaking) = tokio::select! {
            biased;
            () = scope.cancelled() => return,
            next = door.next() => next,
        };
        let (shared, inner) = (Arc::clone(&shared), scope.clone());
        scope.spawn("hub handshake", async move {
            let shaken = tokio::select! {
                biased;
                () = inner.cancelled() => return,
                shaken = shaking => shaken,
            };
            if let Some((guest, connection)) = shared.judge(shaken, address, D::CARRIER) {
                shared.admit(guest, connection, inner).await;
            }
        });
    }
}

impl Shared {
    /// What became of a handshake.
    fn judge(
        &self,
        shaken: Shaken,
        address: SocketAddr,
        carrier: &'static str,
    ) -> Option<(Guest, Connection)> {
        match shaken {
            Ok((connection, (node, peer))) => {
                self.metrics.handshakes.ok.inc();
                let guest = Guest {
                    node,
                    peer,
                    address,
                    carrier,
                };
                Some((guest, connection))
            }
            Err(AcceptError::Refused(why)) => {
                if self.counts_refusal() {
                    tracing::warn!(%address, carrier, why, "edge refused");
                }
                None
            }
            Err(
                error @ (AcceptError::Timeout { .. }
                | AcceptError::NoTurn { .. }
                | AcceptError::Tls(_)
                | AcceptError::Upgrade(_)),
            ) => {
                self.metrics.handshakes.failed.inc();
                tracing::debug!(%address, carrier, %error, "handshake failed");
                None
            }
        }
    }

    /// Counts a refusal; whether it is to be logged. Whoever is refused comes again, and a thousand of them must not fill
    /// the log.
    fn counts_refusal(&self) -> bool {
        self.metrics.handshakes.refused.inc();
        let refused = self.metrics.handshakes.refused.get();
        refused <= REFUSALS_LOGGED || refused.is_power_of_two()
    }

    /// Gives a connection the place of its node and starts its session, or closes it with the reason why not.
    pub(crate) async fn admit(self: Arc<Self>, guest: Guest, connection: Connection, scope: Scope) {
        let Guest {
            node,
            peer,
            address,
            carrier,
        } = &guest;
        let entered = self.places.ask(Enter { node: node.clone() }, ENTER_TIMEOUT).await;
        let (code, reason) = match entered {
            Ok(Entered::Welcome(mut place)) => {
                tracing::info!(%node, ?peer, %address, carrier, "node connected");
                let held = place.take_held();
                let seed = self.next_seed();
                let session = Session::new(Arc::clone(&self), &guest, connection, seed, held);
                // A task of its own: that of the handshake is large.
                scope.spawn("hub session", session.run(place, scope.clone()));
                return;
            }
            Ok(Entered::Full) => (
                CloseCode::TryAgain,
                format!("the node limit of {} is reached", self.node_limit),
            ),
            Ok(Entered::Superseded) => (
                CloseCode::Policy,
                "replaced by a newer connection of this node".into(),
            ),
            Err(error) => (
                CloseCode::TryAgain,
                format!("the hub cannot take the session: {error}"),
            ),
        };
        if self.counts_refusal() {
            tracing::warn!(%node, %address, carrier, why = reason, "node refused");
        }
        connection.close(&Close { code, reason }).await;
    }

    /// Two sessions never share a row of message ids.
    fn next_seed(&self) -> u64 {
        // 2^64 divided by the golden ratio spreads neighbours as far apart as can be.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        self.seed.wrapping_add(number.wrapping_mul(STEP))
    }
}

/// Who dials: the certificate says it, headers and path must agree.
fn decide(request: &UpgradeRequest<'_>) -> Result<Acceptance<(NodeName, Peer)>, Refusal> {
    let refuse = |status, text: String| Refusal { status, text };
    let node = node_of_peer(request.certificate, "node_id", request.header("node_id"))
        .map_err(|text| refuse(403, text))?;
    // `/<project>/<node>/events`; the project means nothing.
    match request.path.split('/').collect::<Vec<_>>().as_slice() {
        ["", _project, named, "events"] if *named == node.as_str() => {}
        ["", _project, named, "events"] => {
            let text = format!("the path is that of {named:?} but the certificate is of node {node}");
            return Err(refuse(403, text));
        }
        _other_path => {
            let text = format!(
                "there is no {} here; a node connects to /<project>/<node>/events",
                request.path
            );
            return Err(refuse(404, text));
        }
    }
    if request.header("ConnectionUse") != Some("msg") {
        return Err(refuse(400, "header ConnectionUse must be msg".into()));
    }
    let offered = request.header(OFFER_HEADER) == Some(OFFER_VERSION);
    let (peer, framing, headers) = if offered {
        (Peer::Kedge, Framing::Kedge, vec![("kedge-link", OFFER_VERSION)])
    } else {
        (Peer::Official, Framing::Official, Vec::new())
    };
    Ok(Acceptance {
        value: (node, peer),
        headers,
        framing,
    })
}
