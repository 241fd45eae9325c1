//! Containers on this node: one trait, several runtimes behind it, one contract test suite.
//!
//! **Duty.** Run what `kedge-pods` decided. [`Runtime`] follows the CRI. Behind it stand the runtimes that a node has
//! anyhow ([`cri`]: containerd, CRI-O and what they run), the embedded OCI runtime ([`embedded`]), and the hollow one
//! ([`hollow`]), which keeps its containers in memory and is what `--hollow`, tests and load generators use.
//!
//! **Inputs.** Orders through the trait; image archives. **Outputs.** Processes, their log files in the CRI format, and
//! [`ObservedSandbox`]es, which are always read from what is, never from what was ordered.
//!
//! **Never.** No pod logic: it neither restarts, nor backs off, nor knows what a pod wants.
//!
//! ```text
//!   daemon (tokio)                   supervisor, one a pod        helper processes (one executable, `helper::main`)
//!   embedded::Embedded -- create --> kedge-supervisor -- create -> libcontainer; then it ends
//!        |      ^                      |  first processes are its children
//!        |      |                      |  stdout, stderr -> log files; exits -> states/<id>.json
//!        |      +------ inotify -------+
//!        +------- sandbox-up ----------------------------------->  namespaces, network; then it ends
//!
//!   cri::Cri ------- gRPC, a socket -----> containerd or CRI-O, which care for all that
//! ```

mod cgroup;
pub mod cri;
mod durable;
pub mod embedded;
pub mod helper;
pub mod hollow;
pub mod image;
mod kernel;
mod lock;
mod network;
pub mod rootless;
mod seccomp;
mod talk;

use async_trait::async_trait;
use kedge_containers::{
    ContainerConfig, ContainerId, Credentials, ExecOutput, Image, ImageUsage, ObservedSandbox, Resources,
    RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId, SandboxStats, Talk,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cri::{Cri, CriConfig};
pub use embedded::Embedded;
pub use hollow::Hollow;
pub use talk::{ByteStream, Input, Output, Served, Session, SocketInPod};

/// Why a runtime refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image {image} is not on this node")]
    ImageNotFound { image: String },
    #[error("image {image} cannot be used: {reason}")]
    BadImage { image: String, reason: String },
    #[error("no sandbox {0}")]
    NoSandbox(String),
    #[error("no container {0}")]
    NoContainer(String),
    #[error("pull {image}")]
    Pull {
        image: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("image {image} is used by container {container}")]
    ImageInUse { image: String, container: String },
    /// One runtime per directory: a second one would clear away what the first is just making.
    #[error(
        "another container runtime has {directory} open; stop the process that runs it, or name another directory"
    )]
    RuntimeInUse { directory: String },
    /// The runtime cannot be reached; it may come back.
    #[error("the container runtime at {endpoint} does not answer: {reason}")]
    Unavailable { endpoint: String, reason: String },
    #[error("{act} {object}: no answer within {}s", .limit.as_secs())]
    TimedOut {
        act: &'static str,
        object: String,
        limit: Duration,
    },
    /// This runtime has no such ability.
    #[error("{act} {object}: {reason}")]
    Unsupported {
        act: &'static str,
        object: String,
        reason: &'static str,
    },
    #[error("{act} {object}: {reason}")]
    Failed {
        act: &'static str,
        object: String,
        reason: String,
    },
    #[error("{act} {object}")]
    Io {
        act: &'static str,
        object: String,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(act: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            act,
            object: path.display().to_string(),
            source,
        }
    }

    pub(crate) fn failed(
        act: &'static str,
        object: impl Into<String>,
        reason: impl std::fmt::Display,
    ) -> Self {
        Self::Failed {
            act,
            object: object.into(),
            reason: reason.to_string(),
        }
    }
}

/// Who keeps log files from growing without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRotation {
    /// The runtime itself, as it was configured.
    ByRuntime,
    /// The node agent: it moves the file away and calls [`Runtime::reopen_log`].
    ByAgent,
}

/// A container runtime. Every call is idempotent where the CRI's is: stopping what is stopped and removing what is
/// gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<RuntimeVersion, Error>;
    /// Whether it can run containers and connect them.
    async fn status(&self) -> Result<RuntimeStatus, Error>;

    /// Everything that exists, running or not. The only source of truth after a restart.
    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error>;

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error>;
    /// Ends every process in the sandbox and takes its network down.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error>;
    /// Removes a sandbox with its containers, stopping it first if needed.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error>;

    /// `pod` is what the sandbox was made from: a runtime behind a socket asks for it again, and an agent that was
    /// started anew can say it again.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        pod: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error>;
    async fn start_container(&self, id: &ContainerId) -> Result<(), Error>;
    /// Sends the stop signal, waits at most `grace`, then kills. Returns when the container has ended.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error>;
    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error>;
    /// Changes the limits of a container that runs.
    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error>;
    /// Runs a command in a running container and waits for its end, at most `timeout`; then it is killed and the answer
    /// is [`Error::TimedOut`]. A command that ends with another code than 0 is no error.
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error>;
    /// Runs a command in a running container for somebody who talks with it.
    async fn exec(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error>;
    /// Talks with the container's own process, from now on; what it said before is in its log.
    async fn attach(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error>;
    /// Connects to a TCP port that a process of the sandbox listens on, at its loopback address.
    async fn connect(&self, id: &SandboxId, port: u16) -> Result<Served<SocketInPod>, Error>;
    /// The log file was moved away: write to a new one from now on.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error>;
    /// Who turns the log files of containers over.
    fn log_rotation(&self) -> LogRotation;

    /// What every sandbox and its running containers use now.
    async fn stats(&self) -> Result<Vec<SandboxStats>, Error>;

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error>;
    async fn images(&self) -> Result<Vec<Image>, Error>;
    /// What the images take on the disk.
    async fn image_usage(&self) -> Result<ImageUsage, Error>;
    /// Fetches an image, with the credentials in turn until one is accepted; without any, anonymously.
    async fn pull_image(&self, reference: &str, credentials: &[Credentials]) -> Result<Image, Error>;
    /// Imports an OCI image archive (a tar with `oci-layout` and `index.json`, or a `docker save` tar).
    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error>;
    async fn remove_image(&self, reference: &str) -> Result<(), Error>;

    /// Completes when something may have changed since the last call: a hint without data. Never a reason to skip
    /// the periodic `list`.
    async fn changed(&self);
}
