//! Who a process is.

use kedge_supervision::Process;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;

/// Where the start time stands in `/proc/<pid>/stat`, counted from behind the program's name.
const START_FIELD: usize = 19;
/// And what the kernel knows of it, of which this bit says that it is ending. It is set before anything is given back.
const FLAGS_FIELD: usize = 6;
const EXITING: u64 = 0x4;

pub(crate) fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Whether the machine's first process is the program that systemd becomes when all services have ended. It tells every
/// process to end and waits for those that do not, up to 90 seconds; others that send machines off wait for none.
pub(crate) fn machine_goes_off() -> bool {
    // The kernel cuts the names of programs.
    std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd-shutdow")
}

/// Who `pid` is now.
pub(crate) fn identify(pid: u32, boot_id: &str) -> std::io::Result<Process> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    let start_ticks = start_ticks(&text).ok_or(ErrorKind::InvalidData)?;
    Ok(Process {
        pid,
        start_ticks,
        boot_id: boot_id.to_owned(),
    })
}

fn start_ticks(stat: &[u8]) -> Option<u64> {
    field(stat, START_FIELD)
}

fn flags(stat: &[u8]) -> Option<u64> {
    field(stat, FLAGS_FIELD)
}

/// A program's name may hold anything, also brackets and blanks; behind its last bracket everything but the state is a
/// number.
fn field(stat: &[u8], number: usize) -> Option<u64> {
    let behind = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&stat[behind..]).ok()?;
    text.split_whitespace().nth(number)?.parse().ok()
}

/// Whether a process that cannot have been replaced by another goes on: it has not ended, and is not about to.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| flags(&stat).is_some_and(|of| of & EXITING == 0))
}

/// A descriptor that means this very process; `None` when it has ended.
pub(crate) fn open(process: &Process) -> std::io::Result<Option<OwnedFd>> {
    let Some(pid) = number(process) else {
        return Ok(None);
    };
    let fd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    // Only now is the process held, so only now may it be compared.
    match identify(process.pid, &process.boot_id) {
        Ok(found) if found == *process => Ok(Some(fd)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the kernel says of a process that is not our child.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told {
    /// How it ended, as `wait` says it.
    Status(i32),
    /// It has not ended, or nobody has collected it.
    NotYet,
    /// The kernel says such things to parents only.
    Nothing,
}

/// What is asked of the kernel about a process, and its answer, in the order of the kernel's own record.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    /// What is wanted, and then what was given.
    mask: u64,
    cgroup: u64,
    /// Numbers of the process and its parents, then its users and groups.
    ids: [u32; 11],
    exit_status: i32,
}

const INFO_EXIT: u64 = 1 << 3;
const GET_INFO: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<Info>(0xff, 11);

/// Asks how the process ended that a descriptor means. Kernels from 6.15 on tell everybody who held it by then.
pub(crate) fn exit_of(process: &OwnedFd) -> Told {
    let mut info = Info {
        mask: INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the operation reads and writes one record of the size that is a part of its number, and this is the record.
    #[allow(unsafe_code)]
    let asked =
        unsafe { rustix::ioctl::ioctl(process, rustix::ioctl::Updater::<GET_INFO, Info>::new(&mut info)) };
    match asked {
        Ok(()) if info.mask & INFO_EXIT != 0 => Told::Status(info.exit_status),
        Ok(()) => Told::NotYet,
        Err(_) => Told::Nothing,
    }
}

/// Kills a process that cannot have been replaced by another: it is our child, or just told to be there.
pub(crate) fn kill(pid: Pid) {
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

pub(crate) fn number(process: &Process) -> Option<Pid> {
    i32::try_from(process.pid).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_programs_do_not_disturb() {
        let stat = b"12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(flags(stat), Some(6));
        assert_eq!(start_ticks(b"12 (x) S 1"), None);
        assert_eq!(start_ticks(b""), None);
    }
}
