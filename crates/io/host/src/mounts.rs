//! What is mounted where, which file systems the kernel knows, and mounting for those who decided to.
//!
//! Nothing here keeps a list: the kernel's own is read when it is needed, so a process that was killed finds what its
//! former life mounted.

use crate::{Error, Root};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    pub file_system: String,
    /// Options of the file system, for example `rw,memory`.
    pub options: Vec<String>,
    /// What is mounted below it appears below its copies as well, and the other way round.
    pub shared: bool,
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
        shared: place.split(' ').skip(6).any(|field| field.starts_with("shared:")),
    })
}

/// The mount that a path is on: the deepest above it, and of those at one place the one that was mounted last. The path
/// is a real one, without links.
pub fn mount_of(path: &Path) -> Result<Option<MountPoint>, Error> {
    let mounts = mount_points(&Root::machine())?.into_iter();
    Ok(mounts
        .filter(|mount| path.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.components().count()))
}

/// What is mounted at and below `dir`, in the order in which it was mounted: taking it away goes from the end.
///
/// The kernel names places by their real paths, so `dir` may be reached through links and the answer is not.
pub fn mounted_below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let dir = real(dir);
    Ok(mount_points(&Root::machine())?
        .into_iter()
        .map(|mount| mount.path)
        .filter(|path| path.starts_with(&dir))
        .collect())
}

/// Whether something is mounted exactly here. A path that does not exist has nothing mounted on it.
pub fn is_mount_point(path: &Path) -> Result<bool, Error> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let known = match rustix::fs::statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        }
        // A kernel before 5.8 does not say it, one before 4.11 cannot be asked.
        Ok(_) | Err(rustix::io::Errno::NOSYS) => mount_points(&Root::machine())?,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(failed("look at", path, errno)),
    };
    let path = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        (_, _) => path.to_owned(),
    };
    Ok(known.iter().any(|mount| mount.path == path))
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Mounts a file system in memory. `bytes_max` bounds what it may hold. It is kept out of swap where the kernel can.
pub fn mount_tmpfs(path: &Path, bytes_max: Option<u64>) -> Result<(), Error> {
    let size = bytes_max.map(|bytes| format!("size={bytes}"));
    let options = |more: Option<&str>| {
        let parts: Vec<&str> = size.as_deref().into_iter().chain(more).collect();
        parts.join(",")
    };
    match mount_new("tmpfs", path, "tmpfs", &options(Some("noswap"))) {
        // Kernels before 6.4 do not know the word.
        Err(rustix::io::Errno::INVAL) => mount_new("tmpfs", path, "tmpfs", &options(None)),
        result => result,
    }
    .map_err(|errno| failed("mount a tmpfs on", path, errno))
}

/// Mounts huge pages of this size, for example `2M`; `None` is the machine's default size.
pub fn mount_huge_pages(path: &Path, page_size: Option<&str>) -> Result<(), Error> {
    let options = page_size
        .map(|size| format!("pagesize={size}"))
        .unwrap_or_default();
    mount_new("nodev", path, "hugetlbfs", &options)
        .map_err(|errno| failed("mount huge pages on", path, errno))
}

/// Mounts a block device that holds a file system.
pub fn mount_device(device: &Path, path: &Path, file_system: &str, read_only: bool) -> Result<(), Error> {
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    rustix::mount::mount(device, path, file_system, flags, None)
        .map_err(|errno| failed("mount a device on", path, errno))
}

/// Shows what `source` shows at `path` as well, with what is mounted below it.
pub fn bind(source: &Path, path: &Path, read_only: bool) -> Result<(), Error> {
    rustix::mount::mount_bind_recursive(source, path)
        .map_err(|errno| failed("bind-mount onto", path, errno))?;
    if read_only {
        // The flag is not taken with the bind itself, only afterwards.
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount(path, flags, "")
            .map_err(|errno| failed("make read-only", path, errno))?;
    }
    Ok(())
}

/// Shows exactly the open file or directory at `path`, whatever its name means by now.
pub fn bind_open(source: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let name = format!("/proc/self/fd/{}", source.as_raw_fd());
    rustix::mount::mount_bind_recursive(name.as_str(), path)
        .map_err(|errno| failed("bind-mount onto", path, errno))
}

/// Takes away what is mounted last at `path`. Fails while it is in use.
pub fn unmount(path: &Path) -> Result<(), Error> {
    rustix::mount::unmount(path, UnmountFlags::NOFOLLOW).map_err(|errno| failed("unmount", path, errno))
}

/// Takes away what is mounted at `path` now; who still uses it keeps it until the end. For what holds nothing that must
/// reach a disk.
pub fn detach(path: &Path) -> Result<(), Error> {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    rustix::mount::unmount(path, flags).map_err(|errno| failed("detach", path, errno))
}

/// Detaches everything at and below `dir`; says how much it was. What is on disks elsewhere stays there.
pub fn detach_below(dir: &Path) -> Result<usize, Error> {
    let mounted = mounted_below(dir)?;
    for path in mounted.iter().rev() {
        detach(path)?;
    }
    Ok(mounted.len())
}

fn mount_new(source: &str, path: &Path, file_system: &str, options: &str) -> rustix::io::Result<()> {
    let options = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    rustix::mount::mount(source, path, file_system, MountFlags::empty(), options.as_c_str())
}

fn failed(act: &'static str, path: &Path, errno: rustix::io::Errno) -> Error {
    Error::Change {
        act,
        path: path.to_owned(),
        source: errno.into(),
    }
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
    fn mounts_come_and_go() {
        let dir = std::env::temp_dir().join(format!("kedge-host-mounts-{}", std::process::id()));
        let (memory, view) = (dir.join("memory"), dir.join("view"));
        std::fs::create_dir_all(&memory).unwrap();
        std::fs::create_dir_all(&view).unwrap();
        assert!(!is_mount_point(&memory).unwrap());
        assert!(!is_mount_point(&dir.join("absent")).unwrap());
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        if !crate::is_root() {
            eprintln!("not root: mounting is not tried");
        } else {
            mount_tmpfs(&memory, Some(1 << 20)).unwrap();
            assert!(is_mount_point(&memory).unwrap());
            std::fs::write(memory.join("a"), "1").unwrap();
            assert!(std::fs::write(memory.join("b"), vec![0; 2 << 20]).is_err());
            bind(&memory, &view, true).unwrap();
            assert_eq!(std::fs::read_to_string(view.join("a")).unwrap(), "1");
            assert!(std::fs::write(view.join("c"), "").is_err());
            assert_eq!(mounted_below(&dir).unwrap(), [memory.clone(), view.clone()]);
            unmount(&view).unwrap();
            let open = std::fs::File::open(memory.join("a")).unwrap();
            assert!(unmount(&memory).is_err());
            bind(&memory, &view, false).unwrap();
            assert_eq!(detach_below(&dir).unwrap(), 2);
            drop(open);
            assert!(mounted_below(&dir).unwrap().is_empty());
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn every_machine_knows_proc() {
        assert!(knows_file_system(&Root::machine(), "proc").unwrap());
        assert!(!knows_file_system(&Root::machine(), "no-such-file-system").unwrap());
    }
}
