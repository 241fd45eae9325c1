//! Control groups of pods. Those of containers are made by libcontainer, which leaves the ones above them behind.

use crate::Error;
use kedge_containers::Resources;
use kedge_host::cgroups::Layout;
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A group that still has a dying process in it cannot be removed; the kernel needs a moment.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

const CPU_PERIOD_US_DEFAULT: u64 = 100_000;

/// Where version 1 keeps limits of a pod, and where those of a container that may change while it runs. A group of
/// `cpuset` takes nobody in before it has processors, so none is made for pods.
const V1_OF_PODS: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];
const V1_OF_CONTAINERS: [&str; 5] = ["cpu", "memory", "pids", "hugetlb", "cpuset"];
/// Where version 1 counts who serves a root file system.
const V1_OF_SERVING: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];
const V1_MEMORY: &str = "memory.limit_in_bytes";
const V1_MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
const V1_BLOCK_WEIGHTS: [&str; 2] = ["blkio.weight", "blkio.bfq.weight"];
pub(crate) const V2_SWAP_MAX: &str = "memory.swap.max";
const V2_IO_WEIGHT: &str = "io.weight";
/// What pods are limited by; a controller that the kernel lacks is left out.
const V2_HANDED_DOWN: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

/// Joins the parts of a group's path and refuses one that would leave the root.
pub(crate) fn path(parts: &[&str]) -> Result<String, Error> {
    let joined = parts.join("/");
    let names: Vec<&str> = joined.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return Err(Error::failed(
            "use control group",
            joined,
            "its path must not contain . or ..",
        ));
    }
    Ok(format!("/{}", names.join("/")))
}

/// Makes a pod's group with its limits.
pub(crate) fn make_pod(layout: &Layout, group: &str, limits: &Resources) -> Result<(), Error> {
    match layout {
        Layout::V2 { mount, controllers } => {
            make_v2(mount, controllers, group)?;
            limit_v2(&below(mount, group), limits)
        }
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            for controller in V1_OF_PODS {
                let Some(mount) = mounts.get(controller) else {
                    continue;
                };
                let directory = below(mount, group);
                std::fs::create_dir_all(&directory)
                    .map_err(|source| Error::io("make control group", &directory, source))?;
                limit_v1(controller, &directory, limits)?;
            }
            Ok(())
        }
    }
}

/// Makes a container's group with its limits, where nobody else does. Its processors can be said when somebody has made
/// the group of that tree, see [`limit_existing`].
pub(crate) fn make_container(layout: &Layout, group: &str, limits: &Resources) -> Result<(), Error> {
    if v1_block_weight(layout, limits)?.is_some() {
        return Err(Error::Unsupported {
            act: "set limit",
            object: V2_IO_WEIGHT.to_owned(),
            reason: "a node without root weighs disk traffic with version 2 control groups only",
        });
    }
    make_pod(layout, group, limits)
}

/// Gives limits to a group that somebody else made; one that is not there needs none.
pub(crate) fn limit_existing(layout: &Layout, group: &str, limits: &Resources) -> Result<(), Error> {
    let exists = |directory: &PathBuf| directory.is_dir();
    match layout {
        Layout::V2 { mount, .. } => match Some(below(mount, group)).filter(exists) {
            Some(directory) => limit_v2(&directory, limits),
            None => Ok(()),
        },
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            refuse_unified(limits)?;
            for controller in V1_OF_CONTAINERS {
                let directory = mounts.get(controller).map(|mount| below(mount, group));
                if let Some(directory) = directory.filter(exists) {
                    limit_v1(controller, &directory, limits)?;
                }
            }
            Ok(())
        }
    }
}

/// Whether version 1 counts memory and swap together, which kernels may be built or started without.
pub(crate) fn v1_counts_swap(layout: &Layout) -> bool {
    match layout {
        Layout::V2 { .. } => false,
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => mounts
            .get("memory")
            .is_some_and(|mount| mount.join(V1_MEMORY_AND_SWAP).exists()),
    }
}

/// Whether version 2 counts the swap of the group above `group`, which is there before it.
pub(crate) fn v2_counts_swap(layout: &Layout, group: &str) -> bool {
    match layout {
        Layout::V1 { .. } | Layout::Hybrid { .. } => false,
        Layout::V2 { mount, .. } => below(mount, group)
            .parent()
            .is_some_and(|parent| parent.join(V2_SWAP_MAX).exists()),
    }
}

