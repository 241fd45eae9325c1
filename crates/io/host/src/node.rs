//! What a node tells about its machine and what may run out: memory, process ids, huge pages, addresses of interfaces.
//!
//! Each question reads one or two small files, so that it can be asked every few seconds.

use crate::{Error, Root, parse};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Memory of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    /// What programs can get without swapping, by the kernel's own estimate.
    pub available_bytes: u64,
}

/// Processes and threads of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processes {
    pub running: u64,
    pub max: u64,
}

/// Reads the memory of the machine below `root`.
pub fn memory(root: &Root) -> Result<Memory, Error> {
    const PATH: &str = "/proc/meminfo";
    let text = root.read(PATH)?;
    let row = |key: &str| {
        parse::meminfo_bytes(&text, key).ok_or_else(|| Error::NotUnderstood {
            path: root.path(PATH),
            reason: format!("no {key}"),
        })
    };
    Ok(Memory {
        total_bytes: row("MemTotal")?,
        available_bytes: row("MemAvailable")?,
    })
}

/// Counts the processes and threads of the machine below `root`.
pub fn processes(root: &Root) -> Result<Processes, Error> {
    const LOAD: &str = "/proc/loadavg";
    let text = root.read(LOAD)?;
    let running = running(&text).ok_or_else(|| Error::NotUnderstood {
        path: root.path(LOAD),
        reason: "no number of processes".to_owned(),
    })?;
    let limit = |path: &str| {
        let text = root.read(path)?;
        text.trim().parse::<u64>().map_err(|_| Error::NotUnderstood {
            path: root.path(path),
            reason: "not a number".to_owned(),
        })
    };
    let max = limit("/proc/sys/kernel/pid_max")?;
    // Some machines hide the second limit.
    let threads = limit("/proc/sys/kernel/threads-max").unwrap_or(u64::MAX);
    Ok(Processes {
        running,
        max: max.min(threads),
    })
}

/// The number behind the slash in `0.20 0.18 0.12 1/80 11206`.
fn running(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()
}

/// Bytes that the kernel keeps for huge pages, by the size of a page in bytes. A size that the machine knows but keeps
/// nothing for is there with 0.
pub fn huge_pages(root: &Root) -> BTreeMap<u64, u64> {
    const TOP: &str = "/sys/kernel/mm/hugepages";
    let Ok(entries) = std::fs::read_dir(root.path(TOP)) else {
        return BTreeMap::new();
    };
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size_kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let count = root.read(&format!("{TOP}/{name}/nr_hugepages")).ok()?;
        let size = size_kib.checked_mul(1024)?;
        Some((size, count.trim().parse::<u64>().ok()?.checked_mul(size)?))
    };
    entries.filter_map(|entry| size(entry.ok()?)).collect()
}

/// The address of a network interface, the older protocol first.
pub fn interface_address(name: &str) -> Result<Option<IpAddr>, Error> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|errno| Error::Addresses(errno.into()))?;
    let own = interfaces.filter(|interface| interface.interface_name == name);
    let mut found: Vec<IpAddr> = own
        .filter_map(|interface| crate::facts::ip(&interface.address?))
        .collect();
    found.retain(crate::facts::usable);
    found.sort();
    Ok(found.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers() {
        let root = Root::machine();
        let memory = memory(&root).unwrap();
        assert!(memory.available_bytes <= memory.total_bytes, "{memory:?}");
        let processes = processes(&root).unwrap();
        assert!(processes.running < processes.max, "{processes:?}");
        assert_eq!(interface_address("no-such-interface").unwrap(), None);
        assert_eq!(interface_address("lo").unwrap(), None);
    }

    #[test]
    fn huge_pages_are_counted_by_size() {
        let top = std::env::temp_dir().join(format!("kedge-host-huge-{}", std::process::id()));
        for (name, count) in [
            ("hugepages-2048kB", "3\n"),
            ("hugepages-1048576kB", "0\n"),
            ("other", "1"),
        ] {
            let dir = top.join("sys/kernel/mm/hugepages").join(name);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("nr_hugepages"), count).unwrap();
        }
        let found = huge_pages(&Root::at(&top));
        std::fs::remove_dir_all(&top).unwrap();
        assert_eq!(found, BTreeMap::from([(2 << 20, 6 << 20), (1 << 30, 0)]));
        assert!(huge_pages(&Root::at("/nonexistent")).is_empty());
    }

    #[test]
    fn processes_stand_behind_the_slash() {
        assert_eq!(running("0.20 0.18 0.12 1/80 11206"), Some(80));
        assert_eq!(running("0.20 0.18"), None);
    }
}
