//! The root file system of a container, made of its image's layers.

use super::Failure;
use crate::embedded::RootfsMode;
use crate::embedded::records::LaunchRecord;
use crate::image::OPAQUE_ATTRIBUTE;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const CAPABILITY_ATTRIBUTE: &str = "security.capability";
const CAPABILITY_BYTES_MAX: usize = 64;

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

/// Makes `<directory>/rootfs`.
pub(super) fn make(directory: &Path, launch: &LaunchRecord) -> Result<(), Failure> {
    let rootfs = directory.join("rootfs");
    make_directory(&rootfs)?;
    let layers: Vec<PathBuf> = launch
        .layers
        .iter()
        .map(|layer| launch.layers_directory.join(layer))
        .collect();
    match launch.rootfs {
        RootfsMode::Copy => layers
            .iter()
            .try_for_each(|layer| copy_layer(layer, &rootfs))
            .map_err(|error| Failure::new("copy a layer", error)),
        RootfsMode::Overlay => {
            make_directory(&directory.join("upper"))?;
            make_directory(&directory.join("work"))?;
            overlay(&launch.layers_directory, &launch.layers, directory)
        }
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
    overlay(&directory.join("layers"), &layers, &directory.join("container"))?;
    std::fs::write(directory.join("container/rootfs/written"), b"")
        .map_err(|error| Failure::new("write to it", error))
}

/// Mount options fit in one page. So layers are named relative to their directory, which becomes ours for the moment,
/// and so is the container's directory, whose path may hold commas.
fn overlay(layers_directory: &Path, layers: &[String], directory: &Path) -> Result<(), Failure> {
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
    let options = format!(
        "lowerdir={},upperdir={container}/upper,workdir={container}/work",
        lower.join(":")
    );
    let options = CString::new(options).map_err(|error| failed(error.into()))?;
    std::env::set_current_dir(layers_directory).map_err(failed)?;
    let mounted = mount(
        "overlay",
        directory.join("rootfs"),
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    );
    std::env::set_current_dir("/").map_err(failed)?;
    mounted.map_err(|errno| failed(errno.into()))
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
    copy_attributes(from, to, &std::fs::metadata(from)?)
}

/// Where the first name of a file with several names was copied to, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn copy_children(from: &Path, to: &Path, links: &mut Links) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy_entry(
            &entry.path(),
            &to.join(entry.file_name()),
            &entry.metadata()?,
            links,
        )?;
    }
    Ok(())
}

fn copy_entry(from: &Path, to: &Path, meta: &Metadata, links: &mut Links) -> std::io::Result<()> {
    let kind = meta.file_type();
    let there = std::fs::symlink_metadata(to).ok();
    let merge = kind.is_dir() && there.as_ref().is_some_and(Metadata::is_dir) && !is_opaque(from);
    if there.is_some() && !merge {
        remove(to)?;
    }
    if kind.is_char_device() && meta.rdev() == 0 {
        // The layer deletes this name.
        return Ok(());
    }
    if kind.is_dir() {
        if !merge {
            std::fs::create_dir(to)?;
        }
        copy_children(from, to, links)?;
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(from)?, to)?;
    } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
        let node = FileType::from_raw_mode(meta.mode());
        rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(0o600), meta.rdev())?;
    } else if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
        return std::fs::hard_link(first, to);
    } else {
        std::fs::copy(from, to)?;
        if meta.nlink() > 1 {
            links.insert((meta.dev(), meta.ino()), to.to_owned());
        }
    }
    copy_attributes(from, to, meta)
}

fn copy_attributes(from: &Path, to: &Path, meta: &Metadata) -> std::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    rustix::fs::chownat(CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if meta.is_symlink() {
        return Ok(());
    }
    // Changing the owner clears the set-user-id bit and the capabilities, so they come after.
    rustix::fs::chmodat(
        CWD,
        to,
        Mode::from_raw_mode(meta.mode() & 0o7777),
        AtFlags::empty(),
    )?;
    let mut capability = [0; CAPABILITY_BYTES_MAX];
    if let Ok(length) = rustix::fs::lgetxattr(from, CAPABILITY_ATTRIBUTE, &mut capability) {
        rustix::fs::lsetxattr(
            to,
            CAPABILITY_ATTRIBUTE,
            &capability[..length],
            XattrFlags::empty(),
        )?;
    }
    Ok(())
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(directory, OPAQUE_ATTRIBUTE, &mut value)
        .is_ok_and(|length| value[..length] == *b"y")
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
