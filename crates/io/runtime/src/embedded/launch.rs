//! Calling helpers: one process per act, an order on its input, one reply on its output.

use super::records::{Reply, SandboxOrder};
use super::{HelperProgram, RootfsMode};
use crate::helper::Verb;
use crate::helper::connect::ConnectOrder;
use crate::helper::exec::{ExecOrder, ExecReply};
use crate::{Error, durable};
use kedge_containers::ExecOutput;
use kedge_supervision as supervision;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Creating a container takes milliseconds; copying a large image without overlayfs on a slow card takes a minute.
const REPLY_WAIT_MAX: Duration = Duration::from_secs(120);
/// A reply is one sentence, or the beginnings of two outputs.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// A helper that shall end a command after a time gets this much longer to say so.
const EXEC_REPLY_WAIT: Duration = Duration::from_secs(10);

/// A program, held open, so that a replaced file on disk does not change what is called.
#[derive(Debug)]
pub(super) struct Program {
    executable: OwnedFd,
}

impl Program {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let executable = match read_only(path) {
            Ok(executable) => executable,
            // A place where mounts cannot be copied.
            Err(error) => {
                tracing::debug!(%error, "the program is called as it is");
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| Error::io("open program", path, errno.into()))?
            }
        };
        Ok(Self { executable })
    }

    fn command(&self) -> Command {
        Command::new(format!("/proc/self/fd/{}", self.executable.as_raw_fd()))
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.executable.as_fd()
    }
}

/// A command is started, or a connection made, within this time.
const MEET_WAIT_MAX: Duration = Duration::from_secs(30);

/// Starts helpers.
#[derive(Debug)]
pub(super) struct Launcher {
    program: Program,
    word: String,
}

