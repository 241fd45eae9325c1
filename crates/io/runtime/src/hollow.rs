//! A runtime without containers: they exist in memory, run until they are stopped, and write one line to their log.
//!
//! It is what `--hollow`, tests and load generators use. It stands behind the same trait and the same contract tests as
//! the embedded runtime.

use crate::{Error, LogRotation, Runtime, Served, Session, SocketInPod};
use async_trait::async_trait;
use jiff::Timestamp;
use kedge_containerlog::{Lines, LogFile, Moment, Stream};
use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, ContainerStats, CpuStats, Credentials, ExecOutput,
    ExitReason, HandlerFeatures, Image, ImageUsage, MemoryStats, ObservedContainer, ObservedSandbox,
    Resources, RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId, SandboxStats, Talk,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;

/// Hollow containers write one line; rotation is never reached.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// The exit code of a process that SIGTERM ended, which is how hollow containers end when they are stopped.
const EXIT_CODE_TERMINATED: i32 = 128 + 15;

/// Sandboxes get addresses from the benchmarking network 198.18.0.0/15, which is routed nowhere.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Nothing is mounted and nobody is anybody.
const FEATURES: HandlerFeatures = HandlerFeatures {
    recursive_read_only_mounts: false,
    user_namespaces: true,
};

/// Which images the hollow node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Images {
    /// Whatever is asked for.
    All,
    /// Only these references, and what is pulled or imported later.
    Only(BTreeSet<String>),
}

impl<const N: usize> From<[String; N]> for Images {
    fn from(only: [String; N]) -> Self {
        Self::Only(only.into())
    }
}

/// A runtime that keeps its containers in memory.
#[derive(Debug)]
pub struct Hollow {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    made: u64,
    images: Images,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    status: RuntimeStatus,
    answers: BTreeMap<Vec<String>, ExecAnswer>,
    usage: BTreeMap<ContainerId, ContainerUsage>,
}

/// How a command in a hollow container ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecAnswer {
    Output(ExecOutput),
    /// It never ends by itself.
    Hangs,
}

/// What a hollow container pretends to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContainerUsage {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub layer_bytes: u64,
}

#[derive(Debug)]
struct Sandbox {
    log_dir: PathBuf,
    observed: ObservedSandbox,
}

impl Hollow {
    /// A node with every image and no containers.
    pub fn new() -> Self {
        Self::with_images(Images::All)
    }

