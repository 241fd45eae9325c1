//! Containers on this node: one trait, several runtimes behind it, one contract test suite.
//!
//! **Duty.** Run what `kedge-pods` decided. [`Runtime`] follows the CRI, so that containerd can stand behind it in a
//! later issue; today there are the embedded OCI runtime ([`embedded`]) and the hollow one ([`hollow`]), which keeps
//! its containers in memory and is what `--hollow`, tests and load generators use.
//!
//! **Inputs.** Orders through the trait; image archives. **Outputs.** Processes, their log files in the CRI format, and
//! [`ObservedSandbox`]es, which are always read from what is, never from what was ordered.
//!
//! **Never.** No pod logic: it neither restarts, nor backs off, nor knows what a pod wants.
//!
//! ```text
//!   daemon (tokio)                      helper processes (one executable, `helper::main`)
//!   embedded::Embedded --- create ----> supervisor --- libcontainer ---> container's first process
//!        |      ^                           |  stdout, stderr -> log file; exit -> states/<id>.json
//!        |      +------ inotify ------------+
//!        +--------- sandbox-up ----------> namespaces, veth pair, bridge; then it ends
//! ```

mod cri_log;
mod durable;
pub mod embedded;
pub mod helper;
pub mod hollow;
pub mod image;
mod lock;

use async_trait::async_trait;
use kedge_containers::{
    ContainerConfig, ContainerId, Image, ObservedSandbox, RuntimeVersion, SandboxConfig, SandboxId,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use embedded::Embedded;
pub use hollow::Hollow;

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
    /// The embedded runtime has no registry client.
    #[error("image {image} is not on this node; import it with `kedge image import FILE`")]
    NoRegistry { image: String },
    #[error("image {image} is used by container {container}")]
    ImageInUse { image: String, container: String },
    /// One runtime per directory: a second one would clear away what the first is just making.
    #[error(
        "another container runtime has {directory} open; stop the process that runs it, or name another directory"
    )]
    RuntimeInUse { directory: String },
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

/// A container runtime. Every call is idempotent where the CRI's is: stopping what is stopped and removing what is
/// gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    async fn version(&self) -> Result<RuntimeVersion, Error>;

    /// Everything that exists, running or not. The only source of truth after a restart.
    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error>;

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error>;
    /// Ends every process in the sandbox and takes its network down.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error>;
    /// Removes a sandbox with its containers, stopping it first if needed.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error>;

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error>;
    async fn start_container(&self, id: &ContainerId) -> Result<(), Error>;
    /// Sends the stop signal, waits at most `grace`, then kills. Returns when the container has ended.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error>;
    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error>;

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error>;
    async fn images(&self) -> Result<Vec<Image>, Error>;
    /// Fetches an image. The embedded runtime has no registry client yet and says so.
    async fn pull_image(&self, reference: &str) -> Result<Image, Error>;
    /// Imports an OCI image archive (a tar with `oci-layout` and `index.json`, or a `docker save` tar).
    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error>;
    async fn remove_image(&self, reference: &str) -> Result<(), Error>;

    /// Completes when something may have changed since the last call: a hint without data. Never a reason to skip
    /// the periodic `list`.
    async fn changed(&self);
}
