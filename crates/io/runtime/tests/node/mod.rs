//! A node for tests: a directory, an image, a bridge and a control group of its own, so that tests run side by side.

#![allow(dead_code, reason = "each test program uses another part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub(crate) mod census;
pub(crate) mod firewall;
pub(crate) mod island;
pub(crate) mod people;

use futures_util::FutureExt;
use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, DnsConfig, ObservedContainer, PodIdentity, SandboxConfig,
    SandboxId, Security,
};
use kedge_runtime::embedded::{Config, HelperProgram, NetworkConfig, RootfsChoice};
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use kedge_runtime::{Embedded, Runtime};
use std::error::Error as _;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) const IMAGE: &str = "kedge.test/busybox:1";
/// The control group above those of pods.
const QOS_GROUP: &str = "burstable";
/// Before what tells one node from the others.
const FOLDER: &str = "kedge-runtime-";
const BUSYBOX: &str = "/usr/bin/busybox";
/// Has every story told with root file systems that are made so: `fuse` or `copy`.
const ROOTFS_VARIABLE: &str = "KEDGE_TEST_ROOTFS";

/// No fact that a test waits for takes this long on a working machine.
const FACT_WAIT_MAX: Duration = Duration::from_secs(60);

/// Lets a story happen to a pod, changed as it needs, on a node of its own, and proves that nothing is left behind. What
/// this machine does not have leaves the story out.
pub(crate) async fn on_a_node(
    change: impl FnOnce(&mut SandboxConfig),
    story: impl AsyncFnOnce(&Node, &Embedded, &SandboxId),
) {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let runtime = node.runtime_with_image().await;
    let mut config = node.sandbox("pod");
    change(&mut config);
    let status = runtime.status().await.unwrap();
    if !config.handler.is_empty() && !status.handlers.contains(&config.handler) {
        return eprintln!("skipped: {} is not installed", config.handler);
    }
    if config.user_namespace.is_some() && !status.features[""].user_namespaces {
        return eprintln!("skipped: this kernel or file system maps no users");
    }
    let sandbox = runtime.run_sandbox(&config).await.unwrap();
    node.live(runtime, &sandbox, story).await;
}

static NODES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Node {
    pub(crate) directory: PathBuf,
    /// The process that made it, and how many it had made before: they tell its things from those of others.
    pid: u32,
    pub(crate) number: u32,
    /// Which of the runtime's handlers runs its pods; empty for the runtime itself.
    pub(crate) handler: String,
    /// How its root file systems are made.
    pub(crate) rootfs: RootfsChoice,
    /// Whether the directory goes with it.
    owner: bool,
}

impl Node {
    pub(crate) fn new() -> Self {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let directory = std::env::temp_dir().join(format!("{FOLDER}{pid}-{number}"));
        std::fs::create_dir_all(&directory).unwrap();
        Self {
            directory,
            pid,
            number,
            handler: String::new(),
            rootfs: rootfs_wanted(),
            owner: true,
        }
    }

    /// The node whose directory another process made, and will remove.
    pub(crate) fn of(directory: PathBuf) -> Self {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let (pid, number) = name.trim_start_matches(FOLDER).split_once('-').unwrap();
        Self {
            pid: pid.parse().unwrap(),
            number: number.parse().unwrap(),
            directory,
            handler: String::new(),
            rootfs: rootfs_wanted(),
            owner: false,
        }
    }

    pub(crate) fn tag(&self) -> String {
        format!("{}-{}", self.pid, self.number)
    }

    /// Whether containers can be made here; says why not.
    pub(crate) fn can_run_containers() -> bool {
        if !kedge_host::is_root() {
            eprintln!("skipped: the embedded runtime needs root");
            return false;
        }
        assert!(
            Path::new(BUSYBOX).exists(),
            "{BUSYBOX} is missing: install busybox-static"
        );
        true
    }

    pub(crate) fn bridge(&self) -> String {
        format!("kt{}n{}", self.pid % 1_000_000, self.number)
    }

