//! Containers that another OCI runtime makes: `runc`, or `crun`, as it is installed on the node.
//!
//! ```text
//!   supervisor --- starts ---> this helper --- runs ---> runc create, whose container becomes the supervisor's child
//!                                   '--- leaves ---> a starter, which waits on the start socket,
//!                                                    runs runc start when it is called, and ends
//! ```
//!
//! So the supervisor starts such a container exactly as it starts one of libcontainer's, and knows no difference. What
//! the other runtime keeps is below the container's own directory and goes with it.

use super::bundle::Bundle;
use super::{Failure, container, rootfs};
use crate::durable;
use crate::embedded::records::LaunchRecord;
use kedge_host::cgroups::{self, Layout};
use kedge_host::process::{Identity, ProcessHandle};
use kedge_host::program;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork, setsid};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below the container's directory: what the other runtime keeps for itself.
const STATE: &str = "foreign";
const LOG: &str = "foreign.log";
const PID_FILE: &str = "foreign.pid";
/// The runtime that wants one tree of control groups.
const ONE_TREE_ONLY: &str = "crun";
/// What the supervisor connects to.
const SOCKET: &str = "start.sock";

/// A runtime answers in some hundred milliseconds; a machine that swaps needs longer.
const CREATE_MAX: Duration = Duration::from_secs(60);
const START_MAX: Duration = Duration::from_secs(30);
/// The supervisor speaks as soon as it is connected; who does not must not hold the container up.
const WORD_WAIT_MAX: Duration = Duration::from_secs(5);
const WORD_BYTES_MAX: usize = 64;
/// What a runtime says of one failure.
const LOG_BYTES_MAX: u64 = 64 * 1024;

/// The socket on which the starter waits.
pub(crate) fn start_socket(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// A runtime's program, and the container that it has.
struct Runtime<'a> {
    program: &'a Path,
    directory: &'a Path,
    id: &'a str,
}

/// Makes the container; its first process, whose number is returned, then waits to be started. With it comes our end of
/// its terminal, if it has one.
pub(super) fn make(
    directory: &Path,
    launch: &LaunchRecord,
    program: &Path,
) -> Result<(u32, Option<OwnedFd>), Failure> {
    let bundle = Bundle::open(directory)?;
    let source = rootfs::begin(directory, launch)?;
    rootfs::own_mounts()?;
    hide_second_tree(program)?;
    rootfs::make(&source, directory, launch)?;
    bundle.prepare(&directory.join("rootfs"), None)?;
    let runtime = Runtime {
        program,
        directory,
        id: &launch.id,
    };
    let console = launch
        .supervised
        .tty
        .then(|| Console::listen(directory))
        .transpose()?;
    let streams = match &console {
        Some(_) => nowhere()?,
        None => container::streams(directory, launch)
            .map_err(|error| Failure::new("open the container's streams", error))?,
    };
    let pid = runtime.create(streams, console.as_ref())?;
    let rest = || {
        bundle.finish_mounts_of(pid)?;
        let listener = container::listen(directory, SOCKET)
            .map_err(|error| Failure::new("wait for the start", error))?;
        let terminal = console
            .as_ref()
            .map(|console| container::terminal(&console.listener));
        runtime.leave_starter(pid, listener)?;
        terminal.transpose()
    };
    let terminal = rest().inspect_err(|_| drop(runtime.delete()))?;
    Ok((pid, terminal))
}

/// `crun` makes no containers where control groups of both versions are and the second has controllers. What it does not
/// see does not trouble it: in this process's own mounts the second tree goes. The container's process is put into its
/// groups of the first.
fn hide_second_tree(program: &Path) -> Result<(), Failure> {
    if program.file_name() != Some(OsStr::new(ONE_TREE_ONLY)) {
        return Ok(());
    }
    let layout = cgroups::layout().map_err(|error| Failure::new("find control groups", error))?;
    let Layout::Hybrid { unified, .. } = layout else {
        return Ok(());
    };
    unmount(unified, UnmountFlags::DETACH)
        .map_err(|errno| Failure::new("hide the second tree of groups", errno))
}

/// Where another runtime brings the container's terminal.
struct Console {
    listener: UnixListener,
    directory: File,
}

impl Console {
    fn listen(directory: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new("wait for the terminal", error);
        Ok(Self {
            listener: container::listen(directory, container::CONSOLE_SOCKET).map_err(failed)?,
            directory: File::open(directory).map_err(failed)?,
        })
    }

    /// The path of a socket may not be as long as that of a container's directory: so it goes by way of this process.
    fn path(&self) -> PathBuf {
        let own = format!("/proc/{}/fd/{}", std::process::id(), self.directory.as_raw_fd());
        Path::new(&own).join(container::CONSOLE_SOCKET)
    }
}