    pub fn with_images(images: Images) -> Self {
        let state = State {
            made: 0,
            images,
            sandboxes: BTreeMap::new(),
            status: RuntimeStatus {
                features: [(String::new(), FEATURES)].into(),
                ..RuntimeStatus::default()
            },
            answers: BTreeMap::new(),
            usage: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// Makes a running container end by itself, as its program would.
    pub fn exit_container(&self, id: &ContainerId, exit_code: i32) -> Result<(), Error> {
        self.state().container(id)?.exit(exit_code);
        self.changed.notify_waiters();
        self.changed.notify_one();
        Ok(())
    }

    /// What a command answers from now on; others succeed and say nothing.
    pub fn answer_exec<const N: usize>(&self, command: [&str; N], answer: ExecAnswer) {
        let command = command.map(str::to_owned).to_vec();
        self.state().answers.insert(command, answer);
    }

    /// What a container uses from now on; others use nothing.
    pub fn use_resources(&self, id: &ContainerId, usage: ContainerUsage) {
        self.state().usage.insert(id.clone(), usage);
    }

    /// How the runtime is from now on.
    pub fn set_status(&self, status: RuntimeStatus) {
        self.change(|state| state.status = status);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half way through a change.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs a change and tells those who wait for one.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_one();
        result
    }
}

impl Default for Hollow {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn sandbox(&mut self, id: &SandboxId) -> Result<&mut Sandbox, Error> {
        self.sandboxes
            .get_mut(id)
            .ok_or_else(|| Error::NoSandbox(id.0.clone()))
    }

    fn container(&mut self, id: &ContainerId) -> Result<&mut ObservedContainer, Error> {
        let mut all = self
            .sandboxes
            .values_mut()
            .flat_map(|sandbox| &mut sandbox.observed.containers);
        all.find(|container| container.id == *id)
            .ok_or_else(|| Error::NoContainer(id.0.clone()))
    }

    fn next_id(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("hollow-{kind}-{}", self.made)
    }

    fn has_image(&self, reference: &str) -> bool {
        match &self.images {
            Images::All => true,
            Images::Only(only) => only.contains(reference),
        }
    }

    fn add_image(&mut self, reference: &str) {
        match &mut self.images {
            Images::All => {}
            Images::Only(only) => drop(only.insert(reference.to_owned())),
        }
    }
}

/// What the hollow container does, in the middle of the contract's vocabulary.
trait Exit {
    fn exit(&mut self, exit_code: i32);
}

impl Exit for ObservedContainer {
    fn exit(&mut self, exit_code: i32) {
        let started_ms = match self.state {
            ContainerState::Running { started_ms, .. } => started_ms,
            ContainerState::Created => 0,
            ContainerState::Exited { .. } | ContainerState::Unknown => return,
        };
        let reason = if exit_code == 0 {
            ExitReason::Completed
        } else {
            ExitReason::Error
        };
        self.state = ContainerState::Exited {
            started_ms,
            finished_ms: now_ms(),
            exit_code,
            reason,
            message: String::new(),
        };
    }
}

#[async_trait]
impl Runtime for Hollow {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        Ok(RuntimeVersion {
            name: "hollow".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn status(&self) -> Result<RuntimeStatus, Error> {
        Ok(self.state().status.clone())
    }

    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error> {
        Ok(self
            .state()
            .sandboxes
            .values()
            .map(|sandbox| sandbox.observed.clone())
            .collect())
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error> {
        Ok(self.change(|state| {
            let id = SandboxId(state.next_id("sandbox"));
            let number = u32::try_from(state.made).unwrap_or(u32::MAX);
            let address = Ipv4Addr::from(u32::from(FIRST_ADDRESS).saturating_add(number));
            let observed = ObservedSandbox {
                id: id.clone(),
                pod: config.pod.clone(),
                attempt: config.attempt,
                ready: true,
                created_ms: now_ms(),
                ips: if config.host_network {
                    Vec::new()
                } else {
                    vec![address.to_string()]
                },
                containers: Vec::new(),
            };
            state.sandboxes.insert(
                id.clone(),
                Sandbox {
                    log_dir: config.log_dir.clone(),
                    observed,
                },
            );
            id
        }))
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.change(|state| {
            if let Some(sandbox) = state.sandboxes.get_mut(id) {
                sandbox.observed.ready = false;
                sandbox
                    .observed
                    .containers
                    .iter_mut()
                    .for_each(|container| container.exit(EXIT_CODE_TERMINATED));
            }
        });
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.change(|state| state.sandboxes.remove(id));
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        _pod: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error> {
        self.change(|state| {
            if !state.has_image(&config.image) {
                return Err(Error::ImageNotFound {
                    image: config.image.clone(),
                });
            }
            let id = ContainerId(state.next_id("container"));
            let sandbox = state.sandbox(sandbox)?;
            if !sandbox.observed.ready {
                return Err(Error::failed(
                    "create container",
                    &config.name,
                    "its sandbox is stopped",
                ));
            }
            let log_path = sandbox.log_dir.join(&config.log_path);
            sandbox.observed.containers.push(ObservedContainer {
                id: id.clone(),
                name: config.name.clone(),
                attempt: config.attempt,
                image: config.image.clone(),
                image_ref: image_id(&config.image),
                spec_hash: config.spec_hash.clone(),
                created_ms: now_ms(),
                state: ContainerState::Created,
                log_path,
            });
            Ok(id)
        })
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let log_path = self.change(|state| {
            let container = state.container(id)?;
            match container.state {
                ContainerState::Created => {}
                ContainerState::Running { .. } | ContainerState::Exited { .. } | ContainerState::Unknown => {
                    return Err(Error::failed("start container", &id.0, "it was started before"));
                }
            }
            container.state = ContainerState::Running { started_ms: now_ms() };
            Ok(container.log_path.clone())
        })?;
        let written = tokio::task::spawn_blocking(move || write_line(&log_path)).await;
        written.map_err(|error| Error::failed("log of container", &id.0, error))?
    }

    async fn stop_container(&self, id: &ContainerId, _grace: Duration) -> Result<(), Error> {
        self.change(|state| {
            state
                .container(id)
                .map(|container| container.exit(EXIT_CODE_TERMINATED))
        })
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.change(|state| {
            for sandbox in state.sandboxes.values_mut() {
                sandbox
                    .observed
                    .containers
                    .retain(|container| container.id != *id);
            }
        });
        Ok(())
    }

    async fn update_container(&self, id: &ContainerId, _resources: &Resources) -> Result<(), Error> {
        self.state().container(id).map(drop)
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let answer = {
            let mut state = self.state();
            match state.container(id)?.state {
                ContainerState::Running { .. } => {}
                ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => {
                    return Err(Error::failed(
                        "run a command in container",
                        &id.0,
                        "it does not run",
                    ));
                }
            }
            state.answers.get(command).cloned()
        };
        match answer {
            None => Ok(ExecOutput::default()),
            Some(ExecAnswer::Output(output)) => Ok(output),
            Some(ExecAnswer::Hangs) => {
                tokio::time::sleep(timeout).await;
                Err(Error::TimedOut {
                    act: "run a command in container",
                    object: id.0.clone(),
                    limit: timeout,
                })
            }
        }
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

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.state().container(id).map(drop)
    }

    fn log_rotation(&self) -> LogRotation {
        LogRotation::ByRuntime
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        let state = self.state();
        let ready = state.sandboxes.values().filter(|sandbox| sandbox.observed.ready);
        Ok(ready
            .map(|sandbox| stats_of(&sandbox.observed, &state.usage))
            .collect())
    }

    async fn image_usage(&self) -> Result<ImageUsage, Error> {
        Ok(ImageUsage {
            mount_point: PathBuf::from("/"),
            ..ImageUsage::default()
        })
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.state().has_image(reference).then(|| hollow_image(reference)))
    }

    async fn images(&self) -> Result<Vec<Image>, Error> {
        Ok(match &self.state().images {
            Images::All => Vec::new(),
            Images::Only(only) => only.iter().map(|reference| hollow_image(reference)).collect(),
        })
    }

    async fn pull_image(&self, reference: &str, _credentials: &[Credentials]) -> Result<Image, Error> {
        self.state().add_image(reference);
        Ok(hollow_image(reference))
    }

    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error> {
        let read = tokio::task::spawn_blocking(move || crate::image::references_in(&archive)).await;
        let references = read.map_err(|error| Error::failed("import", "image archive", error))??;
        let mut state = self.state();
        references.iter().for_each(|reference| state.add_image(reference));
        Ok(references
            .iter()
            .map(|reference| hollow_image(reference))
            .collect())
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        let mut state = self.state();
        let mut containers = state
            .sandboxes
            .values()
            .flat_map(|sandbox| &sandbox.observed.containers);
        let is_it = |name: &str| name == reference || image_id(name) == reference;
        if let Some(user) = containers.find(|container| is_it(&container.image)) {
            return Err(Error::ImageInUse {
                image: reference.to_owned(),
                container: user.id.0.clone(),
            });
        }
        match &mut state.images {
            Images::All => Ok(()),
            Images::Only(only) => {
                let before = only.len();
                only.retain(|name| !is_it(name));
                if only.len() < before {
                    return Ok(());
                }
                Err(Error::ImageNotFound {
                    image: reference.to_owned(),
                })
            }
        }
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn write_line(path: &Path) -> Result<(), Error> {
    let mut record = Vec::new();
    Lines::new(Stream::Stdout).push(b"hollow container started\n", Moment::now(), &mut record);
    LogFile::open(path, LOG_BYTES_MAX)
        .and_then(|mut file| file.write(&record).map_err(|lost| lost.source))
        .map_err(|source| Error::io("write", path, source))
}

fn hollow_image(reference: &str) -> Image {
    Image {
        id: image_id(reference),
        tags: vec![reference.to_owned()],
        digests: Vec::new(),
        size_bytes: 0,
        user: None,
        username: None,
        pinned: false,
    }
}

fn stats_of(sandbox: &ObservedSandbox, usage: &BTreeMap<ContainerId, ContainerUsage>) -> SandboxStats {
    let taken_ms = now_ms();
    let running = sandbox
        .containers
        .iter()
        .filter(|container| matches!(container.state, ContainerState::Running { .. }));
    let containers = running.map(|container| {
        let usage = usage.get(&container.id).copied().unwrap_or_default();
        ContainerStats {
            id: container.id.clone(),
            name: container.name.clone(),
            taken_ms,
            cpu: Some(CpuStats {
                usage_ns: usage.cpu_ns,
            }),
            memory: Some(MemoryStats {
                usage_bytes: usage.memory_bytes,
                working_set_bytes: usage.memory_bytes,
                rss_bytes: usage.memory_bytes,
                ..MemoryStats::default()
            }),
            layer_bytes: Some(usage.layer_bytes),
            layer_inodes: None,
        }
    });
    SandboxStats {
        id: sandbox.id.clone(),
        pod: sandbox.pod.clone(),
        taken_ms,
        cpu: None,
        memory: None,
        processes: None,
        network: Vec::new(),
        containers: containers.collect(),
    }
}

fn image_id(reference: &str) -> String {
    crate::image::digest_of(reference.as_bytes())
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn not_talking(act: &'static str, object: &str) -> Error {
    Error::Unsupported {
        act,
        object: object.to_owned(),
        reason: "hollow containers have no processes",
    }
}
