//! A containerd of a test's own: its directory, socket, network and control groups are nobody else's.
//!
//! **Duty.** Starts containerd so that it works where a test runs, kills it, stops it, starts it again, and leaves nothing
//! behind: no shim, mount, bridge, address, control group or file.
//!
//! **Inputs.** A directory of the caller's, the programs of Debian's `containerd`, `runc` and
//! `containernetworking-plugins`. **Outputs.** An endpoint for [`kedge_runtime::Cri`].
//!
//! **Never.** It touches the containerd that the machine may run, or needs a registry: images are built by the caller and
//! imported.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod clean;
mod files;

use anyhow::{Context, Result, bail, ensure};
use kedge_containers::CgroupDriver;
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use kedge_runtime::{Cri, CriConfig, Runtime};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What runs in every sandbox.
pub const PAUSE_IMAGE: &str = "kedge.test/pause:1";
/// The namespace in which containerd keeps what came through the CRI.
pub const NAMESPACE: &str = "k8s.io";
const BUSYBOX: &str = "/usr/bin/busybox";
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// Programs without which there is nothing to start.
const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "runc", "ctr"];
/// No start takes this long on a working machine.
const START_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A path of a socket must fit into 108 bytes, with what containerd appends to it.
const SOCKET_PATH_MAX: usize = 95;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running containerd. Dropping it removes everything; [`Containerd::end`] also proves it.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    /// `None`: it was killed.
    child: Option<Child>,
    /// Makes names and addresses its own among all that run on this machine.
    number: u32,
}

/// Why containerd cannot be started here, in a sentence; `None` when it can.
pub fn missing() -> Option<String> {
    if !kedge_host::is_root() {
        return Some("containerd needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    if let Some(program) = PROGRAMS.into_iter().find(|program| !found(program)) {
        return Some(format!("{program} is not installed"));
    }
    let bridge = Path::new(CNI_PLUGINS).join("bridge");
    (!bridge.exists()).then(|| format!("{} is not there: containernetworking-plugins", bridge.display()))
}

impl Containerd {
    /// Starts it below `directory`, which must exist, and waits until it can run pods.
    pub async fn start(directory: &Path) -> Result<Self> {
        if let Some(missing) = missing() {
            bail!("{missing}");
        }
        let number = (std::process::id() % 4_000) * 16 + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
        let mut containerd = Self {
            directory: directory.join("containerd"),
            child: None,
            number,
        };
        fs::create_dir_all(&containerd.directory)?;
        let socket = containerd.socket();
        ensure!(
            socket.as_os_str().len() <= SOCKET_PATH_MAX,
            "{} is too long for a socket",
            socket.display()
        );
        containerd.write_files()?;
        containerd.start_again().await?;
        let pause = containerd.directory.join("pause.tar");
        fs::write(&pause, build_archive(&pause_image()?)?)?;
        containerd.import(&pause)?;
        Ok(containerd)
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
        format!("/kedge-containerd-{}", self.number)
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
        let archive = archive.to_str().context("a path of a test is text")?;
        self.ctr(&["images", "import", archive]).map(drop)
    }

    /// Runs containerd's own tool on it.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .context("run ctr")?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "ctr {}: {words}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("containerd.log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
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
                bail!("containerd ended with {ended}: {}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "containerd is not ready: {last}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("containerd.log")).unwrap_or_default();
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

impl Drop for Containerd {
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
