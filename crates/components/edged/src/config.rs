//! What the operator decides about edged.

use kedge_api::Taint;
use kedge_wire::NodeName;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings. [`Config::new`] fills in KubeEdge's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub node_name: NodeName,
    /// `pods/<uid>` below it holds each pod's volumes.
    pub root_dir: PathBuf,
    /// Container logs: `<log_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// Send events to the cloud; off by default as in KubeEdge.
    pub report_events: bool,
    /// Create the Node object.
    pub register_node: bool,
    /// The address to report; otherwise the one that leads outside.
    pub node_ip: Option<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub pods_max: u32,
    /// Kept from pods.
    pub reserved: Reserved,
    /// Port of the kubelet endpoint in the node's status.
    pub kubelet_port: u16,
    /// Variables that every container gets unless its pod sets them.
    pub env: Vec<(String, String)>,
    /// `v1.32.10-kubeedge-v1.23.1-kedge…`.
    pub kubelet_version: String,
    pub lease_interval: Duration,
    pub lease_duration: Duration,
    /// How often the node's status is looked at; it is sent when it changed.
    pub status_check_interval: Duration,
    /// It is sent at least this often.
    pub status_report_interval: Duration,
}

/// Resources that are not for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserved {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// Of the kubelet that KubeEdge v1.23.1 embeds: what clients compare versions with.
const KUBELET_VERSION: &str = "v1.32.10-kubeedge-v1.23.1-kedge";
/// A lease lives four renewals.
const LEASE_DURATION: Duration = Duration::from_secs(40);

impl Config {
    /// Defaults for a node whose files are below `root_dir`.
    pub fn new(node_name: NodeName, root_dir: PathBuf) -> Self {
        Self {
            node_name,
            log_dir: root_dir.join("logs"),
            root_dir,
            report_events: false,
            register_node: true,
            node_ip: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            pods_max: 110,
            reserved: Reserved::default(),
            kubelet_port: 10350,
            env: Vec::new(),
            kubelet_version: format!("{KUBELET_VERSION}-{}", env!("CARGO_PKG_VERSION")),
            lease_interval: LEASE_DURATION / 4,
            lease_duration: LEASE_DURATION,
            status_check_interval: Duration::from_secs(10),
            status_report_interval: Duration::from_secs(300),
        }
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }
}
