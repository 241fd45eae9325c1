//! Waiting for those who make a container, or still write to its directory: the helper with what it has forked, the
//! process that has another runtime start it, and the program that serves its root file system.
//!
//! They hold a pipe in the directory open, from their first moment to their last. So that none of them is left is a fact of the
//! kernel, whoever has killed whom. Those who do not end are found by what they hold, and killed.

use crate::Error;
use kedge_host::process::Identity;
use kedge_supervision::MAKERS;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Who forks while he is looked for leaves a child to be found in the next round.
const ROUNDS_MAX: u32 = 20;
/// What was killed lets go as soon as it runs.
const ROUND_WAIT_MAX: Duration = Duration::from_secs(1);

/// Waits for the end of those who make the container in `directory`, at most `patience`, and kills them then. Blocks
/// until they have ended.
pub(super) fn end(directory: &Path, patience: Duration) -> Result<(), Error> {
    let path = directory.join(MAKERS);
    let failed = |error: std::io::Error| Error::io("wait for those who write to", directory, error);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Ok(pipe) => pipe,
        // Nobody has begun.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno.into())),
    };
    let mut limit = patience;
    for _ in 0..ROUNDS_MAX {
        if is_let_go(&pipe, limit).map_err(failed)? {
            return Ok(());
        }
        kill_writers(&pipe).map_err(failed)?;
        limit = ROUND_WAIT_MAX;
    }
    Err(Error::failed(
        "wait for those who write to",
        directory.display().to_string(),
        "they do not end, though they were killed",
    ))
}

/// Whether nobody holds the other end, or lets go of it within `limit`.
fn is_let_go(pipe: &OwnedFd, limit: Duration) -> std::io::Result<bool> {
    let is_free = || match rustix::io::read(pipe, &mut [0; 1]) {
        Err(Errno::AGAIN) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(std::io::Error::from(errno)),
    };
    if is_free()? {
        return Ok(true);
    }
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // That nobody writes any more is told without being asked for.
    match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::empty())], limit) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => is_free(),
        Err(errno) => Err(errno.into()),
    }
}

/// Kills everybody who holds the pipe open for writing.
fn kill_writers(pipe: &OwnedFd) -> std::io::Result<()> {
    let of = std::fs::File::from(pipe.try_clone()?).metadata()?;
    let pipe = (of.dev(), of.ino());
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !writes(pid, pipe) {
            continue;
        }
        // It may have ended by itself, and another have its number: who is held now is asked again.
        if let Ok(Some(process)) = Identity::of(pid).and_then(|identity| identity.open())
            && writes(pid, pipe)
        {
            tracing::warn!(
                pid,
                "what makes a container that nobody will know, or still serves one that is gone, is killed"
            );
            let _ = process.signal(Signal::KILL);
        }
    }
    Ok(())
}

/// Whether the process has the pipe open for writing. What cannot be looked at has ended.
fn writes(pid: u32, pipe: (u64, u64)) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let open = std::fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    open.into_iter().any(|entry| {
        let is_it = std::fs::metadata(entry.path()).is_ok_and(|of| (of.dev(), of.ino()) == pipe);
        is_it && {
            let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
            info.is_ok_and(|info| is_for_writing(&info))
        }
    })
}

/// Whether a descriptor of which the kernel says this may be written to.
fn is_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn directory(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("kedge-makers-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, directory.join(MAKERS), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        directory
    }

    fn maker(directory: &Path) -> std::process::Child {
        let pipe = std::fs::File::options()
            .read(true)
            .write(true)
            .open(directory.join(MAKERS))
            .unwrap();
        Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::from(pipe))
            .spawn()
            .unwrap()
    }

    #[test]
    fn nobody_is_waited_for_where_nobody_is() {
        let directory = directory("nobody");
        end(&directory, Duration::from_secs(1000)).unwrap();
        std::fs::remove_file(directory.join(MAKERS)).unwrap();
        end(&directory, Duration::from_secs(1000)).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_does_not_end_is_killed() {
        let directory = directory("killed");
        let mut makers = [maker(&directory), maker(&directory)];
        end(&directory, Duration::ZERO).unwrap();
        for maker in &mut makers {
            assert!(!maker.wait().unwrap().success());
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_ends_in_time_is_waited_for() {
        let directory = directory("waited");
        let mut maker = maker(&directory);
        let ended = std::thread::scope(|scope| {
            let waits = scope.spawn(|| end(&directory, Duration::from_secs(1000)));
            maker.kill().unwrap();
            waits.join().unwrap()
        });
        maker.wait().unwrap();
        ended.unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_only_reads_is_no_maker() {
        for (info, want) in [
            ("pos:\t0\nflags:\t0100002\nmnt_id:\t15\n", true),
            ("pos:\t0\nflags:\t02100001\n", true),
            ("pos:\t0\nflags:\t02104000\n", false),
            ("", false),
        ] {
            assert_eq!(is_for_writing(info), want, "{info:?}");
        }
    }
}
