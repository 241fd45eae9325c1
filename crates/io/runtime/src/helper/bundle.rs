//! What the OCI runtime configuration asks and libcontainer leaves undone, before it makes a container and after.
//!
//! ```text
//!   open      mounts that pass in both directions are taken hold of, in the node's own mounts
//!   prepare   the working directory and the image's volumes are made
//!   (libcontainer makes the container, whose first process then waits)
//!   finish    in the container's mounts: what passes which way, what is read-only; its devices
//! ```

use super::room::Owner;
use super::{Failure, devices, rootfs};
use crate::embedded::spec::IMAGE_VOLUMES;
use crate::kernel::mount_read_only;
use kedge_host::cgroups::Layout;
use libcontainer::oci_spec::runtime::{Mount, Spec};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// As every runtime makes a working directory that the image lacks.
const DIRECTORY_MODE: u32 = 0o755;
/// The capability with which a container can make the device nodes that it was not given.
const MAKES_DEVICES: &str = "CAP_MKNOD";

/// The configuration of one container, with what is held for it.
pub(super) struct Bundle {
    directory: PathBuf,
    spec: Spec,
    shared: Vec<Shared>,
}

/// Something of the node that is mounted in the container.
pub(super) struct Bound<'a> {
    pub(super) source: &'a Path,
    pub(super) read_only: bool,
    /// So is what is mounted below it.
    pub(super) recursive: bool,
}

/// A mount that passes in both directions: a copy of the node's own, which is its equal as no later copy would be.
struct Shared {
    destination: PathBuf,
    tree: OwnedFd,
    read_only: bool,
}

impl Bundle {
    /// Reads the configuration; while this process still has the node's own mounts.
    pub(super) fn open(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join("config.json");
        let spec = Spec::load(&path).map_err(|error| Failure::new("read config.json", error))?;
        let mut shared = Vec::new();
        for mount in mounts(&spec).filter(|mount| has(mount, "rshared")) {
            shared.push(hold(mount)?);
        }
        Ok(Self {
            directory: directory.to_owned(),
            spec,
            shared,
        })
    }

    /// Makes what has to be there before the container, for whom its own root is where it is not the node's; its root
    /// directory is mounted at `root`.
    pub(super) fn prepare(&self, root: &Path, owner: Option<Owner>) -> Result<(), Failure> {
        let volumes = self.directory.join(IMAGE_VOLUMES);
        for mount in mounts(&self.spec) {
            let Some(source) = mount
                .source()
                .as_ref()
                .filter(|source| source.starts_with(&volumes))
            else {
                continue;
            };
            rootfs::make_directory(source)?;
            owner.map_or(Ok(()), |owner| owner.take(source))?;
            fill(source, root, mount.destination())
                .map_err(|error| Failure::new("fill a volume of the image", error))?;
        }
        self.make_working_directory(root, owner)
    }

    /// In the volume that it is in, else in the container's root.
    fn make_working_directory(&self, root: &Path, owner: Option<Owner>) -> Result<(), Failure> {
        let Some(wanted) = self.spec.process().as_ref().map(|process| process.cwd().clone()) else {
            return Ok(());
        };
        let over = mounts(&self.spec).filter(|mount| wanted.starts_with(mount.destination()));
        let (base, below) = match over.max_by_key(|mount| mount.destination().components().count()) {
            Some(mount) if mount.typ().as_deref() != Some("bind") => return Ok(()),
            Some(mount) => {
                let below = wanted.strip_prefix(mount.destination()).unwrap_or(&wanted);
                (mount.source().clone().unwrap_or_default(), below.to_owned())
            }
            None => (root.to_owned(), wanted.clone()),
        };
        // On what the node lends it, the node's root is the pod's.
        let own = base == root || base.starts_with(self.directory.join(IMAGE_VOLUMES));
        make_in(&base, &below, owner.filter(|_| own)).map_err(|errno| {
            let act = format!("make the working directory {}", wanted.display());
            Failure::new(&act, errno)
        })
    }