    pub(crate) fn cgroup_root(&self) -> String {
        format!("/kedge-test-{}", self.tag())
    }

    pub(crate) fn config(&self) -> Config {
        let third = u8::try_from((self.pid.wrapping_mul(16) + self.number) % 250).unwrap();
        Config {
            root: self.directory.join("runtime"),
            helper: HelperProgram {
                executable: Some(env!("CARGO_BIN_EXE_kedge-oci-helper").into()),
                word: "oci-helper".to_owned(),
            },
            cgroup_root: self.cgroup_root(),
            network: Some(NetworkConfig {
                bridge: self.bridge(),
                pod_cidrs: vec![(Ipv4Addr::new(10, 213, third, 0).into(), 24)],
                cni: None,
            }),
            rootfs: self.rootfs,
            device_directories: ["static", "generated"]
                .map(|name| self.directory.join("cdi").join(name))
                .into(),
            log_bytes_max: 1024 * 1024,
            registries: kedge_registry::Config::new(kedge_host::architecture()),
        }
    }

    pub(crate) async fn runtime(&self) -> Embedded {
        Embedded::open(self.config()).await.unwrap()
    }

    /// A runtime that has [`IMAGE`].
    pub(crate) async fn runtime_with_image(&self) -> Embedded {
        let runtime = self.runtime().await;
        runtime.import_image(self.archive()).await.unwrap();
        runtime
    }

    pub(crate) fn archive(&self) -> PathBuf {
        let path = self.directory.join("busybox.tar");
        std::fs::write(&path, build_archive(&busybox()).unwrap()).unwrap();
        path
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn sandbox(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            pod: PodIdentity {
                namespace: "default".into(),
                name: name.into(),
                uid: format!("uid-{name}"),
            },
            attempt: 0,
            hostname: name.to_owned(),
            dns: DnsConfig {
                servers: vec!["10.0.0.10".into()],
                ..DnsConfig::default()
            },
            cgroup_parent: format!("{QOS_GROUP}/pod-{name}"),
            log_dir: self.directory.join("logs").join(name),
            handler: self.handler.clone(),
            ..SandboxConfig::default()
        }
    }

    /// Lets a story happen to a pod and ends the node; a story that fails leaves no containers behind either.
    pub(crate) async fn live(
        self,
        runtime: Embedded,
        sandbox: &SandboxId,
        story: impl AsyncFnOnce(&Self, &Embedded, &SandboxId),
    ) {
        let told = AssertUnwindSafe(story(&self, &runtime, sandbox))
            .catch_unwind()
            .await;
        match told {
            Ok(()) => self.end(runtime).await,
            Err(failure) => {
                runtime.purge().await.unwrap();
                std::panic::resume_unwind(failure)
            }
        }
    }

    /// Ends the node and proves that nothing of it is left on the machine.
    pub(crate) async fn end(self, runtime: Embedded) {
        runtime.purge().await.unwrap();
        assert_eq!(runtime.list().await.unwrap(), []);
        drop(runtime);
        self.assert_nothing_left();
    }

    pub(crate) fn assert_nothing_left(&self) {
        let directory = self.directory.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&directory), "mounts left: {mounts}");
        assert!(
            !Path::new("/sys/class/net").join(self.bridge()).exists(),
            "bridge left"
        );
        let commands = processes_with(&directory);
        assert_eq!(commands, Vec::<String>::new(), "processes left");
        for tree in kedge_host::cgroups::layout().unwrap().trees() {
            let group = tree.join(self.cgroup_root().trim_start_matches('/'));
            assert!(!group.exists(), "control group left: {}", group.display());
        }
        for kept in ["sandboxes", "containers", "states"] {
            let left = std::fs::read_dir(self.directory.join("runtime").join(kept))
                .unwrap()
                .count();
            assert_eq!(left, 0, "{kept} left");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.owner {
            drop(std::fs::remove_dir_all(&self.directory));
        }
    }
}

