//! Waiting for the next event.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::Timespec;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Events taken at once; the rest is taken in the next round.
const EVENTS_MAX: usize = 32;

/// Whose event it is. Keys are never used twice, so that a late event cannot mean another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Signals,
    Client(u32),
    /// The outputs of a container.
    Stdout(u32),
    Stderr(u32),
    /// Its input, when it did not take everything at once.
    Stdin(u32),
    /// The program that makes it.
    Made(u32),
    /// The first process of an adopted container.
    Process(u32),
    /// The process that serves its root file system.
    Root(u32),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Client(key) => (2, key),
            Self::Stdout(key) => (3, key),
            Self::Stderr(key) => (4, key),
            Self::Stdin(key) => (5, key),
            Self::Made(key) => (6, key),
            Self::Process(key) => (7, key),
            Self::Root(key) => (8, key),
        };
        kind << 32 | u64::from(key)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let key = u32::try_from(packed & u64::from(u32::MAX)).ok()?;
        match packed >> 32 {
            0 => Some(Self::Listener),
            1 => Some(Self::Signals),
            2 => Some(Self::Client(key)),
            3 => Some(Self::Stdout(key)),
            4 => Some(Self::Stderr(key)),
            5 => Some(Self::Stdin(key)),
            6 => Some(Self::Made(key)),
            7 => Some(Self::Process(key)),
            8 => Some(Self::Root(key)),
            _ => None,
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadAndWrite,
    /// Only that the other end hung up.
    HangUp,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::ReadAndWrite => EventFlags::IN | EventFlags::OUT,
            // The kernel always tells.
            Self::HangUp => EventFlags::empty(),
        }
    }
}

/// An event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Happened {
    pub(crate) token: Token,
    pub(crate) writable: bool,
    pub(crate) hung_up: bool,
}

/// The set of what is waited for. A descriptor leaves it when it is closed.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: OwnedFd,
}

impl Watch {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> std::io::Result<()> {
        let data = EventData::new_u64(token.pack());
        Ok(epoll::add(&self.epoll, fd, data, interest.flags())?)
    }

    pub(crate) fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> std::io::Result<()> {
        let data = EventData::new_u64(token.pack());
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    /// Adds or changes.
    pub(crate) fn set(&self, fd: impl AsFd, token: Token, interest: Interest) -> std::io::Result<()> {
        match self.change(&fd, token, interest) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.add(fd, token, interest),
            changed => changed,
        }
    }

    /// Waits for it no longer; what is not waited for is no error.
    pub(crate) fn remove(&self, fd: impl AsFd) -> std::io::Result<()> {
        match epoll::delete(&self.epoll, fd) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits, at most for a time if one is given.
    pub(crate) fn wait(&self, limit: Option<Duration>, happened: &mut Vec<Happened>) -> std::io::Result<()> {
        happened.clear();
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut space = [MaybeUninit::<Event>::uninit(); EVENTS_MAX];
        let events = match epoll::wait(&self.epoll, &mut space, limit.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        happened.extend(events.iter().filter_map(|event| {
            let (flags, data) = (event.flags, event.data);
            Some(Happened {
                token: Token::unpack(data.u64())?,
                writable: flags.contains(EventFlags::OUT),
                hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            })
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_was() {
        for token in [
            Token::Listener,
            Token::Signals,
            Token::Client(1),
            Token::Stdout(u32::MAX),
            Token::Stderr(7),
            Token::Stdin(8),
            Token::Made(0),
            Token::Process(9),
            Token::Root(10),
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