    /// What is mounted from the node, in the order of the configuration.
    pub(super) fn bound(&self) -> impl Iterator<Item = Bound<'_>> {
        let bound = mounts(&self.spec).filter(|mount| mount.typ().as_deref() == Some("bind"));
        bound.map(|mount| Bound {
            source: mount.source().as_deref().unwrap_or(Path::new("")),
            read_only: has(mount, "ro") || has(mount, "rro"),
            recursive: has(mount, "rro"),
        })
    }

    pub(super) fn document(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(&self.spec)
    }

    /// Does the rest in the container whose first process is `pid` and waits; `group` is its control group.
    pub(super) fn finish(&self, pid: u32, group: &str) -> Result<(), Failure> {
        self.confine_devices(group)?;
        self.finish_mounts_of(pid)
    }

    /// The part of it that no runtime does whose mounts begin as copies of copies.
    pub(super) fn finish_mounts_of(&self, pid: u32) -> Result<(), Failure> {
        let failed = |act: &'static str| move |error: std::io::Error| Failure::new(act, error);
        let own = File::open("/proc/self/ns/mnt").map_err(failed("find the own mounts"))?;
        let its = File::open(format!("/proc/{pid}/ns/mnt")).map_err(failed("find the container's mounts"))?;
        let enter = |namespace: &File| {
            setns(namespace, CloneFlags::CLONE_NEWNS)
                .map_err(|errno| Failure::new("enter the container's mounts", errno))
        };
        enter(&its)?;
        let finished = self.finish_mounts();
        enter(&own)?;
        finished
    }

    fn finish_mounts(&self) -> Result<(), Failure> {
        self.attach_shared()?;
        let passing: Vec<&Path> = mounts(&self.spec)
            .filter(|mount| has(mount, "rslave") || has(mount, "rshared"))
            .map(|mount| mount.destination().as_path())
            .collect();
        if passing.is_empty() {
            let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", everything).map_err(|errno| Failure::new("keep the mounts private", errno))?;
        }
        for mount in mounts(&self.spec) {
            let path = mount.destination();
            if has(mount, "rprivate") && !passing.is_empty() {
                // What passes below it shall go on passing.
                let below = passing.iter().any(|other| other.starts_with(path));
                let flags = if below {
                    MountPropagationFlags::PRIVATE
                } else {
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC
                };
                mount_change(path, flags).map_err(|errno| failed_at("keep private", path, errno.into()))?;
            }
            if mount.typ().as_deref() == Some("cgroup") && has(mount, "ro") {
                mount_read_only(CWD, path, libc::AT_RECURSIVE)
                    .map_err(|error| failed_at("make read-only", path, error))?;
            }
        }
        Ok(())
    }

    /// Puts them over what libcontainer mounted there; mounts below them are put on again.
    fn attach_shared(&self) -> Result<(), Failure> {
        let is_shared = |path: &Path| self.shared.iter().any(|shared| shared.destination == path);
        let mut below = Vec::new();
        for mount in mounts(&self.spec) {
            let path = mount.destination();
            let covered = self
                .shared
                .iter()
                .any(|shared| path.starts_with(&shared.destination));
            if covered && !is_shared(path) {
                let tree = copy_tree(path).map_err(|errno| failed_at("hold", path, errno.into()))?;
                below.push((path, tree));
            }
        }
        for shared in &self.shared {
            if shared.read_only {
                mount_read_only(&shared.tree, Path::new(""), libc::AT_EMPTY_PATH)
                    .map_err(|error| failed_at("make read-only", &shared.destination, error))?;
            }
            attach(&shared.tree, &shared.destination)?;
        }
        below.iter().try_for_each(|(path, tree)| attach(tree, path))
    }

    /// Version 1 has been told by libcontainer.
    fn confine_devices(&self, group: &str) -> Result<(), Failure> {
        // Nobody makes devices in a user namespace, and nobody filters them there: a container has those that it was
        // given, with the rights that the node's user has.
        if kedge_host::users::in_namespace() {
            return Ok(());
        }
        let layout =
            kedge_host::cgroups::layout().map_err(|error| Failure::new("find control groups", error))?;
        let Layout::V2 { mount, .. } = layout else {
            return Ok(());
        };
        let resources = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone());
        let rules = resources.and_then(|resources| resources.devices().clone());
        let confined = devices::confine(
            &mount.join(group.trim_start_matches('/')),
            &rules.unwrap_or_default(),
        );
        // Who cannot make devices has only those that it was given, also where the kernel filters none.
        confined.or_else(|Failure(why)| {
            if self.makes_devices() {
                Err(Failure(why))
            } else {
                eprintln!("{why}");
                Ok(())
            }
        })
    }

    fn makes_devices(&self) -> bool {
        let process = self.spec.process().as_ref();
        let sets = process.and_then(|process| process.capabilities().as_ref());
        let bounding = sets.and_then(|sets| sets.bounding().as_ref());
        bounding.is_none_or(|names| names.iter().any(|name| name.to_string() == MAKES_DEVICES))
    }
}

