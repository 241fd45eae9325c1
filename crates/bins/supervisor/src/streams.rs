//! The supervisor's ends of a container's streams.

use crate::Failure;
use kedge_containerlog::{Lines, LogFile, Moment, Stream};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A log, and what its disk did not take.
#[derive(Debug)]
pub(crate) struct Log {
    file: LogFile,
    lost: u64,
    why: String,
}

impl Log {
    pub(crate) fn open(path: &Path, bytes_max: u64) -> Result<Self, Failure> {
        let file = LogFile::open(path, bytes_max)
            .map_err(|error| Failure::new(&format!("open log {}", path.display()), error))?;
        Ok(Self {
            file,
            lost: 0,
            why: String::new(),
        })
    }

    /// Writes whole records. A disk that refuses must not stop the container, so lines are lost; how many is said in
    /// the log itself as soon as there is room again.
    pub(crate) fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.lost > 0 && self.own_up().is_err() {
            self.lost += records.iter().filter(|byte| **byte == b'\n').count() as u64;
            return;
        }
        if let Err(lost) = self.file.write(records) {
            self.lost += lost.lines;
            self.why = lost.source.to_string();
        }
    }

    pub(crate) fn reopen(&mut self) -> std::io::Result<()> {
        self.file.reopen()
    }

    fn own_up(&mut self) -> Result<(), kedge_containerlog::Lost> {
        let sentence = format!("kedge: {} lines of this log were lost: {}\n", self.lost, self.why);
        let mut record = Vec::new();
        Lines::new(Stream::Stderr).push(sentence.as_bytes(), Moment::now(), &mut record);
        self.file.write(&record)?;
        self.lost = 0;
        Ok(())
    }
}

/// What reading an output brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Bytes(usize),
    Nothing,
    /// Nobody can write any more.
    Ended,
}

/// Our end of one of the outputs; `None` once it was closed.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) lines: Lines,
}

impl Output {
    pub(crate) fn new(stream: Stream, fd: Option<OwnedFd>) -> Self {
        Self {
            fd,
            lines: Lines::new(stream),
        }
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Heard {
        let Some(fd) = &self.fd else {
            return Heard::Nothing;
        };
        match rustix::io::read(fd, buffer) {
            Ok(0) => Heard::Ended,
            Ok(bytes) => Heard::Bytes(bytes),
            Err(Errno::AGAIN | Errno::INTR) => Heard::Nothing,
            Err(_) => Heard::Ended,
        }
    }
}

/// Our end of the input, and what the container has not yet taken.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None`: the terminal, which is both.
    pub(crate) pipe: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// Nothing comes after what waits.
    pub(crate) last: bool,
}

impl Input {
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe,
            waiting: Vec::new(),
            last: false,
        }
    }

    /// Whether the container has yet to take something; until then nobody may say more.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what the container takes, and keeps the rest.
    pub(crate) fn write(&mut self, terminal: Option<&OwnedFd>, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        self.flush(terminal);
    }

    /// Tries again.
    pub(crate) fn flush(&mut self, terminal: Option<&OwnedFd>) {
        let Some(fd) = self.pipe.as_ref().or(terminal) else {
            self.waiting = Vec::new();
            return;
        };
        while !self.waiting.is_empty() {
            match rustix::io::write(fd, &self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The container closed its input: nobody will read it.
                Err(_) => self.waiting.clear(),
            }
        }
        self.waiting = Vec::new();
    }
}

/// A terminal's other end is held, too: so it does not hang up when the container's processes close it for a moment.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) _held: Option<OwnedFd>,
}

/// Makes a stream with a name, so that it can be opened by those who come later.
pub(crate) fn make(path: &Path) -> std::io::Result<()> {
    kedge_files::remove(path)?;
    Ok(rustix::fs::mknodat(
        CWD,
        path,
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )?)
}

/// Opens a pipe as one who may write to it, whether anybody reads or not.
pub(crate) fn open_as_maker(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Opens an output to read it.
pub(crate) fn open_output(path: &Path) -> std::io::Result<OwnedFd> {
    open(path, OFlags::RDONLY)
}

/// Opens an input so that whoever opens it to read does not wait, before there is a reader.
pub(crate) fn open_input_early(path: &Path) -> std::io::Result<OwnedFd> {
    open(path, OFlags::RDWR)
}

/// Opens an input that somebody has open to read: it tells when he closes it. `None` when nobody has.
pub(crate) fn open_input(path: &Path) -> std::io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(CWD, path, OFlags::WRONLY | FLAGS, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

const FLAGS: OFlags = OFlags::NONBLOCK.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn open(path: &Path, how: OFlags) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, how | FLAGS, Mode::empty())?)
}

/// Makes a terminal ready to be read and written.
pub(crate) fn take_terminal(master: impl AsFd) -> std::io::Result<Terminal> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
    rustix::io::ioctl_fionbio(&master, true)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(Terminal {
        // A kernel that cannot open it leaves us with a terminal that may hang up early.
        _held: ioctl_tiocgptpeer(&master, flags).ok(),
    })
}
