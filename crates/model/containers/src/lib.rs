//! What pods and container runtimes say to each other: data only.
//!
//! **Duty.** The vocabulary between `kedge-pods` (which decides) and `kedge-runtime` (which does): what a sandbox and
//! a container shall be, and what was seen of them. It follows the Container Runtime Interface (CRI v1), so that a
//! CRI runtime can be put behind the same trait.
//!
//! **Never.** No Kubernetes objects, no I/O, no decisions.

pub mod oci;
mod platform;
mod reference;

pub use platform::Platform;
pub use reference::{BadReference, Reference, is_digest, print_digest};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What a pod sandbox shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxConfig {
    pub pod: PodIdentity,
    /// Counts sandboxes of one pod, from 0.
    pub attempt: u32,
    pub hostname: String,
    /// Share the node's network namespace.
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// The pod's own users and groups; `None`: those of the node.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// The containers see each other's processes; the sandbox's own process is number 1.
    pub share_pid: bool,
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
    /// What tools find the sandbox by.
    pub labels: BTreeMap<String, String>,
    /// What the runtime and its plug-ins read.
    pub annotations: BTreeMap<String, String>,
    /// Ports of the node that lead to the pod.
    pub ports: Vec<PortMapping>,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    pub security: SandboxSecurity,
    /// Which of the runtime's handlers runs the pod; empty for its default.
    pub handler: String,
    /// What the sandbox itself takes, besides its containers.
    pub overhead: Resources,
}

/// The users and groups that a pod has for itself: who is root in it is nobody on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub uids: IdMapping,
    pub gids: IdMapping,
}

/// Ids in a pod, and those on the node that stand for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    pub host_id: u32,
    pub container_id: u32,
    pub length: u32,
}

impl IdMapping {
    /// The id on the node that stands for an id in the pod; `None`: the pod does not have this one.
    pub fn on_node(&self, id: u32) -> Option<u32> {
        let at = id.checked_sub(self.container_id).filter(|at| *at < self.length)?;
        self.host_id.checked_add(at)
    }
}

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// `None`: every address of the node.
    pub host_ip: Option<IpAddr>,
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Who the sandbox itself runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxSecurity {
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// One of its containers is privileged.
    pub privileged: bool,
    pub seccomp: Seccomp,
    pub apparmor: Option<AppArmor>,
    pub selinux: Option<Selinux>,
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
    /// -1000 to 1000. A runtime without the right to lower scores takes 0 for a negative one.
    pub oom_score_adj: Option<i32>,
    /// For example `0-3,7`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Bytes by page size, for example `2MB`.
    pub hugepages: BTreeMap<String, u64>,
    /// Files of a version 2 control group and what is written to them.
    pub unified: BTreeMap<String, String>,
}

/// What a container shall be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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
    pub devices: Vec<Device>,
    /// Devices by their qualified names of the Container Device Interface.
    pub cdi_devices: Vec<String>,
    /// What tools find the container by.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's `log_dir`, for example `web/0.log`.
    pub log_path: PathBuf,
    pub resources: Resources,
    pub security: Security,
    /// Signal that asks the container to stop; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Hash of the desired container, kept as a label so that a changed spec is seen after a restart.
    pub spec_hash: String,
    pub tty: bool,
    pub stdin: bool,
    /// Its input ends with the first conversation that had it.
    #[serde(default)]
    pub stdin_once: bool,
}

/// A file or a directory of the node that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub read_only: bool,
    /// The mounts below it are read-only as well.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

impl Mount {
    /// A plain mount: private, and what is mounted below it keeps its own mode.
    pub fn bind(host_path: impl Into<PathBuf>, container_path: impl Into<PathBuf>, read_only: bool) -> Self {
        Self {
            host_path: host_path.into(),
            container_path: container_path.into(),
            read_only,
            recursive_read_only: false,
            propagation: Propagation::Private,
        }
    }
}

