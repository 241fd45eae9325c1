//! What the hub wants to know.

use crate::FlowLimits;
use kedge_pki::{Authority, Identity};
use kedge_telemetry::metrics::Registry;
use std::net::SocketAddr;
use std::time::Duration;

/// Settings of the hub.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where edges connect over WebSocket; official port 10000. `None`: they do not. Port 0 lets the system choose.
    pub hub_address: Option<SocketAddr>,
    /// Where edges connect over QUIC; official port 10001. `None`: they do not.
    pub quic_address: Option<SocketAddr>,
    /// Where edges join; official port 10002.
    pub https_address: SocketAddr,
    /// Signs node certificates and join tokens.
    pub authority: Authority,
    /// What both servers show; its names must be those that edges dial.
    pub identity: Identity,
    /// Most sessions at one time.
    pub node_limit: usize,
    /// How much one node may send.
    pub flow: FlowLimits,
    /// Silence after which a session is closed; official default 30 s.
    pub keepalive_timeout: Duration,
    /// Life of a node certificate; official default 365 days.
    pub certificate_lifetime: Duration,
    /// PEM of the Kubernetes API's authority, for edges that ask.
    pub kubernetes_ca: Option<String>,
    /// Differs from process to process, so that message ids do.
    pub seed: u64,
    /// Where the hub's numbers go.
    pub metrics: Registry,
}
