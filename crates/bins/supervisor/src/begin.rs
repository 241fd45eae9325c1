//! Becoming a supervisor: away from the agent's session, and alone in its sandbox.

use crate::Failure;
use crate::pod::Pod;
use kedge_supervision::{Beginning, Reply, VERSION};
use nix::unistd::ForkResult;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

/// What has to be known of a pod's containers when they are adopted.
const BEGINNING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Held as long as the supervisor lives: a sandbox has one.
const LOCK: &str = "supervisor.lock";

/// Starts a process of its own that supervises the pod, and ends. The process answers in our place.
pub(crate) fn run(directory: &Path) -> ExitCode {
    // SAFETY: this process has one thread, so the child finds every lock and allocator as they were.
    #[allow(unsafe_code)]
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Ok(ForkResult::Parent { .. }) => ExitCode::SUCCESS,
        Ok(ForkResult::Child) => supervise(directory),
        Err(errno) => {
            drop(reply(Err(Failure::new("start the supervisor", errno))));
            ExitCode::FAILURE
        }
    }
}

fn supervise(directory: &Path) -> ExitCode {
    let (mut pod, fresh) = match prepare(directory) {
        Ok(prepared) => prepared,
        Err(failure) => {
            crate::say(format_args!("{}", failure.0));
            drop(reply(Err(failure)));
            return ExitCode::FAILURE;
        }
    };
    // Nobody waits for the answer: the agent was killed while it made this sandbox, and will not know it.
    if reply(Ok(())).is_err() && fresh {
        pod.abandon();
        return ExitCode::FAILURE;
    }
    match quiet().and_then(|()| pod.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            crate::say(format_args!("{}", failure.0));
            ExitCode::FAILURE
        }
    }
}

fn prepare(directory: &Path) -> Result<(Pod, bool), Failure> {
    let alone = |errno| Failure::new("leave the agent's session", errno);
    rustix::process::setsid().map_err(alone)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(alone)?;
    rustix::thread::set_name(c"kedge-pod").map_err(alone)?;
    std::env::set_current_dir("/").map_err(|error| Failure::new("leave the agent's directory", error))?;
    let beginning = beginning()?;
    let lock = lock(directory)?;
    let fresh = beginning.adopted.is_empty();
    Ok((Pod::open(beginning, lock)?, fresh))
}

fn beginning() -> Result<Beginning, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(BEGINNING_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Failure::new("read the order", error))?;
    let beginning: Beginning =
        serde_json::from_slice(&bytes).map_err(|error| Failure::new("read the order", error))?;
    if beginning.version != VERSION {
        let theirs = beginning.version;
        return Err(Failure::new(
            "read the order",
            format!("it is of version {theirs}, and this supervisor of version {VERSION}"),
        ));
    }
    Ok(beginning)
}

fn lock(directory: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::new("lock the sandbox", error);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Failure::new("lock the sandbox", "it has a supervisor"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn reply(outcome: Result<(), Failure>) -> std::io::Result<()> {
    let reply = match outcome {
        Ok(()) => Reply::Done,
        Err(Failure(why)) => Reply::Failed(why),
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(&serde_json::to_vec(&reply)?)?;
    stdout.flush()
}

/// The agent reads our answer to its end, so the descriptor must not stay open.
fn quiet() -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("close the answer", error);
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed)?;
    nix::unistd::dup2_stdin(null.as_fd()).map_err(|errno| failed(errno.into()))?;
    nix::unistd::dup2_stdout(null.as_fd()).map_err(|errno| failed(errno.into()))
}
