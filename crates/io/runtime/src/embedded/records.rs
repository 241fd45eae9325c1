//! What is kept on disk, and what is said between the daemon and its helpers.

use super::RootfsMode;
use super::layout::Layout;
use crate::helper::privileges::Privileges;
use crate::{Error, durable};
use kedge_containers::{ContainerConfig, ExitReason, SandboxConfig, Seccomp};
use kedge_host::process::Identity;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// `sandbox.json`: written before anything of the sandbox is made, so that it can always be taken down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) config: SandboxConfig,
    pub(crate) created_ms: u64,
    pub(crate) network: Option<SandboxNetwork>,
    /// False until everything of it was made; such a sandbox is taken down at the next start.
    pub(crate) made: bool,
    /// Stopped on purpose: it does not become ready again.
    pub(crate) stopped: bool,
    /// Namespaces do not outlive the boot they were made in.
    pub(crate) boot_id: String,
}

/// A sandbox's place in the pods' network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxNetwork {
    pub(crate) bridge: String,
    /// The node's end of the pair; the pod's end is `eth0`.
    pub(crate) veth: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// `container.json`: what was ordered, as it was resolved when it was made. Written last: a container directory without
/// it is what an interrupted creation left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) config: ContainerConfig,
    pub(crate) created_ms: u64,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    pub(crate) layers: Vec<String>,
    pub(crate) stop_signal: String,
    pub(crate) log_path: PathBuf,
    pub(crate) cgroup: String,
}

/// `launch.json`: what the supervisor needs besides the bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LaunchRecord {
    pub(crate) id: String,
    pub(crate) state_path: PathBuf,
    pub(crate) log_path: PathBuf,
    pub(crate) log_bytes_max: u64,
    pub(crate) rootfs: RootfsMode,
    pub(crate) layers_directory: PathBuf,
    pub(crate) layers: Vec<String>,
    /// Below each control group tree, with a leading slash.
    pub(crate) cgroup: String,
    /// Keep the container's input open, so that reading it waits instead of ending.
    pub(crate) stdin: bool,
    /// What its processes may do; commands that are run in it later may do the same.
    #[serde(default)]
    pub(crate) privileges: Privileges,
    #[serde(default)]
    pub(crate) seccomp: Seccomp,
}

/// `states/<id>.json`: what became of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) supervisor: Identity,
    pub(crate) process: Identity,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
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
}

/// What a helper shall make of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxOrder {
    pub(crate) network: Option<SandboxNetwork>,
    /// Pins of namespaces to make; `None` shares the node's.
    pub(crate) network_pin: Option<PathBuf>,
    pub(crate) ipc_pin: Option<PathBuf>,
    /// The process that holds the namespace of the pod's processes, which go with it.
    #[serde(default)]
    pub(crate) pid_pin: Option<PathBuf>,
    /// Where the memory that the pod's containers share is mounted.
    #[serde(default)]
    pub(crate) shared_memory: Option<PathBuf>,
}

impl SandboxOrder {
    /// Whether there is anything to make.
    pub(crate) fn has_work(&self) -> bool {
        self.network.is_some()
            || [
                &self.network_pin,
                &self.ipc_pin,
                &self.pid_pin,
                &self.shared_memory,
            ]
            .iter()
            .any(|path| path.is_some())
    }
}

/// The records of all containers that were made.
pub(super) fn containers(layout: &Layout) -> Result<Vec<ContainerRecord>, Error> {
    let ids = durable::names(&layout.containers())?;
    let records: Result<Vec<_>, Error> = ids.iter().map(|id| container(layout, id)).collect();
    Ok(records?.into_iter().flatten().collect())
}

/// A container's record; `None` when there is no such container, or it is not made yet.
pub(super) fn container(layout: &Layout, id: &str) -> Result<Option<ContainerRecord>, Error> {
    durable::read_record(&layout.container(id).join("container.json"))
}

/// What a helper says when it is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Failed(String),
}
