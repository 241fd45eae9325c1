//! What is done with something that is open.

use super::descriptors::{Descriptor, Kind, Table, rights};
use super::errno::Errno;
use super::guest::{Guest, Range};
use rustix::fs::{FallocateFlags, RawDir, SeekFrom};
use rustix::io::retry_on_intr;
use std::io::IoSlice;
use std::mem::MaybeUninit;

pub(super) const FROM_CURRENT: u32 = 1;

/// The name under which the module knows the one directory that it is given.
const ROOT: &[u8] = b"/";
/// A directory among what is given.
const GIVEN_DIRECTORY: u32 = 0;

/// What the kernel tells of a directory at one time.
const ENTRIES_BYTES: usize = 8 * 1024;

pub(super) fn given(table: &Table, guest: &mut Guest<'_>, fd: u32, told: u32) -> Result<(), Errno> {
    root(table, fd)?;
    guest.put_u32(told, GIVEN_DIRECTORY)?;
    guest.put_count(told.checked_add(4).ok_or(Errno::FAULT)?, ROOT.len())
}

pub(super) fn name_of_given(table: &Table, guest: &mut Guest<'_>, fd: u32, into: Range) -> Result<(), Errno> {
    root(table, fd)?;
    let into = guest.bytes_mut(into)?;
    into.get_mut(..ROOT.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(ROOT);
    Ok(())
}

/// Whoever asks goes from number to number until one is refused like this.
fn root(table: &Table, fd: u32) -> Result<&Descriptor, Errno> {
    let found = table.find(fd)?;
    if found.is_root {
        Ok(found)
    } else {
        Err(Errno::BADF)
    }
}

/// Reads to where the module says: from `offset`, or from where the file is.
pub(super) fn read(
    table: &Table,
    guest: &mut Guest<'_>,
    fd: u32,
    vectors: Range,
    offset: Option<u64>,
    told: u32,
) -> Result<(), Errno> {
    let from = except_directory(table, fd, rights::READ)?;
    let mut total = 0;
    for vector in guest.vectors(vectors)? {
        let into = guest.bytes_mut(vector)?;
        if into.is_empty() {
            continue;
        }
        let wanted = into.len();
        let read = retry_on_intr(|| match offset {
            None => rustix::io::read(from, &mut *into),
            Some(offset) => rustix::io::pread(from, &mut *into, offset.saturating_add(total as u64)),
        });
        match read {
            Ok(read) => total += read,
            Err(errno) if total == 0 => return Err(errno.into()),
            Err(_) => break,
        }
        // From anything but a file, more may be long in coming.
        if read != Ok(wanted) || from.kind != Kind::Regular {
            break;
        }
    }
    guest.put_count(told, total)
}

pub(super) fn write(
    table: &Table,
    guest: &mut Guest<'_>,
    fd: u32,
    vectors: Range,
    offset: Option<u64>,
    told: u32,
) -> Result<(), Errno> {
    let to = except_directory(table, fd, rights::WRITE)?;
    let vectors = guest.vectors(vectors)?;
    let slices: Result<Vec<IoSlice<'_>>, Errno> = vectors
        .into_iter()
        .map(|vector| guest.bytes(vector).map(IoSlice::new))
        .collect();
    let slices = slices?;
    let written = retry_on_intr(|| match offset {
        None => rustix::io::writev(to, &slices),
        Some(offset) => rustix::io::pwritev(to, &slices, offset),
    })?;
    guest.put_count(told, written)
}

fn except_directory(table: &Table, fd: u32, rights: u64) -> Result<&Descriptor, Errno> {
    let found = table.find_with(fd, rights)?;
    if found.kind == Kind::Directory {
        Err(Errno::ISDIR)
    } else {
        Ok(found)
    }
}

pub(super) fn seek(
    table: &Table,
    guest: &mut Guest<'_>,
    fd: u32,
    offset: i64,
    whence: u32,
    told: u32,
) -> Result<(), Errno> {
    let file = except_directory(table, fd, 0)?;
    let to = match whence {
        0 => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
        FROM_CURRENT => SeekFrom::Current(offset),
        2 => SeekFrom::End(offset),
        _ => return Err(Errno::INVAL),
    };
    guest.put_u64(told, rustix::fs::seek(file, to)?)
}

/// Tells of a directory from `cookie` on, as much as there is room for. An entry that has no room whole is told in part,
/// which says that there is more.
pub(super) fn read_directory(
    table: &Table,
    guest: &mut Guest<'_>,
    fd: u32,
    into: Range,
    cookie: u64,
    told: u32,
) -> Result<(), Errno> {
    let directory = table.directory(fd)?;
    rustix::fs::seek(directory, SeekFrom::Start(cookie))?;
    let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(directory, &mut buffer);
    let room = guest.bytes_mut(into)?;
    let mut used = 0;
    while used < room.len() {
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let length = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let kind = Kind::of(entry.file_type()) as u8;
        let parts: [&[u8]; 6] = [
            &entry.next_entry_cookie().to_le_bytes(),
            &entry.ino().to_le_bytes(),
            &length.to_le_bytes(),
            &[kind],
            &[0; 3],
            name,
        ];
        for part in parts {
            let fits = part.len().min(room.len() - used);
            room[used..used + fits].copy_from_slice(&part[..fits]);
            used += fits;
        }
    }
    guest.put_count(told, used)
}

pub(super) fn allocate(table: &Table, fd: u32, offset: u64, length: u64) -> Result<(), Errno> {
    let file = except_directory(table, fd, rights::ALLOCATE)?;
    Ok(rustix::fs::fallocate(
        file,
        FallocateFlags::empty(),
        offset,
        length,
    )?)
}

pub(super) fn resize(table: &Table, fd: u32, size: u64) -> Result<(), Errno> {
    let file = except_directory(table, fd, rights::RESIZE)?;
    Ok(rustix::fs::ftruncate(file, size)?)
}

pub(super) fn sync(table: &Table, fd: u32) -> Result<(), Errno> {
    Ok(rustix::fs::fsync(table.find(fd)?)?)
}

pub(super) fn sync_data(table: &Table, fd: u32) -> Result<(), Errno> {
    Ok(rustix::fs::fdatasync(table.find(fd)?)?)
}
