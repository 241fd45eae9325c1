//! Empty directories: `emptyDir` volumes, and the places where volumes with content stand.

use super::error::Error;
use kedge_api::{EmptyDirVolumeSource, Pod, Quantity};
use kedge_host::mounts;
use kedge_host::ownership::{self, Access};
use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What a directory is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
    /// Huge pages of this size as the kernel spells it; `None` is its default.
    HugePages(Option<String>),
}

impl Medium {
    /// `""`, `Memory`, `HugePages` or `HugePages-2Mi`.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, Error> {
        match text.unwrap_or_default() {
            "" => Ok(Self::Disk),
            "Memory" => Ok(Self::Memory),
            "HugePages" => Ok(Self::HugePages(None)),
            other => {
                let size = other.strip_prefix("HugePages-");
                let size = size
                    .and_then(|size| Quantity::parse(size).ok())
                    .map(|size| size.units());
                match size {
                    Some(bytes) if bytes > 0 => Ok(Self::HugePages(Some(bytes.to_string()))),
                    Some(_) | None => Err(Error::Unfit(format!("unknown storage medium {other:?}"))),
                }
            }
        }
    }
}

/// One directory that shall stand.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Written when the directory is complete.
    pub(super) ready: PathBuf,
    pub(super) medium: Medium,
    /// What a tmpfs may hold.
    pub(super) bytes_max: Option<u64>,
    /// The group that may write.
    pub(super) group: Option<u32>,
    /// Whether media other than the disk are mounted; else they are plain directories.
    pub(super) mounts: bool,
}

impl Directory {
    /// Makes it unless it stands. After a reboot a directory in memory is mounted again, empty.
    pub(super) fn make(&self) -> Result<(), Error> {
        let mounted = self.mounts && self.medium != Medium::Disk;
        let stands = if mounted {
            mounts::is_mount_point(&self.path)?
        } else {
            self.path.is_dir()
        };
        if stands && self.ready.exists() {
            return Ok(());
        }
        make_directory(&self.path, 0o777)?;
        if mounted && !stands {
            match &self.medium {
                Medium::Disk => {}
                Medium::Memory => mounts::mount_tmpfs(&self.path, self.bytes_max)?,
                Medium::HugePages(size) => mounts::mount_huge_pages(&self.path, size.as_deref())?,
            }
        }
        if let Some(group) = self.group {
            ownership::give(&self.path, group, Access::Write)?;
        }
        make_directory(self.ready.parent().unwrap_or(&self.ready), 0o750)?;
        std::fs::write(&self.ready, "").map_err(Error::file("write", &self.ready))
    }

    /// Removes files that lie on the disk where secrets shall be in memory only: a version before this one, or a life
    /// without the right to mount, may have left them.
    pub(super) fn clear_beneath(&self) -> Result<(), Error> {
        if !self.mounts || self.medium == Medium::Disk || mounts::is_mount_point(&self.path)? {
            return Ok(());
        }
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(Error::file("read", &self.path))?,
        };
        for entry in entries {
            let path = entry.map_err(Error::file("read", &self.path))?.path();
            let is_dir = path.symlink_metadata().is_ok_and(|found| found.is_dir());
            let removed = if is_dir {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.map_err(Error::file("remove", &path))?;
        }
        Ok(())
    }
}

/// Makes a directory and those above it; an existing one is left as it is. `mode` is for the last one, whatever this
/// process's mask is; the others can be entered by root only.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(parent);
    made.map_err(Error::file("create", parent))?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        result => result.map_err(Error::file("create", path))?,
    }
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::file("set the mode of", path))
}

/// How much a volume in memory may hold: what the volume says, what the pod may use, what the node has for pods.
pub(super) fn bytes_in_memory(
    pod: &Pod,
    source: Option<&EmptyDirVolumeSource>,
    allocatable: Option<&Quantity>,
) -> Option<u64> {
    let own = source
        .and_then(|source| source.size_limit.as_ref())
        .map(Quantity::units);
    let limits = [own, memory_limit(pod), allocatable.map(Quantity::units)];
    let smallest = limits.into_iter().flatten().filter(|bytes| *bytes > 0).min();
    smallest.and_then(|bytes| u64::try_from(bytes).ok())
}