fn rootfs_wanted() -> RootfsChoice {
    match std::env::var(ROOTFS_VARIABLE).as_deref() {
        Ok("fuse") => RootfsChoice::Fuse,
        Ok("copy") => RootfsChoice::Copy,
        Ok(other) => panic!("{ROOTFS_VARIABLE} is {other:?}, and knows fuse and copy"),
        Err(_) => RootfsChoice::Automatic,
    }
}

pub(crate) fn busybox() -> Blueprint {
    Blueprint {
        reference: IMAGE.to_owned(),
        entrypoint: vec!["/bin/busybox".into(), "sh".into(), "-c".into()],
        env: vec![("FROM_IMAGE".into(), "yes".into())],
        files: vec![
            FileInImage {
                path: "/bin/busybox".into(),
                mode: 0o755,
                bytes: std::fs::read(BUSYBOX).unwrap_or_default(),
            },
            FileInImage {
                path: "/etc/passwd".into(),
                mode: 0o644,
                bytes: b"app:x:1000:100::/:/bin/sh\n".to_vec(),
            },
            FileInImage {
                path: "/etc/group".into(),
                mode: 0o644,
                bytes: b"dialout:x:20:app\n".to_vec(),
            },
            FileInImage {
                path: "/tmp/here".into(),
                mode: 0o644,
                bytes: vec![],
            },
        ],
        ..Blueprint::default()
    }
}

/// A container that runs a line of shell.
pub(crate) fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        args: vec![script.to_owned()],
        log_path: Path::new(name).join("0.log"),
        security: Security {
            allow_privilege_escalation: true,
            ..Security::default()
        },
        spec_hash: "hash".to_owned(),
        ..ContainerConfig::default()
    }
}

/// A script that runs until it is asked to stop, and then ends well.
pub(crate) const UNTIL_TERM: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";

/// For a runtime that remembers what its sandboxes are.
pub(crate) async fn run(runtime: &dyn Runtime, sandbox: &SandboxId, config: &ContainerConfig) -> ContainerId {
    run_in(runtime, sandbox, &SandboxConfig::default(), config).await
}

