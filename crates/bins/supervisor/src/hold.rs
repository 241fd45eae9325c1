//! The first process of a pod whose containers see each other's processes.
//!
//! A process namespace lives as long as its first process, so somebody has to be it, from before the first container
//! until after the last. It collects the orphans of all containers and does nothing else; when it is killed, everything
//! in the namespace is. It outlives its supervisor, so that a killed supervisor costs no container.

use crate::{Failure, HOLD, durable, process};
use kedge_supervision::Process;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{DumpableBehavior, WaitOptions};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Starts the process in a namespace of its own, which is pinned at `pin`, and writes down who it is beside the pin.
pub(crate) fn start(pin: &Path, boot_id: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("hold the pod's processes", error);
    let own = File::open("/proc/self/ns/pid").map_err(failed)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| failed(errno.into()))?;
    let spawned = Command::new("/proc/self/exe")
        .arg0("kedge-pod")
        .arg(HOLD)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // What is started later belongs to the node's processes again.
    setns(own, CloneFlags::CLONE_NEWPID).map_err(|errno| failed(errno.into()))?;
    let child = spawned.map_err(failed)?;
    let pid = child.id();
    let holder: Process = process::identify(pid, boot_id).map_err(failed)?;
    durable::write_for_boot(&pin.with_extension("json"), &holder).map_err(failed)?;
    File::create(pin).map_err(failed)?;
    let namespace = format!("/proc/{pid}/ns/pid");
    rustix::mount::mount_bind(namespace.as_str(), pin).map_err(|errno| failed(errno.into()))?;
    // Until now it would have ended with us, and nobody would have had to know it.
    let mut word = child.stdin.ok_or_else(|| failed(ErrorKind::BrokenPipe.into()))?;
    word.write_all(b"s").map_err(failed)
}

/// Is the process.
pub(crate) fn run() -> ExitCode {
    // The kernel gives a first process only the signals that it asked for, so nobody in the pod can end it.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let prepared = rustix::process::setsid()
        .map_err(std::io::Error::from)
        .and_then(|_| children.thread_block().map_err(std::io::Error::from));
    let told_to_stay = prepared.and_then(|()| std::io::stdin().read_exact(&mut [0; 1]));
    if told_to_stay.is_err() {
        return ExitCode::FAILURE;
    }
    // The pod's own processes see us: they must not see into us.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Its name tells people what it is.
    let _ = rustix::thread::set_name(c"kedge-pod");
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
    }
}