/// The sum of the containers' limits, or that of the largest init container; nothing when one has none.
fn memory_limit(pod: &Pod) -> Option<i64> {
    let limit =
        |container: &kedge_api::Container| container.resources.limits.get("memory").map(Quantity::units);
    let mains: Option<i64> = pod
        .spec
        .containers
        .iter()
        .map(limit)
        .try_fold(0_i64, |sum, bytes| Some(sum.saturating_add(bytes?)));
    let inits: Option<Vec<i64>> = pod.spec.init_containers.iter().map(limit).collect();
    Some(mains?.max(inits?.into_iter().max().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::{TempDir, can_mount};
    use std::os::unix::fs::MetadataExt as _;

    fn directory(top: &Path, medium: Medium, mounts: bool) -> Directory {
        Directory {
            path: top.join("volumes/kubernetes.io~empty-dir/v"),
            ready: top.join("plugins/kubernetes.io~empty-dir/v/ready"),
            medium,
            bytes_max: Some(64 * 1024),
            group: Some(4242),
            mounts,
        }
    }

    #[test]
    fn media() {
        let parse = |text| format!("{:?}", Medium::parse(text).map_err(|error| error.to_string()));
        assert_eq!(parse(None), "Ok(Disk)");
        assert_eq!(parse(Some("Memory")), "Ok(Memory)");
        assert_eq!(parse(Some("HugePages-2Mi")), "Ok(HugePages(Some(\"2097152\")))");
        assert_eq!(
            parse(Some("Tape")),
            "Err(\"unknown storage medium \\\"Tape\\\"\")"
        );
    }

    #[test]
    fn memory_is_bounded_by_the_smallest_limit() {
        let pod = |limits: &[Option<&str>]| -> Pod {
            let container = |limit: &Option<&str>| match limit {
                Some(limit) => {
                    serde_json::json!({ "name": "c", "resources": { "limits": { "memory": limit } } })
                }
                None => serde_json::json!({ "name": "c" }),
            };
            let containers: Vec<_> = limits.iter().map(container).collect();
            serde_json::from_value(serde_json::json!({ "spec": { "containers": containers } })).unwrap()
        };
        let node = Quantity::parse("1Gi").unwrap();
        let volume = EmptyDirVolumeSource {
            size_limit: Some(Quantity::parse("8Mi").unwrap()),
            ..EmptyDirVolumeSource::default()
        };
        let bytes = |limits: &[Option<&str>], volume| bytes_in_memory(&pod(limits), volume, Some(&node));
        assert_eq!(bytes(&[Some("4Mi"), Some("2Mi")], None), Some(6 << 20));
        assert_eq!(bytes(&[Some("4Mi"), None], None), Some(1 << 30));
        assert_eq!(bytes(&[Some("4Mi"), None], Some(&volume)), Some(8 << 20));
        assert_eq!(bytes(&[Some("4Mi")], Some(&volume)), Some(4 << 20));
    }

    #[test]
    fn a_directory_on_the_disk_keeps_what_is_in_it() {
        let top = TempDir::new();
        let dir = directory(&top, Medium::Disk, true);
        dir.make().unwrap();
        let found = dir.path.metadata().unwrap();
        assert_eq!(found.mode() & 0o2777, 0o2777);
        std::fs::write(dir.path.join("a"), "1").unwrap();
        std::fs::set_permissions(&dir.path, Permissions::from_mode(0o700)).unwrap();
        dir.make().unwrap();
        assert_eq!(
            dir.path.metadata().unwrap().mode() & 0o7777,
            0o700,
            "it is the pod's now"
        );
        assert_eq!(std::fs::read_to_string(dir.path.join("a")).unwrap(), "1");
    }

    #[test]
    fn a_directory_in_memory_comes_back_empty_after_a_reboot() {
        if !can_mount() {
            return;
        }
        let top = TempDir::new();
        let dir = directory(&top, Medium::Memory, true);
        dir.make().unwrap();
        assert!(mounts::is_mount_point(&dir.path).unwrap());
        assert_eq!(dir.path.metadata().unwrap().gid(), 4242);
        std::fs::write(dir.path.join("a"), vec![0; 32 * 1024]).unwrap();
        assert!(
            std::fs::write(dir.path.join("b"), vec![0; 64 * 1024]).is_err(),
            "the limit holds"
        );
        dir.make().unwrap();
        assert!(dir.path.join("a").exists());
        mounts::unmount(&dir.path).unwrap();
        dir.make().unwrap();
        assert!(mounts::is_mount_point(&dir.path).unwrap() && !dir.path.join("a").exists());
    }

    #[test]
    fn what_lies_beneath_a_mount_is_removed_first() {
        let top = TempDir::new();
        let plain = directory(&top, Medium::Memory, false);
        plain.make().unwrap();
        std::fs::create_dir(plain.path.join("..v1")).unwrap();
        std::fs::write(plain.path.join("..v1/key"), "secret").unwrap();
        plain.clear_beneath().unwrap();
        assert!(
            plain.path.join("..v1/key").exists(),
            "without mounts it is the volume itself"
        );
        directory(&top, Medium::Memory, true).clear_beneath().unwrap();
        assert_eq!(std::fs::read_dir(&plain.path).unwrap().count(), 0);
    }
}