pub(crate) async fn run_in(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
    config: &ContainerConfig,
) -> ContainerId {
    let id = runtime.create_container(sandbox, pod, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

pub(crate) async fn find(runtime: &dyn Runtime, id: &ContainerId) -> Option<ObservedContainer> {
    let all = runtime
        .list()
        .await
        .unwrap()
        .into_iter()
        .flat_map(|sandbox| sandbox.containers);
    all.into_iter().find(|container| container.id == *id)
}

/// Waits until the container's state is as wanted: by the runtime's own hint, with a late look in case one was missed.
pub(crate) async fn wait_for(
    runtime: &dyn Runtime,
    id: &ContainerId,
    wanted: impl Fn(&ContainerState) -> bool,
) -> ContainerState {
    let fact = async {
        loop {
            let found = find(runtime, id).await.expect("the container exists");
            if wanted(&found.state) {
                return found.state;
            }
            drop(tokio::time::timeout(Duration::from_millis(500), runtime.changed()).await);
        }
    };
    match tokio::time::timeout(FACT_WAIT_MAX, fact).await {
        Ok(state) => state,
        Err(_) => panic!("state of {id:?} is {:?}", find(runtime, id).await),
    }
}

pub(crate) async fn exit_of(runtime: &dyn Runtime, id: &ContainerId) -> (i32, kedge_containers::ExitReason) {
    match wait_for(runtime, id, |state| {
        matches!(state, ContainerState::Exited { .. })
    })
    .await
    {
        ContainerState::Exited {
            exit_code, reason, ..
        } => (exit_code, reason),
        other => panic!("not exited: {other:?}"),
    }
}

/// The texts of a container's log lines; one that was written in parts is one.
pub(crate) async fn log(runtime: &dyn Runtime, id: &ContainerId) -> Vec<String> {
    let path = find(runtime, id).await.unwrap().log_path;
    let text = std::fs::read_to_string(path).unwrap();
    let (mut lines, mut goes_on) = (Vec::<String>::new(), false);
    for line in text.lines() {
        let mut words = line.splitn(4, ' ').skip(2);
        let (tag, text) = (words.next(), words.next().unwrap_or_default());
        match lines.last_mut().filter(|_| goes_on) {
            Some(begun) => begun.push_str(text),
            None => lines.push(text.to_owned()),
        }
        goes_on = tag == Some("P");
    }
    lines
}

/// Waits for a line in a container's log.
pub(crate) async fn wait_for_line(runtime: &dyn Runtime, id: &ContainerId, line: &str) {
    let fact = async {
        while !log(runtime, id).await.iter().any(|found| found == line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(FACT_WAIT_MAX, fact).await.is_err() {
        panic!("no line {line:?} in {:?}", log(runtime, id).await);
    }
}

/// What a line of shell prints.
pub(crate) async fn said(runtime: &Embedded, sandbox: &SandboxId, config: &ContainerConfig) -> String {
    let (code, lines) = outcome(runtime, sandbox, config).await;
    assert_eq!(code, 0, "{}: {lines:?}", config.name);
    lines.join("\n")
}

/// Why a container is not made.
pub(crate) async fn refusal(runtime: &Embedded, sandbox: &SandboxId, config: &ContainerConfig) -> String {
    let refused = runtime
        .create_container(sandbox, &SandboxConfig::default(), config)
        .await;
    refused.unwrap_err().to_string()
}

/// Runs a container to its end and gives its exit code and log.
pub(crate) async fn outcome(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    config: &ContainerConfig,
) -> (i32, Vec<String>) {
    outcome_in(runtime, sandbox, &SandboxConfig::default(), config).await
}

pub(crate) async fn outcome_in(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
    config: &ContainerConfig,
) -> (i32, Vec<String>) {
    let id = run_in(runtime, sandbox, pod, config).await;
    let (code, _) = exit_of(runtime, &id).await;
    let lines = log(runtime, &id).await;
    runtime.remove_container(&id).await.unwrap();
    (code, lines)
}

/// Each container has a name of its own, and so a log of its own.
pub(crate) fn secured(name: &str, script: &str, security: Security) -> ContainerConfig {
    ContainerConfig {
        security,
        ..container(name, script)
    }
}

/// Processes whose command line mentions a text.
pub(crate) fn processes_with(text: &str) -> Vec<String> {
    let all = commands().into_iter().map(|(_, command)| command);
    all.filter(|command| command.contains(text)).collect()
}

/// Whether a process whose command line begins so waits for somebody to read what it writes.
pub(crate) fn waits_to_write(command: &str) -> bool {
    let mut writers = commands()
        .into_iter()
        .filter(|(_, line)| line.starts_with(command));
    writers.any(|(pid, _)| matches!(people::waits_in(pid), Some((nix::libc::SYS_write, _))))
}

/// Every other process, with its command line.
fn commands() -> Vec<(i32, String)> {
    let own = i32::try_from(std::process::id()).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let others = pids.filter(|pid| *pid != own);
    let commands = others.filter_map(|pid: i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
    });
    commands.collect()
}

/// An error with its causes, in one line.
pub(crate) fn sentence(error: &kedge_runtime::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default()).replace('\n', "; ")
}

/// The records below a runtime's directory that a restart reads; those of images are another matter.
pub(crate) fn records(runtime: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(runtime).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !path.ends_with("images") && !path.ends_with("rootfs") {
            found.extend(records(&path));
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found
}

/// Changes what is on disk as if it had been written before the last boot.
pub(crate) fn pretend_reboot(node: &Node) {
    let boot = kedge_host::boot_id().unwrap();
    let other = boot.replace(|c: char| c.is_ascii_hexdigit(), "0");
    for path in records(&node.directory.join("runtime")) {
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&boot, &other)).unwrap();
    }
}

/// SplitMix64: the same moments for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}
