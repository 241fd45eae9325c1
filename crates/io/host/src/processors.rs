//! How the CPUs and the memory of a machine belong together: cores, caches, sockets and NUMA nodes, below `/sys`.

use crate::{Error, Root, parse};
use std::collections::BTreeMap;
use std::io;

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";
/// Levels of caches, as the kernel numbers them; no machine has more.
const CACHES_MAX: u32 = 8;

/// One CPU that is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    pub id: u32,
    /// The lowest CPU that is online of its core.
    pub core: u32,
    pub socket: u32,
    /// Its NUMA node; 0 where the kernel knows none.
    pub node: u32,
    /// The lowest CPU that is online of those that share its last cache.
    pub cache: u32,
}

/// Memory, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumaNode {
    pub id: u32,
    pub memory_bytes: u64,
    /// Huge pages by their size in KiB.
    pub huge_pages: BTreeMap<u64, u64>,
    /// To each node in the order of their numbers; empty where the kernel does not say.
    pub distances: Vec<u32>,
}

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processors {
    pub cpus: Vec<Processor>,
    /// By their numbers; empty where the kernel knows none.
    pub nodes: Vec<NumaNode>,
}

/// Reads what is online of the machine below `root`.
pub fn processors(root: &Root) -> Result<Processors, Error> {
    let online = list(root, &format!("{CPUS}/online"))?;
    // A kernel without this knowledge has no such files.
    let nodes = optional(list(root, &format!("{NODES}/online")))?.unwrap_or_default();
    let mut node_of: BTreeMap<u32, u32> = BTreeMap::new();
    for node in &nodes {
        let there = list(root, &format!("{NODES}/node{node}/cpulist"))?;
        node_of.extend(there.into_iter().map(|cpu| (cpu, *node)));
    }
    let lowest = |path: &str, id: u32| -> Result<Option<u32>, Error> {
        let found = optional(list(root, path))?;
        // CPUs that are off have their places in these lists, too, on some kernels.
        Ok(found.map(|cpus| {
            cpus.into_iter()
                .filter(|cpu| online.contains(cpu))
                .min()
                .unwrap_or(id)
        }))
    };
    let mut cpus = Vec::new();
    for id in &online {
        let topology = format!("{CPUS}/cpu{id}/topology");
        let core = match lowest(&format!("{topology}/core_cpus_list"), *id)? {
            Some(core) => core,
            // Its name before Linux 5.3.
            None => lowest(&format!("{topology}/thread_siblings_list"), *id)?.unwrap_or(*id),
        };
        let mut cache = core;
        for level in 0..CACHES_MAX {
            match lowest(&format!("{CPUS}/cpu{id}/cache/index{level}/shared_cpu_list"), *id)? {
                Some(found) => cache = found,
                None => break,
            }
        }
        let socket = optional(root.read(&format!("{topology}/physical_package_id")))?;
        cpus.push(Processor {
            id: *id,
            core,
            // Machines without firmware for it say -1.
            socket: socket.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            node: node_of.get(id).copied().unwrap_or(0),
            cache,
        });
    }
    let nodes: Result<Vec<NumaNode>, Error> = nodes.into_iter().map(|id| node(root, id)).collect();
    Ok(Processors { cpus, nodes: nodes? })
}

fn node(root: &Root, id: u32) -> Result<NumaNode, Error> {
    let directory = format!("{NODES}/node{id}");
    let meminfo = root.read(&format!("{directory}/meminfo"))?;
    // `Node 0 MemTotal: 123 kB`
    let own: Vec<&str> = meminfo
        .lines()
        .map(|line| line.splitn(3, ' ').nth(2).unwrap_or(line))
        .collect();
    let memory_bytes =
        parse::meminfo_bytes(&own.join("\n"), "MemTotal").ok_or_else(|| Error::NotUnderstood {
            path: root.path(&format!("{directory}/meminfo")),
            reason: "no MemTotal".to_owned(),
        })?;
    let distances = optional(root.read(&format!("{directory}/distance")))?.unwrap_or_default();
    let pages = format!("{directory}/hugepages");
    let mut huge_pages = BTreeMap::new();
    for name in root.names(&pages).unwrap_or_default() {
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|name| name.strip_suffix("kB")?.parse().ok());
        let Some(size) = size else { continue };
        let count = root.read(&format!("{pages}/{name}/nr_hugepages"))?;
        huge_pages.insert(size, count.trim().parse().unwrap_or(0));
    }
    Ok(NumaNode {
        id,
        memory_bytes,
        huge_pages,
        distances: distances
            .split_whitespace()
            .filter_map(|far| far.parse().ok())
            .collect(),
    })
}