fn mounts(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten()
}

fn has(mount: &Mount, option: &str) -> bool {
    let options = mount.options().iter().flatten();
    options.into_iter().any(|found| found == option)
}

fn hold(mount: &Mount) -> Result<Shared, Failure> {
    let destination = mount.destination().clone();
    let source = mount.source().clone().unwrap_or_default();
    let source = std::fs::canonicalize(&source).map_err(|error| failed_at("hold", &source, error))?;
    let over = kedge_host::mounts::mount_of(&source).map_err(|error| Failure::new("list mounts", error))?;
    if over.is_none_or(|over| !over.shared) {
        let reason = format!(
            "what is mounted on the node at {} keeps its mounts to itself, so they cannot pass to and from a container \
             (mountPropagation: Bidirectional); make it shared: mount --make-shared",
            source.display()
        );
        return Err(Failure::new(&format!("mount {}", destination.display()), reason));
    }
    let tree = copy_tree(&source).map_err(|errno| failed_at("hold", &source, errno.into()))?;
    Ok(Shared {
        read_only: has(mount, "ro") || has(mount, "rro"),
        destination,
        tree,
    })
}

/// Gives a volume what the image has at that path, and its owner and mode.
fn fill(volume: &Path, root: &Path, path: &Path) -> std::io::Result<()> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let from = match open_in(&root, path) {
        Ok(from) => PathBuf::from(format!("/proc/self/fd/{}", from.as_raw_fd())).read_link()?,
        // The image only names it.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    rootfs::copy_directory(&from, volume)
}

/// Opens a directory below `root`, which is the root for every link on the way.
fn open_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn copy_tree(path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

fn attach(tree: &OwnedFd, at: &Path) -> Result<(), Failure> {
    move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| failed_at("mount", at, errno.into()))
}

fn failed_at(act: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::new(&format!("{act} {}", path.display()), error)
}

/// Makes a directory with all those above it. `base` is the root for every link on the way.
fn make_in(base: &Path, below: &Path, owner: Option<Owner>) -> Result<(), Errno> {
    let names = below.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::RootDir | Component::CurDir | Component::ParentDir | Component::Prefix(_) => None,
    });
    let root = rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut path = PathBuf::new();
    for name in names {
        let parent = path.clone();
        path.push(name);
        match open_in(&root, &path) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    &parent
                };
                let parent = open_in(&root, parent)?;
                match (mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE)), owner) {
                    (Ok(()), Some(owner)) => {
                        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                        chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                    }
                    (Ok(()), None) | (Err(Errno::EXIST), _) => {}
                    (Err(errno), _) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_below_its_root_whatever_links_say() {
        let top = std::env::temp_dir().join(format!("kedge-bundle-{}", std::process::id()));
        let root = top.join("root");
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../real", root.join("upwards")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        for path in ["/a/b/c", "/absolute/x", "/upwards/y", "/a/b"] {
            make_in(&root, Path::new(path), None).unwrap();
        }
        let made = ["a/b/c", "real/x", "real/y"].map(|path| root.join(path).is_dir());
        let refused = make_in(&root, Path::new("/file/x"), None);
        let outside = top.join("x").exists() || top.join("y").exists();
        std::fs::remove_dir_all(&top).unwrap();
        assert_eq!((made, refused, outside), ([true; 3], Err(Errno::NOTDIR), false));
    }
}