/// Whether mounts made later pass between the node and the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A device node of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
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
    pub seccomp: Seccomp,
    /// `None`: as the runtime is set up.
    pub apparmor: Option<AppArmor>,
    pub selinux: Option<Selinux>,
    /// `/proc` without masked and read-only paths.
    pub proc_unmasked: bool,
    pub pid: PidNamespace,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Unconfined,
    /// The runtime's own list.
    RuntimeDefault,
    /// A profile on the node.
    Localhost(PathBuf),
}

/// Which AppArmor profile confines a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    RuntimeDefault,
    Unconfined,
    /// A profile that is loaded on the node.
    Localhost(String),
}

/// An SELinux label; empty parts are the runtime's choice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selinux {
    pub user: String,
    pub role: String,
    pub type_: String,
    pub level: String,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Container,
    /// Those of the pod.
    Pod,
    /// Those of the node.
    Node,
    /// Those of another container of the pod, for debugging.
    Target(ContainerId),
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
    /// User of the image configuration, if it is a name.
    pub username: Option<String>,
    /// The runtime needs it itself; it is never collected.
    pub pinned: bool,
}

/// What the runtime calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVersion {
    /// For example `kedge` or `hollow`.
    pub name: String,
    pub version: String,
}

/// How the runtime is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// Why it cannot run containers; `None`: it can.
    pub runtime_trouble: Option<String>,
    /// Why it cannot connect pods to a network; `None`: it can.
    pub network_trouble: Option<String>,
    /// Its handlers by name, for runtime classes. The default one is not among them.
    pub handlers: Vec<String>,
    /// Handlers that it knows and this node does not have, with why.
    pub missing_handlers: BTreeMap<String, String>,
    /// What handlers can do, by name; the default one has an empty name. Empty: the runtime does not tell.
    pub features: BTreeMap<String, HandlerFeatures>,
    /// Who makes control groups; `None`: the runtime does not tell.
    pub cgroup_driver: Option<CgroupDriver>,
}

/// What one handler of a runtime can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HandlerFeatures {
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

/// How control groups are named and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// What a command in a container left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecOutput {
    pub exit_code: i32,
    /// At most [`ExecOutput::BYTES_MAX`]; the rest is dropped.
    pub stdout: Vec<u8>,
    /// At most [`ExecOutput::BYTES_MAX`]; the rest is dropped.
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// A probe's or a hook's last words; nobody reads more.
    pub const BYTES_MAX: usize = 16 * 1024;
}

/// A command that somebody talks with while it runs, or the wish to talk with a container's own process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Talk {
    /// What is run; empty when the container's own process is meant.
    pub command: Vec<String>,
    /// The process has a terminal: one output, lines are edited, and it has a size.
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// How large a terminal is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// Who pulls an image.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// The registry they are for, as the secret names it.
    pub server: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// What the images take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageUsage {
    /// A path on the file system that holds them.
    pub mount_point: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
}

/// What a sandbox and its containers use. `None`: the runtime does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStats {
    pub id: SandboxId,
    pub pod: PodIdentity,
    pub taken_ms: u64,
    /// Of the pod as a whole.
    pub cpu: Option<CpuStats>,
    pub memory: Option<MemoryStats>,
    pub processes: Option<u64>,
    pub network: Vec<InterfaceStats>,
    pub containers: Vec<ContainerStats>,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    pub id: ContainerId,
    pub name: String,
    pub taken_ms: u64,
    pub cpu: Option<CpuStats>,
    pub memory: Option<MemoryStats>,
    /// Of its writable layer.
    pub layer_bytes: Option<u64>,
    pub layer_inodes: Option<u64>,
}

/// CPU time since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuStats {
    pub usage_ns: u64,
}

/// Memory now, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStats {
    pub usage_bytes: u64,
    /// Without what the kernel can drop at once.
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

/// One network interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InterfaceStats {
    pub name: String,
    pub received_bytes: u64,
    pub received_errors: u64,
    pub sent_bytes: u64,
    pub sent_errors: u64,
}
