//! The place in which a container with users of its own is made.
//!
//! The first process of such a container is nobody on the node, and may not even look where the runtime keeps its things.
//! So everything it needs is brought into a small file system, to which this process moves with its mounts. Whose files
//! they are is mapped on the way, so that the container's root finds the files of root.
//!
//! ```text
//!   /rootfs       the container's root: layers whose owners are mapped, and above them one that belongs to it
//!   /layers/<n>   those layers
//!   /mounts/<n>   what the container mounts
//!   /dev          its devices, at its own paths
//!   /proc /sys    as the node has them, with its control groups
//!   /container    its directory
//!   /bundle       its configuration, with these paths
//! ```

use super::Failure;
use super::bundle::Bundle;
use super::rootfs::{self, Source, make_directory};
use super::served::{Layer, Served, Terms};
use super::users::Made;
use crate::embedded::RootfsMode;
use crate::embedded::records::{LaunchRecord, OwnUsers};
use crate::embedded::spec::IMAGE_VOLUMES;
use crate::kernel::{map_owners, mount_read_only};
use kedge_containers::{IdMapping, UserNamespace};
use nix::libc;
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind_recursive, move_mount,
    open_tree, unmount,
};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

const NAME: &str = "room";
/// It holds names and one small file.
const OPTIONS: &std::ffi::CStr = c"mode=755,size=16m";
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// What every container has, whatever it is given.
const DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// The place, when this process is in it.
pub(super) struct Room {
    pub(super) container: PathBuf,
    pub(super) bundle: PathBuf,
    /// The configuration names them by their numbers.
    _namespaces: Vec<File>,
}

/// Makes the place for the container in `directory`, and moves into it.
pub(super) fn enter(
    source: &Source,
    directory: &Path,
    launch: &LaunchRecord,
    own: &OwnUsers,
    bundle: &Bundle,
) -> Result<Room, Failure> {
    let users = File::open(&own.pin).map_err(|error| Failure::new("find the pod's users", error))?;
    let owner = Owner::root_of(&own.ids);
    let at = furnish(
        directory,
        &[
            "container",
            "bundle",
            "layers",
            "mounts",
            "rootfs",
            "dev",
            "proc",
            "sys",
        ],
    )?;
    attach(&copy(directory, false)?, &at.join("container"))?;
    make_root(source, &at, directory, launch, &users)?;
    bundle.prepare(&at.join("rootfs"), Some(owner))?;
    bring_mounts(&at, &directory.join(IMAGE_VOLUMES), bundle, own, &users)?;
    bring_devices(&at, own)?;
    show_node(&at)?;
    let namespaces = write_bundle(&at, bundle)?;
    move_into(&at)?;
    Ok(Room {
        container: PathBuf::from("/container"),
        bundle: PathBuf::from("/bundle"),
        _namespaces: namespaces,
    })
}

/// Makes the small file system in `directory`, with these directories in it.
fn furnish(directory: &Path, names: &[&str]) -> Result<PathBuf, Failure> {
    let at = directory.join(NAME);
    make_directory(&at)?;
    mount(NAME, &at, "tmpfs", MountFlags::NOSUID, Some(OPTIONS))
        .map_err(|errno| Failure::new("make the place for a container", errno))?;
    for name in names {
        make_directory(&at.join(name))?;
    }
    Ok(at)
}

/// Who owns on the node what belongs to root in the pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    pub(super) fn root_of(ids: &UserNamespace) -> Self {
        let root = |ids: &IdMapping| ids.on_node(0).unwrap_or(ids.host_id);
        Self {
            uid: root(&ids.uids),
            gid: root(&ids.gids),
        }
    }

    pub(super) fn take(self, path: &Path) -> Result<(), Failure> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(|error| failed_at("give to the pod", path, error))
    }
}

