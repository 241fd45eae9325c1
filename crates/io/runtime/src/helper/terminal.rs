//! A terminal in a container, for a command that is run there.

use super::Failure;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fstat, fstatfs, major, minor};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::{AsFd, OwnedFd};

/// The file system of terminals says so, and the file that makes them has always this number there.
const TERMINALS_MAGIC: i64 = 0x1cd1;
const MAKER_INODE: u64 = 2;
const MAKER_DEVICE: (u32, u32) = (5, 2);
const MAKER: &str = "/dev/pts/ptmx";

/// Makes a terminal, sends our end of it away, and gives the other, which belongs to `uid` and is this process's own
/// terminal. Called in the container, whose files may be anything: so what makes the terminal is looked at.
pub(super) fn make(uid: u32, to: &OwnedFd) -> Result<OwnedFd, Failure> {
    let failed = |error: std::io::Error| Failure::new("make a terminal", error);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let ours = rustix::fs::openat(CWD, MAKER, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    if !makes_terminals(&ours).map_err(|errno| failed(errno.into()))? {
        return Err(Failure::new(
            "make a terminal",
            "/dev/pts/ptmx of the container is not what it should be",
        ));
    }
    let theirs = || -> rustix::io::Result<OwnedFd> {
        unlockpt(&ours)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        rustix::fs::fchown(&theirs, Some(Uid::from_raw(uid)), None::<Gid>)?;
        rustix::process::ioctl_tiocsctty(&theirs)?;
        Ok(theirs)
    };
    let theirs = theirs().map_err(|errno| failed(errno.into()))?;
    kedge_packets::send(to, b"t", Some(ours.as_fd())).map_err(failed)?;
    Ok(theirs)
}

#[allow(
    clippy::useless_conversion,
    reason = "the kernel's type is narrower on 32-bit machines"
)]
fn makes_terminals(file: &OwnedFd) -> rustix::io::Result<bool> {
    let (stat, system) = (fstat(file)?, fstatfs(file)?);
    Ok(i64::from(system.f_type) == TERMINALS_MAGIC
        && stat.st_ino == MAKER_INODE
        && (major(stat.st_rdev), minor(stat.st_rdev)) == MAKER_DEVICE)
}
