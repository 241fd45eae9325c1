//! Who a process is. A process id alone is reused; together with its start time and the boot it is not.

use crate::root::read_bounded;
use crate::{Error, boot_id, parse};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// A process that can be recognised later, also after this program was restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
    pub boot_id: String,
}

impl Identity {
    /// Who `pid` is now.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let (_, start_ticks) = stat(pid)?.ok_or(Error::ProcessEnded(pid))?;
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id()?,
        })
    }

    /// Whether this very process still exists and is not merely waiting to be reaped.
    pub fn is_alive(&self) -> Result<bool, Error> {
        if self.boot_id != boot_id()? {
            return Ok(false);
        }
        let found = stat(self.pid)?;
        Ok(found.is_some_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X')))
    }

    /// A descriptor that means this process and never another; it is readable once the process has ended. `None` when
    /// it has ended already.
    pub fn open(&self) -> Result<Option<ProcessHandle>, Error> {
        let failed = |errno: rustix::io::Errno| Error::Signal {
            pid: self.pid,
            source: errno.into(),
        };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        // Only now does the descriptor hold the process still, so only now may its start time be compared.
        Ok(self.is_alive()?.then_some(ProcessHandle { pid: self.pid, fd }))
    }
}

/// The state letter and start time of a process, `None` when there is no such process.
fn stat(pid: u32) -> Result<Option<(char, u64)>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // The process ended between opening and reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    let parsed = parse::stat_of_process(&text);
    parsed.map(Some).ok_or(Error::NotUnderstood {
        path,
        reason: "expected the fields of proc(5)".to_owned(),
    })
}

/// The effective capabilities of this process, by number.
pub fn capabilities() -> Result<u64, Error> {
    let path = PathBuf::from("/proc/self/status");
    let text = read_bounded(&path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| Error::NotUnderstood {
            path,
            reason: "expected CapEff".to_owned(),
        })
}

/// Holds a process so that its id cannot come to mean another one.
#[derive(Debug)]
pub struct ProcessHandle {
    pid: u32,
    fd: OwnedFd,
}

impl ProcessHandle {
    /// Sends a signal; a process that has ended meanwhile is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::Signal {
                pid: self.pid,
                source: errno.into(),
            }),
        }
    }
}

/// To wait on: it is readable when the process has ended.
impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The first real-time signal that programs may use: the C library keeps the two before it for itself.
const REAL_TIME_MIN: i32 = 34;
const REAL_TIME_MAX: i32 = 64;

const NAMED: [(&str, Signal); 30] = [
    ("ABRT", Signal::ABORT),
    ("ALRM", Signal::ALARM),
    ("BUS", Signal::BUS),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("FPE", Signal::FPE),
    ("HUP", Signal::HUP),
    ("ILL", Signal::ILL),
    ("INT", Signal::INT),
    ("IO", Signal::IO),
    ("KILL", Signal::KILL),
    ("PIPE", Signal::PIPE),
    ("PROF", Signal::PROF),
    ("PWR", Signal::POWER),
    ("QUIT", Signal::QUIT),
    ("SEGV", Signal::SEGV),
    ("STOP", Signal::STOP),
    ("SYS", Signal::SYS),
    ("TERM", Signal::TERM),
    ("TRAP", Signal::TRAP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("VTALRM", Signal::VTALARM),
    ("WINCH", Signal::WINCH),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
];

/// Understands `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` and `RTMAX-1`, as images write them.
pub fn signal_named(name: &str) -> Result<Signal, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = || NAMED.iter().find(|(known, _)| *known == short);
    let number = short.parse().ok().or_else(|| real_time(short));
    number
        .and_then(numbered)
        .or_else(|| named().map(|(_, signal)| *signal))
        .ok_or_else(|| Error::NoSignal(name.to_owned()))
}

fn real_time(name: &str) -> Option<i32> {
    let after = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(number) => number.parse::<u8>().ok().map(i32::from),
        None => rest.is_empty().then_some(0),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(REAL_TIME_MIN + after(rest, '+')?),
        (None, Some(rest)) => Some(REAL_TIME_MAX - after(rest, '-')?),
        (None, None) => None,
    }
}

fn numbered(number: i32) -> Option<Signal> {
    if (REAL_TIME_MIN..=REAL_TIME_MAX).contains(&number) {
        // SAFETY: the kernel has a signal of this number, and it is none that the C library keeps for itself.
        #[allow(unsafe_code)]
        return Some(unsafe { Signal::from_raw_unchecked(number) });
    }
    Signal::from_named_raw(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_recognised_until_it_ends() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive().unwrap());
        let stranger = Identity {
            start_ticks: identity.start_ticks + 1,
            ..identity.clone()
        };
        assert!(!stranger.is_alive().unwrap(), "same id, other start");
        assert!(stranger.open().unwrap().is_none());
        let other_boot = Identity {
            boot_id: "another".to_owned(),
            ..identity.clone()
        };
        assert!(!other_boot.is_alive().unwrap(), "same id, other boot");

        let handle = identity.open().unwrap().unwrap();
        handle.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!identity.is_alive().unwrap());
        assert!(identity.open().unwrap().is_none());
        handle.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn signals_have_several_spellings() {
        for name in ["SIGTERM", "TERM", "sigterm", "15"] {
            assert_eq!(signal_named(name).unwrap(), Signal::TERM, "{name}");
        }
        for (name, number) in [
            ("SIGRTMIN+3", 37),
            ("rtmin", 34),
            ("RTMAX-1", 63),
            ("63", 63),
            ("SEGV", 11),
        ] {
            assert_eq!(signal_named(name).unwrap().as_raw(), number, "{name}");
        }
        for name in [
            "RTMIN+31", "RTMIN-1", "RTMAX-31", "33", "65", "0", "-9", "RTMIN+", "",
        ] {
            assert!(signal_named(name).is_err(), "{name}");
        }
        assert_eq!(
            signal_named("SIGNOPE").unwrap_err().to_string(),
            "SIGNOPE is not a signal"
        );
    }
}