/// Tries all of it that a kernel or a file system may lack, in `directory`, with root file systems of this kind.
pub(super) fn probe(directory: &Path, mode: &RootfsMode) -> Result<(), Failure> {
    const IDS: IdMapping = IdMapping {
        host_id: 65536,
        container_id: 0,
        length: 65536,
    };
    let ids = UserNamespace { uids: IDS, gids: IDS };
    for name in ["layer", "upper", "work"] {
        make_directory(&directory.join(name))?;
    }
    std::fs::write(directory.join("layer/file"), b"").map_err(|error| Failure::new("write a file", error))?;
    let made = Made::make(&ids, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
    let users =
        File::open(made.path("user")).map_err(|error| Failure::new("find a user namespace", error))?;
    let served = match mode {
        RootfsMode::Overlay | RootfsMode::Copy => None,
        RootfsMode::Fuse(program) => Some(Served::start(&Terms {
            program,
            layers: vec![Layer::open(&directory.join("layer"), Some(&users))?],
            directory,
            group: None,
        })?),
    };
    rootfs::own_mounts()?;
    let at = furnish(directory, &["layers/0", "rootfs"])?;
    let (layer, root) = (at.join("layers/0"), at.join("rootfs"));
    bring_mapped(&directory.join("layer"), &layer, &users)?;
    match (mode, &served) {
        (RootfsMode::Overlay, _) => {
            rootfs::overlay(&at.join("layers"), &["0".to_owned()], directory, &root)?;
        }
        (RootfsMode::Fuse(_), Some(served)) => served.attach(&root)?,
        (RootfsMode::Fuse(_), None) => {}
        (RootfsMode::Copy, _) => bring_mapped(&layer, &root, &users)?,
    }
    let owner_of = |path: &Path| {
        std::fs::metadata(path)
            .map(|meta| meta.uid())
            .map_err(|error| Failure::new("look at a file", error))
    };
    let owners = [owner_of(&layer.join("file"))?, owner_of(&root.join("file"))?];
    served.map_or(Ok(()), |served| served.detach(&root))?;
    if owners == [IDS.host_id; 2] {
        Ok(())
    } else {
        Err(Failure::new("map the owners of files", "they stay as they were"))
    }
}

/// The layers are everybody's, so each is seen through a mount of its own; what the container writes is its own.
fn make_root(
    source: &Source,
    at: &Path,
    directory: &Path,
    launch: &LaunchRecord,
    users: &File,
) -> Result<(), Failure> {
    let root = at.join("rootfs");
    match source {
        Source::Copies => {
            rootfs::make(source, directory, launch)?;
            bring_mapped(&directory.join("rootfs"), &root, users)
        }
        // Who serves it has them mapped.
        Source::Served(served) => served.attach(&root),
        Source::Layers => {
            rootfs::make_upper(directory, launch)?;
            let mut names = Vec::new();
            for (number, layer) in launch.layers.iter().enumerate() {
                let name = number.to_string();
                let seen = at.join("layers").join(&name);
                make_directory(&seen)?;
                bring_mapped(&launch.layers_directory.join(layer), &seen, users)?;
                names.push(name);
            }
            rootfs::overlay(&at.join("layers"), &names, directory, &root)
        }
    }
}

/// Brings what the container mounts from the node.
fn bring_mounts(
    at: &Path,
    volumes: &Path,
    bundle: &Bundle,
    own: &OwnUsers,
    users: &File,
) -> Result<(), Failure> {
    for (number, bound) in bundle.bound().enumerate() {
        let (source, to) = (bound.source, at.join("mounts").join(number.to_string()));
        make_place(source, &to)?;
        let tree = copy(source, true)?;
        // These two are made for this pod, and belong to it.
        if !source.starts_with(volumes) && *source != own.shared_memory {
            map(&tree, source, true, users)?;
        }
        if bound.read_only {
            // What is so before the container's users have it, they cannot change back.
            let below = if bound.recursive { libc::AT_RECURSIVE } else { 0 };
            mount_read_only(&tree, Path::new(""), libc::AT_EMPTY_PATH | below)
                .map_err(|error| failed_at("make read-only", source, error))?;
        }
        attach(&tree, &to)?;
    }
    Ok(())
}

fn bring_devices(at: &Path, own: &OwnUsers) -> Result<(), Failure> {
    let given = own
        .devices
        .iter()
        .map(|device| (device.host.as_path(), device.container.as_path()));
    let usual = DEVICES.iter().map(|path| (Path::new(path), Path::new(path)));
    let usual = usual.filter(|(_, path)| !own.devices.iter().any(|device| device.container == *path));
    for (from, path) in given.chain(usual) {
        let to = at.join(below(path)?);
        if let Some(parent) = to.parent() {
            make_directory(parent)?;
        }
        make_place(from, &to)?;
        attach(&copy(from, false)?, &to)?;
    }
    Ok(())
}

/// A path in the container without its root. One that leads upwards is nobody's device.
fn below(path: &Path) -> Result<PathBuf, Failure> {
    let mut below = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => below.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::new("give a container a device", path.display()));
            }
        }
    }
    Ok(below)
}

