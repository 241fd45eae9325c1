//! The runtime that needs nothing installed.
//!
//! **Duty.** Sandboxes are pinned namespaces, containers are made by helper processes with libcontainer, images are
//! unpacked archives. What it knows, it knows from the disk and from `/proc`: killed and started again, it finds its
//! containers running; after a power cut it finds them ended, never wrongly running.
//!
//! ```text
//!   <root>/runtime.lock               locked by the runtime that has the directory open
//!   <root>/images/                    the image store, shared with other processes
//!   <root>/sandboxes/<id>/            sandbox.json, hosts, hostname, resolv.conf, pins of its namespaces
//!   <root>/containers/<id>/           container.json, config.json, launch.json, upper, work, rootfs, control.sock
//!   <root>/states/<container>.json    what became of the container; written by its supervisor
//! ```
//!
//! **Never.** It creates no process in its own image: a threaded process must not clone. It follows no container
//! through memory of its own.

mod addresses;
mod containers;
mod devices;
mod exec;
mod files;
mod images;
mod launch;
mod layout;
mod observe;
mod processes;
pub(crate) mod records;
mod sandboxes;
mod spec;
mod stats;
mod users;

use crate::image::pull::Puller;
use crate::image::store::{ImageStore, layer_name};
use crate::lock::{FileLock, Sharing};
use crate::{Error, LogRotation, Runtime, Served, Session, SocketInPod, cgroup, durable};
use addresses::Addresses;
use async_trait::async_trait;
pub use images::Images;
use kedge_containers::{
    CgroupDriver, ContainerConfig, ContainerId, Credentials, ExecOutput, Image, ImageUsage, ObservedSandbox,
    Resources, RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId, SandboxStats, Talk,
};
use kedge_host::{Changes, Watch, cgroups};
use kedge_registry::Progress;
use launch::Launcher;
use layout::Layout;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Files above this size are rotated.
pub const LOG_BYTES_MAX_DEFAULT: u64 = 10 * 1024 * 1024;

/// A process that was killed lets go of its locks one after another; whoever saw one of them fall waits for the last.
const HANDOVER_MAX: Duration = Duration::from_millis(500);

/// How the embedded runtime is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything it keeps is below this directory. One runtime per directory: a second one is refused.
    pub root: PathBuf,
    pub helper: HelperProgram,
    /// The control group below which all pods are, for example `/kedge`.
    pub cgroup_root: String,
    /// `None`: only pods on the node's own network can run.
    pub network: Option<NetworkConfig>,
    pub rootfs: RootfsChoice,
    pub log_bytes_max: u64,
    /// Where images are pulled from.
    pub registries: kedge_registry::Config,
}

/// The executable whose `main` calls [`crate::helper::main`] when its first argument is `word`.
#[derive(Debug, Clone)]
pub struct HelperProgram {
    /// `None` is this program itself. It is opened once, so replacing the file does not disturb a running daemon.
    pub executable: Option<PathBuf>,
    pub word: String,
}

impl HelperProgram {
    /// This program itself, called with [`crate::helper::WORD`].
    pub fn this_program() -> Self {
        Self {
            executable: None,
            word: crate::helper::WORD.to_owned(),
        }
    }
}

/// The pods' network on this node.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Name of the bridge, made when it is missing.
    pub bridge: String,
    /// Pods get addresses from here; the bridge has the first.
    pub pod_cidr: (Ipv4Addr, u8),
}

/// How container root file systems shall be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootfsChoice {
    /// Overlay where the kernel lets us, copies elsewhere.
    Automatic,
    Copy,
}

/// How container root file systems are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RootfsMode {
    /// Layers are stacked; containers of one image share them.
    Overlay,
    /// Layers are copied for each container: slower, and it takes the disk space again.
    Copy,
}

/// The embedded runtime. Cloning it gives another handle on the same runtime.
#[derive(Debug, Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

/// What the synchronous parts share; every method of it may block.
#[derive(Debug)]
struct Inner {
    layout: Layout,
    images: ImageStore,
    puller: Puller,
    launcher: Launcher,
    cgroups: cgroups::Layout,
    cgroup_root: String,
    network: Option<NetworkConfig>,
    addresses: Mutex<Addresses>,
    rootfs: RootfsMode,
    log_bytes_max: u64,
    watch: Watch,
    /// Keeps every other runtime out of the directory; the last to be let go.
    _alone: FileLock,
}

