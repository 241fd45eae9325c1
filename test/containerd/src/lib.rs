//! A container runtime of a test's own, behind a socket: its directory, network and control groups are nobody else's.
//!
//! **Duty.** Starts containerd or CRI-O so that they work where a test runs, kills them, stops them, starts them again, and
//! leaves nothing behind: no supervisor, mount, bridge, address, control group or file.
//!
//! **Inputs.** A directory of the caller's; for containerd the programs of Debian's `containerd`, `runc` and
//! `containernetworking-plugins`, for CRI-O its own, `conmon`, `runc` and `skopeo`. A folder that the environment variables
//! `KEDGE_CONTAINERD` and `KEDGE_CRIO` name comes before the system's: so the same stories are told of another version.
//! **Outputs.** An endpoint for [`kedge_runtime::Cri`].
//!
//! **Never.** It touches the runtime that the machine may run, or needs a registry: images are built by the caller and
//! imported.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod clean;
mod containerd;
mod crio;
mod network;

pub use containerd::{ContainerdMake, NAMESPACE};
pub use crio::CrioMake;

use anyhow::{Context, Result, bail, ensure};
use kedge_containers::CgroupDriver;
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use kedge_runtime::{Cri, CriConfig, Runtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What runs in every sandbox.
pub const PAUSE_IMAGE: &str = "kedge.test/pause:1";
const BUSYBOX: &str = "/usr/bin/busybox";
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// No start takes this long on a working machine.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A path of a socket must fit into 108 bytes, with what runtimes append to it.
const SOCKET_PATH_MAX: usize = 95;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What differs between runtimes.
pub trait Make: Sized + Send + 'static {
    /// Its daemon, and the name of its folder.
    const NAME: &'static str;
    /// The environment variable with a folder of programs that come before the system's.
    const VARIABLE: &'static str;
    /// Programs without which there is nothing to start, the daemon's first.
    const PROGRAMS: &'static [&'static str];
    /// What watches over its containers.
    const SUPERVISOR: &'static str;

    fn write_files(daemon: &Daemon<Self>) -> Result<()>;
    fn arguments(daemon: &Daemon<Self>, command: &mut Command);
    fn import(daemon: &Daemon<Self>, archive: &Path) -> Result<()>;
    /// Ends what it can while the daemon lives; the ids of the containers.
    fn end_containers(daemon: &Daemon<Self>) -> Vec<String>;
}

/// A runtime that runs. Dropping it removes everything; [`Daemon::end`] also proves it.
#[derive(Debug)]
pub struct Daemon<M: Make> {
    directory: PathBuf,
    /// `None`: it was killed.
    child: Option<Child>,
    /// Makes names and addresses its own among all that run on this machine.
    number: u32,
    make: PhantomData<M>,
}

pub type Containerd = Daemon<ContainerdMake>;
pub type Crio = Daemon<CrioMake>;

/// Why containerd cannot be started here, in a sentence; `None` when it can.
pub fn missing() -> Option<String> {
    Containerd::missing()
}

/// A program of a runtime: from the folder that the environment names, else from the system.
fn program<M: Make>(name: &str) -> Option<PathBuf> {
    let first = std::env::var_os(M::VARIABLE).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = first.into_iter().chain(std::env::split_paths(&path));
    places
        .map(|folder| folder.join(name))
        .find(|program| program.exists())
}

impl<M: Make> Daemon<M> {
    /// Why it cannot be started here, in a sentence; `None` when it can.
    pub fn missing() -> Option<String> {
        if !kedge_host::is_root() {
            return Some(format!("{} needs root", M::NAME));
        }
        if let Some(name) = M::PROGRAMS.iter().find(|name| program::<M>(name).is_none()) {
            return Some(format!(
                "{name} is not installed, nor in the folder that {} names",
                M::VARIABLE
            ));
        }
        let bridge = Path::new(CNI_PLUGINS).join("bridge");
        (!bridge.exists()).then(|| format!("{} is not there: containernetworking-plugins", bridge.display()))
    }

