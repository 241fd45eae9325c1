//! The process beside each container: it makes it, writes its log, waits for its end and says how it ended.
//!
//! ```text
//!   made --- start order on control.sock ---> running ---+
//!     |                                                  +--- first process ends ---> exited, and so do we
//!     +--------------------------------------------------+
//! ```
//!
//! It is single-threaded, survives the daemon, and holds no more than the container's streams.

use super::container::{self, Streams};
use super::{Failure, reply, reply_bytes, rootfs};
use crate::cgroup::oom_kills;
use crate::cri_log::{Lines, LogFile, Stream};
use crate::durable;
use crate::embedded::now_ms;
use crate::embedded::records::{LaunchRecord, Phase, StateRecord};
use jiff::Timestamp;
use kedge_containers::ExitReason;
use kedge_host::process::Identity;
use libcontainer::container::Container;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Bytes taken from a stream at once; as much as a pipe holds by default.
const READ_BYTES: usize = 64 * 1024;
/// The daemon writes its one byte at once; who does not must not hold us up.
const ORDER_WAIT_MAX: Duration = Duration::from_secs(2);
/// A shell that was ended by a signal says 128 and its number.
const EXIT_CODE_SIGNAL: i32 = 128;
const EXIT_CODE_UNKNOWN: i32 = 255;

/// Is the supervisor of the container in `directory`.
pub(super) fn run(directory: &Path) -> ExitCode {
    let mut supervisor = match Supervisor::make(directory) {
        Ok(supervisor) => supervisor,
        Err(failure) => {
            eprintln!("{}", failure.0);
            return if reply(Err(failure)).is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
    };
    // Nobody waits for the answer: the daemon was killed, and will not know what it ordered.
    if reply(Ok(())).is_err() {
        supervisor.abandon();
        return ExitCode::FAILURE;
    }
    match quiet_stdout().and_then(|()| supervisor.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.0);
            ExitCode::FAILURE
        }
    }
}

struct Supervisor {
    launch: LaunchRecord,
    container: Container,
    pidfd: OwnedFd,
    pid: Pid,
    listener: UnixListener,
    outputs: [Output; 2],
    log: LogFile,
    state: StateRecord,
    /// Held so that reading it waits, when the container wants its input open.
    _stdin: Option<OwnedFd>,
}

/// Our end of one of the container's outputs; `None` once it was closed.
struct Output {
    pipe: Option<File>,
    lines: Lines,
}

impl Supervisor {
    fn make(directory: &Path) -> Result<Self, Failure> {
        stand_alone()?;
        let launch: LaunchRecord = durable::read_record(&directory.join("launch.json"))?
            .ok_or_else(|| Failure::new("read launch.json", "there is none"))?;
        let listener = listen(directory)?;
        let log = LogFile::open(&launch.log_path, launch.log_bytes_max)
            .map_err(|error| Failure::new(&format!("open log {}", launch.log_path.display()), error))?;
        rootfs::own_mounts()?;
        rootfs::make(directory, &launch)?;
        let (streams, outputs, stdin) = streams(launch.stdin)?;
        let container = container::create(directory, &launch, streams)?;
        rootfs::release_sandboxes(&launch)?;
        let pid = container
            .pid()
            .ok_or_else(|| Failure::new("make the container", "it has no process"))?;
        let pid = Pid::from_raw(pid.as_raw());
        let state = StateRecord {
            supervisor: identity(std::process::id())?,
            process: identity_of(pid)?,
            phase: Phase::Created,
        };
        durable::write_record(&launch.state_path, &state)?;
        let pidfd = rustix::process::Pid::from_raw(pid.as_raw())
            .ok_or_else(|| Failure::new("make the container", "it has no process"))
            .and_then(|pid| {
                pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| Failure::new("hold its process", errno))
            })?;
        Ok(Self {
            launch,
            container,
            pidfd,
            pid,
            listener,
            outputs,
            log,
            state,
            _stdin: stdin,
        })
    }

    /// Follows the container to its end.
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            let ready = self.wait()?;
            if ready.order {
                self.obey();
            }
            for (number, readable) in ready.outputs.into_iter().enumerate() {
                if readable {
                    self.copy_output(number);
                }
            }
            if ready.ended {
                return self.finish();
            }
        }
    }

    fn wait(&self) -> Result<Ready, Failure> {
        let mut fds = vec![
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let open: Vec<usize> = (0..self.outputs.len())
            .filter(|number| self.outputs[*number].pipe.is_some())
            .collect();
        for pipe in self.outputs.iter().filter_map(|output| output.pipe.as_ref()) {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new("wait for the container", errno)),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let mut ready = Ready {
            ended: is_ready(&fds[0]),
            order: is_ready(&fds[1]),
            outputs: [false; 2],
        };
        for (place, number) in open.into_iter().enumerate() {
            ready.outputs[number] = is_ready(&fds[2 + place]);
        }
        Ok(ready)
    }

    /// Takes one order: to let the container run.
    fn obey(&mut self) {
        let Ok((mut from, _)) = self.listener.accept() else {
            return;
        };
        let mut order = [0; 1];
        let heard = from
            .set_read_timeout(Some(ORDER_WAIT_MAX))
            .and_then(|()| from.read_exact(&mut order));
        if heard.is_err() {
            return;
        }
        let started = self.start();
        // A daemon that was killed meanwhile learns it from the state.
        drop(from.write_all(&reply_bytes(started)));
    }

    fn start(&mut self) -> Result<(), Failure> {
        if self.state.phase != Phase::Created {
            return Err(Failure::new("start the container", "it was started before"));
        }
        self.container
            .start()
            .map_err(|error| Failure::new("start the container", error))?;
        self.state.phase = Phase::Running { started_ms: now_ms() };
        Ok(durable::write_record(&self.launch.state_path, &self.state)?)
    }

    /// Moves what an output has to say to the log. A disk that refuses must not stop the container: lines are lost.
    fn copy_output(&mut self, number: usize) {
        let output = &mut self.outputs[number];
        let Some(pipe) = &mut output.pipe else { return };
        let mut buffer = [0; READ_BYTES];
        let mut records = Vec::new();
        match pipe.read(&mut buffer) {
            Ok(0) => {
                output.lines.finish(Timestamp::now(), &mut records);
                output.pipe = None;
            }
            Ok(read) => output.lines.push(&buffer[..read], Timestamp::now(), &mut records),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) => {}
            Err(_) => output.pipe = None,
        }
        if let Err(error) = self.log.write(&records) {
            eprintln!("log lines were lost: {error}");
        }
    }

    /// Writes down how the container ended, after everything of it is gone.
    fn finish(&mut self) -> Result<(), Failure> {
        let (exit_code, signalled) = self.reap();
        let finished_ms = now_ms();
        let started_ms = match self.state.phase {
            Phase::Running { started_ms } | Phase::Exited { started_ms, .. } => started_ms,
            Phase::Created => 0,
        };
        let killed_for_memory = signalled && self.killed_for_memory();
        // Removes the control groups, and kills what is left in them.
        if let Err(error) = self.container.delete(true) {
            eprintln!("not cleaned up: {error}");
        }
        self.drain();
        let reason = match exit_code {
            _ if killed_for_memory => ExitReason::OomKilled,
            0 => ExitReason::Completed,
            _ => ExitReason::Error,
        };
        self.state.phase = Phase::Exited {
            started_ms,
            finished_ms,
            exit_code,
            reason,
            message: String::new(),
        };
        Ok(durable::write_record(&self.launch.state_path, &self.state)?)
    }

    /// Collects the first process and its orphans, which are ours because we are their subreaper.
    fn reap(&self) -> (i32, bool) {
        let ended = match waitpid(self.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => (code, false),
            Ok(WaitStatus::Signaled(_, signal, _)) => (EXIT_CODE_SIGNAL + signal as i32, true),
            Ok(_) | Err(_) => (EXIT_CODE_UNKNOWN, false),
        };
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
        {}
        ended
    }

    fn killed_for_memory(&self) -> bool {
        kedge_host::cgroups::layout().is_ok_and(|layout| oom_kills(&layout, &self.launch.cgroup) > 0)
    }

    /// Takes the last words: everything that could still write has ended.
    fn drain(&mut self) {
        for number in 0..self.outputs.len() {
            while self.outputs[number].pipe.as_ref().is_some_and(has_more) {
                self.copy_output(number);
            }
            let mut records = Vec::new();
            self.outputs[number].lines.finish(Timestamp::now(), &mut records);
            drop(self.log.write(&records));
        }
    }

    /// Undoes the creation.
    fn abandon(&mut self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        self.reap();
        drop(self.container.delete(true));
        drop(durable::remove_file(&self.launch.state_path));
    }
}

