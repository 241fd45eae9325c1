//! The edge's end of the tunnel through which the cloud reads logs and metrics of this node, and talks with its
//! containers.
//!
//! **Duty.** Hold one WebSocket to CloudStream, dialled from here, so that a node behind NAT can be reached; turn each
//! `LOGS_CONNECT` and `METRIC_CONNECT` into a question to edged and its answer into `DATA` frames; hand each
//! `EXEC_CONNECT` and `ATTACH_CONNECT` to edged as a connection to its kubelet port, and carry the bytes both ways; end
//! streams when either side is done.
//!
//! **Inputs.** [`Config`], [`Ports`], the identity of the node. **Outputs.** Questions and connections to edged, frames to
//! the cloud.
//!
//! **Never.** It opens no connection but the tunnel: of the URL in a connect frame only path and query are used, so
//! the cloud cannot make this node reach elsewhere. It interprets no logs and no bytes of connections. It does not retry
//! a stream: the cloud asks again.
//!
//! ```text
//!   session ── reader: frames --> one task a stream --ask, connect--> edged
//!      │                               │ bytes, cut to DATA frames
//!      └── writer: frames and pings <──┴ one bounded queue, so a slow link slows the streams
//! ```

mod backoff;
mod request;
mod session;
mod stream;
#[cfg(test)]
mod tests;

pub use kedge_pki::Identity;

use backoff::Backoff;
use bytes::Bytes;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, latest, queue};
use kedge_transport::{Plug, Target, dial};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{NodeGet, OFFER, OFFER_HEADER};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What edged answers: the bytes as they come, or why there are none.
pub type NodeAnswer = Result<queue::Receiver<Bytes>, String>;

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeName,
    /// The node's address, as the cloud shall know it.
    pub internal_ip: String,
    /// `edgeStream.server`, `host:port`.
    pub server: String,
    /// `edgeStream.handshakeTimeout`: how long one attempt may take.
    pub handshake_timeout: Duration,
    /// Spreads delays; any number that differs between nodes.
    pub seed: u64,
}

/// The neighbours.
#[derive(Debug)]
pub struct Ports {
    /// The identity to dial with, once there is one; a renewed one is used from the next connection on.
    pub identity: latest::Receiver<Option<Identity>>,
    /// To edged.
    pub gets: ask::Sender<NodeGet, NodeAnswer>,
    /// To edged.
    pub connects: queue::Sender<kedge_streaming::Connection>,
    /// The cable, which a demo may pull.
    pub plug: Plug,
}

/// The ways to edged.
#[derive(Debug, Clone)]
struct Node {
    gets: ask::Sender<NodeGet, NodeAnswer>,
    connects: queue::Sender<kedge_streaming::Connection>,
}

/// The component.
#[derive(Debug)]
pub struct EdgeStream {
    config: Config,
    ports: Ports,
}

impl EdgeStream {
    pub fn new(config: Config, ports: Ports) -> Self {
        Self { config, ports }
    }

    /// Serves until the scope is cancelled.
    pub async fn run(self, scope: Scope) {
        let mut backoff = Backoff::new(self.config.seed);
        let mut complaint = String::new();
        // A node that has not joined yet has nothing to show.
        let mut identity = self.ports.identity.clone();
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            _ = identity.wait_for(Option::is_some) => {}
        }
        while !scope.is_cancelled() {
            let started = Instant::now();
            let ended = tokio::select! {
                biased;
                () = scope.cancelled() => return,
                connected = self.connect() => match connected {
                    Ok(connection) => {
                        tracing::info!(server = self.config.server, "tunnel stands");
                        let node = Node {
                            gets: self.ports.gets.clone(),
                            connects: self.ports.connects.clone(),
                        };
                        session::run(connection, node, &scope).await
                    }
                    Err(why) => why,
                },
            };
            if started.elapsed() >= backoff::GOOD_SESSION {
                backoff.reset();
                // The same trouble again is news again.
                complaint.clear();
            }
            let delay = backoff.next();
            if ended == complaint {
                tracing::debug!(why = ended, ?delay, "tunnel still not there");
            } else {
                tracing::warn!(
                    why = ended,
                    ?delay,
                    "no tunnel to the cloud; logs cannot be read and containers not be entered until there is one"
                );
                complaint = ended;
            }
            tokio::select! {
                biased;
                () = scope.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn connect(&self) -> Result<kedge_transport::Connection, String> {
        let identity = self.ports.identity.borrow().clone();
        let identity = identity.ok_or_else(|| "this node has no certificate".to_owned())?;
        let tls = identity.client_config().map_err(|error| error.to_string())?;
        let target = Target::tunnel(&self.config.server, &self.config.node, &self.config.internal_ip)
            .with_header(OFFER_HEADER, OFFER);
        let after = self.config.handshake_timeout;
        let attempt = dial(&target, Arc::new(tls), &self.ports.plug);
        match tokio::time::timeout(after, attempt).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("dial {}: no tunnel within {after:?}", target.address)),
        }
    }
}
