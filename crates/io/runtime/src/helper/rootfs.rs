//! The root file system of a container, made of its image's layers.

use super::Failure;
use super::room::Owner;
use super::served::{Layer, Served, Terms};
use crate::embedded::RootfsMode;
use crate::embedded::records::LaunchRecord;
use crate::image::copying::{self, Name};
use crate::image::stack::{is_opaque, is_whiteout};
use rustix::fs::{AtFlags, CWD, FileType};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What the kernel takes of the options of a mount: a page of the smallest size, with its end.
const OPTIONS_BYTES_MAX: usize = 4095;
/// What an overlay writes down for itself stands in attributes that the root of a user namespace may set.
const OF_USERS: &str = ",userxattr";

/// Gives this process mounts of its own: what it mounts goes when it and the container have ended, whatever happens.
/// Unmounts on the node still reach us.
pub(super) fn own_mounts() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("make a mount namespace", error);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| failed(errno.into()))?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|errno| failed(errno.into()))
}

/// What becomes a root file system.
pub(super) enum Source {
    Layers,
    /// Somebody serves what the layers are together.
    Served(Served),
    Copies,
}

/// Does what has to be done while this process has the node's own mounts.
pub(super) fn begin(directory: &Path, launch: &LaunchRecord) -> Result<Source, Failure> {
    match &launch.rootfs {
        RootfsMode::Copy => Ok(Source::Copies),
        RootfsMode::Overlay => Ok(Source::Layers),
        RootfsMode::Fuse(program) => {
            make_upper(directory, launch)?;
            let users = launch.users.as_ref().map(|own| File::open(&own.pin));
            let users = users
                .transpose()
                .map_err(|error| Failure::new("find the pod's users", error))?;
            let layers = layers(launch).map(|path| Layer::open(&path, users.as_ref()));
            Served::start(&Terms {
                program,
                layers: layers.collect::<Result<_, _>>()?,
                directory,
                group: Some(&launch.cgroup),
            })
            .map(Source::Served)
        }
    }
}

/// Makes `<directory>/rootfs`.
pub(super) fn make(source: &Source, directory: &Path, launch: &LaunchRecord) -> Result<(), Failure> {
    let rootfs = directory.join("rootfs");
    make_directory(&rootfs)?;
    match source {
        Source::Copies => layers(launch)
            .try_for_each(|layer| copy_layer(&layer, &rootfs))
            .map_err(|error| Failure::new("copy a layer", error)),
        Source::Served(served) => served.attach(&rootfs),
        Source::Layers => {
            make_upper(directory, launch)?;
            overlay(&launch.layers_directory, &launch.layers, directory, &rootfs)
        }
    }
}

fn layers(launch: &LaunchRecord) -> impl Iterator<Item = PathBuf> {
    let names = launch.layers.iter();
    names.map(|layer| launch.layers_directory.join(layer))
}

/// Makes the directories of what the container writes. They belong to its own root.
pub(super) fn make_upper(directory: &Path, launch: &LaunchRecord) -> Result<(), Failure> {
    for name in ["upper", "work"] {
        make_directory(&directory.join(name))?;
    }
    match &launch.users {
        Some(own) => Owner::root_of(&own.ids).take(&directory.join("upper")),
        None => Ok(()),
    }
}

/// Tries to mount an overlay in `directory`, in mounts of our own.
pub(super) fn probe_overlay(directory: &Path) -> Result<(), Failure> {
    for name in [
        "layers/a",
        "layers/b",
        "container/upper",
        "container/work",
        "container/rootfs",
    ] {
        make_directory(&directory.join(name))?;
    }
    own_mounts()?;
    let layers = ["a".to_owned(), "b".to_owned()];
    let container = directory.join("container");
    overlay(
        &directory.join("layers"),
        &layers,
        &container,
        &container.join("rootfs"),
    )?;
    std::fs::write(directory.join("container/rootfs/written"), b"")
        .map_err(|error| Failure::new("write to it", error))
}

