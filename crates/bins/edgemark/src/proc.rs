//! What `/proc` says about processes, and the limits of this one.

use crate::budget::Machine;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::time::Duration;

/// Memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident, with program text and files that others may share.
    pub rss_bytes: u64,
    /// The part that is the process's own.
    pub anonymous_bytes: u64,
}

pub fn memory(pid: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    memory_of(&status)
}

fn memory_of(status: &str) -> Option<Memory> {
    let bytes = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        rss_bytes: bytes("VmRSS:")?,
        anonymous_bytes: bytes("RssAnon:")?,
    })
}

/// Time that a process has spent on a processor.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    cpu_time_of(&stat, rustix::param::clock_ticks_per_second())
}

fn cpu_time_of(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The name in parentheses may hold anything; what counts comes behind it.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs(user + system) / u32::try_from(ticks_per_second).ok()?)
}

/// How many file descriptors a process may hold.
pub fn descriptor_limit(pid: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let soft = line.split_whitespace().nth(3)?;
    if soft == "unlimited" {
        return Some(u64::MAX);
    }
    soft.parse().ok()
}

/// Takes as many file descriptors as the machine gives without being asked.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Ports of the kernel's default range, when it cannot be read.
const PORTS_DEFAULT: u64 = 28_232;

/// What this machine gives to one process.
pub fn machine() -> Machine {
    let limit = getrlimit(Resource::Nofile);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    Machine {
        descriptors: limit.maximum.or(limit.current).unwrap_or(u64::MAX),
        ports: ports_of(&range).unwrap_or(PORTS_DEFAULT),
    }
}

fn ports_of(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(|end| end.parse::<u64>());
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.saturating_sub(first) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        let status = "Name:\tcloudcore\nVmRSS:\t   20480 kB\nRssAnon:\t    8192 kB\nRssFile:\t   12288 kB\n";
        let memory = Memory {
            rss_bytes: 20 << 20,
            anonymous_bytes: 8 << 20,
        };
        assert_eq!(memory_of(status), Some(memory));
        let stat = "7 (cloud) core) S 1 7 7 0 -1 4194304 900 0 0 0 150 50 0 0 20 0 4 0 100 1 1";
        assert_eq!(cpu_time_of(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(ports_of("32768\t60999\n"), Some(28_232));
        assert!(super::memory(std::process::id()).is_some_and(|memory| memory.rss_bytes > 0));
        assert!(descriptor_limit(std::process::id()).is_some_and(|limit| limit > 0));
    }
}
