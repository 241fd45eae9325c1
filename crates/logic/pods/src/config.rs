//! What the decisions need to know about the node.

use kedge_api::{Pod, Quantity, Taint};
use kedge_containers::DnsConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// Amounts by resource name: `cpu`, `memory`, `ephemeral-storage`, `pods`, `hugepages-2Mi`, extended resources.
pub type Amounts = BTreeMap<String, Quantity>;

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
    /// `node_dns` is not what the runtime would take by itself.
    pub node_dns_given: bool,
    /// `<pods_dir>/<uid>` belongs to the pod.
    pub pods_dir: PathBuf,
    /// Logs go to `<log_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// Where seccomp profiles of the type `Localhost` lie.
    pub seccomp_dir: PathBuf,
    /// What stands before a container's id in the status, for example `kedge://`.
    pub container_id_prefix: String,
    /// Variables that every container gets unless the pod sets them itself, for example `KUBERNETES_SERVICE_HOST`.
    pub env: Vec<(String, String)>,
    /// What pods may use together at the start; a resource that is not in it is not limited, unless it is an extended
    /// one. [`crate::Pods::handle_allocatable`] changes it.
    pub allocatable: Amounts,
    /// The machine's memory, which OOM scores are measured by.
    pub memory_capacity_bytes: i64,
    /// A container without a seccomp profile gets the runtime's own one.
    pub seccomp_default: bool,
    /// Do not limit CPU time by quotas.
    pub cpu_quota_off: bool,
    /// The scheduling period of quotas; `None` is the kernel's 100 ms.
    pub cpu_period_us: Option<u64>,
    /// Processes that one pod may have.
    pub pod_pids_max: Option<i64>,
    /// The node has control groups of version 2.
    pub cgroup_v2: bool,
    /// Sizes of huge pages that the node has, as control groups spell them: `2MB`, `1GB`.
    pub huge_page_sizes: Vec<String>,
    /// When memory ends, kill one process of a container and not all of them (version 2 only).
    pub oom_kills_one_process: bool,
    /// Handlers of the runtime that can make the mounts below a read-only mount read-only as well, as known at the start;
    /// the default one has an empty name. [`crate::Pods::handle_recursive_read_only`] changes it.
    pub recursive_read_only: BTreeSet<String>,
    /// What containers may have of the node's swap; `None`: control groups do not divide it.
    pub swap: Option<Swap>,
    /// What is kept of containers that ended and were started again.
    pub dead_containers: DeadContainers,
    /// Slow a container down when it uses this many thousandths of its memory limit, instead of killing it at once
    /// (version 2 only).
    pub memory_throttling_permille: Option<u32>,
    /// Kernel parameters that pods may set although they are not safe; a trailing `*` stands for the rest of a name.
    pub unsafe_sysctls: Vec<String>,
    /// The longest wait before a container is started again; `None` is Kubernetes' 5 minutes.
    pub crash_wait_max: Option<Duration>,
    /// Labels of the node at the start. [`crate::Pods::handle_node`] changes them.
    pub node_labels: BTreeMap<String, String>,
    /// Taints of the node at the start.
    pub node_taints: Vec<Taint>,
    /// Containers may get CPUs or memory banks of their own.
    pub pins: bool,
    /// Spreads probes over their periods.
    pub seed: u64,
}

impl Config {
    /// Whether the handler that runs the pod can do it. A runtime class is taken to be named after its handler here.
    pub(crate) fn makes_recursive_read_only(&self, pod: &Pod) -> bool {
        let handler = pod.spec.runtime_class_name.as_deref().unwrap_or_default();
        self.recursive_read_only.contains(handler)
    }
}

/// What containers may have of the node's swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// None of them has any.
    None,
    /// A container that is promised less memory than it may use has a part of so many bytes: as large a part as it is
    /// promised of the node's memory.
    Limited { bytes: i64 },
}

/// What is kept of containers that ended and were started again. The newest instance of each is not counted: its end and
/// its log are the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadContainers {
    /// None goes before this time after it was made.
    pub age_min: Duration,
    /// Of each container; `None` sets no limit.
    pub each_max: Option<u32>,
    /// Of the whole node, the oldest go first; `None` sets no limit.
    pub all_max: Option<u32>,
}

impl Default for DeadContainers {
    /// The instance before the present one, for its log.
    fn default() -> Self {
        Self {
            age_min: Duration::ZERO,
            each_max: Some(1),
            all_max: None,
        }
    }
}