/// Without these the kernel does not let the container mount its own.
fn show_node(at: &Path) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, name) in [("proc", "proc"), ("sysfs", "sys")] {
        let to = at.join(name);
        mount(kind, &to, kind, flags, None).map_err(|errno| failed_at("mount", &to, errno.into()))?;
    }
    let groups = at.join(below(Path::new(CONTROL_GROUPS))?);
    mount_bind_recursive(CONTROL_GROUPS, &groups)
        .map_err(|errno| failed_at("show", Path::new(CONTROL_GROUPS), errno.into()))
}

/// Writes the configuration with the paths of the place, and opens the namespaces that it names.
fn write_bundle(at: &Path, bundle: &Bundle) -> Result<Vec<File>, Failure> {
    let failed = |error: std::io::Error| Failure::new("write config.json", error);
    let mut document = bundle.document().map_err(|error| failed(error.into()))?;
    document["root"]["path"] = json!("/rootfs");
    let mut number = 0;
    for mount in list(&mut document["mounts"]) {
        if mount["type"] == "bind" {
            mount["source"] = json!(format!("/mounts/{number}"));
            number += 1;
        }
    }
    let mut namespaces = Vec::new();
    for namespace in list(&mut document["linux"]["namespaces"]) {
        let Some(path) = namespace["path"].as_str() else {
            continue;
        };
        let file = File::open(path).map_err(|error| failed_at("open namespace", Path::new(path), error))?;
        namespace["path"] = json!(format!("/proc/self/fd/{}", file.as_raw_fd()));
        namespaces.push(file);
    }
    let bytes = serde_json::to_vec(&document).map_err(|error| failed(error.into()))?;
    std::fs::write(at.join("bundle/config.json"), bytes).map_err(failed)?;
    Ok(namespaces)
}

fn list(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

/// Makes the place this process's root, and leaves the node's mounts behind: the container's, which begin as a copy of
/// ours, have none of them.
fn move_into(at: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("move to the place for a container", error);
    std::env::set_current_dir(at).map_err(failed)?;
    nix::unistd::pivot_root(".", ".").map_err(|errno| failed(errno.into()))?;
    unmount(".", UnmountFlags::DETACH).map_err(|errno| failed(errno.into()))?;
    std::env::set_current_dir("/").map_err(failed)
}

/// Something for a mount to be put on, of the same kind.
fn make_place(source: &Path, to: &Path) -> Result<(), Failure> {
    let meta = std::fs::metadata(source).map_err(|error| failed_at("mount", source, error))?;
    if meta.is_dir() {
        make_directory(to)
    } else {
        File::create(to)
            .map(drop)
            .map_err(|error| failed_at("mount", source, error))
    }
}

fn copy(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|errno| failed_at("hold", path, errno.into()))
}

/// Brings a directory of the node, and maps whose it is.
fn bring_mapped(path: &Path, to: &Path, users: &File) -> Result<(), Failure> {
    let tree = copy(path, false)?;
    map(&tree, path, false, users)?;
    attach(&tree, to)
}

/// Maps whose the files of a copy are. What is mounted below it may be of a kind that maps nothing; that stays as it is.
fn map(tree: &OwnedFd, path: &Path, recursive: bool, users: &File) -> Result<(), Failure> {
    if recursive && map_owners(tree, users, libc::AT_RECURSIVE).is_ok() {
        return Ok(());
    }
    map_owners(tree, users, 0).map_err(|error| refusal(path, &error))
}

/// Why the owners of files are not mapped.
pub(super) fn refusal(path: &Path, error: &std::io::Error) -> Failure {
    let why = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {
            "its file system does not let the owners of files be mapped, which a pod with users of its own \
             (hostUsers: false) needs"
                .to_owned()
        }
        Some(_) | None => error.to_string(),
    };
    Failure::new(&format!("mount {}", path.display()), why)
}

fn attach(tree: &OwnedFd, at: &Path) -> Result<(), Failure> {
    move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| failed_at("mount", at, errno.into()))
}

fn failed_at(act: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::new(&format!("{act} {}", path.display()), error)
}
