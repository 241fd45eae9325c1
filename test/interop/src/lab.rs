//! The room of one story on this machine, and its cleaning: directory, ports, control groups, kernel settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kernel settings that a kubelet writes at its start.
const KUBELET_SETTINGS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Where a kubelet puts its device plugins, whatever its root directory is.
const DEVICE_PLUGINS: &str = "/var/lib/kubelet";
/// The trees of control groups, version 1.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// A room. Drop it last.
#[derive(Debug)]
pub struct Lab {
    name: &'static str,
    dir: PathBuf,
    settings: Vec<(PathBuf, Vec<u8>)>,
    had_device_plugins: bool,
}

impl Lab {
    /// An empty room.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &'static str) -> Self {
        let dir = std::env::temp_dir().join(format!("kedge-interop-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
        let settings = KUBELET_SETTINGS
            .iter()
            .map(|setting| Path::new("/proc/sys").join(setting))
            .filter_map(|path| Some((fs::read(&path).ok()?, path)))
            .map(|(value, path)| (path, value))
            .collect();
        let lab = Self {
            name,
            dir,
            settings,
            had_device_plugins: Path::new(DEVICE_PLUGINS).exists(),
        };
        lab.make_control_groups();
        lab
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new folder in the room.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.join(name);
        fs::create_dir_all(&folder).expect("a folder can be made in our own room");
        folder
    }

    /// Below this are the control groups of pods.
    pub fn control_group(&self) -> String {
        format!("/kedge-interop-{}", self.name)
    }

    /// A kubelet wants its root group to exist in each tree.
    fn make_control_groups(&self) {
        for tree in control_group_trees() {
            // Trees that are read-only or of version 2 are not for pods here.
            let _ = fs::create_dir(self.group_in(&tree));
        }
    }

    fn group_in(&self, tree: &Path) -> PathBuf {
        tree.join(self.control_group().trim_start_matches('/'))
    }

    fn unmount_all(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|point| Path::new(point).starts_with(&self.dir))
            .collect();
        for point in below.iter().rev() {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.unmount_all();
        for tree in control_group_trees() {
            remove_groups(&self.group_in(&tree));
        }
        for (path, value) in &self.settings {
            if fs::read(path).is_ok_and(|now| now != *value) {
                let _ = fs::write(path, value);
            }
        }
        if !self.had_device_plugins {
            let _ = fs::remove_dir_all(DEVICE_PLUGINS);
        }
        if std::env::var_os("KEDGE_E2E_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn control_group_trees() -> Vec<PathBuf> {
    let trees = fs::read_dir(CONTROL_GROUPS).into_iter().flatten().flatten();
    trees
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// A control group goes when those below it are gone; its files go by themselves.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
