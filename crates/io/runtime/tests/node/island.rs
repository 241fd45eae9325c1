//! A machine of its own for a test: nobody else's processes, mounts, interfaces, addresses or firewall rules are on it.
//!
//! The test program starts itself again in new namespaces, where the story is the first process. Whatever a story that
//! fails leaves behind ends with it; only control groups are everybody's, and are removed here.

use super::census::Census;
use super::{Node, container, run as run_container};
use kedge_runtime::embedded::RootfsChoice;
use kedge_runtime::{Embedded, Runtime};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No story of one runtime takes this long.
pub(crate) const STORY_MAX: Duration = Duration::from_secs(120);
/// Names the directory of the node on the island.
const VARIABLE: &str = "KEDGE_TEST_ISLAND";
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs the ignored test `name` of this program on an island, for at most `limit`.
///
/// # Panics
/// When it fails or does not end; what it printed is printed.
#[track_caller]
pub(crate) fn run(name: &str, limit: Duration) {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let path = node.directory.join("told");
    let told = File::create(&path).unwrap();
    let mut island = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--ipc",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, &node.directory)
        .stdin(Stdio::null())
        .stdout(told.try_clone().unwrap())
        .stderr(told)
        .spawn()
        .expect("unshare of util-linux is on PATH");
    let began = Instant::now();
    let status = loop {
        match island.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if began.elapsed() > limit => break None,
            None => std::thread::park_timeout(LOOK_EVERY),
        }
    };
    if status.is_none() {
        // Its first process goes with it, and with that everything on the island.
        island.kill().unwrap();
        island.wait().unwrap();
    }
    let told = std::fs::read_to_string(&path).unwrap_or_default();
    let left = remove_groups(&node);
    println!("{told}");
    assert!(
        status.is_some(),
        "{name} does not end within {} s",
        limit.as_secs()
    );
    assert!(status.is_some_and(|status| status.success()), "{name} failed");
    // A name that no test has would be a success, too.
    assert!(told.contains("1 passed"), "{name} is no test");
    assert_eq!(left, Vec::<PathBuf>::new(), "control groups left");
}

/// Tests, each with an ignored double that tells the story of its name, of the module `story`, on an island. In front of
/// them may stand how root file systems are made there.
#[macro_export]
macro_rules! stories {
    ($($name:ident)*) => {
        stories! { None; $($name)* }
    };
    ($rootfs:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            node::island::run(concat!("on_island::", stringify!($name)), node::island::STORY_MAX);
        })*
        mod on_island {
            $(#[test]
            #[ignore = "on an island"]
            fn $name() {
                super::node::island::tell($rootfs, super::story::$name);
            })*
        }
    };
}

/// Tells a story with a runtime, if this is an island, and proves that it leaves nothing behind.
pub(crate) fn tell(rootfs: Option<RootfsChoice>, story: impl AsyncFnOnce(&Node, &Embedded)) {
    let Some(mut node) = node() else { return };
    node.rootfs = rootfs.unwrap_or(node.rootfs);
    let node = node;
    settle(&node);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    tokio.block_on(async {
        let runtime = node.runtime_with_image().await;
        // What is made once and stays is made.
        let sandbox = runtime.run_sandbox(&node.sandbox("first")).await.unwrap();
        run_container(&runtime, &sandbox, &container("first", "exit 0")).await;
        runtime.purge().await.unwrap();
        let before = Census::take(&node);
        story(&node, &runtime).await;
        runtime.purge().await.unwrap();
        before.assert_restored(&node, "the story");
    });
}

/// The node of the island that this process is on; `None` elsewhere.
pub(crate) fn node() -> Option<Node> {
    Some(Node::of(std::env::var_os(VARIABLE)?.into()))
}

/// Lets go of what others have mounted, and hides the places of the machine that they write to, too.
pub(crate) fn settle(node: &Node) {
    let others = kedge_host::mounts::mounted_below(&std::env::temp_dir()).unwrap();
    for place in others
        .iter()
        .rev()
        .filter(|place| !place.starts_with(&node.directory))
    {
        // They go by themselves, too, when their owner removes the directory.
        let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
    }
    for place in ["/run", "/dev/shm", "/var/lib"] {
        rustix::mount::mount("tmpfs", place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    }
}

/// Removes the control groups of pods, as a power cut does.
pub(crate) fn forget_pods_groups(node: &Node) {
    for tree in kedge_host::cgroups::layout().unwrap().trees() {
        let qos = tree
            .join(node.cgroup_root().trim_start_matches('/'))
            .join(super::QOS_GROUP);
        for pod in std::fs::read_dir(qos).into_iter().flatten().flatten() {
            if pod.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_group(&pod.path());
            }
        }
    }
}

fn remove_groups(node: &Node) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for tree in kedge_host::cgroups::layout().unwrap().trees() {
        let group = tree.join(node.cgroup_root().trim_start_matches('/'));
        if group.is_dir() {
            remove_group(&group);
            left.push(group);
        }
    }
    left
}

fn remove_group(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let began = Instant::now();
    // The kernel needs a moment to forget the last process.
    while std::fs::remove_dir(group).is_err() && group.exists() && began.elapsed() < Duration::from_secs(5) {
        std::thread::park_timeout(LOOK_EVERY);
    }
}
