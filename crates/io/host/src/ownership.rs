//! Giving what is in a volume to the pod's group.
//!
//! Other pods may be writing into the volume meanwhile, so nothing is changed by its path: each file is opened without
//! following a link and changed through the open descriptor.

use crate::Error;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Deeper trees are refused: each level holds a descriptor.
const DEPTH_MAX: usize = 256;
const SET_GROUP: u32 = 0o2000;

/// What the group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Access {
    /// What files get besides their mode.
    pub fn file_bits(self) -> u32 {
        match self {
            Self::Read => 0o440,
            Self::Write => 0o660,
        }
    }

    fn directory_bits(self) -> u32 {
        self.file_bits() | 0o110 | SET_GROUP
    }
}

/// Gives everything below to the group.
pub fn give(path: &Path, group: u32, access: Access) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .and_then(|top| give_open(top, group, access, 0))
        .map_err(|errno| failed("give to its group", path, errno))
}

/// Whether the top of the volume looks as [`give`] leaves it, which stands for all of it with `OnRootMismatch`.
pub fn is_given(path: &Path, group: u32, access: Access) -> Result<bool, Error> {
    let found = rustix::fs::stat(path).map_err(|errno| failed("look at", path, errno))?;
    let bits = access.directory_bits();
    Ok(found.st_gid == group && found.st_mode & bits == bits)
}

/// Changes the owner of one file. Without root (the hollow runtime) no container runs as somebody else, so nothing is
/// lost when it is refused.
pub fn own(path: &Path, user: Option<u32>, group: Option<u32>) -> Result<(), Error> {
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    let changed = rustix::fs::chownat(CWD, path, user, group, AtFlags::SYMLINK_NOFOLLOW);
    tolerate(changed).map_err(|errno| failed("change the owner of", path, errno))
}

fn failed(act: &'static str, path: &Path, errno: Errno) -> Error {
    Error::Change {
        act,
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn tolerate(changed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match changed {
        Err(Errno::PERM) if !crate::is_root() => Ok(()),
        result => result,
    }
}

fn give_open(file: OwnedFd, group: u32, access: Access, depth: usize) -> rustix::io::Result<()> {
    let found = rustix::fs::fstat(&file)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    change(file.as_fd(), &found, kind, group, access)?;
    if kind != FileType::Directory {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&file, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&file, name, flags, Mode::empty()) {
            Ok(child) => give_open(child, group, access, depth + 1)?,
            // Somebody removed it meanwhile.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn change(
    file: BorrowedFd<'_>,
    found: &Stat,
    kind: FileType,
    group: u32,
    access: Access,
) -> rustix::io::Result<()> {
    if found.st_gid != group {
        let gid = Some(Gid::from_raw(group));
        tolerate(rustix::fs::chownat(file, c"", None, gid, AtFlags::EMPTY_PATH))?;
    }
    // A link has no mode of its own, and what it names is not ours.
    if kind == FileType::Symlink {
        return Ok(());
    }
    let bits = if kind == FileType::Directory {
        access.directory_bits()
    } else {
        access.file_bits()
    };
    let mode = found.st_mode & 0o7777 | bits;
    // Read again: a change of the group takes some bits away.
    if rustix::fs::fstat(file)?.st_mode & 0o7777 == mode {
        return Ok(());
    }
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmod(name.as_str(), Mode::from_raw_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn the_group_gets_what_is_in_the_volume_and_nothing_beyond() {
        let top = std::env::temp_dir().join(format!("kedge-ownership-{}", std::process::id()));
        let (dir, outside) = (top.join("dir"), top.join("outside"));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(dir.join("sub/file"), "").unwrap();
        std::fs::write(outside.join("other"), "").unwrap();
        std::fs::set_permissions(outside.join("other"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(dir.join("sub/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(outside.join("other"), dir.join("link")).unwrap();
        assert!(!is_given(&dir, 4242, Access::Write).unwrap());
        give(&dir, 4242, Access::Write).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&dir.join("sub/file")), 0o660);
        assert_eq!(mode(&dir.join("sub")) & 0o2770, 0o2770);
        assert_eq!(mode(&outside.join("other")), 0o600);
        if crate::is_root() {
            assert!(is_given(&dir, 4242, Access::Write).unwrap());
            assert_eq!(dir.join("sub/file").metadata().unwrap().gid(), 4242);
            assert_eq!(dir.join("link").symlink_metadata().unwrap().gid(), 4242);
            assert_eq!(outside.join("other").metadata().unwrap().gid(), 0);
        }
        std::fs::remove_dir_all(&top).unwrap();
    }
}
