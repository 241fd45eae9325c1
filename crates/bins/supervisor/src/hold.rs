//! The first process of a pod whose containers see each other's processes.
//!
//! A process namespace lives as long as its first process, so somebody has to be it, from before the first container
//! until after the last. It collects the orphans of all containers and does nothing else; when it is killed, everything
//! in the namespace is. It outlives its supervisor, so that a killed supervisor costs no container.

use crate::{Failure, HOLD, HOLD_AS, durable, process, say};
use kedge_supervision::{Process, USER_PIN};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use rustix::process::{DumpableBehavior, WaitOptions};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

/// As systems number the user who owns nothing.
const NOBODY: u32 = 65534;
const ROOT: u32 = 0;

/// A number and the end of a line.
const PID_BYTES_MAX: u64 = 32;

/// Starts the process in a namespace of its own, which is pinned at `pin`, and writes down who it is beside the pin.
pub(crate) fn start(pin: &Path, boot_id: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("hold the pod's processes", error);
    let users = pin.with_file_name(USER_PIN);
    let users = users.exists().then_some(users.as_path());
    let (pid, word) = start_by_child(users).map_err(failed)?;
    let holder: Process = process::identify(pid, boot_id).map_err(failed)?;
    durable::write_for_boot(&pin.with_extension("json"), &holder).map_err(failed)?;
    File::create(pin).map_err(failed)?;
    let namespace = format!("/proc/{pid}/ns/pid");
    rustix::mount::mount_bind(namespace.as_str(), pin).map_err(|errno| failed(errno.into()))?;
    // Until now it would have ended with us, and nobody would have had to know it.
    let mut word = word.ok_or_else(|| failed(ErrorKind::BrokenPipe.into()))?;
    word.write_all(b"s").map_err(failed)
}

/// Has it started by a process that ends: who has made a namespace for its children cannot go back to its own where
/// that belongs to others, as on a node without root. With `users` it becomes one of the pod's users before, to whom the
/// namespace then belongs.
fn start_by_child(users: Option<&Path>) -> std::io::Result<(u32, Option<ChildStdin>)> {
    let mut child = Command::new("/proc/self/exe")
        .arg(HOLD_AS)
        .args(users)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let word = child.stdin.take();
    let told = child.stdout.take().map(|stdout| {
        let mut text = String::new();
        stdout.take(PID_BYTES_MAX).read_to_string(&mut text).map(|_| text)
    });
    child.wait()?;
    let told = told.transpose()?.unwrap_or_default();
    let pid = told.trim().parse();
    Ok((
        pid.map_err(|_| std::io::Error::other("the pod's users cannot have processes"))?,
        word,
    ))
}

/// Becomes root of the pod's users if it has some, starts the process in a namespace of theirs, and says which it is.
pub(crate) fn run_as(users: Option<&Path>) -> ExitCode {
    let spawn = || -> std::io::Result<Child> {
        if let Some(users) = users {
            setns(File::open(users)?, CloneFlags::CLONE_NEWUSER)?;
            become_user(ROOT)?;
        }
        unshare(CloneFlags::CLONE_NEWPID)?;
        holder().stdin(Stdio::inherit()).spawn()
    };
    let told = spawn().and_then(|child| writeln!(std::io::stdout(), "{}", child.id()));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("hold the pod's processes: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A container with the right to look into others may look into us all the same: then it finds neither files of the node
/// nor rights. The place that becomes the root has nothing but words about our own descriptors.
fn leave_everything() -> std::io::Result<()> {
    // Who is nobody on the node already sees less than that, and may not go there.
    if std::os::unix::fs::chroot("/proc/self/fdinfo").is_ok() {
        std::env::set_current_dir("/")?;
    }
    become_user(NOBODY)?;
    // The change of users may have made it readable again.
    Ok(rustix::process::set_dumpable_behavior(
        DumpableBehavior::NotDumpable,
    )?)
}

/// Becomes the user and the group of this number, and of no other group.
fn become_user(number: u32) -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    nix::unistd::setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

fn holder() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("kedge-pod")
        .arg(HOLD)
        .current_dir("/")
        .env_clear()
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Ends the process that holds the namespace pinned at `pin`, and the kernel with it everything in the namespace.
pub(crate) fn end(pin: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("end the first of the pod's processes", error);
    let record = std::fs::read(pin.with_extension("json")).map_err(failed)?;
    let holder: Process = serde_json::from_slice(&record).map_err(|error| failed(error.into()))?;
    if let Some(pidfd) = process::open(&holder).map_err(failed)? {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    }
    Ok(())
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
    if let Err(error) = leave_everything() {
        say(format_args!(
            "the first of the pod's processes keeps what it has: {error}"
        ));
    }
    // Its name tells people what it is.
    let _ = rustix::thread::set_name(c"kedge-pod");
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        if children.wait().is_err() {
            return ExitCode::FAILURE;
        }
    }
}
