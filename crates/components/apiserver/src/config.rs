//! What the server is told when it is built, and why it could not be.

use bytes::Bytes;
use kedge_store::revisions;
use kedge_telemetry::channel::{ask, queue};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{NodeConnect, NodeGet};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::DuplexStream;

/// Where objects are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageAt {
    /// In the file `api.db` of this directory, which is created when missing.
    Directory(PathBuf),
    /// Nowhere: everything is forgotten at the end.
    Memory,
}

/// Plain values; certificates and keys as PEM text.
#[derive(Clone)]
pub struct Config {
    /// Where to listen. Port 0 takes a free one; see [`crate::ApiServer::address`].
    pub listen: SocketAddr,
    pub storage: StorageAt,
    /// The server's certificate chain, leaf first.
    pub server_certificate_pem: String,
    pub server_key_pem: String,
    /// Who signs client certificates.
    pub client_ca_pem: String,
    /// Its key, with which approved requests for serving certificates of nodes are signed; without it they wait.
    pub client_ca_key_pem: Option<String>,
    /// A P-256 key in PKCS#8 that signs service account tokens.
    pub service_account_key_pem: String,
    /// `iss` of service account tokens, and their default audience.
    pub service_account_issuer: String,
    /// Certificate authority that pods shall trust: content of the config map `kube-root-ca.crt` in every namespace.
    pub root_ca_pem: String,
    /// Pod addresses of all nodes, from which each node gets a part; `None` leaves `spec.podCIDR` empty.
    pub cluster_cidr: Option<String>,
    /// Groups besides `system:masters` whose members may do everything, for example `kedge:cloudcore`.
    pub trusted_groups: Vec<String>,
    pub limits: Limits,
}

/// How much is worked on and remembered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are worked on at once, besides watches and logs: each may hold a body and an object in memory.
    pub in_flight: usize,
    /// Requests that wait for a place among those; one more is refused with 429 and Retry-After. A waiting request is
    /// only its head.
    pub waiting: usize,
    /// Changes that a watcher of a small collection may be behind, or away; older ones are answered with 410. Of a
    /// collection with more objects as many changes as objects are kept.
    pub window_changes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 256,
            waiting: 1024,
            window_changes: 1000,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys stay out of logs.
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("storage", &self.storage)
            .field("cluster_cidr", &self.cluster_cidr)
            .field("trusted_groups", &self.trusted_groups)
            .finish_non_exhaustive()
    }
}

/// What a node says to a GET: the stream of its body, or a sentence why not.
pub type NodeGetAnswer = Result<queue::Receiver<Bytes>, String>;

/// What there is of a node's kubelet port: the bytes after the head of a request, both ways, or a sentence why not.
pub type NodeConnectAnswer = Result<DuplexStream, String>;

/// The neighbours.
#[derive(Debug, Clone, Default)]
pub struct Ports {
    /// Carries a GET to the kubelet port of a node. Without it `kubectl logs` is refused with a sentence.
    pub node_get: Option<ask::Sender<(NodeName, NodeGet), NodeGetAnswer>>,
    /// Connects to it. Without it `kubectl exec`, `attach` and `port-forward` are refused with a sentence.
    pub node_connect: Option<ask::Sender<(NodeName, NodeConnect), NodeConnectAnswer>>,
}

/// Why the server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("listen on {address}: port {port} is in use; stop the other program or choose another port", port = address.port())]
    PortInUse { address: SocketAddr },
    #[error("listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("read the {what} of the API server: {detail}")]
    Credentials { what: &'static str, detail: String },
    #[error("open the objects of the API server: {0}")]
    Store(#[from] revisions::OpenError),
    #[error("read stored object {key}: {source}")]
    Stored { key: String, source: serde_json::Error },
    #[error("create {what}: {detail}")]
    Bootstrap { what: String, detail: String },
}
