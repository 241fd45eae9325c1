//! Calling helpers: one process per act, an order on its input, one reply on its output.

use super::HelperProgram;
use super::records::{Reply, SandboxOrder};
use crate::helper::Verb;
use crate::helper::exec::{ExecOrder, ExecReply};
use crate::{Error, durable};
use kedge_containers::ExecOutput;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
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

/// Starts helpers.
#[derive(Debug)]
pub(super) struct Launcher {
    /// Held open, so that a replaced file on disk does not change who is called.
    executable: OwnedFd,
    word: String,
}

impl Launcher {
    pub(super) fn open(program: &HelperProgram) -> Result<Self, Error> {
        let path = program
            .executable
            .as_deref()
            .unwrap_or(Path::new("/proc/self/exe"));
        let executable = match read_only(path) {
            Ok(executable) => executable,
            // A kernel before 5.12, or a place where mounts cannot be copied.
            Err(error) => {
                tracing::debug!(%error, "the helper program is called as it is");
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| Error::io("open helper program", path, errno.into()))?
            }
        };
        Ok(Self {
            executable,
            word: program.word.clone(),
        })
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

    pub(super) fn remove_bridge(&self, bridge: &str) -> Result<(), Error> {
        self.call(Verb::RemoveBridge, Path::new(bridge), b"", Stdio::null())
    }

    /// Makes the container in `directory` and leaves its supervisor behind.
    pub(super) fn create(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join("supervisor.log");
        let log = std::fs::File::create(&path).map_err(|source| Error::io("make", &path, source))?;
        self.call(Verb::Create, directory, b"", log.into())
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

    fn order(&self, verb: Verb, directory: &Path, order: &SandboxOrder) -> Result<(), Error> {
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
        let mut child = Command::new(format!("/proc/self/fd/{}", self.executable.as_raw_fd()))
            .arg0(&self.word)
            .arg(&self.word)
            .arg(verb.name())
            .arg(argument)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| failed(verb, argument, error))?;
        let reply = converse(&mut child, input, limit);
        if reply.is_err() {
            drop(child.kill());
        }
        // The process that was started ends at once; a supervisor is its orphan.
        let status = child.wait().map_err(|error| failed(verb, argument, error))?;
        let reply = reply.map_err(|error| failed(verb, argument, error))?;
        if reply.is_empty() {
            let reason = format!("the helper ended without an answer ({status})");
            return Err(failed(verb, argument, reason));
        }
        Ok(reply)
    }
}

/// Opens a program on a read-only mount of its own, which nobody else sees. A helper's child is in a container for the
/// moment before it becomes the container's program; what it is executed from must not be open to change from there.
fn read_only(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the kernel reads the empty path and the structure, whose size is told, during the call only.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 {
        Ok(tree)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Tells the supervisor of the container in `directory` to let it run.
pub(super) fn order_start(id: &str, directory: &Path) -> Result<(), Error> {
    let act = "start container";
    let said = ask_supervisor(directory).map_err(|source| Error::io(act, directory, source))?;
    match serde_json::from_slice(&said) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed(reason)) => Err(Error::failed(act, id, reason)),
        Err(_) => Err(Error::failed(act, id, "its supervisor ended without an answer")),
    }
}

fn ask_supervisor(directory: &Path) -> std::io::Result<Vec<u8>> {
    // A socket's path may have 107 bytes; through a descriptor it is always short enough.
    let directory = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd()))?;
    socket.set_read_timeout(Some(REPLY_WAIT_MAX))?;
    socket.write_all(b"s")?;
    let mut said = Vec::new();
    socket.take(REPLY_BYTES_MAX as u64).read_to_end(&mut said)?;
    Ok(said)
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

/// Removes a container's files. The record goes first: without it the container is not listed, and what an interrupted
/// removal leaves is cleared at the next start.
pub(super) fn remove_container_files(directory: &Path, state: &Path) -> Result<(), Error> {
    durable::remove_file(&directory.join("container.json"))?;
    durable::remove_file(state)?;
    durable::remove_directory(directory)
}
