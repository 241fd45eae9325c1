//! Who runs on an [island](super::island), found by walking its processes.

use nix::libc;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that was killed is gone within this time, and one that has nothing to do rests. Much longer than either takes:
/// machines of tests are shared.
const SOON: Duration = Duration::from_secs(30);

/// What a process is to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Person {
    /// The process that has the runtime open.
    Agent,
    /// Keeps the containers of a pod.
    Supervisor,
    /// Makes something and ends; a container before it is itself counts, too.
    Helper,
    Container,
}

/// Kills everybody who is wanted, as they are found, and says how many they were. The first process is the test.
pub(crate) fn kill(agent: u32, wanted: impl Fn(Person) -> bool) -> usize {
    let found = everybody(agent).into_iter().filter(|(_, person)| wanted(*person));
    let found: Vec<i32> = found.map(|(pid, _)| pid).collect();
    for pid in found.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // Whoever has ended by himself meanwhile is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
    found.len()
}

/// # Panics
/// When somebody who is wanted stays.
#[track_caller]
pub(crate) fn wait_until_gone(wanted: impl Fn(Person) -> bool) {
    wait_until_none("still there", || {
        let mut left = everybody(std::process::id());
        left.retain(|(_, person)| wanted(*person));
        left
    });
}

/// Waits until those who are wanted only wait for something to happen, without a time of their own: what has happened is
/// done with, and nothing else wakes them.
///
/// # Panics
/// When one of them goes on.
#[track_caller]
pub(crate) fn wait_until_at_rest(wanted: impl Fn(Person) -> bool) {
    wait_until_none("at work", || {
        let mut busy = pids(&wanted);
        busy.retain(|pid| !is_at_rest(*pid));
        busy
    });
}

#[track_caller]
fn wait_until_none<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Vec<T>) {
    let began = Instant::now();
    loop {
        let left = look();
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < SOON, "{what}: {left:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether a process is in `epoll_wait` and nothing but an event wakes it.
fn is_at_rest(pid: i32) -> bool {
    match waits_in(pid) {
        // The time in milliseconds, of which those below zero are none.
        Some((libc::SYS_epoll_pwait, arguments)) => arguments.get(3).is_some_and(|time| *time as i32 == -1),
        // A pointer to a time.
        Some((libc::SYS_epoll_pwait2, arguments)) => arguments.get(3) == Some(&0),
        Some(_) | None => false,
    }
}

/// The system call in which a process waits, with its arguments; `None` while it works.
pub(crate) fn waits_in(pid: i32) -> Option<(i64, Vec<u64>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let call = words.next()?.parse().ok()?;
    let argument = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    Some((call, words.map_while(argument).collect()))
}

/// How many of those who are wanted there are on the island.
pub(crate) fn count(wanted: impl Fn(Person) -> bool) -> usize {
    let everybody = everybody(std::process::id());
    everybody
        .into_iter()
        .filter(|(_, person)| wanted(*person))
        .count()
}

/// The processes of those who are wanted.
pub(crate) fn pids(wanted: impl Fn(Person) -> bool) -> Vec<i32> {
    let everybody = everybody(std::process::id()).into_iter();
    everybody
        .filter(|(_, person)| wanted(*person))
        .map(|(pid, _)| pid)
        .collect()
}

/// The processes of a program, by the name that the kernel knows.
pub(crate) fn running(program: &str) -> Vec<i32> {
    let names = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids: Vec<i32> = names
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid| {
            // Of one that has ended and was not collected yet nothing runs.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.is_ok_and(|name| name.trim_end() == program) && !command.is_empty()
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// # Panics
/// When the program goes on.
#[track_caller]
pub(crate) fn wait_until_ended(program: &str) {
    wait_until_none("still runs", || running(program));
}

/// A line of `/proc/<pid>/<file>` that tells a number.
pub(crate) fn number(pid: i32, file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How many have ended and nobody has asked how; those of this process do not count.
pub(crate) fn zombies() -> usize {
    let own = std::process::id().to_string();
    let names = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = names.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            // Behind the name, which may hold anything: the state and the parent.
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            fields.next() == Some("Z") && fields.next() != Some(own.as_str())
        })
        .count()
}

/// Everybody alive but this process.
fn everybody(agent: u32) -> Vec<(i32, Person)> {
    let own = std::process::id();
    let names = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != own);
    let people = others.filter_map(|pid| Some((i32::try_from(pid).ok()?, person(pid, agent)?)));
    people.collect()
}

/// `None` for one that has ended.
fn person(pid: u32, agent: u32) -> Option<Person> {
    let of = |file: &str| Path::new("/proc").join(pid.to_string()).join(file);
    if pid == agent {
        return Some(Person::Agent);
    }
    // The dead have no command line.
    let command = std::fs::read(of("cmdline"))
        .ok()
        .filter(|command| !command.is_empty())?;
    let command = String::from_utf8_lossy(&command).into_owned();
    let name = std::fs::read_to_string(of("comm")).ok()?;
    let program = std::fs::read_link(of("exe")).unwrap_or_default();
    let program = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let supervises = program.starts_with("supervisor-")
        || name.starts_with("kedge-supervis")
        || command.starts_with("kedge-supervisor")
        || command.contains("\0supervise\0");
    Some(if supervises {
        Person::Supervisor
    } else if command.contains("oci-helper") {
        Person::Helper
    } else {
        Person::Container
    })
}
