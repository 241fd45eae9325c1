//! Control groups of pods. Those of containers are made by libcontainer, which leaves the ones above them behind.

use crate::Error;
use kedge_containers::Resources;
use kedge_host::cgroups::Layout;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A group that still has a dying process in it cannot be removed; the kernel needs a moment.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

const CPU_PERIOD_US_DEFAULT: u64 = 100_000;

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
        Layout::V2 { mount, .. } => {
            make_v2(mount, group)?;
            write_all(&below(mount, group), v2_limits(limits))
        }
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            for (controller, limits) in v1_limits(limits) {
                let Some(mount) = mounts.get(controller) else {
                    continue;
                };
                let directory = below(mount, group);
                std::fs::create_dir_all(&directory)
                    .map_err(|source| Error::io("make control group", &directory, source))?;
                write_all(&directory, limits)?;
            }
            Ok(())
        }
    }
}

/// Gives limits to a group that somebody else made; one that is not there needs none.
pub(crate) fn limit_existing(layout: &Layout, group: &str, limits: &Resources) -> Result<(), Error> {
    let exists = |directory: &PathBuf| directory.is_dir();
    match layout {
        Layout::V2 { mount, .. } => match Some(below(mount, group)).filter(exists) {
            Some(directory) => write_all(&directory, v2_limits(limits)),
            None => Ok(()),
        },
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            for (controller, limits) in v1_limits(limits) {
                let directory = mounts.get(controller).map(|mount| below(mount, group));
                if let Some(directory) = directory.filter(exists) {
                    write_all(&directory, limits)?;
                }
            }
            Ok(())
        }
    }
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

/// How often the kernel killed something in a group for want of memory.
pub(crate) fn oom_kills(layout: &Layout, group: &str) -> u64 {
    let file = match layout {
        Layout::V2 { mount, .. } => below(mount, group).join("memory.events"),
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => match mounts.get("memory") {
            Some(mount) => below(mount, group).join("memory.oom_control"),
            None => return 0,
        },
    };
    // A group that is gone has nothing to tell.
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

fn below(tree: &Path, group: &str) -> PathBuf {
    tree.join(group.trim_start_matches('/'))
}

/// Version 2 wants every group on the way to hand its controllers down.
fn make_v2(mount: &Path, group: &str) -> Result<(), Error> {
    let mut directory = mount.to_owned();
    for name in group.split('/').filter(|name| !name.is_empty()) {
        let control = directory.join("cgroup.subtree_control");
        std::fs::write(&control, "+cpu +memory +pids")
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

type Files = Vec<(&'static str, String)>;

fn v1_limits(limits: &Resources) -> [(&'static str, Files); 3] {
    let mut cpu = Files::new();
    cpu.extend(limits.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())));
    if let Some(quota) = limits.cpu_quota_us {
        let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        cpu.push(("cpu.cfs_period_us", period.to_string()));
        cpu.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    let memory = limits
        .memory_bytes_max
        .map(|bytes| ("memory.limit_in_bytes", bytes.to_string()));
    let pids = limits.pids_max.map(|pids| ("pids.max", pids_value(pids)));
    [
        ("cpu", cpu),
        ("memory", memory.into_iter().collect()),
        ("pids", pids.into_iter().collect()),
    ]
}

fn v2_limits(limits: &Resources) -> Files {
    let mut files = Files::new();
    files.extend(
        limits
            .cpu_shares
            .map(|shares| ("cpu.weight", weight(shares).to_string())),
    );
    if let Some(quota) = limits.cpu_quota_us {
        let period = limits.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        let quota = if quota < 0 {
            "max".to_owned()
        } else {
            quota.to_string()
        };
        files.push(("cpu.max", format!("{quota} {period}")));
    }
    files.extend(
        limits
            .memory_bytes_max
            .map(|bytes| ("memory.max", pids_value(bytes))),
    );
    files.extend(limits.pids_max.map(|pids| ("pids.max", pids_value(pids))));
    files
}

/// Shares run from 2 to 262144, weights from 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// Negative is no limit.
fn pids_value(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn write_all(directory: &Path, files: Files) -> Result<(), Error> {
    for (name, value) in files {
        let file = directory.join(name);
        std::fs::write(&file, value).map_err(|source| Error::io("set limit", &file, source))?;
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

    #[test]
    fn limits_have_two_spellings() {
        let limits = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            memory_bytes_max: Some(64 << 20),
            pids_max: Some(-1),
            ..Resources::default()
        };
        expect![[r#"[("cpu", [("cpu.shares", "1024"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")]), ("memory", [("memory.limit_in_bytes", "67108864")]), ("pids", [("pids.max", "max")])]"#]]
            .assert_eq(&format!("{:?}", v1_limits(&limits)));
        expect![[r#"[("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("memory.max", "67108864"), ("pids.max", "max")]"#]]
            .assert_eq(&format!("{:?}", v2_limits(&limits)));
    }

    #[test]
    fn a_group_of_another_gets_limits_only_where_it_is() {
        let mount = std::env::temp_dir().join(format!("kedge-cgroup-{}", std::process::id()));
        std::fs::create_dir_all(mount.join("a.slice")).unwrap();
        let layout = Layout::V2 {
            mount: mount.clone(),
            controllers: ["memory".to_owned()].into(),
        };
        let limits = Resources {
            memory_bytes_max: Some(64 << 20),
            ..Resources::default()
        };
        limit_existing(&layout, "/a.slice", &limits).unwrap();
        limit_existing(&layout, "/b.slice", &limits).unwrap();
        let written = std::fs::read_to_string(mount.join("a.slice/memory.max")).unwrap();
        assert_eq!(written, "67108864");
        assert!(!mount.join("b.slice").exists());
        std::fs::remove_dir_all(mount).unwrap();
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
