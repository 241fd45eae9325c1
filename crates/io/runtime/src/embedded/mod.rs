//! The runtime that needs nothing installed.
//!
//! **Duty.** Sandboxes are pinned namespaces, containers are made by helper processes with libcontainer, images are
//! unpacked archives. What it knows, it knows from the disk and from `/proc`: killed and started again, it finds its
//! containers running; after a power cut it finds them ended, never wrongly running.
//!
//! ```text
//!   <root>/runtime.lock               locked by the runtime that has the directory open
//!   <root>/images/                    the image store, shared with other processes
//!   <root>/sandboxes/<id>/            sandbox.json, cni.json, hosts, hostname, resolv.conf, pins of its namespaces
//!   <root>/sandboxes/<id>/            also control.sock and supervisor.json: its supervisor takes orders there
//!   <root>/containers/<id>/           container.json, config.json, launch.json, upper, work, rootfs, its streams
//!   <root>/containers/<id>/root.json  who serves its root file system, where that is not the kernel
//!   <root>/states/<container>.json    what became of the container; written by its supervisor
//!   <root>/supervisor-<hash>          the program of supervisors
//!   <root>/interpreter-<hash>         the program that interprets WebAssembly modules, once a pod needed it
//! ```
//!
//! **Never.** It creates no process in its own image: a threaded process must not clone. It follows no container
//! through memory of its own.

mod apparmor;
mod carried;
mod cdi;
mod containers;
mod devices;
mod exec;
pub(crate) mod files;
mod grace;
mod handlers;
mod hooks;
mod images;
mod interpreter;
mod launch;
mod layout;
mod makers;
mod observe;
mod processes;
pub(crate) mod records;
mod rootfs;
mod sandboxes;
pub(crate) mod spec;
mod stats;
mod supervisors;
mod talk;
mod users;

use crate::image::pull::Puller;
use crate::image::store::ImageStore;
use crate::lock::{FileLock, Sharing};
use crate::network::Network;
pub use crate::network::{CniDirectories, NetworkConfig};
use crate::{Error, LogRotation, Runtime, Served, Session, SocketInPod, cgroup, durable};
use async_trait::async_trait;
use grace::Grace;
use handlers::Handlers;
pub use images::{Images, Pruned};
use interpreter::Interpreter;
use kedge_containers::{
    CgroupDriver, ContainerConfig, ContainerId, Credentials, ExecOutput, Image, ImageUsage, ObservedSandbox,
    Resources, RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId, SandboxStats, Talk,
};
use kedge_host::{Changes, Watch, cgroups};
use kedge_registry::Progress;
use launch::Launcher;
pub(crate) use launch::read_only;
use layout::Layout;
pub use rootfs::{RootfsChoice, RootfsMode};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use supervisors::Supervisors;

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
    /// Where files of the Container Device Interface are; the later directories count more.
    pub device_directories: Vec<PathBuf>,
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
    supervisors: Supervisors,
    cgroups: cgroups::Layout,
    grace: Grace,
    cgroup_root: String,
    network: Network,
    handlers: Handlers,
    devices: cdi::Registry,
    interpreter: Interpreter,
    layers: stats::LayerUsage,
    rootfs: RootfsMode,
    /// Why pods cannot have users of their own, once somebody has asked.
    users: OnceLock<Result<(), String>>,
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
    pub fn rootfs_mode(&self) -> &RootfsMode {
        &self.inner.rootfs
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
                &"it needs root, or what an ordinary user has instead (docs/rootless.md); or use the hollow runtime (--hollow)",
            ));
        }
        crate::kernel::require_calls()?;
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
        let rootfs = rootfs::choose(config.rootfs, &launcher, &layout)?;
        let boot_id = kedge_host::boot_id().map_err(|error| failed(&error))?;
        // The machine's own network is not this node's to change.
        let network = config.network.filter(|_| crate::kernel::owns_network());
        let network = Network::open(network.as_ref(), &records::sandboxes(&layout)?, &boot_id)?;
        let inner = Self {
            _alone: alone,
            images: ImageStore::open(layout.images(), || images::users(&layout))?,
            puller: Puller::open(config.registries, layout.pulls())?,
            watch: Watch::open(&layout.states(), Changes::MovedIn)
                .map_err(|error| Error::failed("watch", "the states of containers", error))?,
            supervisors: Supervisors::open(layout.root())?,
            launcher,
            cgroups,
            grace: Grace::default(),
            cgroup_root: config.cgroup_root,
            network,
            handlers: Handlers::find(),
            devices: cdi::Registry::new(config.device_directories),
            interpreter: Interpreter::default(),
            layers: stats::LayerUsage::default(),
            rootfs,
            users: OnceLock::new(),
            log_bytes_max: config.log_bytes_max,
            layout,
        };
        inner.clear_unmade_containers()?;
        inner.clear_unmade_sandboxes()?;
        inner.network.reconcile();
        Ok(inner)
    }

    /// Whether pods can have users of their own here, tried once; the error is a sentence.
    fn user_namespaces(&self) -> Result<(), String> {
        let tried = self.users.get_or_init(|| {
            let probe = self.layout.users_probe();
            let outcome = self.launcher.probe_users(&probe, &self.rootfs);
            drop(durable::remove_directory(&probe));
            outcome.map_err(|error| {
                tracing::info!(%error, "pods cannot have users of their own");
                error.to_string()
            })
        });
        tried.clone()
    }

    fn purge_node(&self) -> Result<(), Error> {
        self.network.purge()?;
        if let Some(bridge) = self.network.bridge() {
            self.launcher.remove_bridge(bridge)?;
        }
        cgroup::remove_tree(&self.cgroups, &self.cgroup_root)
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
        let (network_trouble, users) = self
            .blocking("look at the state of", |inner| {
                Ok((inner.network.trouble(), inner.user_namespaces().is_ok()))
            })
            .await?;
        Ok(RuntimeStatus {
            cgroup_driver: Some(CgroupDriver::Cgroupfs),
            network_trouble,
            handlers: self.inner.handlers.names(),
            missing_handlers: self.inner.handlers.missing(),
            features: self.inner.handlers.features(users),
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
        let waits = self.blocking("begin to move processes on", |inner| {
            inner.grace.begin(&inner.cgroups);
            Ok(())
        });
        let creates = self.blocking("create container", move |inner| {
            inner.create_container(&sandbox, config)
        });
        let (_, created) = tokio::join!(waits, creates);
        created
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

    async fn exec(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        self.talk_with_command(id, talk).await.map(Served::Here)
    }

    async fn attach(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        self.talk_with_container(id, talk).await.map(Served::Here)
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<Served<SocketInPod>, Error> {
        self.connect_to_port(id, port).await.map(Served::Here)
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let id = id.clone();
        self.blocking("reopen log of container", move |inner| inner.reopen_log(&id))
            .await
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
        let (puller, store) = (&self.inner.puller, &self.inner.images);
        puller
            .pull(store, reference, credentials, &Progress::default())
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