impl Embedded {
    /// Opens the runtime on its directory and learns what is there; refuses when another runtime, of this process or
    /// another, has it open. Must be called within a tokio runtime.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let opened = tokio::task::spawn_blocking(move || Inner::open(config)).await;
        let inner = opened.map_err(|error| Error::failed("open", "the embedded runtime", error))??;
        tracing::debug!(root = %inner.layout.images().display(), rootfs = ?inner.rootfs, "embedded runtime opened");
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The first process of a container that runs.
    pub async fn process_of(&self, id: &ContainerId) -> Result<Option<u32>, Error> {
        let id = id.clone();
        self.blocking("look at container", move |inner| inner.process_of(&id))
            .await
    }

    /// How root file systems are made on this node.
    pub fn rootfs_mode(&self) -> RootfsMode {
        self.inner.rootfs
    }

    /// Removes every sandbox with its containers, then the bridge and the control groups. Images stay.
    pub async fn purge(&self) -> Result<(), Error> {
        for sandbox in self.list().await? {
            self.remove_sandbox(&sandbox.id).await?;
        }
        self.blocking("purge", |inner| inner.purge_node()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| Error::failed(act, "with the embedded runtime", error))?
    }

    async fn stop_in_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let of = id.clone();
        let containers = self
            .blocking("stop sandbox", move |inner| inner.containers_of(&of))
            .await?;
        let stops = containers
            .iter()
            .map(|container| self.stop_container(container, Duration::ZERO));
        futures_util::future::join_all(stops).await.into_iter().collect()
    }
}

impl Inner {
    fn open(config: Config) -> Result<Self, Error> {
        let failed = |reason: &dyn std::fmt::Display| Error::failed("start", "the embedded runtime", reason);
        if !kedge_host::is_root() {
            return Err(failed(
                &"it needs root; run it with sudo, or use the hollow runtime (--hollow)",
            ));
        }
        let cgroups = cgroups::layout().map_err(|error| failed(&error))?;
        cgroups.require_controllers().map_err(|error| failed(&error))?;
        let layout = Layout::make(config.root)?;
        // First of all, because what follows clears away what it takes for leftovers.
        let alone = FileLock::take(&layout.lock(), Sharing::Exclusive, HANDOVER_MAX)?.ok_or_else(|| {
            Error::RuntimeInUse {
                directory: layout.root().display().to_string(),
            }
        })?;
        let launcher = Launcher::open(&config.helper)?;
        let rootfs = match config.rootfs {
            RootfsChoice::Copy => RootfsMode::Copy,
            RootfsChoice::Automatic => probe_overlay(&launcher, &layout),
        };
        let addresses = Addresses::of(config.network.as_ref(), &layout)?;
        let inner = Self {
            _alone: alone,
            images: ImageStore::open(layout.images())?,
            puller: Puller::open(config.registries, layout.pulls())?,
            watch: Watch::open(&layout.states(), Changes::MovedIn)
                .map_err(|error| Error::failed("watch", "the states of containers", error))?,
            addresses: Mutex::new(addresses),
            launcher,
            cgroups,
            cgroup_root: config.cgroup_root,
            network: config.network,
            rootfs,
            log_bytes_max: config.log_bytes_max,
            layout,
        };
        inner.clear_unmade_containers()?;
        inner.clear_unmade_sandboxes()?;
        Ok(inner)
    }

    fn purge_node(&self) -> Result<(), Error> {
        if let Some(network) = &self.network {
            self.launcher.remove_bridge(&network.bridge)?;
        }
        cgroup::remove_tree(&self.cgroups, &self.cgroup_root)
    }
}

/// Tries overlayfs on the very file system the containers will be on, because some refuse to be its upper layer.
fn probe_overlay(launcher: &Launcher, layout: &Layout) -> RootfsMode {
    let probe = layout.probe();
    let outcome = launcher.probe_overlay(&probe);
    drop(durable::remove_directory(&probe));
    match outcome {
        Ok(()) => RootfsMode::Overlay,
        Err(error) => {
            tracing::warn!(%error, "overlayfs cannot be used; container root file systems are copied");
            RootfsMode::Copy
        }
    }
}

