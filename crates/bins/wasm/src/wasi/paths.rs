//! What is done with paths: each begins at a directory that the module has open, and nothing leads out of it.
//!
//! The kernel walks them, so no change of a name or link between two looks opens a way. What takes away or makes a name
//! walks to the directory above it, and names it there without following it.

use super::descriptors::{Descriptor, Table, rights};
use super::errno::Errno;
use super::guest::{Guest, Range};
use super::status::{self, flags};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timestamps, fstat, fstatfs, linkat, mkdirat, openat2, readlinkat,
    renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno as Kernel;
use std::os::fd::OwnedFd;

/// A walk that meets a rename begins anew; who renames for ever shall not hold it up for ever.
const WALKS_MAX: usize = 64;
/// In it every process, this one too, can be reached as if it were a file.
const PROCESSES_MAGIC: u64 = 0x9fa0;

const FOLLOW: u32 = 1;

const CREATE: u32 = 1;
const DIRECTORY: u32 = 2;
const EXCLUSIVE: u32 = 4;
const TRUNCATE: u32 = 8;

/// Before the mask of this process.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// A directory that is open, and a path below it.
type Place = (u32, Range);

/// How something is to be opened, in the interface's numbers.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) lookup: u32,
    pub(super) how: u32,
    pub(super) rights: u64,
    pub(super) flags: u32,
}

impl Opening {
    fn reads(&self) -> bool {
        self.rights & (rights::READ | rights::READ_DIRECTORY) != 0 || !self.writes()
    }

    fn writes(&self) -> bool {
        self.rights & rights::OF_WRITERS != 0 && self.how & DIRECTORY == 0
    }

    fn kernels(&self) -> Result<OFlags, Errno> {
        if self.how & DIRECTORY != 0 && self.how & (CREATE | EXCLUSIVE | TRUNCATE) != 0 {
            return Err(Errno::INVAL);
        }
        let mut all = status::kernels(self.flags) | OFlags::NOCTTY;
        all |= match (self.reads(), self.writes()) {
            (true, true) => OFlags::RDWR,
            (false, true) => OFlags::WRONLY,
            (_, false) => OFlags::RDONLY,
        };
        let wanted = [
            (self.how & CREATE != 0, OFlags::CREATE),
            (self.how & DIRECTORY != 0, OFlags::DIRECTORY),
            (self.how & EXCLUSIVE != 0, OFlags::EXCL),
            (self.how & TRUNCATE != 0, OFlags::TRUNC),
            (self.lookup & FOLLOW == 0, OFlags::NOFOLLOW),
        ];
        for (_, flag) in wanted.iter().filter(|(wanted, _)| *wanted) {
            all |= *flag;
        }
        Ok(all)
    }
}

pub(super) fn open(
    table: &mut Table,
    guest: &mut Guest<'_>,
    (fd, path): Place,
    opening: &Opening,
    told: u32,
) -> Result<(), Errno> {
    if opening.flags & !(flags::APPEND | flags::DSYNC | flags::NONBLOCK | flags::RSYNC | flags::SYNC) != 0 {
        return Err(Errno::INVAL);
    }
    let mode = if opening.how & CREATE != 0 { FILE_MODE } else { 0 };
    let file = reach(table.directory(fd)?, guest.path(path)?, opening.kernels()?, mode)?;
    let opened = table.add(Descriptor::new(file, opening.reads(), opening.writes())?)?;
    let written = guest.put_u32(told, opened);
    // Nobody would know its number.
    written.or_else(|why| table.close(opened).and(Err(why)))
}

/// Opens what is at a path.
fn reach(directory: &Descriptor, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    if path.starts_with('/') {
        return Err(Errno::PERM);
    }
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..WALKS_MAX {
        match openat2(
            directory,
            path,
            flags,
            Mode::from_raw_mode(mode),
            directory.resolution(),
        ) {
            Ok(file) => return hide_processes(file),
            Err(Kernel::AGAIN) => {}
            // A way out, as the kernel calls it.
            Err(Kernel::XDEV) => return Err(Errno::PERM),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Kernel::AGAIN.into())
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the kernel's types differ between machines"
)]
fn hide_processes(file: OwnedFd) -> Result<OwnedFd, Errno> {
    if fstatfs(&file)?.f_type as u64 == PROCESSES_MAGIC {
        Err(Errno::ACCESS)
    } else {
        Ok(file)
    }
}