/// Mounts the layers with the container's own `upper` at `at`. Mount options fit in one page, and the kernel cuts off
/// what is more without a word. So layers are named relative to their directory, which becomes ours for the moment, and
/// so is the container's directory, whose path may hold commas. Where that is too long, too, they are named by links.
pub(super) fn overlay(
    layers_directory: &Path,
    layers: &[String],
    directory: &Path,
    at: &Path,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("mount overlayfs", error);
    if layers.is_empty() {
        return Err(Failure::new("mount overlayfs", "the image has no layers"));
    }
    let container = relative(layers_directory, directory).ok_or_else(|| {
        Failure::new(
            "mount overlayfs",
            "the container lies outside of the runtime's directory",
        )
    })?;
    let lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    let mut options = format!(
        "lowerdir={},upperdir={container}/upper,workdir={container}/work",
        lower.join(":")
    );
    let mut from = layers_directory.to_owned();
    if options.len() + OF_USERS.len() > OPTIONS_BYTES_MAX {
        from = directory.join("lower");
        make_directory(&from)?;
        let links = link_layers(layers_directory, &lower, &from).map_err(failed)?;
        options = format!("lowerdir={links},upperdir=../upper,workdir=../work");
    }
    if kedge_host::users::in_namespace() {
        options.push_str(OF_USERS);
    }
    let options = CString::new(options).map_err(|error| failed(error.into()))?;
    std::env::set_current_dir(&from).map_err(failed)?;
    let mounted = mount(
        "overlay",
        at,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    );
    std::env::set_current_dir("/").map_err(failed)?;
    mounted.map_err(|errno| failed(errno.into()))
}

/// Makes a link of a short name to each layer, and gives the names.
fn link_layers(layers_directory: &Path, layers: &[&str], directory: &Path) -> std::io::Result<String> {
    let names: Vec<String> = (0..layers.len()).map(|number| number.to_string()).collect();
    for (name, layer) in names.iter().zip(layers) {
        match std::os::unix::fs::symlink(layers_directory.join(layer), directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(names.join(":"))
}

/// The way from one directory to another by their common parent.
fn relative(from: &Path, to: &Path) -> Option<String> {
    let common = from.ancestors().find(|parent| to.starts_with(parent))?;
    let up = from.strip_prefix(common).ok()?.components().map(|_| "..");
    let down = to
        .strip_prefix(common)
        .ok()?
        .components()
        .map(|name| name.as_os_str().to_str());
    let names: Option<Vec<&str>> = up.map(Some).chain(down).collect();
    Some(names?.join("/")).filter(|path| !path.contains([',', ':', '\\']))
}

pub(super) fn make_directory(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    // The container's root directory: its users have to be able to enter it.
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
    made.map_err(|error| Failure::new("make directory", error))
}

/// Copies a layer over what lies below it, with what its deletions mean.
fn copy_layer(layer: &Path, rootfs: &Path) -> std::io::Result<()> {
    let mut links = HashMap::new();
    copy_children(layer, rootfs, &mut links)
}

/// Copies what is in a directory, and its owner and mode, to one that is there.
pub(super) fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    copy_children(from, to, &mut HashMap::new())?;
    dress_directory(from, to)
}

/// Where the first name of a file with several names was copied to, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn copy_children(from: &Path, to: &Path, links: &mut Links) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy_entry(&entry.path(), &to.join(entry.file_name()), links)?;
    }
    Ok(())
}

fn copy_entry(from: &Path, to: &Path, links: &mut Links) -> std::io::Result<()> {
    let meta = rustix::fs::statat(CWD, from, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_directory = FileType::from_raw_mode(meta.st_mode) == FileType::Directory;
    let there = std::fs::symlink_metadata(to).ok();
    let merge =
        is_directory && there.as_ref().is_some_and(Metadata::is_dir) && !is_opaque(File::open(from)?.as_fd());
    if there.is_some() && !merge {
        remove(to)?;
    }
    if is_whiteout(&meta) {
        // The layer deletes this name.
        return Ok(());
    }
    if is_directory {
        if !merge {
            std::fs::create_dir(to)?;
        }
        copy_children(from, to, links)?;
        return dress_directory(from, to);
    }
    if let Some(first) = links.get(&(meta.st_dev, meta.st_ino)) {
        return std::fs::hard_link(first, to);
    }
    if meta.st_nlink > 1 {
        links.insert((meta.st_dev, meta.st_ino), to.to_owned());
    }
    let name = |name| Name { directory: CWD, name };
    copying::copy(name(from), name(to), &meta)
}

fn dress_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    copying::dress_directory(File::open(from)?.as_fd(), File::open(to)?.as_fd())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path)?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_named_from_the_layers() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(
            way("/a,b/images/layers", "/a,b/containers/c1").as_deref(),
            Some("../../containers/c1")
        );
        assert_eq!(way("/a/layers", "/a/x,y/c1"), None);
    }
}