/// Which of the descriptors have something.
struct Ready {
    ended: bool,
    order: bool,
    outputs: [bool; 2],
}

/// Leaves the daemon's session, so that no terminal's signal reaches us, and adopts the container's orphans.
fn stand_alone() -> Result<(), Failure> {
    let failed = |errno| Failure::new("leave the daemon's session", errno);
    rustix::process::setsid().map_err(failed)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(failed)?;
    rustix::thread::set_name(c"kedge-container").map_err(failed)
}

/// Listens for the start order. The path may be longer than a socket's may be, so it is bound from within.
fn listen(directory: &Path) -> Result<UnixListener, Failure> {
    let listener = std::env::set_current_dir(directory)
        .and_then(|()| UnixListener::bind("control.sock"))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| Failure::new("listen for the start order", error))
}

type MadeStreams = (Streams, [Output; 2], Option<OwnedFd>);

fn streams(keep_stdin: bool) -> Result<MadeStreams, Failure> {
    let failed = |error: std::io::Error| Failure::new("make the container's streams", error);
    let make = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
    let (out_read, stdout) = make()?;
    let (err_read, stderr) = make()?;
    let (stdin, kept) = if keep_stdin {
        let (read, write) = make()?;
        (read, Some(write))
    } else {
        (File::open("/dev/null").map_err(failed)?.into(), None)
    };
    let output = |read: OwnedFd, stream| -> Result<Output, Failure> {
        rustix::io::ioctl_fionbio(&read, true).map_err(|errno| failed(errno.into()))?;
        Ok(Output {
            pipe: Some(read.into()),
            lines: Lines::new(stream),
        })
    };
    let outputs = [
        output(out_read, Stream::Stdout)?,
        output(err_read, Stream::Stderr)?,
    ];
    Ok((
        Streams {
            stdin,
            stdout,
            stderr,
        },
        outputs,
        kept,
    ))
}

/// The daemon reads our answer to its end, so the descriptor must not stay open.
fn quiet_stdout() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("close the answer", error);
    let null = File::options().write(true).open("/dev/null").map_err(failed)?;
    nix::unistd::dup2_stdout(&null).map_err(|errno| failed(errno.into()))
}

fn has_more(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn identity_of(pid: Pid) -> Result<Identity, Failure> {
    identity(pid.as_raw().unsigned_abs())
}

fn identity(pid: u32) -> Result<Identity, Failure> {
    Identity::of(pid).map_err(|error| Failure::new("identify the container's process", error))
}
