//! A control group of a command's own, within its container's: who started it can end it with all its children, however
//! they have left its session.

use kedge_host::cgroups::Layout;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that was killed keeps its group for a moment.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// The group, in one tree; `None` where none can be made, and then only the command's session is ended.
#[derive(Debug)]
pub(super) struct Tracked {
    group: Option<PathBuf>,
}

impl Tracked {
    /// No group: the command is where the container's own process is, and sees that.
    pub(super) fn none() -> Self {
        Self { group: None }
    }

    /// Makes a group below that of a container.
    pub(super) fn make(container: &str) -> Self {
        let name = format!("command-{}", std::process::id());
        let tree = kedge_host::cgroups::layout()
            .ok()
            .and_then(|layout| tree(&layout, container));
        let group = tree.map(|parent| parent.join(name));
        Self {
            group: group.filter(|group| std::fs::create_dir(group).is_ok()),
        }
    }

    /// The group that the command enters instead of the container's own.
    pub(super) fn inside(&self, container: &Path) -> PathBuf {
        match &self.group {
            Some(group) if group.parent() == Some(container) => group.clone(),
            Some(_) | None => container.to_owned(),
        }
    }

    /// Kills the command and everything it started.
    pub(super) fn kill(&self, command: Pid) {
        // Any of them may have ended by itself.
        let _ = killpg(command, Signal::SIGKILL);
        let _ = kill(command, Signal::SIGKILL);
        let Some(group) = &self.group else { return };
        for _ in 0..REMOVE_TRIES {
            if tell(&group.join("cgroup.kill"), "1").is_err() {
                // A process listed here is in the group now, so its number cannot yet mean another.
                for pid in members(group) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            // The command itself stays in it until it is collected.
            if members(group).all(|pid| pid == command) {
                return;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }

    /// Gives the group up: what the command left in the background is the container's from now on.
    pub(super) fn release(&self) {
        let Some(group) = &self.group else { return };
        let Some(parent) = group.parent() else { return };
        for _ in 0..REMOVE_TRIES {
            for pid in members(group) {
                drop(tell(&parent.join("cgroup.procs"), &pid.to_string()));
            }
            match std::fs::remove_dir(group) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(REMOVE_PAUSE),
                // With the container it goes anyhow.
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// The container's group in the tree that is used: version 2 can kill a group at once, and counting processes limits
/// those of a group and of all groups below it.
fn tree(layout: &Layout, container: &str) -> Option<PathBuf> {
    let below =
        |tree: &Path| Some(tree.join(container.trim_start_matches('/'))).filter(|group| group.is_dir());
    match layout {
        Layout::V2 { mount, .. } => below(mount),
        Layout::Hybrid { mounts, unified } => {
            below(unified).or_else(|| mounts.get("pids").and_then(|tree| below(tree)))
        }
        Layout::V1 { mounts } => mounts.get("pids").and_then(|tree| below(tree)),
    }
}

fn members(group: &Path) -> impl Iterator<Item = Pid> {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<Pid> = listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .map(Pid::from_raw)
        .collect();
    pids.into_iter()
}

/// Writes to a file of the kernel, which alone can make one.
fn tell(file: &Path, value: &str) -> std::io::Result<()> {
    std::fs::File::options()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}