impl Launcher {
    pub(super) fn open(program: &HelperProgram) -> Result<Self, Error> {
        let path = program
            .executable
            .as_deref()
            .unwrap_or(Path::new("/proc/self/exe"));
        Ok(Self {
            program: Program::open(path)?,
            word: program.word.clone(),
        })
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    /// The words with which others call the program to do something for the container in `directory`: its supervisor,
    /// and libcontainer.
    pub(super) fn calling(&self, verb: Verb, directory: &Path) -> Vec<String> {
        let directory = directory.to_string_lossy().into_owned();
        vec![
            self.word.clone(),
            self.word.clone(),
            verb.name().to_owned(),
            directory,
        ]
    }

    pub(super) fn sandbox_up(&self, directory: &Path, order: &SandboxOrder) -> Result<(), Error> {
        self.order(Verb::SandboxUp, directory, order)
    }

    pub(super) fn sandbox_down(&self, directory: &Path, order: &SandboxOrder) -> Result<(), Error> {
        self.order(Verb::SandboxDown, directory, order)
    }

    pub(super) fn probe_overlay(&self, directory: &Path) -> Result<(), Error> {
        self.call(Verb::ProbeOverlay, directory, b"", Stdio::null())
    }

    pub(super) fn probe_fuse(&self, directory: &Path, program: &Path) -> Result<(), Error> {
        self.order(Verb::ProbeFuse, directory, &program)
    }

    /// Whether pods can have users of their own with root file systems that are made so.
    pub(super) fn probe_users(&self, directory: &Path, rootfs: &RootfsMode) -> Result<(), Error> {
        self.order(Verb::ProbeUsers, directory, rootfs)
    }

    /// Runs the programs of the node that a container's devices want at this point; `state` is what they are told of it.
    pub(super) fn run_hooks(&self, verb: Verb, directory: &Path, state: &Value) -> Result<(), Error> {
        self.order(verb, directory, state)
    }

    pub(super) fn remove_bridge(&self, bridge: &str) -> Result<(), Error> {
        self.call(Verb::RemoveBridge, Path::new(bridge), b"", Stdio::null())
    }

    /// Runs a command in a container. Blocks until it has ended or was killed.
    pub(super) fn exec(&self, id: &str, order: &ExecOrder) -> Result<ExecOutput, Error> {
        let (verb, limit) = (Verb::Exec, Duration::from_millis(order.timeout_ms));
        let bytes = serde_json::to_vec(order).map_err(|error| Error::failed(verb.act(), id, error))?;
        let told = self.ask(
            verb,
            Path::new(id),
            &bytes,
            Stdio::null(),
            limit + EXEC_REPLY_WAIT,
        )?;
        let (line, outputs) =
            told.split_at(told.iter().position(|byte| *byte == b'\n').unwrap_or(told.len()));
        match serde_json::from_slice(line) {
            Ok(ExecReply::Ended {
                exit_code,
                stdout_bytes,
                stderr_bytes,
            }) => {
                let outputs = outputs.get(1..).unwrap_or_default();
                let (stdout, stderr) = outputs.split_at(stdout_bytes.min(outputs.len()));
                Ok(ExecOutput {
                    exit_code,
                    stdout: stdout.to_vec(),
                    stderr: stderr[..stderr_bytes.min(stderr.len())].to_vec(),
                })
            }
            Ok(ExecReply::TimedOut) => Err(Error::TimedOut {
                act: verb.act(),
                object: id.to_owned(),
                limit,
            }),
            Ok(ExecReply::Failed(reason)) => Err(Error::failed(verb.act(), id, reason)),
            Err(_) => Err(Error::failed(
                verb.act(),
                id,
                "the helper ended without an answer",
            )),
        }
    }

    /// Runs a command in a container for somebody who talks with it. It runs when this returns.
    pub(super) fn talk(&self, id: &str, order: &ExecOrder) -> Result<Talking, Error> {
        let verb = Verb::Talk;
        let bytes = serde_json::to_vec(order).map_err(|error| Error::failed(verb.act(), id, error))?;
        let (mut child, socket, reply) = self.meet(verb, id, &bytes)?;
        match reply {
            Ok(Met {
                reply: supervision::Reply::Done,
                ..
            }) => Ok(Talking { child, socket }),
            other => {
                drop((child.kill(), child.wait()));
                Err(refused(verb, id, other))
            }
        }
    }

    /// Connects to a port in a sandbox.
    pub(super) fn connect(&self, id: &str, order: &ConnectOrder) -> Result<OwnedFd, Error> {
        let verb = Verb::Connect;
        let bytes = serde_json::to_vec(order).map_err(|error| Error::failed(verb.act(), id, error))?;
        let (mut child, _socket, reply) = self.meet(verb, id, &bytes)?;
        drop((child.kill(), child.wait()));
        match reply {
            Ok(Met {
                reply: supervision::Reply::Done,
                descriptor: Some(connection),
            }) => Ok(connection),
            other => Err(refused(verb, id, other)),
        }
    }

    /// Starts a helper whose standard output is a socket, and takes its first message.
    fn meet(
        &self,
        verb: Verb,
        id: &str,
        input: &[u8],
    ) -> Result<(Child, OwnedFd, std::io::Result<Met>), Error> {
        let failed = |error: std::io::Error| Error::failed(verb.act(), id, error);
        let (ours, theirs) = kedge_packets::pair().map_err(failed)?;
        set_socket_timeout(&ours, Timeout::Recv, Some(MEET_WAIT_MAX))
            .map_err(|errno| failed(errno.into()))?;
        let mut command = self.program.command();
        command
            .arg0(&self.word)
            .args([self.word.as_str(), verb.name(), id])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(theirs)
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        // It holds our copy of the other end: that one must go, or nobody hears it hang up.
        drop(command);
        let met = converse_by_socket(&mut child, input, &ours);
        Ok((child, ours, met))
    }

    fn order<T: serde::Serialize>(&self, verb: Verb, directory: &Path, order: &T) -> Result<(), Error> {
        let order = serde_json::to_vec(order).map_err(|error| failed(verb, directory, error))?;
        self.call(verb, directory, &order, Stdio::null())
    }

    fn call(&self, verb: Verb, argument: &Path, input: &[u8], stderr: Stdio) -> Result<(), Error> {
        let reply = self.ask(verb, argument, input, stderr, REPLY_WAIT_MAX)?;
        match serde_json::from_slice(&reply) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::Failed(reason)) => Err(failed(verb, argument, reason)),
            Err(_) => Err(failed(verb, argument, "the helper ended without an answer")),
        }
    }

    fn ask(
        &self,
        verb: Verb,
        argument: &Path,
        input: &[u8],
        stderr: Stdio,
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        let arguments = [
            self.word.as_ref(),
            self.word.as_ref(),
            verb.name().as_ref(),
            argument.as_os_str(),
        ];
        run(&self.program, &arguments, input, stderr, limit).map_err(|reason| failed(verb, argument, reason))
    }

    /// Starts a program that answers and ends, or leaves a process of its own behind.
    pub(super) fn run(
        program: &Program,
        arguments: &[&OsStr],
        input: &[u8],
        stderr: Stdio,
    ) -> Result<Vec<u8>, String> {
        run(program, arguments, input, stderr, REPLY_WAIT_MAX)
    }
}

