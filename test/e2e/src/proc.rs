//! What /proc says about processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Ticks a second in which the kernel counts CPU time for `/proc`, the same on every architecture.
const TICKS_PER_SECOND: u64 = 100;

/// What a process costs while nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
    /// User and system time since its start.
    pub cpu: Duration,
    /// Bytes that it has sent to block devices since its start.
    pub written_bytes: u64,
}

impl Rest {
    /// What is so now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name, which may hold anything; behind it the state is the third.
        let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let ticks = ticks()? + ticks()?;
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Some(Self {
            rss_bytes: rss_bytes(pid)?,
            anonymous_bytes: anonymous_bytes(pid)?,
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            written_bytes: written?.trim().parse().ok()?,
        })
    }
}

/// Resident memory of a process in bytes.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The part of it that no other process shares.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "RssAnon:")
}

/// Resident memory in which a page that several processes share counts in parts.
pub fn pss_bytes(pid: u32) -> Option<u64> {
    bytes(pid, "smaps_rollup", "Pss:")
}

/// Resident memory that goes when the process goes.
pub fn private_bytes(pid: u32) -> Option<u64> {
    let clean = bytes(pid, "smaps_rollup", "Private_Clean:")?;
    Some(clean + bytes(pid, "smaps_rollup", "Private_Dirty:")?)
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    bytes(pid, "status", key)
}

/// A line of a file of the process that tells kibibytes.
fn bytes(pid: u32, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The supervisors of pods whose files lie below a directory.
pub fn supervisors(below: &Path) -> Vec<u32> {
    find(&["kedge-supervisor supervise", &below.to_string_lossy()])
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z'),
        Err(_) => false,
    }
}

/// Start time of a process in clock ticks since boot: with the pid it names one process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// Pids of processes whose command line contains every one of `words`.
pub fn find(words: &[&str]) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            words.iter().all(|word| line.contains(word)) && is_alive(*pid)
        })
        .collect();
    found.sort_unstable();
    found
}
