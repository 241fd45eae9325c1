//! The first process of a pod whose containers see each other's processes.
//!
//! A process namespace lives as long as its first process, so somebody has to be it, from before the first container
//! until after the last. It collects the orphans of all containers and does nothing else; when it is killed, everything
//! in the namespace is.

use super::{Failure, Verb, WORD};
use kedge_host::process::Identity;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::process::Signal as Kill;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Starts the process in a namespace of its own, which is pinned at `pin`.
pub(super) fn start(pin: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("hold the pod's processes", error);
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| failed(errno.into()))?;
    let child = Command::new("/proc/self/exe")
        .arg0(WORD)
        .arg(WORD)
        .arg(Verb::Hold.name())
        .arg(pin)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let identity =
        Identity::of(child.id()).map_err(|error| Failure::new("hold the pod's processes", error))?;
    crate::durable::write_record(&record(pin), &identity)?;
    std::fs::File::create(pin).map_err(failed)?;
    let namespace = format!("/proc/{}/ns/pid", child.id());
    rustix::mount::mount_bind(namespace.as_str(), pin).map_err(|errno| failed(errno.into()))
}

/// Ends the process, and with it everything in its namespace.
pub(super) fn end(pin: &Path) -> Result<(), Failure> {
    let failed = |error: kedge_host::Error| Failure::new("end the pod's processes", error);
    let identity: Option<Identity> = crate::durable::read_record(&record(pin))?;
    if let Some(handle) = identity
        .map_or(Ok(None), |identity| identity.open())
        .map_err(failed)?
    {
        handle.signal(Kill::KILL).map_err(failed)?;
    }
    Ok(crate::durable::remove_file(&record(pin))?)
}

fn record(pin: &Path) -> PathBuf {
    pin.with_extension("json")
}

/// Is the process.
pub(super) fn run() -> ExitCode {
    // The kernel gives a first process only the signals that it asked for, so nobody in the pod can end it.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let prepared = rustix::process::setsid()
        .map_err(std::io::Error::from)
        .and_then(|_| children.thread_block().map_err(std::io::Error::from));
    if prepared.is_err() {
        return ExitCode::FAILURE;
    }
    // The pod's own processes see us: they must not see into us.
    let _ = nix::sys::prctl::set_dumpable(false);
    // Its name tells people what it is.
    let _ = rustix::thread::set_name(c"kedge-pod");
    loop {
        while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        {}
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
    }
}