impl Runtime<'_> {
    fn create(&self, streams: [OwnedFd; 3], console: Option<&Console>) -> Result<u32, Failure> {
        let state = self.directory.join(STATE);
        std::fs::create_dir_all(&state).map_err(|error| Failure::new("make directory foreign", error))?;
        let pid_file = self.directory.join(PID_FILE);
        let console = console.map(Console::path);
        let mut words: Vec<&OsStr> = vec![
            "create".as_ref(),
            "--bundle".as_ref(),
            self.directory.as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_ref(),
        ];
        if let Some(socket) = &console {
            words.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), socket.as_ref()]);
        }
        words.push(self.id.as_ref());
        let told = self.run(&words, streams, CREATE_MAX);
        let read = told.and_then(|()| {
            let text = std::fs::read_to_string(&pid_file)
                .map_err(|error| Failure::new("read the container's process", error))?;
            text.trim()
                .parse()
                .map_err(|error| Failure::new("read the container's process", error))
        });
        read.inspect_err(|_| drop(self.delete()))
    }

    fn start(&self) -> Result<(), Failure> {
        self.run(&["start".as_ref(), self.id.as_ref()], nowhere()?, START_MAX)
    }

    fn delete(&self) -> Result<(), Failure> {
        let words: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), self.id.as_ref()];
        self.run(&words, nowhere()?, START_MAX)
    }

    fn run(&self, words: &[&OsStr], streams: [OwnedFd; 3], limit: Duration) -> Result<(), Failure> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let act = format!(
            "{name} {}",
            words.first().unwrap_or(&OsStr::new("")).to_string_lossy()
        );
        let (state, log) = (self.directory.join(STATE), self.directory.join(LOG));
        // Its last words only; those of an earlier call have been told.
        durable::remove_file(&log)?;
        let mut all: Vec<&OsStr> = vec![
            "--root".as_ref(),
            state.as_ref(),
            "--log".as_ref(),
            log.as_ref(),
            "--log-format".as_ref(),
            "json".as_ref(),
        ];
        all.extend(words);
        let ended = program::run_on(self.program, &all, streams, limit);
        let status = ended.map_err(|error| Failure::new(&act, error))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(
            &act,
            last_words(&log).unwrap_or_else(|| status.to_string()),
        ))
    }

    /// Leaves a process behind that starts the container when the supervisor says so. It ends with it, and with the
    /// container.
    fn leave_starter(&self, pid: u32, listener: UnixListener) -> Result<(), Failure> {
        let process = Identity::of(pid)
            .and_then(|identity| identity.open())
            .map_err(|error| Failure::new("hold the container's process", error))?
            .ok_or_else(|| Failure::new("hold the container's process", "it has ended"))?;
        // SAFETY: this process has one thread, so the child finds every lock and allocator as they were.
        #[allow(unsafe_code)]
        let forked = unsafe { fork() }.map_err(|errno| Failure::new("leave a process behind", errno))?;
        match forked {
            ForkResult::Parent { .. } => Ok(()),
            ForkResult::Child => {
                let started = self.wait_and_start(&process, &listener);
                if let Err(Failure(why)) = &started {
                    // Nobody else is told: the container has not begun, so it ends.
                    eprintln!("{why}");
                    drop(process.signal(Signal::KILL));
                }
                // The parent's work is not this one's to finish.
                #[allow(clippy::exit)]
                std::process::exit(i32::from(started.is_err()))
            }
        }
    }

    fn wait_and_start(&self, process: &ProcessHandle, listener: &UnixListener) -> Result<(), Failure> {
        // Whoever made this process waits for the end of its output, and has had its answer by another.
        let quiet = File::options().write(true).open("/dev/null");
        quiet
            .and_then(|null| nix::unistd::dup2_stdout(&null).map_err(Into::into))
            .map_err(|error| Failure::new("close the answer", error))?;
        setsid().map_err(|errno| Failure::new("begin a session", errno))?;
        loop {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
            ];
            while let Err(nix::errno::Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {}
            if fds[1].any().unwrap_or(false) {
                return Ok(());
            }
            // The caller's word is taken before anything happens: it must not find us gone with the word half said.
            if fds[0].any().unwrap_or(false) && is_called(listener) {
                return self.start();
            }
        }
    }
}

/// Whether somebody came and said something; what it is does not matter.
fn is_called(listener: &UnixListener) -> bool {
    let said = || -> std::io::Result<usize> {
        let (mut caller, _) = listener.accept()?;
        caller.set_read_timeout(Some(WORD_WAIT_MAX))?;
        caller.read(&mut [0; WORD_BYTES_MAX])
    };
    said().is_ok_and(|bytes| bytes > 0)
}

fn nowhere() -> Result<[OwnedFd; 3], Failure> {
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let all = || Ok([open()?, open()?, open()?]);
    all().map_err(|error: std::io::Error| Failure::new("open /dev/null", error))
}

/// One line of a runtime's log.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

/// The last error that a runtime wrote down.
fn last_words(log: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(log).ok()?;
    file.take(LOG_BYTES_MAX).read_to_string(&mut text).ok()?;
    let lines = text.lines().rev();
    let mut read = lines.filter_map(|line| serde_json::from_str::<Line>(line).ok());
    read.find(|line| line.level == "error").map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_told() {
        let log = std::env::temp_dir().join(format!("kedge-foreign-{}", std::process::id()));
        let text = "not json\n{\"level\":\"error\",\"msg\":\"first\",\"time\":\"t\"}\n\
            {\"level\":\"error\",\"msg\":\"exec failed: no such file\"}\n{\"level\":\"warning\",\"msg\":\"w\"}\n{\"le";
        std::fs::write(&log, text).unwrap();
        let told = last_words(&log);
        std::fs::remove_file(&log).unwrap();
        assert_eq!(told.as_deref(), Some("exec failed: no such file"));
        assert_eq!(last_words(&log), None);
    }
}
