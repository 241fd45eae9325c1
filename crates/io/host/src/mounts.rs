//! What is mounted where, and which file systems the kernel knows.

use crate::{Error, Root};
use std::path::PathBuf;

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    pub file_system: String,
    /// Options of the file system, for example `rw,memory`.
    pub options: Vec<String>,
}

/// Everything mounted in this process's namespace, in the order it was mounted.
pub fn mount_points(root: &Root) -> Result<Vec<MountPoint>, Error> {
    Ok(root
        .read("/proc/self/mountinfo")?
        .lines()
        .filter_map(mount_point)
        .collect())
}

/// `36 35 98:0 /root /point opts shared:1 - ext4 /dev/root rw,errors=continue`
fn mount_point(line: &str) -> Option<MountPoint> {
    let (place, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    Some(MountPoint {
        path: unescape(place.split(' ').nth(4)?).into(),
        file_system: system.next()?.to_owned(),
        options: system
            .nth(1)
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escaped, plain)| {
            path.replace(escaped, plain)
        })
}

/// Whether the kernel knows this file system now. A kernel that would load a module for it only says so when it is
/// asked to mount.
pub fn knows_file_system(root: &Root, name: &str) -> Result<bool, Error> {
    Ok(root
        .read("/proc/filesystems")?
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_spaces_in_its_path_is_read() {
        let line = "36 35 98:0 /x /mnt/two\\040words rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = mount_point(line).unwrap();
        assert_eq!(mount.path, PathBuf::from("/mnt/two words"));
        assert_eq!((mount.file_system.as_str(), mount.options.len()), ("ext3", 2));
        assert_eq!(mount_point("36 35 98:0"), None);
    }

    #[test]
    fn every_machine_knows_proc() {
        assert!(knows_file_system(&Root::machine(), "proc").unwrap());
        assert!(!knows_file_system(&Root::machine(), "no-such-file-system").unwrap());
    }
}
