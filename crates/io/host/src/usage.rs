use crate::{Error, Root, parse};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How full the machine is at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub memory_available_bytes: u64,
    pub pids: u64,
    pub pids_max: u64,
    /// Mean run queue of the last minute.
    pub load_1m: f64,
    pub uptime_s: u64,
    pub disk: DiskUsage,
}

/// How full a file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    pub total_bytes: u64,
    /// Free for unprivileged users.
    pub available_bytes: u64,
    pub total_inodes: u64,
    pub available_inodes: u64,
}

/// Reads how full this machine is; `disk` is any path on the file system of interest.
pub fn usage(disk: &Path) -> Result<Usage, Error> {
    usage_of(&Root::machine(), disk)
}

/// Reads below `root` how full the machine is.
pub fn usage_of(root: &Root, disk: &Path) -> Result<Usage, Error> {
    let meminfo = root.read("/proc/meminfo")?;
    let not_understood = |path: &str, reason: &str| Error::NotUnderstood {
        path: root.path(path),
        reason: reason.to_owned(),
    };
    let loadavg = root.read("/proc/loadavg")?;
    let (load_1m, pids) =
        load(&loadavg).ok_or_else(|| not_understood("/proc/loadavg", "expected five fields with a slash"))?;
    let uptime = root.read("/proc/uptime")?;
    let pids_max = root.read("/proc/sys/kernel/pid_max")?;
    Ok(Usage {
        memory_available_bytes: parse::meminfo_bytes(&meminfo, "MemAvailable")
            .ok_or_else(|| not_understood("/proc/meminfo", "no MemAvailable"))?,
        pids,
        pids_max: pids_max
            .trim()
            .parse()
            .map_err(|_| not_understood("/proc/sys/kernel/pid_max", "not a number"))?,
        load_1m,
        uptime_s: uptime
            .split(['.', ' '])
            .next()
            .and_then(|seconds| seconds.parse().ok())
            .ok_or_else(|| not_understood("/proc/uptime", "expected seconds"))?,
        disk: disk_usage(disk)?,
    })
}

/// Load and number of processes in `0.20 0.18 0.12 1/80 11206`.
fn load(text: &str) -> Option<(f64, u64)> {
    let mut fields = text.split_whitespace();
    let load = fields.next()?.parse().ok()?;
    let processes = fields.nth(2)?.split('/').nth(1)?.parse().ok()?;
    Some((load, processes))
}

/// Measures the file system that holds `path`.
pub fn disk_usage(path: &Path) -> Result<DiskUsage, Error> {
    let measured = rustix::fs::statvfs(path).map_err(|errno| Error::Disk {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(DiskUsage {
        total_bytes: measured.f_blocks.saturating_mul(measured.f_frsize),
        available_bytes: measured.f_bavail.saturating_mul(measured.f_frsize),
        total_inodes: measured.f_files,
        available_inodes: measured.f_favail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_usage() {
        let usage = usage(Path::new("/")).unwrap();
        assert!(
            usage.memory_available_bytes > 0 && usage.pids > 0 && usage.pids_max > usage.pids,
            "{usage:?}"
        );
        assert!(usage.disk.total_bytes >= usage.disk.available_bytes, "{usage:?}");
    }

    #[test]
    fn load_needs_its_slash() {
        assert_eq!(load("0.20 0.18 0.12 1/80 11206"), Some((0.20, 80)));
        assert_eq!(load("0.20 0.18"), None);
    }
}
