//! What stands in one layer, made again elsewhere: content with its holes, owner, rights, attributes, time.

use super::layer::{is_kept_attribute, write_but_holes};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const COPY_BYTES: usize = 128 * 1024;
/// What the kernel has at most of names, and of one value.
const ATTRIBUTE_BYTES_MAX: usize = 64 * 1024;
/// What `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// A name in an open directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    pub(crate) name: &'a Path,
}

/// Copies anything but a directory to where nothing stands.
pub(crate) fn copy(from: Name<'_>, to: Name<'_>, meta: &Stat) -> std::io::Result<()> {
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::RegularFile => return copy_file(from, to, meta),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from.directory, from.name, Vec::new())?;
            rustix::fs::symlinkat(target, to.directory, to.name)?;
        }
        kind => {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(to.directory, to.name, kind, mode, meta.st_rdev)?;
        }
    }
    let (owner, group) = (Uid::from_raw(meta.st_uid), Gid::from_raw(meta.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to.directory, to.name, Some(owner), Some(group), flags)?;
    if FileType::from_raw_mode(meta.st_mode) != FileType::Symlink {
        // It is no link: it was just made.
        rustix::fs::chmodat(to.directory, to.name, rights(meta), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(to.directory, to.name, &times(meta), flags)?)
}

/// Gives an open directory what another one has.
pub(crate) fn dress_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::io::Result<()> {
    let meta = rustix::fs::fstat(from)?;
    dress(from, to, &meta)
}

fn copy_file(from: Name<'_>, to: Name<'_>, meta: &Stat) -> std::io::Result<()> {
    let open = |place: Name<'_>, flags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(place.directory, place.name, flags, mode).map(File::from)
    };
    let mut source = open(from, OFlags::RDONLY)?;
    let mut made = open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
    let size = u64::try_from(meta.st_size).unwrap_or(0);
    let blocks = u64::try_from(meta.st_blocks).unwrap_or(0);
    if blocks * BLOCK_BYTES < size {
        copy_but_holes(&mut source, &made, size)?;
    } else {
        std::io::copy(&mut source, &mut made)?;
    }
    dress(source.as_fd(), made.as_fd(), meta)
}

fn copy_but_holes(from: &mut File, to: &File, size: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return to.set_len(size.max(at));
        }
        write_but_holes(to, &buffer[..read], at)?;
        at += read as u64;
    }
}

fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, meta: &Stat) -> std::io::Result<()> {
    // Changing the owner clears the set-user-id bit and the capabilities, so they come after.
    let (owner, group) = (Uid::from_raw(meta.st_uid), Gid::from_raw(meta.st_gid));
    rustix::fs::fchown(to, Some(owner), Some(group))?;
    rustix::fs::fchmod(to, rights(meta))?;
    copy_attributes(from, to)?;
    Ok(rustix::fs::futimens(to, &times(meta))?)
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut names = vec![0_u8; ATTRIBUTE_BYTES_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        // A file system without attributes.
        Err(Errno::NOTSUP) => return Ok(()),
        listed => listed?,
    };
    let listed = names[..length].split(|byte| *byte == 0);
    let kept = listed.filter_map(|name| {
        std::str::from_utf8(name)
            .ok()
            .filter(|name| is_kept_attribute(name))
    });
    let mut value = Vec::new();
    for name in kept {
        value.resize(ATTRIBUTE_BYTES_MAX, 0);
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn rights(meta: &Stat) -> Mode {
    Mode::from_raw_mode(meta.st_mode & 0o7777)
}

fn times(meta: &Stat) -> Timestamps {
    let moment = Timespec {
        tv_sec: meta.st_mtime,
        tv_nsec: meta.st_mtime_nsec.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: moment,
        last_modification: moment,
    }
}