fn list(root: &Root, path: &str) -> Result<Vec<u32>, Error> {
    let text = root.read(path)?;
    parse::number_list(&text).ok_or_else(|| Error::NotUnderstood {
        path: root.path(path),
        reason: "numbers such as 0-1,3 are expected".to_owned(),
    })
}

/// Nothing where the file is not there.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// A machine of files, which goes with it.
    struct Machine(std::path::PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let top = std::env::temp_dir().join(format!("kedge-processors-{}-{name}", std::process::id()));
            for (file, text) in files {
                let file = top.join("sys/devices/system").join(file);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, text).unwrap();
            }
            Self(top)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn two_sockets_with_a_cpu_that_is_off() {
        let machine = Machine::new(
            "two",
            &[
                ("cpu/online", "0-1,3\n"),
                ("cpu/cpu0/topology/core_cpus_list", "0-1\n"),
                ("cpu/cpu0/topology/physical_package_id", "0\n"),
                ("cpu/cpu0/cache/index0/shared_cpu_list", "0-1\n"),
                ("cpu/cpu0/cache/index1/shared_cpu_list", "0-1\n"),
                ("cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
                ("cpu/cpu1/topology/physical_package_id", "0\n"),
                ("cpu/cpu3/topology/core_cpus_list", "2-3\n"),
                ("cpu/cpu3/topology/physical_package_id", "-1\n"),
                ("node/online", "0,2\n"),
                ("node/node0/cpulist", "0-1\n"),
                (
                    "node/node0/meminfo",
                    "Node 0 MemTotal:  2048 kB\nNode 0 MemFree: 5 kB\n",
                ),
                ("node/node0/distance", "10 21\n"),
                ("node/node0/hugepages/hugepages-2048kB/nr_hugepages", "7\n"),
                ("node/node2/cpulist", "2-3\n"),
                ("node/node2/meminfo", "Node 2 MemTotal:  1024 kB\n"),
            ],
        );
        let found = processors(&Root::at(&machine.0)).unwrap();
        let mut lines: Vec<String> = found.cpus.iter().map(|cpu| format!("{cpu:?}")).collect();
        lines.extend(found.nodes.iter().map(|node| format!("{node:?}")));
        expect![[r"
            Processor { id: 0, core: 0, socket: 0, node: 0, cache: 0 }
            Processor { id: 1, core: 0, socket: 0, node: 0, cache: 0 }
            Processor { id: 3, core: 3, socket: 0, node: 2, cache: 3 }
            NumaNode { id: 0, memory_bytes: 2097152, huge_pages: {2048: 7}, distances: [10, 21] }
            NumaNode { id: 2, memory_bytes: 1048576, huge_pages: {}, distances: [] }
        "]]
        .assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn a_kernel_without_nodes_and_a_file_that_is_nonsense() {
        let plain = Machine::new("plain", &[("cpu/online", "0\n")]);
        let found = processors(&Root::at(&plain.0)).unwrap();
        let cpu = Processor {
            id: 0,
            core: 0,
            socket: 0,
            node: 0,
            cache: 0,
        };
        assert_eq!((found.cpus, found.nodes), (vec![cpu], vec![]));
        let wrong = Machine::new("wrong", &[("cpu/online", "0-many\n")]);
        let error = processors(&Root::at(&wrong.0)).unwrap_err().to_string();
        assert!(error.contains("0-1,3"), "{error}");
    }

    #[test]
    fn this_machine_has_cpus() {
        let found = processors(&Root::machine()).unwrap();
        assert!(found.cpus.iter().any(|cpu| cpu.core == cpu.id));
    }
}