#[async_trait]
impl Runtime for Embedded {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        Ok(RuntimeVersion {
            name: "kedge".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus, Error> {
        Ok(RuntimeStatus {
            cgroup_driver: Some(CgroupDriver::Cgroupfs),
            ..RuntimeStatus::default()
        })
    }

    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error> {
        self.blocking("list", Inner::observe).await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error> {
        let config = config.clone();
        self.blocking("run sandbox", move |inner| inner.run_sandbox(config))
            .await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.stop_in_sandbox(id).await?;
        let id = id.clone();
        self.blocking("stop sandbox", move |inner| inner.take_down_sandbox(&id))
            .await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.stop_sandbox(id).await?;
        let id = id.clone();
        self.blocking("remove sandbox", move |inner| inner.remove_sandbox(&id))
            .await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        _pod: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error> {
        let (sandbox, config) = (sandbox.clone(), config.clone());
        self.blocking("create container", move |inner| {
            inner.create_container(&sandbox, config)
        })
        .await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let id = id.clone();
        self.blocking("start container", move |inner| inner.start_container(&id))
            .await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        let of = id.clone();
        let Some(stopping) = self
            .blocking("stop container", move |inner| inner.begin_stop(&of, grace))
            .await?
        else {
            return Ok(());
        };
        stopping.finish(grace).await?;
        let of = id.clone();
        self.blocking("stop container", move |inner| inner.state_of(&of).map(drop))
            .await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        match self.stop_container(id, Duration::ZERO).await {
            Ok(()) | Err(Error::NoContainer(_)) => {}
            Err(error) => return Err(error),
        }
        let id = id.clone();
        self.blocking("remove container", move |inner| inner.remove_container(&id))
            .await
    }

    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error> {
        let (id, resources) = (id.clone(), resources.clone());
        self.blocking("change the limits of container", move |inner| {
            inner.update_container(&id, &resources)
        })
        .await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let (id, command) = (id.clone(), command.to_vec());
        self.blocking("run a command in container", move |inner| {
            inner.exec(&id, command, timeout)
        })
        .await
    }

    async fn exec(&self, id: &ContainerId, _talk: &Talk) -> Result<Served<Session>, Error> {
        Err(not_talking("run a command in container", &id.0))
    }

    async fn attach(&self, id: &ContainerId, _talk: &Talk) -> Result<Served<Session>, Error> {
        Err(not_talking("attach to container", &id.0))
    }

    async fn connect(&self, id: &SandboxId, _port: u16) -> Result<Served<SocketInPod>, Error> {
        Err(not_talking("connect to sandbox", &id.0))
    }

    async fn reopen_log(&self, _id: &ContainerId) -> Result<(), Error> {
        // The supervisor turns the log over by itself.
        Ok(())
    }

    fn log_rotation(&self) -> LogRotation {
        LogRotation::ByRuntime
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        self.blocking("measure sandboxes", Inner::stats).await
    }

    async fn image_usage(&self) -> Result<ImageUsage, Error> {
        let images = self.images().await?;
        Ok(ImageUsage {
            mount_point: self.inner.layout.root().to_path_buf(),
            bytes: images.iter().map(|image| image.size_bytes).sum(),
            inodes: 0,
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        let reference = reference.to_owned();
        self.blocking("find image", move |inner| inner.images.image(&reference))
            .await
    }

    async fn images(&self) -> Result<Vec<Image>, Error> {
        self.blocking("list images", |inner| inner.images.images()).await
    }

    async fn pull_image(&self, reference: &str, credentials: &[Credentials]) -> Result<Image, Error> {
        let here = self
            .blocking("list layers", |inner| inner.images.layer_names())
            .await?;
        let has_layer = move |diff_id: &str| here.contains(&layer_name(diff_id));
        let progress = Progress::default();
        let fetch = self
            .inner
            .puller
            .fetch(reference, credentials, &has_layer, &progress);
        let fetched = fetch.await?;
        self.blocking("import image", move |inner| fetched.import(&inner.images))
            .await
    }

    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error> {
        self.blocking("import image", move |inner| inner.images.import(&archive))
            .await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        let reference = reference.to_owned();
        self.blocking("remove image", move |inner| {
            images::remove(&inner.images, &inner.layout, &reference)
        })
        .await
    }

    async fn changed(&self) {
        // A watch that is of no use any more gives no hint: what changes is found by looking.
        if self.inner.watch.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A name that no sandbox or container had before or will have.
pub(crate) fn new_id() -> Result<String, Error> {
    const ID_HEX: usize = 16;
    let path = std::path::Path::new("/proc/sys/kernel/random/uuid");
    let uuid = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    Ok(uuid
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(ID_HEX)
        .collect())
}

pub(crate) fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn not_talking(act: &'static str, object: &str) -> Error {
    Error::Unsupported {
        act,
        object: object.to_owned(),
        reason: "this runtime cannot talk with containers",
    }
}
