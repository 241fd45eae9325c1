//! What pods and container runtimes say to each other: data only.
//!
//! **Duty.** The vocabulary between `kedge-pods` (which decides) and `kedge-runtime` (which does): what a sandbox and
//! a container shall be, and what was seen of them. It follows the Container Runtime Interface (CRI v1), so that a
//! CRI runtime can be put behind the same trait.
//!
//! **Never.** No Kubernetes objects, no I/O, no decisions.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Made by the runtime; unique on the node for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub String);

/// Made by the runtime; unique on the node for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

/// Which pod a sandbox belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What a pod sandbox shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    pub pod: PodIdentity,
    /// Counts sandboxes of one pod, from 0.
    pub attempt: u32,
    pub hostname: String,
    /// Share the node's network namespace.
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// Written to every container's `/etc/resolv.conf`; empty means the node's own file.
    pub dns: DnsConfig,
    /// Lines for `/etc/hosts` besides localhost and the pod itself.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// Below the runtime's root cgroup, for example `burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the whole pod.
    pub resources: Resources,
    /// Where container logs go: `<log_dir>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    pub labels: BTreeMap<String, String>,
}

/// Name resolution of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Limits; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each `cpu_period_us`.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_bytes_max: Option<i64>,
    pub pids_max: Option<i64>,
    /// 0 to 1000; negative values are refused (a node agent needs no privilege to raise a score).
    pub oom_score_adj: Option<i32>,
}

/// What a container shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name within the pod.
    pub name: String,
    /// Counts containers of this name in the pod, from 0 (the restart count).
    pub attempt: u32,
    /// As in the pod: `repository[:tag][@digest]`.
    pub image: String,
    /// Overrides the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Overrides the image's arguments when not empty.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub security: Security,
    /// Signal that asks the container to stop; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Hash of the desired container, kept as a label so that a changed spec is seen after a restart.
    pub spec_hash: String,
    pub tty: bool,
    pub stdin: bool,
}

/// A bind mount, or a tmpfs when `host_path` is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: Option<PathBuf>,
    pub container_path: PathBuf,
    pub read_only: bool,
}

/// Who the container runs as and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Security {
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Refuse to start as user 0.
    pub run_as_non_root: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    pub allow_privilege_escalation: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
}

/// A sandbox as the runtime sees it, with its containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    pub id: SandboxId,
    pub pod: PodIdentity,
    pub attempt: u32,
    /// Ready: its namespaces stand and containers can be created in it.
    pub ready: bool,
    pub created_ms: u64,
    /// Empty with host network.
    pub ips: Vec<String>,
    pub containers: Vec<ObservedContainer>,
}

/// A container as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    pub id: ContainerId,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// `repository@sha256:…` or the image's id.
    pub image_ref: String,
    pub spec_hash: String,
    pub created_ms: u64,
    pub state: ContainerState,
    pub log_path: PathBuf,
}

/// The life of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running {
        started_ms: u64,
        pid: u32,
    },
    Exited {
        started_ms: u64,
        finished_ms: u64,
        exit_code: i32,
        reason: ExitReason,
        message: String,
    },
    /// The runtime lost track, for example after a power cut in the middle of a write.
    Unknown,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    Completed,
    Error,
    OomKilled,
    /// It could not be started at all.
    StartError,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the image configuration.
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// Numeric user of the image configuration, if it is a number.
    pub user: Option<u32>,
}

/// What the runtime calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVersion {
    /// For example `kedge` or `hollow`.
    pub name: String,
    pub version: String,
}
