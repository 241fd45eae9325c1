//! Taking the directory of a pod away.

use super::error::Error;
use super::paths::{self, Paths};
use kedge_host::mounts;
use std::io;
use std::path::{Path, PathBuf};

/// Kinds whose data ends with the pod. Every other kind, also one that only another agent knows, holds data of somebody
/// else.
const OF_THE_POD: [&str; 5] = [
    paths::EMPTY_DIR,
    paths::CONFIG_MAP,
    paths::SECRET,
    paths::DOWNWARD_API,
    paths::PROJECTED,
];
/// Mounts upon each other at one place that are taken away; more are not ours.
const LAYERS_MAX: usize = 1000;

/// The directories of all pods.
pub(super) fn pod_dirs(paths: &Paths) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(paths.pods()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Unmounts and removes what is left when the CSI volumes are away.
pub(super) fn pod(paths: &Paths, uid: &str, can_mount: bool) -> Result<(), Error> {
    let dir = paths.pod(uid);
    if dir.symlink_metadata().is_err() {
        return Ok(());
    }
    // What the kernel lists is named by its real path.
    let dir = dir.canonicalize().map_err(Error::file("look at", &dir))?;
    if can_mount {
        unmount_all(paths, &dir)?;
    }
    let left = mounts::mounted_below(&dir)?;
    if let Some(path) = left.first() {
        return Err(Error::Unfit(format!("{} is still mounted", path.display())));
    }
    remove_volumes(&dir.join("volumes"))?;
    remove_tree(&dir)
}

fn unmount_all(paths: &Paths, dir: &Path) -> Result<(), Error> {
    let volumes = dir.join("volumes");
    for path in mounts::mounted_below(dir)?.into_iter().rev().take(LAYERS_MAX) {
        let kind = path
            .strip_prefix(&volumes)
            .ok()
            .and_then(|below| below.iter().next());
        let device = (kind == Some(paths::LOCAL.as_ref()))
            .then(|| {
                path.file_name()
                    .map(|name| paths.local_mount(&name.to_string_lossy()))
            })
            .flatten();
        let ours = kind.is_none_or(|kind| kind == paths::LOCAL || OF_THE_POD.iter().any(|own| kind == *own));
        match mounts::unmount(&path) {
            Ok(()) => {}
            // A directory that something still looks into: it goes when that is over.
            Err(_) if ours => mounts::detach(&path)?,
            Err(error) => return Err(error.into()),
        }
        if let Some(device) = device {
            release_device(&device)?;
        }
    }
    Ok(())
}

/// Unmounts a device that no pod uses any more; one that is in use says so.
fn release_device(mounted: &Path) -> Result<(), Error> {
    if !mounts::is_mount_point(mounted)? {
        return Ok(());
    }
    let identity =
        |mount: &Path| std::fs::metadata(mount).map(|found| std::os::unix::fs::MetadataExt::dev(&found));
    let own = identity(mounted).map_err(Error::file("look at", mounted))?;
    let name = mounted.file_name().unwrap_or_default();
    let same = |path: &PathBuf| {
        let local = path.parent().is_some_and(|parent| parent.ends_with(paths::LOCAL));
        local && path.file_name() == Some(name) && identity(path).is_ok_and(|other| other == own)
    };
    if mounts::mounted_below(Path::new("/"))?.iter().any(same) {
        return Ok(());
    }
    mounts::unmount(mounted)?;
    remove_empty(mounted)
}

fn remove_volumes(volumes: &Path) -> Result<(), Error> {
    for kind in entries(volumes)? {
        let own = OF_THE_POD.iter().any(|own| kind.ends_with(own));
        for volume in entries(&kind)? {
            if own {
                remove_tree(&volume)?;
            } else {
                remove_empty(&volume)?;
            }
        }
        remove_empty(&kind)?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(Error::file("read", dir))?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(Error::file("read", dir))
}

fn remove_empty(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(Error::Unfit(format!(
            "{} holds data that does not belong to the pod; it is left as it is",
            dir.display()
        ))),
        result => result.map_err(Error::file("remove", dir)),
    }
}

/// Links are removed, not followed.
fn remove_tree(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::file("remove", path)),
    }
}
