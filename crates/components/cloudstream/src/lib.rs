//! CloudStream: reads logs and metrics of nodes, and connects to their kubelet ports, through tunnels that the nodes have
//! dialled.
//!
//! **Duty.** Accept one tunnel a node (10004, TLS WebSocket with client certificates, official frames); for each question
//! of the Kubernetes API open a stream in the right tunnel and hand its bytes over.
//!
//! **Inputs.** [`Ports`]: which node, which path. Tunnels of edges. **Outputs.** A queue of bytes that ends when the
//! stream does, or bytes both ways for a connection, or a sentence why there is none.
//!
//! **Never.** No HTTP towards the API server, and no opinion about what is carried. No node is believed by the name in a
//! header: the certificate says who it is. A reader that does not read holds up its own stream; with an official edge,
//! whose streams have no credit, it loses it.
//!
//! ```text
//!   question ──> table (one owner: which node has a tunnel) ──> tunnel task ──CONNECT──> edge
//!   reader  <── task of this stream <── inlet of this stream <── tunnel task <── DATA, REMOVE ── edge
//!   writer  ──> task of this stream ──> one bounded queue ──> writer task ──> DATA, REMOVE, WINDOW ── edge
//! ```

mod request;
mod table;
mod tunnel;

use bytes::Bytes;
use kedge_pki::{ClientAuth, Identity, node_of_peer};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::{
    AcceptError, Acceptance, Acceptor, BindError, Connection, Framing, HandshakeLimits, Limits, Listener,
    Refusal, UpgradeRequest,
};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{NodeConnect, NodeGet, OFFER, OFFER_HEADER};
use std::net::SocketAddr;
use std::sync::Arc;
use table::{Arrival, Table};
use tokio::io::DuplexStream;

/// The bytes of a stream, or why there are none.
pub type NodeAnswer = Result<queue::Receiver<Bytes>, String>;

/// The bytes of a connection after the head of its request, both ways; or why there are none.
pub type ConnectAnswer = Result<DuplexStream, String>;

/// Path of the tunnel, as official edges dial it.
const TUNNEL_PATH: &str = "/v1/kubeedge/connect";
/// Tunnels on their way into the table.
const ARRIVALS_MAX: usize = 64;

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Official port 10004. Port 0 lets the system choose.
    pub address: SocketAddr,
    /// What the server shows; its names must be those that edges dial.
    pub identity: Identity,
}

/// Who CloudStream talks to inside the process.
#[derive(Debug)]
pub struct Ports {
    /// Questions of the Kubernetes API.
    pub gets: ask::Receiver<(NodeName, NodeGet), NodeAnswer>,
    /// Its connections: exec, attach, port forwarding.
    pub connects: ask::Receiver<(NodeName, NodeConnect), ConnectAnswer>,
}

/// Why CloudStream cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start the tunnel server")]
    Listen(#[source] BindError),
    #[error("prepare TLS")]
    Tls(#[source] kedge_pki::Error),
}

/// CloudStream with its port open, ready to run.
#[derive(Debug)]
pub struct CloudStream {
    acceptor: Acceptor,
    ports: Ports,
}

impl CloudStream {
    /// Opens the port. Nothing is served before [`CloudStream::run`].
    pub async fn bind(config: Config, ports: Ports) -> Result<Self, Error> {
        let tls = Arc::new(
            config
                .identity
                .server_config(ClientAuth::Required)
                .map_err(Error::Tls)?,
        );
        let listener = Listener::bind(config.address).await.map_err(Error::Listen)?;
        let acceptor = Acceptor::new(listener, tls, HandshakeLimits::default());
        Ok(Self { acceptor, ports })
    }

    /// Where edges dial.
    pub fn local_address(&self) -> SocketAddr {
        self.acceptor.local_address()
    }

    /// Serves until the scope ends.
    pub async fn run(self, scope: Scope) {
        let Self { acceptor, ports } = self;
        let (arrivals, arriving) = queue::channel("tunnel arrivals", ARRIVALS_MAX);
        scope.spawn_until_cancelled(
            "tunnel table",
            Table::new(ports.gets, ports.connects, arriving, scope.clone()).run(),
        );
        loop {
            let handshake = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                handshake = acceptor.next() => handshake,
            };
            let arrivals = arrivals.clone();
            scope.spawn_until_cancelled("tunnel handshake", async move {
                let peer = handshake.peer();
                match handshake.run(Limits::TUNNEL, decide).await {
                    Ok((connection, node)) => arrive(&arrivals, node, connection).await,
                    Err(AcceptError::Refused(why)) => tracing::warn!(%peer, why, "tunnel refused"),
                    Err(error) => tracing::debug!(%peer, %error, "tunnel handshake failed"),
                }
            });
        }
    }
}

async fn arrive(arrivals: &queue::Sender<Arrival>, node: NodeName, connection: Connection) {
    if arrivals.send(Arrival { node, connection }).await.is_err() {
        tracing::debug!("tunnel came while CloudStream ended");
    }
}

/// The header in which an edge names itself.
const NODE_HEADER: &str = "SessionHostNameOverride";

/// Who dials: the certificate says it, the header must agree.
fn decide(request: &UpgradeRequest<'_>) -> Result<Acceptance<NodeName>, Refusal> {
    let refuse = |status, text: String| Refusal { status, text };
    if request.path != TUNNEL_PATH {
        return Err(refuse(404, format!("there is only {TUNNEL_PATH} here")));
    }
    let node = node_of_peer(request.certificate, NODE_HEADER, request.header(NODE_HEADER))
        .map_err(|text| refuse(403, text))?;
    let offers_credit = request.header(OFFER_HEADER) == Some(OFFER);
    Ok(Acceptance {
        value: node,
        headers: offers_credit
            .then_some((OFFER_HEADER, OFFER))
            .into_iter()
            .collect(),
        framing: Framing::Official,
    })
}
