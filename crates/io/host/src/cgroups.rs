//! How the control groups of this machine are mounted.

use crate::mounts::{MountPoint, mount_points};
use crate::{Error, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Where limits are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One tree for all controllers.
    V2 {
        mount: PathBuf,
        controllers: BTreeSet<String>,
    },
    /// One tree per controller; one that only keeps books of processes goes by the name of who keeps them, for example
    /// `name=systemd`.
    V1 { mounts: BTreeMap<String, PathBuf> },
    /// One tree per controller, and a second version tree that has none of those that matter here.
    Hybrid {
        mounts: BTreeMap<String, PathBuf>,
        unified: PathBuf,
    },
}

/// The controllers without which limits of a pod cannot be kept.
pub const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];

impl Layout {
    /// Says which required controller is missing.
    pub fn require_controllers(&self) -> Result<(), Error> {
        REQUIRED
            .into_iter()
            .find(|name| !self.has(name))
            .map_or(Ok(()), |missing| Err(Error::NoController(missing)))
    }

    pub fn has(&self, controller: &str) -> bool {
        match self {
            Self::V2 { controllers, .. } => controllers.contains(controller),
            Self::V1 { mounts } | Self::Hybrid { mounts, .. } => mounts.contains_key(controller),
        }
    }

    /// Every tree in which a group of processes has a directory.
    pub fn trees(&self) -> Vec<&Path> {
        match self {
            Self::V2 { mount, .. } => vec![mount],
            Self::V1 { mounts } => distinct(mounts.values()),
            Self::Hybrid { mounts, unified } => distinct(mounts.values().chain([unified])),
        }
    }
}

/// Two controllers may share a tree.
fn distinct<'a>(trees: impl Iterator<Item = &'a PathBuf>) -> Vec<&'a Path> {
    let mut trees: Vec<&Path> = trees.map(PathBuf::as_path).collect();
    trees.sort_unstable();
    trees.dedup();
    trees
}

/// Reads the layout of this machine.
pub fn layout() -> Result<Layout, Error> {
    layout_of(&Root::machine())
}

/// Reads the layout below `root`.
pub fn layout_of(root: &Root) -> Result<Layout, Error> {
    const TOP: &str = "/sys/fs/cgroup";
    let mounted = mount_points(root)?;
    let mut v1 = BTreeMap::new();
    let mut v2 = None;
    for mount in mounted.iter().filter(|mount| mount.path.starts_with(TOP)) {
        match mount.file_system.as_str() {
            "cgroup" => v1.extend(controllers_of(mount).map(|name| (name, mount.path.clone()))),
            "cgroup2" => v2 = Some(mount.path.clone()),
            _ => {}
        }
    }
    match (v1.is_empty(), v2) {
        (true, None) => Err(Error::NoCgroups),
        (true, Some(mount)) => {
            let listed = root.read(&mount.join("cgroup.controllers").to_string_lossy())?;
            Ok(Layout::V2 {
                mount,
                controllers: listed.split_whitespace().map(str::to_owned).collect(),
            })
        }
        (false, None) => Ok(Layout::V1 { mounts: v1 }),
        (false, Some(unified)) => Ok(Layout::Hybrid { mounts: v1, unified }),
    }
}

/// The group of a process in the tree of a controller (`""` for version 2), as `/proc/<pid>/cgroup` lists it, without the
/// slash that it begins with. One that is above what this process can see cannot be named.
pub fn group_in(listed: &str, controller: &str) -> Option<PathBuf> {
    listed.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = Path::new(path.trim_start_matches('/'));
        let is_below = !path.components().any(|part| part == Component::ParentDir);
        (is_below && controllers.split(',').any(|name| name == controller)).then(|| path.to_owned())
    })
}

/// Whether control groups divide swap: in version 2, when the group of this process has the limit, which the topmost
/// group never has.
pub fn divides_swap(root: &Root) -> bool {
    let Ok(Layout::V2 { mount, .. }) = layout_of(root) else {
        return false;
    };
    let own = root.read("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return false;
    };
    root.path(&mount.join(own).join("memory.swap.max").to_string_lossy())
        .exists()
}

/// The controllers among the mount's options, or the name of a tree without any: everything that is neither a flag nor
/// a setting.
fn controllers_of(mount: &MountPoint) -> impl Iterator<Item = String> + '_ {
    const FLAGS: [&str; 5] = ["rw", "ro", "xattr", "clone_children", "noprefix"];
    mount
        .options
        .iter()
        .filter(|option| !FLAGS.contains(&option.as_str()))
        .filter(|option| option.starts_with("name=") || !option.contains('='))
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A machine in a directory that goes away with it.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, mountinfo: &str, controllers: Option<&str>) -> Self {
            let path = std::env::temp_dir().join(format!("kedge-host-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("proc/self")).unwrap();
            fs::create_dir_all(path.join("sys/fs/cgroup")).unwrap();
            fs::write(path.join("proc/self/mountinfo"), mountinfo).unwrap();
            if let Some(controllers) = controllers {
                fs::write(path.join("sys/fs/cgroup/cgroup.controllers"), controllers).unwrap();
            }
            Self(path)
        }

        fn layout(&self) -> Result<Layout, Error> {
            layout_of(&Root::at(&self.0))
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn one_tree_is_version_two() {
        let machine = Machine::new(
            "v2",
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            Some("cpuset cpu memory pids\n"),
        );
        let layout = machine.layout().unwrap();
        assert!(matches!(layout, Layout::V2 { .. }), "{layout:?}");
        layout.require_controllers().unwrap();
        assert_eq!(layout.trees(), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn a_tree_per_controller_may_be_shared() {
        let machine = Machine::new(
            "v1",
            "1 0 0:1 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             2 0 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             3 0 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n",
            None,
        );
        let layout = machine.layout().unwrap();
        assert_eq!(
            layout.require_controllers().unwrap_err().to_string(),
            Error::NoController("pids").to_string()
        );
        assert_eq!(layout.trees().len(), 3);
    }

    #[test]
    fn both_at_once_are_hybrid() {
        let machine = Machine::new(
            "hybrid",
            "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             2 0 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            None,
        );
        assert!(matches!(machine.layout().unwrap(), Layout::Hybrid { .. }));
    }

    #[test]
    fn none_at_all_is_said() {
        let machine = Machine::new("none", "1 0 0:1 / / rw - ext4 /dev/vda rw\n", None);
        assert!(matches!(machine.layout(), Err(Error::NoCgroups)));
    }
}
