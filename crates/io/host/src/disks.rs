//! How full file systems are, and what a directory takes on one.

use crate::{Error, Root};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The unit of `st_blocks`, whatever the file system's own block is.
const BLOCK_BYTES: u64 = 512;
/// How deep a directory is followed; paths end before that.
const DEPTH_MAX: usize = 128;

/// A file system as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileSystem {
    pub capacity_bytes: u64,
    /// For unprivileged users.
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    /// Differs between file systems.
    pub id: u64,
}

impl FileSystem {
    pub fn inodes_used(&self) -> u64 {
        self.inodes.saturating_sub(self.inodes_free)
    }
}

/// Measures the file system that holds `path`.
pub fn file_system(path: &Path) -> Result<FileSystem, Error> {
    let failed = |source: std::io::Error| Error::Disk {
        path: path.to_owned(),
        source,
    };
    let measured = rustix::fs::statvfs(path).map_err(|errno| failed(errno.into()))?;
    let id = std::fs::metadata(path).map_err(failed)?.dev();
    let bytes = |blocks: u64| blocks.saturating_mul(measured.f_frsize);
    Ok(FileSystem {
        capacity_bytes: bytes(measured.f_blocks),
        available_bytes: bytes(measured.f_bavail),
        used_bytes: bytes(measured.f_blocks.saturating_sub(measured.f_bfree)),
        inodes: measured.f_files,
        inodes_free: measured.f_ffree,
        id,
    })
}

/// The device that a path is on, as the kernel calls it, for example `/dev/vda1`.
pub fn device(path: &Path) -> Option<String> {
    let id = std::fs::metadata(path).ok()?.dev();
    let numbers = format!("{}:{}", rustix::fs::major(id), rustix::fs::minor(id));
    let mounted = Root::machine().read("/proc/self/mountinfo").ok()?;
    mounted.lines().find_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let is_it = place.split(' ').nth(2) == Some(numbers.as_str());
        is_it.then(|| system.split(' ').nth(1).map(str::to_owned))?
    })
}

/// What files and directories take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeUsage {
    pub bytes: u64,
    pub inodes: u64,
    /// False when there was more than was looked at.
    pub complete: bool,
}

/// Adds up what is below `path`, on its own file system only, looking at no more than `entries_max` entries. A file with
/// several names counts once. What cannot be read, or goes away meanwhile, counts nothing.
pub fn tree_usage(path: &Path, entries_max: usize) -> TreeUsage {
    let mut sum = TreeUsage {
        complete: true,
        ..TreeUsage::default()
    };
    let Ok(top) = path.symlink_metadata() else {
        return sum;
    };
    let mut several_names = BTreeSet::new();
    sum.add(&top);
    let mut left = entries_max;
    let mut open: Vec<(PathBuf, usize)> = match top.is_dir() {
        true => vec![(path.to_owned(), 0)],
        false => Vec::new(),
    };
    while let Some((directory, depth)) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if left == 0 {
                sum.complete = false;
                return sum;
            }
            left -= 1;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != top.dev() {
                continue;
            }
            if !metadata.is_dir() && metadata.nlink() > 1 && !several_names.insert(metadata.ino()) {
                continue;
            }
            sum.add(&metadata);
            if metadata.is_dir() && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    sum
}

impl TreeUsage {
    fn add(&mut self, metadata: &std::fs::Metadata) {
        self.bytes = self
            .bytes
            .saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        self.inodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_with_two_names_counts_once_and_looking_has_an_end() {
        let top = std::env::temp_dir().join(format!("kedge-disks-{}", std::process::id()));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), vec![1; 8192]).unwrap();
        fs::hard_link(top.join("a/b/file"), top.join("a/again")).unwrap();
        std::os::unix::fs::symlink("/proc", top.join("elsewhere")).unwrap();
        let all = tree_usage(&top, 100);
        assert!(all.complete && all.inodes == 5 && all.bytes >= 8192, "{all:?}");
        assert!(all.bytes < 2 * 8192 + 64 * 1024, "{all:?}");
        let some = tree_usage(&top, 2);
        assert!(!some.complete && some.inodes <= 3, "{some:?}");
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(tree_usage(&top, 100).inodes, 0);
    }

    #[test]
    fn the_root_file_system_is_measured() {
        let measured = file_system(Path::new("/")).unwrap();
        assert!(measured.capacity_bytes >= measured.used_bytes && measured.capacity_bytes > 0);
        assert!(file_system(Path::new("/no/such/path")).is_err());
        assert_eq!(device(Path::new("/proc")).as_deref(), Some("proc"));
    }
}