/// The directory above a name, and the name.
fn above<'p>(
    directory: &Descriptor,
    path: &'p str,
    may_be_directory: bool,
) -> Result<(OwnedFd, &'p str), Errno> {
    let plain = path.trim_end_matches('/');
    if plain != path && !may_be_directory {
        return Err(Errno::NOTDIR);
    }
    let (above, name) = plain.rsplit_once('/').unwrap_or((".", plain));
    if above.is_empty() || plain.is_empty() || name == ".." {
        return Err(Errno::PERM);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    Ok((reach(directory, above, flags, 0)?, name))
}

/// Something itself, neither for reading nor for writing.
fn named(directory: &Descriptor, path: &str, lookup: u32) -> Result<OwnedFd, Errno> {
    let follow = if lookup & FOLLOW == 0 {
        OFlags::NOFOLLOW
    } else {
        OFlags::empty()
    };
    reach(directory, path, OFlags::PATH | follow, 0)
}

pub(super) fn make_directory(table: &Table, guest: &Guest<'_>, (fd, path): Place) -> Result<(), Errno> {
    let (above, name) = above(table.directory(fd)?, guest.path(path)?, true)?;
    Ok(mkdirat(above, name, Mode::from_raw_mode(DIRECTORY_MODE))?)
}

pub(super) fn remove_directory(table: &Table, guest: &Guest<'_>, (fd, path): Place) -> Result<(), Errno> {
    let (above, name) = above(table.directory(fd)?, guest.path(path)?, true)?;
    Ok(unlinkat(above, name, AtFlags::REMOVEDIR)?)
}

pub(super) fn remove_file(table: &Table, guest: &Guest<'_>, (fd, path): Place) -> Result<(), Errno> {
    let (above, name) = above(table.directory(fd)?, guest.path(path)?, false)?;
    Ok(unlinkat(above, name, AtFlags::empty())?)
}

pub(super) fn status(
    table: &Table,
    guest: &mut Guest<'_>,
    (fd, path): Place,
    lookup: u32,
    told: u32,
) -> Result<(), Errno> {
    let file = named(table.directory(fd)?, guest.path(path)?, lookup)?;
    status::put(guest, told, &fstat(file)?)
}

pub(super) fn set_times(
    table: &Table,
    guest: &Guest<'_>,
    (fd, path): Place,
    lookup: u32,
    times: Timestamps,
) -> Result<(), Errno> {
    let file = named(table.directory(fd)?, guest.path(path)?, lookup)?;
    Ok(utimensat(file, "", &times, AtFlags::EMPTY_PATH)?)
}

/// Reads where a link leads to, as much as there is room for.
pub(super) fn read_link(
    table: &Table,
    guest: &mut Guest<'_>,
    (fd, path): Place,
    into: Range,
    told: u32,
) -> Result<(), Errno> {
    let link = named(table.directory(fd)?, guest.path(path)?, 0)?;
    if FileType::from_raw_mode(fstat(&link)?.st_mode) != FileType::Symlink {
        return Err(Errno::INVAL);
    }
    let target = readlinkat(link, "", Vec::new())?;
    let room = guest.bytes_mut(into)?;
    let fits = target.as_bytes().len().min(room.len());
    room[..fits].copy_from_slice(&target.as_bytes()[..fits]);
    guest.put_count(told, fits)
}

/// A link may say anything: where it leads is looked at when it is followed.
pub(super) fn link_by_name(
    table: &Table,
    guest: &Guest<'_>,
    target: Range,
    (fd, path): Place,
) -> Result<(), Errno> {
    let (above, name) = above(table.directory(fd)?, guest.path(path)?, false)?;
    Ok(symlinkat(guest.path(target)?, above, name)?)
}

pub(super) fn link(
    table: &Table,
    guest: &Guest<'_>,
    (fd, path): Place,
    lookup: u32,
    (to_fd, to_path): Place,
) -> Result<(), Errno> {
    if lookup & FOLLOW != 0 {
        return Err(Errno::INVAL);
    }
    let (from, name) = above(table.directory(fd)?, guest.path(path)?, false)?;
    let (to, to_name) = above(table.directory(to_fd)?, guest.path(to_path)?, false)?;
    Ok(linkat(from, name, to, to_name, AtFlags::empty())?)
}

pub(super) fn rename(
    table: &Table,
    guest: &Guest<'_>,
    (fd, path): Place,
    (to_fd, to_path): Place,
) -> Result<(), Errno> {
    let (from, name) = above(table.directory(fd)?, guest.path(path)?, true)?;
    let (to, to_name) = above(table.directory(to_fd)?, guest.path(to_path)?, true)?;
    Ok(renameat(from, name, to, to_name)?)
}
