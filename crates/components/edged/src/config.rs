//! What the operator decides about edged.

use crate::{EventLimits, LogRotation, Pinning, PodRules, PullLimits, StaticPods};
use kedge_api::{Quantity, Taint};
use kedge_pods::Amounts;
use kedge_pods::{allocatable, eviction, image_gc, shutdown};
use kedge_wire::NodeName;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings. [`Config::new`] fills in KubeEdge's defaults, but for what belongs to the whole machine: a node that may
/// share its machine with others neither evicts pods, nor removes images, nor listens for device plug-ins.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node_name: NodeName,
    /// `pods/<uid>` below it holds each pod's volumes.
    pub root_dir: PathBuf,
    /// Container logs: `<log_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// `<log_links_dir>/<pod>_<namespace>_<container>-<id>.log` leads to each log, officially
    /// [`Config::LOG_LINKS`]; `None`: there are no links.
    pub log_links_dir: Option<PathBuf>,
    /// Of runtimes that leave it to the node agent.
    pub log_rotation: LogRotation,
    /// Send events to the cloud; off by default as in KubeEdge.
    pub report_events: bool,
    pub event_limits: EventLimits,
    pub image_pulls: PullLimits,
    /// Where static pods come from; `None`: there are none.
    pub static_pods: Option<StaticPods>,
    pub pods: PodRules,
    /// Which containers have CPUs to themselves.
    pub pinning: Pinning,
    pub node: Node,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    /// Variables that every container gets unless its pod sets them.
    pub env: Vec<(String, String)>,
    /// When pods must go for what the node needs; `None`: never, and nothing is measured.
    pub eviction: Option<eviction::Rules>,
    pub images: Images,
    /// How pods end when the machine shuts down.
    pub shutdown: shutdown::Rules,
    /// Where device plug-ins find this node, officially [`Config::DEVICE_PLUGINS`]; `None`: there are none.
    pub device_plugins: Option<PathBuf>,
    /// Mount volumes and serve CSI drivers. Else every volume is a plain directory, which is what hollow nodes and tests
    /// want; without root it is so anyway.
    pub mount_volumes: bool,
    /// What is told on the local port and through the tunnel.
    pub face: crate::face::Settings,
    /// The machine whose memory and processes count; tests name a directory that looks like one.
    pub machine: kedge_host::Root,
}

/// How the node presents itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Create the Node object.
    pub register: bool,
    /// The network interface whose address to report, before `ip`.
    pub interface: Option<String>,
    /// The address to report; otherwise the one that leads outside.
    pub ip: Option<IpAddr>,
    /// Ask the resolver for the node's own name where `ip` is not given, as a kubelet does.
    pub resolve_name: bool,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    /// The cloud attaches volumes to this node.
    pub controller_attach_detach: bool,
    pub pods_max: u32,
    /// Zero is no limit.
    pub pods_per_core: u32,
    /// Kept from pods.
    pub reserved: Reserved,
    /// Local disk is a resource of the node.
    pub local_storage: bool,
    /// Port of the kubelet endpoint in the node's status.
    pub kubelet_port: u16,
    /// `v1.32.10-kubeedge-v1.23.1-kedge…`.
    pub kubelet_version: String,
    pub lease_interval: Duration,
    pub lease_duration: Duration,
    /// How often the node's status is looked at; it is sent when it changed.
    pub status_check_interval: Duration,
    /// It is sent at least this often.
    pub status_report_interval: Duration,
    /// How many images the status names, the largest first; `None` is all of them.
    pub images_max: Option<usize>,
}

/// What becomes of images that nobody uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// `None`: they stay.
    pub gc: Option<image_gc::Policy>,
    /// The image of the sandboxes, which is never removed; empty where the runtime knows it itself.
    pub sandbox: String,
}

/// Resources that are not for pods.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reserved {
    pub system: Amounts,
    pub kube: Amounts,
    /// The hard thresholds of eviction are not kept from pods.
    pub without_thresholds: bool,
}

impl Reserved {
    /// Processors that the system has for itself take the place of what else is reserved of them.
    pub fn with_cpus(mut self, count: u32) -> Self {
        self.kube.remove("cpu");
        self.system
            .insert("cpu".to_owned(), Quantity::from_units(u64::from(count)));
        self
    }
}

/// Of the kubelet that KubeEdge v1.23.1 embeds: what clients compare versions with.
const KUBELET_VERSION: &str = "v1.32.10-kubeedge-v1.23.1-kedge";
/// A lease lives four renewals.
const LEASE_DURATION: Duration = Duration::from_secs(40);

impl Config {
    /// The same on every machine, whatever the root directory is.
    pub const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";
    /// Where log collectors look.
    pub const LOG_LINKS: &str = "/var/log/containers";

    /// Defaults for a node whose files are below `root_dir`.
    pub fn new(node_name: NodeName, root_dir: PathBuf) -> Self {
        Self {
            node_name,
            log_dir: root_dir.join("logs"),
            root_dir,
            log_links_dir: None,
            log_rotation: LogRotation::default(),
            report_events: false,
            event_limits: EventLimits::default(),
            image_pulls: PullLimits::default(),
            static_pods: None,
            pods: PodRules::default(),
            pinning: Pinning::default(),
            node: Node::default(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            env: Vec::new(),
            eviction: None,
            images: Images {
                gc: None,
                sandbox: String::new(),
            },
            shutdown: shutdown::Rules::default(),
            device_plugins: None,
            mount_volumes: false,
            face: crate::face::Settings::default(),
            machine: kedge_host::Root::machine(),
        }
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// What decides about capacity and allocatable amounts.
    pub(crate) fn allocatable_rules(&self) -> allocatable::Rules {
        let thresholds = match &self.eviction {
            Some(rules) => rules.thresholds.clone(),
            // Nobody is evicted, but a node promises no more for it.
            None => allocatable::default_thresholds(),
        };
        allocatable::Rules {
            pods_max: self.node.pods_max,
            pods_per_core: self.node.pods_per_core,
            system_reserved: self.node.reserved.system.clone(),
            kube_reserved: self.node.reserved.kube.clone(),
            thresholds,
            ignore_thresholds: self.node.reserved.without_thresholds,
            local_storage: self.node.local_storage,
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            register: true,
            interface: None,
            ip: None,
            resolve_name: false,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            controller_attach_detach: true,
            pods_max: 110,
            pods_per_core: 0,
            reserved: Reserved::default(),
            local_storage: true,
            kubelet_port: 10350,
            kubelet_version: format!("{KUBELET_VERSION}-{}", env!("CARGO_PKG_VERSION")),
            lease_interval: LEASE_DURATION / 4,
            lease_duration: LEASE_DURATION,
            status_check_interval: Duration::from_secs(10),
            status_report_interval: Duration::from_secs(300),
            images_max: Some(0),
        }
    }
}
