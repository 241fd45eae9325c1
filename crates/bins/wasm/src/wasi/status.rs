//! What is told of files, and what of it can be set.

use super::clocks::timespec;
use super::descriptors::{Kind, Table};
use super::errno::Errno;
use super::guest::Guest;
use rustix::fs::{FileType, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fstat};

/// Of something that is open, in the interface's numbers.
pub(super) mod flags {
    pub(crate) const APPEND: u32 = 1;
    pub(crate) const DSYNC: u32 = 2;
    pub(crate) const NONBLOCK: u32 = 4;
    pub(crate) const RSYNC: u32 = 8;
    pub(crate) const SYNC: u32 = 16;
}

const WITH_KERNELS: [(u32, OFlags); 5] = [
    (flags::APPEND, OFlags::APPEND),
    (flags::DSYNC, OFlags::DSYNC),
    (flags::NONBLOCK, OFlags::NONBLOCK),
    (flags::RSYNC, OFlags::RSYNC),
    (flags::SYNC, OFlags::SYNC),
];

/// What can be changed of something that is open.
const CHANGEABLE: u32 = flags::APPEND | flags::NONBLOCK;

const SET_ACCESSED: u32 = 1;
const SET_ACCESSED_NOW: u32 = 2;
const SET_MODIFIED: u32 = 4;
const SET_MODIFIED_NOW: u32 = 8;

/// The kernel's words for the interface's.
pub(super) fn kernels(flags: u32) -> OFlags {
    let set = WITH_KERNELS.iter().filter(|(number, _)| flags & number != 0);
    set.fold(OFlags::empty(), |all, (_, flag)| all | *flag)
}

pub(super) fn of_descriptor(table: &Table, guest: &mut Guest<'_>, fd: u32, told: u32) -> Result<(), Errno> {
    let found = table.find(fd)?;
    let set = rustix::fs::fcntl_getfl(found)?;
    let flags = WITH_KERNELS.iter().filter(|(_, flag)| set.contains(*flag));
    let flags = flags.fold(0, |all, (number, _)| all | number);
    let [low, high, ..] = flags.to_le_bytes();
    let inherited = if found.kind == Kind::Directory {
        super::descriptors::rights::ALL
    } else {
        0
    };
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&[found.kind as u8, 0, low, high]);
    bytes[8..16].copy_from_slice(&found.rights.to_le_bytes());
    bytes[16..].copy_from_slice(&inherited.to_le_bytes());
    guest.put(told, &bytes)
}

pub(super) fn set_flags(table: &Table, fd: u32, flags: u32) -> Result<(), Errno> {
    let found = table.find(fd)?;
    if flags & !CHANGEABLE != 0 {
        return Err(Errno::NOTSUP);
    }
    let others = rustix::fs::fcntl_getfl(found)? - kernels(CHANGEABLE);
    Ok(rustix::fs::fcntl_setfl(found, others | kernels(flags))?)
}

pub(super) fn of_file(table: &Table, guest: &mut Guest<'_>, fd: u32, told: u32) -> Result<(), Errno> {
    let stat = fstat(table.find(fd)?)?;
    put(guest, told, &stat)
}

#[allow(
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "the kernel's types differ between machines"
)]
pub(super) fn put(guest: &mut Guest<'_>, told: u32, stat: &Stat) -> Result<(), Errno> {
    let time = |seconds: i64, rest: u64| {
        super::clocks::nanoseconds(Timespec {
            tv_sec: seconds,
            tv_nsec: rest.try_into().unwrap_or(0),
        })
    };
    let kind = Kind::of(FileType::from_raw_mode(stat.st_mode));
    let numbers = [
        stat.st_dev as u64,
        stat.st_ino as u64,
        u64::from(kind as u8),
        stat.st_nlink as u64,
        stat.st_size as u64,
        time(stat.st_atime as i64, stat.st_atime_nsec as u64),
        time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
        time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
    ];
    let mut bytes = [0; 64];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    guest.put(told, &bytes)
}

/// Which times are to be set to what.
pub(super) fn times(accessed: u64, modified: u64, flags: u32) -> Result<Timestamps, Errno> {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let chosen = |set: u32, now: u32, given: u64| match (flags & set != 0, flags & now != 0) {
        (true, true) => Err(Errno::INVAL),
        (true, false) => Ok(timespec(given)),
        (false, true) => Ok(special(UTIME_NOW)),
        (false, false) => Ok(special(UTIME_OMIT)),
    };
    Ok(Timestamps {
        last_access: chosen(SET_ACCESSED, SET_ACCESSED_NOW, accessed)?,
        last_modification: chosen(SET_MODIFIED, SET_MODIFIED_NOW, modified)?,
    })
}

pub(super) fn set_times(
    table: &Table,
    fd: u32,
    accessed: u64,
    modified: u64,
    flags: u32,
) -> Result<(), Errno> {
    Ok(rustix::fs::futimens(
        table.find(fd)?,
        &times(accessed, modified, flags)?,
    )?)
}