/// The first argument is the program's name.
fn run(
    program: &Program,
    arguments: &[&OsStr],
    input: &[u8],
    stderr: Stdio,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let (name, arguments) = arguments.split_first().ok_or("a program has a name")?;
    let mut child = program
        .command()
        .arg0(name)
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|error| error.to_string())?;
    let reply = converse(&mut child, input, limit);
    if reply.is_err() {
        drop(child.kill());
    }
    // The process that was started ends at once; a supervisor is its orphan.
    let status = child.wait().map_err(|error| error.to_string())?;
    let reply = reply.map_err(|error| error.to_string())?;
    if reply.is_empty() {
        return Err(format!("the helper ended without an answer ({status})"));
    }
    Ok(reply)
}

/// Opens a program on a read-only mount of its own, which nobody else sees. A helper's child is in a container for the
/// moment before it becomes the container's program; what it is executed from must not be open to change from there.
pub(crate) fn read_only(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    crate::kernel::mount_read_only(&tree, Path::new(""), libc::AT_EMPTY_PATH)?;
    Ok(tree)
}

/// A command that runs, and the socket over which it is talked with.
#[derive(Debug)]
pub(super) struct Talking {
    pub(super) child: Child,
    pub(super) socket: OwnedFd,
}

/// The first message of a helper that is met.
#[derive(Debug)]
struct Met {
    reply: supervision::Reply,
    descriptor: Option<OwnedFd>,
}

fn converse_by_socket(child: &mut Child, input: &[u8], socket: &OwnedFd) -> std::io::Result<Met> {
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let mut buffer = vec![0; supervision::MESSAGE_BYTES_MAX];
    let received = kedge_packets::receive(socket, &mut buffer)?;
    if received.bytes == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Met {
        reply: supervision::decode(&buffer[..received.bytes]).map_err(std::io::Error::other)?,
        descriptor: received.descriptor,
    })
}

fn refused(verb: Verb, id: &str, met: std::io::Result<Met>) -> Error {
    match met {
        Ok(Met {
            reply: supervision::Reply::Failed(reason),
            ..
        }) => Error::failed(verb.act(), id, reason),
        Ok(_) => Error::failed(verb.act(), id, "the helper's answer is not understood"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::failed(verb.act(), id, "the helper ended without an answer")
        }
        Err(error) => Error::failed(verb.act(), id, error),
    }
}

fn converse(child: &mut Child, input: &[u8], limit: Duration) -> std::io::Result<Vec<u8>> {
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(Vec::new());
    };
    let end = Instant::now() + limit;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout)?;
        if ready == 0 {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        match stdout.read(&mut buffer)? {
            0 => return Ok(said),
            read if said.len() + read <= REPLY_BYTES_MAX => said.extend_from_slice(&buffer[..read]),
            _ => return Err(std::io::ErrorKind::InvalidData.into()),
        }
    }
}

fn failed(verb: Verb, argument: &Path, reason: impl std::fmt::Display) -> Error {
    let object = argument
        .file_name()
        .unwrap_or(argument.as_os_str())
        .to_string_lossy()
        .into_owned();
    Error::failed(verb.act(), object, reason)
}

/// Removes a container's files, which nobody writes any more. The record goes first: without it the container is not
/// listed, and what an interrupted removal leaves is cleared at the next start.
pub(super) fn remove_container_files(directory: &Path, state: &Path) -> Result<(), Error> {
    durable::remove_file(&directory.join("container.json"))?;
    durable::remove_file(state)?;
    durable::remove_directory(directory)
}
