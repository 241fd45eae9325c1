//! What the decisions need to know about the node.

use kedge_containers::DnsConfig;
use std::path::PathBuf;

/// Settings of the node's pods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, the first one is reported as `hostIP`.
    pub host_ips: Vec<String>,
    /// Servers of `ClusterFirst`; empty means that such pods use the node's own resolver.
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    /// The node's own resolver, needed where a pod adds to it.
    pub node_dns: DnsConfig,
    /// `<pods_dir>/<uid>` belongs to the pod.
    pub pods_dir: PathBuf,
    /// Logs go to `<log_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// What stands before a container's id in the status, for example `kedge://`.
    pub container_id_prefix: String,
    /// Variables that every container gets unless the pod sets them itself.
    pub env: Vec<(String, String)>,
    /// What pods may use together; a zero is not checked.
    pub allocatable: Capacity,
}

/// Amounts of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub pods: i64,
}