    /// Starts it below `directory`, which must exist, and waits until it can run pods.
    pub async fn start(directory: &Path) -> Result<Self> {
        if let Some(missing) = Self::missing() {
            bail!("{missing}");
        }
        let number = (std::process::id() % 4_000) * 16 + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
        let mut daemon = Self {
            directory: directory.join(M::NAME),
            child: None,
            number,
            make: PhantomData,
        };
        fs::create_dir_all(&daemon.directory)?;
        let socket = daemon.socket();
        ensure!(
            socket.as_os_str().len() <= SOCKET_PATH_MAX,
            "{} is too long for a socket",
            socket.display()
        );
        daemon.write_network()?;
        M::write_files(&daemon)?;
        daemon.start_again().await?;
        let pause = daemon.directory.join("pause.tar");
        fs::write(&pause, build_archive(&pause_image()?)?)?;
        daemon.import(&pause)?;
        Ok(daemon)
    }

    /// What [`CriConfig`] needs.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    /// The bridge of its pods.
    pub fn bridge(&self) -> String {
        format!("kc{}", self.number)
    }

    /// The control group below which its pods are.
    pub fn cgroup_root(&self) -> String {
        format!("/kedge-{}-{}", M::NAME, self.number)
    }

    /// A client that is set up for it.
    pub fn config(&self) -> CriConfig {
        CriConfig {
            runtime_endpoint: self.endpoint(),
            image_endpoint: String::new(),
            cgroup_root: self.cgroup_root(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            cgroups_per_pod: true,
            request_timeout: Duration::from_secs(120),
        }
    }

    pub fn connect(&self) -> Cri {
        Cri::connect(self.config()).unwrap()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Imports an image archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        M::import(self, archive)
    }

    /// Runs one of the runtime's programs to its end; what it wrote.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(name)
            .args(arguments)
            .output()
            .with_context(|| format!("run {name}"))?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{name} {}: {words}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A program with what it starts itself: both from the folder that the environment names, where they are in it.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program::<M>(name).unwrap_or_else(|| name.into()));
        if let Some(first) = std::env::var_os(M::VARIABLE) {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let places = [PathBuf::from(first)].into_iter();
            let places = std::env::join_paths(places.chain(std::env::split_paths(&path)));
            command.env("PATH", places.unwrap());
        }
        command.current_dir(&self.directory);
        command
    }

    /// Ends the daemon without a word; its containers run on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the daemon where it stands: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }

    /// Starts the daemon, which was killed or never ran, and waits until it can run pods.
    pub async fn start_again(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.command(M::NAME);
        M::arguments(self, &mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", M::NAME))?;
        self.child = Some(child);
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let client = self.connect();
        let deadline = Instant::now() + START_MAX;
        loop {
            let last = match client.status().await {
                Ok(status) => match (status.runtime_trouble, status.network_trouble) {
                    (None, None) => return Ok(()),
                    (runtime, network) => format!("{runtime:?} {network:?}"),
                },
                Err(error) => error.to_string(),
            };
            if let Some(ended) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
            {
                bail!("{} ended with {ended}: {}", M::NAME, self.log_tail());
            }
            ensure!(Instant::now() < deadline, "{} is not ready: {last}", M::NAME);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("daemon.log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Removes everything and proves that nothing is left.
    pub async fn end(mut self) {
        let client = self.connect();
        for sandbox in client.list().await.unwrap() {
            client.remove_sandbox(&sandbox.id).await.unwrap();
        }
        self.clean();
        self.assert_nothing_left();
    }
}

impl<M: Make> Drop for Daemon<M> {
    fn drop(&mut self) {
        self.clean();
    }
}

/// Busybox that sleeps: there is no registry to fetch a real one from.
fn pause_image() -> Result<Blueprint> {
    Ok(Blueprint {
        reference: PAUSE_IMAGE.to_owned(),
        entrypoint: vec!["/bin/busybox".into(), "sleep".into(), "2147483647".into()],
        files: vec![FileInImage {
            path: "/bin/busybox".into(),
            mode: 0o755,
            bytes: fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}: install busybox-static"))?,
        }],
        ..Blueprint::default()
    })
}
