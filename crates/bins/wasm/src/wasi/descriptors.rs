//! What the module has open, under numbers of its own.

use super::Error;
use super::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// More than this at one time no program of a device has; the kernel's own limit for the process holds beside it.
const OPEN_MAX: usize = 4096;

/// What the module may do with something, one bit each; those that are not asked for by number stand in [`ALL`].
pub(super) mod rights {
    pub(crate) const READ: u64 = 1 << 1;
    pub(crate) const SEEK: u64 = 1 << 2;
    pub(crate) const TELL: u64 = 1 << 5;
    pub(crate) const WRITE: u64 = 1 << 6;
    pub(crate) const ALLOCATE: u64 = 1 << 8;
    pub(crate) const READ_DIRECTORY: u64 = 1 << 14;
    pub(crate) const RESIZE: u64 = 1 << 22;
    pub(crate) const ACCEPT: u64 = 1 << 29;
    pub(crate) const ALL: u64 = (1 << 30) - 1;
    /// What needs a file that is open for writing.
    pub(crate) const OF_WRITERS: u64 = WRITE | ALLOCATE | RESIZE;
}

/// What something is, in the interface's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Unknown = 0,
    BlockDevice = 1,
    CharacterDevice = 2,
    Directory = 3,
    Regular = 4,
    Stream = 6,
    Link = 7,
}

impl Kind {
    pub(super) fn of(file: FileType) -> Self {
        match file {
            FileType::BlockDevice => Self::BlockDevice,
            FileType::CharacterDevice => Self::CharacterDevice,
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::Regular,
            FileType::Socket => Self::Stream,
            FileType::Symlink => Self::Link,
            FileType::Fifo | FileType::Unknown => Self::Unknown,
        }
    }
}

/// Something that is open.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) file: OwnedFd,
    pub(super) kind: Kind,
    pub(super) rights: u64,
    /// The container's root, which the module has from the beginning.
    pub(super) is_root: bool,
}

impl Descriptor {
    /// Something that was opened for reading, for writing, or both.
    pub(super) fn new(file: OwnedFd, reads: bool, writes: bool) -> Result<Self, Errno> {
        let kind = Kind::of(FileType::from_raw_mode(fstat(&file)?.st_mode));
        let mut rights = rights::ALL & !rights::ACCEPT;
        if !reads {
            rights &= !rights::READ;
        }
        if !writes {
            rights &= !rights::OF_WRITERS;
        }
        // By these the libraries of languages know a terminal.
        if matches!(kind, Kind::CharacterDevice | Kind::Stream | Kind::Unknown) {
            rights &= !(rights::SEEK | rights::TELL);
        }
        Ok(Self {
            file,
            kind,
            rights,
            is_root: false,
        })
    }

    /// How paths below it are walked. In the container's root an absolute link means what it says; below a directory
    /// that the module opened, nothing leads out of it.
    pub(super) fn resolution(&self) -> ResolveFlags {
        let within = if self.is_root {
            ResolveFlags::IN_ROOT
        } else {
            ResolveFlags::BENEATH
        };
        within | ResolveFlags::NO_MAGICLINKS
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// By number.
#[derive(Debug)]
pub(super) struct Table(Vec<Option<Descriptor>>);

impl Table {
    /// The three streams, the root, and what listens.
    pub(super) fn new(listeners: Vec<OwnedFd>) -> Result<Self, Error> {
        let kept = |what, file: rustix::io::Result<OwnedFd>, reads, writes| {
            let failed = |error: std::io::Error| Error::Open(what, error);
            let file = file.map_err(|errno| failed(errno.into()))?;
            Descriptor::new(file, reads, writes).map_err(|_| failed(std::io::ErrorKind::Other.into()))
        };
        let copy = |stream: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(stream, 0);
        let root = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut table = vec![
            Some(kept("standard input", copy(rustix::stdio::stdin()), true, false)?),
            Some(kept(
                "standard output",
                copy(rustix::stdio::stdout()),
                false,
                true,
            )?),
            Some(kept(
                "standard error",
                copy(rustix::stdio::stderr()),
                false,
                true,
            )?),
            Some(Descriptor {
                is_root: true,
                ..kept("/", rustix::fs::open("/", root, Mode::empty()), true, false)?
            }),
        ];
        for listener in listeners {
            let listener = kept("a socket that listens", Ok(listener), true, true)?;
            table.push(Some(Descriptor {
                rights: listener.rights | rights::ACCEPT,
                ..listener
            }));
        }
        Ok(Self(table))
    }

    pub(super) fn find(&self, fd: u32) -> Result<&Descriptor, Errno> {
        let place = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        self.0.get(place).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    /// One with all of some rights.
    pub(super) fn find_with(&self, fd: u32, rights: u64) -> Result<&Descriptor, Errno> {
        let found = self.find(fd)?;
        if found.rights & rights == rights {
            Ok(found)
        } else {
            Err(Errno::BADF)
        }
    }

    pub(super) fn directory(&self, fd: u32) -> Result<&Descriptor, Errno> {
        let found = self.find(fd)?;
        if found.kind == Kind::Directory {
            Ok(found)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    /// Puts something under the lowest number that is free.
    pub(super) fn add(&mut self, descriptor: Descriptor) -> Result<u32, Errno> {
        let place = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if place >= OPEN_MAX {
            return Err(Errno::MFILE);
        }
        if place == self.0.len() {
            self.0.push(None);
        }
        self.0[place] = Some(descriptor);
        u32::try_from(place).map_err(|_| Errno::MFILE)
    }

    pub(super) fn close(&mut self, fd: u32) -> Result<(), Errno> {
        self.place(fd)?.take().map(drop).ok_or(Errno::BADF)
    }

    /// Moves one to the number of another, which is closed.
    pub(super) fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.find(to)?;
        let moved = self.place(from)?.take().ok_or(Errno::BADF)?;
        *self.place(to)? = Some(moved);
        Ok(())
    }

    fn place(&mut self, fd: u32) -> Result<&mut Option<Descriptor>, Errno> {
        let place = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        self.0.get_mut(place).ok_or(Errno::BADF)
    }
}