/// The weight of a container's disk traffic in version 1's words, if one is asked for and somebody weighs. Of version
/// 2's files this is the only one that version 1 has under another name.
pub(crate) fn v1_block_weight(layout: &Layout, limits: &Resources) -> Result<Option<u16>, Error> {
    refuse_unified(limits)?;
    let (Layout::V1 { mounts } | Layout::Hybrid { mounts, .. }) = layout else {
        return Ok(None);
    };
    let weighs = mounts
        .get("blkio")
        .is_some_and(|mount| V1_BLOCK_WEIGHTS.iter().any(|file| mount.join(file).exists()));
    let Some((file, value)) = limits.unified.iter().next().filter(|_| weighs) else {
        return Ok(None);
    };
    let number = value.strip_prefix("default").unwrap_or(value).trim().parse();
    let weight: u32 = number
        .ok()
        .filter(|weight| (1..=10_000).contains(weight))
        .ok_or_else(|| {
            let reason = format!("{value:?} is not a weight from 1 to 10000");
            Error::failed("set limit", file, reason)
        })?;
    // From 10 to 1000 there, from 1 to 10000 here.
    Ok(u16::try_from(10 + (weight - 1) * 990 / 9_999).ok())
}

fn refuse_unified(limits: &Resources) -> Result<(), Error> {
    match limits.unified.keys().find(|file| *file != V2_IO_WEIGHT) {
        Some(file) => Err(Error::Unsupported {
            act: "set limit",
            object: file.clone(),
            reason: "it is a file of version 2 control groups, which this node does not have",
        }),
        None => Ok(()),
    }
}

/// The group of whoever serves the root file system of the container that has `group`: the pod's, beside the container's.
/// What it uses is the pod's, and limited with it, but neither counts as the container's nor ends with that.
pub(crate) fn serving(group: &str) -> String {
    format!("{group}-root")
}

/// Makes the group [`serving`] where something is counted or limited, and gives the files that take processes in.
pub(crate) fn make_serving(layout: &Layout, group: &str) -> Result<Vec<PathBuf>, Error> {
    let mut trees: Vec<&Path> = match layout {
        Layout::V2 { mount, .. } => vec![mount],
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            let kept = V1_OF_SERVING
                .iter()
                .filter_map(|controller| mounts.get(*controller));
            kept.map(PathBuf::as_path).collect()
        }
    };
    // Two controllers may share a tree.
    trees.sort_unstable();
    trees.dedup();
    let mut files = Vec::new();
    for tree in trees {
        let directory = below(tree, &serving(group));
        std::fs::create_dir_all(&directory)
            .map_err(|source| Error::io("make control group", &directory, source))?;
        files.push(directory.join("cgroup.procs"));
    }
    Ok(files)
}

/// What happens to a process that still runs in a group that shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftover {
    Kill,
    /// It is not ours: the group stays, and that is an error.
    Spare,
}

/// Removes a group with all groups below it, killing what still runs in them.
pub(crate) fn remove_tree(layout: &Layout, group: &str) -> Result<(), Error> {
    stop_growth(layout, group);
    layout
        .trees()
        .into_iter()
        .try_for_each(|tree| remove(&below(tree, group), Leftover::Kill))
}

/// Removes a group with all groups below it, if nothing runs in them.
pub(crate) fn remove_empty_tree(layout: &Layout, group: &str) -> Result<(), Error> {
    layout
        .trees()
        .into_iter()
        .try_for_each(|tree| remove(&below(tree, group), Leftover::Spare))
}

/// The file in which the kernel counts how often it killed something in a group for want of memory.
pub(crate) fn memory_events(layout: &Layout, group: &str) -> Option<PathBuf> {
    match layout {
        Layout::V2 { mount, .. } => Some(below(mount, group).join("memory.events")),
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => mounts
            .get("memory")
            .map(|mount| below(mount, group).join("memory.oom_control")),
    }
}

fn below(tree: &Path, group: &str) -> PathBuf {
    tree.join(group.trim_start_matches('/'))
}

/// What shall go must not make new processes while it is being killed: a program that forks faster than it is killed
/// would win. A group without the file needs no help, and one that is gone even less.
fn stop_growth(layout: &Layout, group: &str) {
    let tree = match layout {
        Layout::V2 { mount, .. } => Some(mount),
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => mounts.get("pids"),
    };
    if let Some(directory) = tree.map(|tree| below(tree, group)) {
        drop(write_existing(&directory.join("pids.max"), "0"));
        drop(write_existing(&directory.join("cgroup.kill"), "1"));
    }
}

