//! The control groups of a container that has ended: what is left in them is killed, then they go.

use crate::process;
use rustix::process::Pid;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A container that may make groups itself can nest them; nobody nests them deeper for a reason.
const DEPTH_MAX: u32 = 32;

/// Kills everything in the groups and removes them; says whether they are gone. A process that was just killed keeps
/// its group for a moment, so this is tried again.
pub(crate) fn clear(groups: &[PathBuf]) -> bool {
    for group in groups {
        // A program that forks faster than it is killed would win. A group without the file needs no help.
        drop(std::fs::write(group.join("pids.max"), "0"));
    }
    for group in groups {
        kill(group, DEPTH_MAX);
    }
    let mut gone = true;
    for group in groups {
        gone &= remove(group, DEPTH_MAX);
    }
    gone
}

/// How often the kernel killed something in the group for want of memory.
pub(crate) fn memory_kills(events: &Path) -> u64 {
    // A group that is gone has nothing to tell.
    let text = std::fs::read_to_string(events).unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

fn kill(group: &Path, depth: u32) {
    // A program that forks faster than it is killed would win.
    drop(tell(&group.join("pids.max"), b"0"));
    // Version 2 kills all at once, and takes the groups below along.
    if tell(&group.join("cgroup.kill"), b"1").is_ok() {
        return;
    }
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // A process listed here is in the group now, so its number cannot yet mean another.
    listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(Pid::from_raw)
        .for_each(process::kill);
    if depth > 0 {
        below(group).for_each(|group| kill(&group, depth - 1));
    }
}

/// Writes to a file of the kernel, which alone can make one.
fn tell(file: &Path, value: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(file)?;
    file.write_all(value)
}

fn remove(group: &Path, depth: u32) -> bool {
    if depth > 0 {
        for group in below(group) {
            // What is left keeps this one, too.
            let _ = remove(&group, depth - 1);
        }
    }
    match std::fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn below(group: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn kills_are_counted_as_the_kernel_writes_them() {
        let path = std::env::temp_dir().join(format!("kedge-supervisor-{}-events", std::process::id()));
        for (text, want) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
            ("low 0\nhigh 0\nmax 2\noom 1\noom_kill 1\n", 1),
            ("", 0),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(memory_kills(&path), want, "{text:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(memory_kills(&path), 0);
    }
}
