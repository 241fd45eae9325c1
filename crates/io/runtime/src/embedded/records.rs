//! What is kept on disk, and what is said between the daemon and its helpers.

use super::RootfsMode;
use super::layout::Layout;
use crate::helper::privileges::Privileges;
use crate::network::{OnBridge, SandboxNetwork};
use crate::{Error, durable};
use kedge_containers::{ContainerConfig, SandboxConfig, Seccomp, UserNamespace};
use kedge_host::process::Identity;
pub(crate) use kedge_supervision::{Phase, StateRecord};
use serde::{Deserialize, Serialize};
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

/// The name of a [`LaunchRecord`] in the container's directory.
pub(crate) const LAUNCH_RECORD: &str = "launch.json";

/// `launch.json`: what is needed to make the container besides its bundle, and to look after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LaunchRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) rootfs: RootfsMode,
    pub(crate) layers_directory: PathBuf,
    pub(crate) layers: Vec<String>,
    /// Below each control group tree, with a leading slash.
    pub(crate) cgroup: String,
    /// Who the first process is, as the node counts users: its streams are his.
    pub(crate) uid: u32,
    /// What its processes may do; commands that are run in it later may do the same.
    #[serde(default)]
    pub(crate) privileges: Privileges,
    #[serde(default)]
    pub(crate) seccomp: Seccomp,
    /// The program of another runtime that makes it; `None` is libcontainer.
    #[serde(default)]
    pub(crate) handler: Option<PathBuf>,
    /// The program that interprets what is run; `None`: it is executed itself.
    #[serde(default)]
    pub(crate) interpreter: Option<PathBuf>,
    /// The pod's own users; `None`: those of the node.
    #[serde(default)]
    pub(crate) users: Option<OwnUsers>,
    /// What is run while libcontainer makes it, for its devices by name.
    #[serde(default)]
    pub(crate) hooks: Hooks,
    /// What its supervisor has to know.
    pub(crate) supervised: kedge_supervision::Container,
}

/// What a container needs whose pod has users of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OwnUsers {
    pub(crate) ids: UserNamespace,
    /// Where their namespace is held.
    pub(crate) pin: PathBuf,
    /// The memory that the pod's containers share. It belongs to the pod's own root.
    pub(crate) shared_memory: PathBuf,
    /// It cannot make its devices itself.
    pub(crate) devices: Vec<DevicePath>,
}

/// Programs that are run at points of a container's life, as the OCI runtime configuration has them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Hooks {
    pub(crate) prestart: Vec<Hook>,
    pub(crate) create_runtime: Vec<Hook>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    pub(crate) path: PathBuf,
    /// From the name by which it is called on; empty: its path.
    pub(crate) args: Vec<String>,
    /// `NAME=value`; `None`: the environment in which it is run.
    pub(crate) env: Option<Vec<String>>,
    pub(crate) timeout_s: u64,
}

/// A device of the node, and where a container has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DevicePath {
    pub(crate) host: PathBuf,
    pub(crate) container: PathBuf,
}

/// The process that a supervisor told us about.
pub(crate) fn identity(of: &kedge_supervision::Process) -> Identity {
    Identity {
        pid: of.pid,
        start_ticks: of.start_ticks,
        boot_id: of.boot_id.clone(),
    }
}

/// What a helper shall make of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxOrder {
    pub(crate) network: Option<OnBridge>,
    /// Pins of namespaces to make; `None` shares the node's.
    pub(crate) network_pin: Option<PathBuf>,
    pub(crate) ipc_pin: Option<PathBuf>,
    /// Where the supervisor holds the namespace of the pod's processes, which go with it.
    #[serde(default)]
    pub(crate) pid_pin: Option<PathBuf>,
    /// Where the memory that the pod's containers share is mounted.
    #[serde(default)]
    pub(crate) shared_memory: Option<PathBuf>,
    /// Where the namespace of the pod's own users is held, to which all others belong.
    #[serde(default)]
    pub(crate) user_pin: Option<PathBuf>,
    /// The pod's own users.
    #[serde(default)]
    pub(crate) users: Option<UserNamespace>,
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
                &self.user_pin,
            ]
            .iter()
            .any(|path| path.is_some())
    }
}

/// The records of all sandboxes, made or not.
pub(super) fn sandboxes(layout: &Layout) -> Result<Vec<SandboxRecord>, Error> {
    let ids = durable::names(&layout.sandboxes())?;
    Ok(ids
        .iter()
        .filter_map(|id| understood(id, sandbox(layout, id)))
        .collect())
}

/// A sandbox's record; `None` when there is none.
pub(super) fn sandbox(layout: &Layout, id: &str) -> Result<Option<SandboxRecord>, Error> {
    durable::read_record(&layout.sandbox(id).join("sandbox.json"))
}

/// The records of all containers that were made.
pub(super) fn containers(layout: &Layout) -> Result<Vec<ContainerRecord>, Error> {
    let ids = durable::names(&layout.containers())?;
    Ok(ids
        .iter()
        .filter_map(|id| understood(id, container(layout, id)))
        .collect())
}

/// One record that nobody understands does not hide the others. What it was about is cleared away at the next start.
pub(super) fn understood<T>(id: &str, read: Result<Option<T>, Error>) -> Option<T> {
    read.unwrap_or_else(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(id, %error, cause, "a record is not understood");
        None
    })
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