/// Writes to a file of the kernel, which alone can make one.
fn write_existing(file: &Path, value: &str) -> std::io::Result<()> {
    std::fs::File::options()
        .write(true)
        .truncate(true)
        .open(file)?
        .write_all(value.as_bytes())
}

/// Version 2 wants every group on the way to hand its controllers down.
fn make_v2(mount: &Path, known: &BTreeSet<String>, group: &str) -> Result<(), Error> {
    let wanted = V2_HANDED_DOWN.iter().filter(|name| known.contains(**name));
    let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
    let mut directory = mount.to_owned();
    for name in group.split('/').filter(|name| !name.is_empty()) {
        let control = directory.join("cgroup.subtree_control");
        std::fs::write(&control, wanted.join(" "))
            .map_err(|source| Error::io("hand controllers down in", &control, source))?;
        directory.push(name);
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io("make control group", &directory, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Files and what is written to them, in this order.
type Files = Vec<(String, String)>;

fn limit_v1(controller: &str, directory: &Path, limits: &Resources) -> Result<(), Error> {
    match limits.memory_bytes_max.filter(|_| controller == "memory") {
        Some(bytes) => write_all(directory, v1_memory(directory, bytes)),
        None => write_all(directory, v1_limits(controller, limits)),
    }
}

/// The limit of memory and swap together is never below that of memory alone, not even for a moment. So the larger one
/// is raised first and lowered last.
fn v1_memory(directory: &Path, bytes: i64) -> Files {
    let together = directory.join(V1_MEMORY_AND_SWAP);
    let now = std::fs::read_to_string(&together);
    let mut files = vec![(V1_MEMORY.to_owned(), bytes.to_string())];
    if let Ok(now) = now {
        let now: i128 = now.trim().parse().unwrap_or(i128::MAX);
        let grows = bytes < 0 || i128::from(bytes) > now;
        let place = if grows { 0 } else { files.len() };
        files.insert(place, (V1_MEMORY_AND_SWAP.to_owned(), bytes.to_string()));
    }
    files
}

fn v1_limits(controller: &str, limits: &Resources) -> Files {
    match controller {
        "cpu" => {
            let mut files = Files::new();
            files.extend(limits.cpu_shares.map(|shares| file("cpu.shares", shares)));
            if let Some(quota) = limits.cpu_quota_us {
                let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
                files.push(file("cpu.cfs_period_us", period));
                files.push(file("cpu.cfs_quota_us", quota));
            }
            files
        }
        "pids" => limits
            .pids_max
            .map(|pids| file("pids.max", or_max(pids)))
            .into_iter()
            .collect(),
        "hugetlb" => limits
            .hugepages
            .iter()
            .map(|(size, bytes)| file(&format!("hugetlb.{size}.limit_in_bytes"), bytes))
            .collect(),
        "cpuset" => cpuset(limits),
        // Memory has an order of its own.
        _ => Files::new(),
    }
}

fn cpuset(limits: &Resources) -> Files {
    let sets = [
        ("cpuset.cpus", &limits.cpuset_cpus),
        ("cpuset.mems", &limits.cpuset_mems),
    ];
    let given = sets
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    given
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| file(name, value))
        .collect()
}

fn limit_v2(directory: &Path, limits: &Resources) -> Result<(), Error> {
    // A file of another name than the kernel's own cannot be made there, but a path could lead elsewhere.
    if let Some(name) = limits.unified.keys().find(|name| name.contains('/')) {
        return Err(Error::failed("set limit", name, "it is not the name of a file"));
    }
    write_all(directory, v2_limits(limits))
}

fn v2_limits(limits: &Resources) -> Files {
    let mut files = Files::new();
    files.extend(limits.cpu_shares.map(|shares| file("cpu.weight", weight(shares))));
    if let Some(quota) = limits.cpu_quota_us {
        let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        files.push(file("cpu.max", format!("{} {period}", or_max(quota))));
    }
    files.extend(
        limits
            .memory_bytes_max
            .map(|bytes| file("memory.max", or_max(bytes))),
    );
    files.extend(limits.pids_max.map(|pids| file("pids.max", or_max(pids))));
    let pages = limits.hugepages.iter();
    files.extend(pages.map(|(size, bytes)| file(&format!("hugetlb.{size}.max"), bytes)));
    files.extend(cpuset(limits));
    // They were asked for by name, so they have the last word.
    files.extend(limits.unified.iter().map(|(name, value)| file(name, value)));
    files
}

fn file(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Shares run from 2 to 262144, weights from 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// Negative is no limit.
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// Huge pages that may not be used need no limit where nobody counts them.
fn write_all(directory: &Path, files: Files) -> Result<(), Error> {
    for (name, value) in files {
        let file = directory.join(&name);
        match std::fs::write(&file, &value) {
            Err(_) if name.starts_with("hugetlb.") && value == "0" => {}
            written => written.map_err(|source| Error::io("set limit", &file, source))?,
        }
    }
    Ok(())
}

fn remove(directory: &Path, leftover: Leftover) -> Result<(), Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("list control group", directory, source)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), leftover)?;
        }
    }
    let mut tries = 0;
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                if leftover == Leftover::Kill {
                    kill_all(directory);
                }
                tries += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(source) => return Err(Error::io("remove control group", directory, source)),
        }
    }
}

/// Kills what is in a group. A process listed here is in the group now, so its id cannot yet mean another.
fn kill_all(directory: &Path) {
    let listed = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
    {
        // It may end by itself meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// A tree of control groups in a directory, which goes away with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let top = std::env::temp_dir().join(format!("kedge-cgroup-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&top).unwrap();
            for (path, text) in files {
                let path = top.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(top)
        }

        fn v1(&self, controllers: &[&str]) -> Layout {
            let mount = |name: &&str| ((*name).to_owned(), self.0.join(name));
            Layout::V1 {
                mounts: controllers.iter().map(mount).collect(),
            }
        }

        fn v2(&self, controllers: &[&str]) -> Layout {
            Layout::V2 {
                mount: self.0.clone(),
                controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            }
        }

        /// Every file that was written, with what is in it.
        fn told(&self) -> String {
            let mut lines = Vec::new();
            list(&self.0, &self.0, &mut lines);
            lines.sort();
            lines.join("\n")
        }
    }

    fn list(top: &Path, at: &Path, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                list(top, &path, lines);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                lines.push(format!("{} {text}", path.strip_prefix(top).unwrap().display()));
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn everything() -> Resources {
        Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            memory_bytes_max: Some(64 << 20),
            pids_max: Some(-1),
            cpuset_cpus: Some("0".to_owned()),
            hugepages: [("2MB".to_owned(), 1 << 21)].into(),
            ..Resources::default()
        }
    }

    #[test]
    fn a_pod_of_version_one_has_a_group_in_each_tree() {
        let tree = Tree::new("v1", &[]);
        let layout = tree.v1(&["cpu", "memory", "pids", "hugetlb", "cpuset", "blkio"]);
        make_pod(&layout, "/k/pod", &everything()).unwrap();
        expect![[r#"
            cpu/k/pod/cpu.cfs_period_us 100000
            cpu/k/pod/cpu.cfs_quota_us 50000
            cpu/k/pod/cpu.shares 1024
            hugetlb/k/pod/hugetlb.2MB.limit_in_bytes 2097152
            memory/k/pod/memory.limit_in_bytes 67108864
            pids/k/pod/pids.max max"#]]
        .assert_eq(&tree.told());
        assert!(!tree.0.join("cpuset/k").exists(), "nobody could run in it");
    }

    #[test]
    fn a_pod_of_version_two_has_controllers_handed_down() {
        let tree = Tree::new("v2", &[]);
        let limits = Resources {
            unified: [("memory.min".to_owned(), "5".to_owned())].into(),
            ..everything()
        };
        make_pod(
            &tree.v2(&["cpu", "memory", "pids", "io", "misc"]),
            "/k/pod",
            &limits,
        )
        .unwrap();
        expect![[r#"
            cgroup.subtree_control +cpu +memory +pids +io
            k/cgroup.subtree_control +cpu +memory +pids +io
            k/pod/cpu.max 50000 100000
            k/pod/cpu.weight 39
            k/pod/cpuset.cpus 0
            k/pod/hugetlb.2MB.max 2097152
            k/pod/memory.max 67108864
            k/pod/memory.min 5
            k/pod/pids.max max"#]]
        .assert_eq(&tree.told());
        let path = Resources {
            unified: [("../cpu.max".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let error = limit_existing(&tree.v2(&[]), "/k/pod", &path).unwrap_err();
        assert_eq!(
            error.to_string(),
            "set limit ../cpu.max: it is not the name of a file"
        );
    }

    #[test]
    fn memory_and_swap_change_in_the_order_that_the_kernel_takes() {
        let order = |now: &str, bytes: i64| {
            let tree = Tree::new(&format!("order{bytes}"), &[(V1_MEMORY_AND_SWAP, now)]);
            let names: Vec<String> = v1_memory(&tree.0, bytes)
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            names.join(" ")
        };
        let (up, down) = (
            format!("{V1_MEMORY_AND_SWAP} {V1_MEMORY}"),
            format!("{V1_MEMORY} {V1_MEMORY_AND_SWAP}"),
        );
        assert_eq!(order("100\n", 200), up);
        assert_eq!(order("100\n", -1), up);
        assert_eq!(order("100\n", 50), down);
        assert_eq!(order("9223372036854771712\n", 50), down);
        assert_eq!(
            v1_memory(Path::new("/no/such/group"), 50).len(),
            1,
            "nobody counts swap"
        );
    }

    #[test]
    fn kills_for_memory_are_told_by_either_version() {
        let tree = Tree::new("oom", &[]);
        let told = |layout: &Layout| {
            let path = memory_events(layout, "/p")?;
            Some(path.strip_prefix(&tree.0).ok()?.to_owned())
        };
        assert_eq!(
            told(&tree.v1(&["memory"])),
            Some("memory/p/memory.oom_control".into())
        );
        assert_eq!(told(&tree.v2(&["memory"])), Some("p/memory.events".into()));
        assert_eq!(told(&tree.v1(&["cpu"])), None);
    }

    #[test]
    fn who_serves_a_root_is_beside_the_container() {
        let tree = Tree::new("serving", &[]);
        let made = |layout: Layout| {
            let files = make_serving(&layout, "/p/c1").unwrap();
            let names = files.iter().map(|file| file.strip_prefix(&tree.0).unwrap());
            assert!(files.iter().all(|file| file.parent().unwrap().is_dir()));
            names
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        expect!["memory/p/c1-root/cgroup.procs pids/p/c1-root/cgroup.procs"]
            .assert_eq(&made(tree.v1(&["pids", "devices", "memory", "cpuset"])));
        expect!["p/c1-root/cgroup.procs"].assert_eq(&made(tree.v2(&["memory"])));
    }

    #[test]
    fn what_shall_go_cannot_fork() {
        let tree = Tree::new(
            "growth",
            &[("p/pids.max", "max"), ("p/cgroup.kill", ""), ("q/x", "")],
        );
        stop_growth(&tree.v2(&["pids"]), "/p");
        stop_growth(&tree.v2(&["pids"]), "/q");
        expect![[r#"
            p/cgroup.kill 1
            p/pids.max 0
            q/x "#]]
        .assert_eq(&tree.told());
    }

    #[test]
    fn a_weight_is_translated() {
        let tree = Tree::new("weight", &[("blkio/blkio.weight", "")]);
        let weight = |value: &str| {
            let limits = Resources {
                unified: [(V2_IO_WEIGHT.to_owned(), value.to_owned())].into(),
                ..Resources::default()
            };
            v1_block_weight(&tree.v1(&["blkio"]), &limits).map_err(|error| error.to_string())
        };
        assert_eq!(weight("default 1"), Ok(Some(10)));
        assert_eq!(weight("10000"), Ok(Some(1000)));
        assert_eq!(
            weight("heavy"),
            Err("set limit io.weight: \"heavy\" is not a weight from 1 to 10000".to_owned())
        );
    }

    #[test]
    fn a_group_of_another_gets_limits_only_where_it_is() {
        let tree = Tree::new("existing", &[("a.slice/memory.max", "max")]);
        let limits = Resources {
            memory_bytes_max: Some(64 << 20),
            ..Resources::default()
        };
        limit_existing(&tree.v2(&["memory"]), "/a.slice", &limits).unwrap();
        limit_existing(&tree.v2(&["memory"]), "/b.slice", &limits).unwrap();
        expect!["a.slice/memory.max 67108864"].assert_eq(&tree.told());
    }

    #[test]
    fn a_path_stays_below_its_root() {
        assert_eq!(
            path(&["/kedge", "burstable/podx", "c1"]).unwrap(),
            "/kedge/burstable/podx/c1"
        );
        assert!(path(&["/kedge", "../x"]).is_err());
    }
}
