//! What control groups use, and which groups belong to which pod.
//!
//! Container runtimes name groups in their own ways: `kubepods/burstable/pod<uid>/<id>` where they make the directories
//! themselves, `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`
//! where systemd does. So pods are found by looking, not by guessing a path.

use crate::cgroups::Layout;
use crate::root::read_bounded;
use crate::{Error, Root, parse};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A node has at most some hundred pods; a tree with more groups than this is not one of pods.
const GROUPS_MAX: usize = 8192;
/// From a root down to a pod: the class of service lies between them.
const DEPTH_MAX: usize = 2;
/// Control groups count processor time of `user` and `system` in these on version 1.
const TICKS_PER_SECOND: u64 = 100;
const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;
/// A memory limit above this is version 1's way to say that there is none.
const LIMIT_BYTES_MAX: u64 = 1 << 60;

/// What the processes of one group use, those of its children included. `None`: the kernel does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupUsage {
    pub cpu: Option<GroupCpu>,
    pub memory: Option<GroupMemory>,
    pub processes: Option<u64>,
}

/// Processor time since the group was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupCpu {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    /// Periods in which the limit was looked at, in which it was reached, and for how long.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupMemory {
    pub usage: u64,
    /// Without file pages that were not used lately: the kernel drops those first.
    pub working_set: u64,
    pub rss: u64,
    pub cache: u64,
    pub mapped: u64,
    pub peak: Option<u64>,
    pub limit: Option<u64>,
    pub swap: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// How often the limit was reached, and how often a process was killed for it.
    pub failures: u64,
    pub oom_kills: u64,
}

/// The groups of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodGroup {
    pub uid: String,
    /// From the root of the trees, for example `/kubepods/burstable/pod…`.
    pub path: String,
    /// By the container's id. The sandbox's own is among them.
    pub containers: BTreeMap<String, String>,
}

impl Layout {
    fn tree(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2 { mount, .. } => Some(mount),
            Self::V1 { mounts } | Self::Hybrid { mounts, .. } => mounts.get(controller).map(PathBuf::as_path),
        }
    }

    /// The directory of a group in the tree of a controller.
    fn group(&self, controller: &str, path: &str) -> Option<PathBuf> {
        Some(self.tree(controller)?.join(path.trim_start_matches('/')))
    }
}

/// Reads what the group at `path` uses; `None` when there is no such group. The root group is the whole machine.
pub fn group_usage(layout: &Layout, path: &str) -> Option<GroupUsage> {
    let at = layout.group("memory", path)?;
    if !at.is_dir() {
        return None;
    }
    let is_v2 = matches!(layout, Layout::V2 { .. });
    let mut usage = GroupUsage {
        cpu: if is_v2 { cpu_v2(&at) } else { cpu_v1(layout, path) },
        memory: if is_v2 { memory_v2(&at) } else { memory_v1(&at) },
        processes: layout
            .group("pids", path)
            .and_then(|at| number(&at.join("pids.current"))),
    };
    if path.trim_matches('/').is_empty() {
        usage.memory = usage.memory.or_else(|| machine_memory(Some(&at)));
        usage.cpu = usage.cpu.or_else(machine_cpu);
    }
    Some(usage)
}

/// What the machine uses as a whole, where there are no control groups.
pub fn machine_usage() -> GroupUsage {
    GroupUsage {
        cpu: machine_cpu(),
        memory: machine_memory(None),
        processes: None,
    }
}

/// A process of the group, for what is read by process, such as the network.
pub fn first_process(layout: &Layout, path: &str) -> Option<u32> {
    let text = read_bounded(&layout.group("memory", path)?.join("cgroup.procs")).ok()?;
    text.lines().find_map(|line| line.parse().ok())
}

/// Finds the groups of pods below `roots`, for example `/kubepods` and `/kubepods.slice`. A root that does not exist has
/// no pods.
pub fn pod_groups(layout: &Layout, roots: &[String]) -> Vec<PodGroup> {
    let Some(tree) = layout.tree("memory") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut seen = 0;
    for root in roots {
        let at = format!("/{}", root.trim_matches('/'));
        find(tree, &at, DEPTH_MAX, &mut seen, &mut found);
    }
    found
}

fn find(tree: &Path, at: &str, depth: usize, seen: &mut usize, found: &mut Vec<PodGroup>) {
    for name in children(tree, at, seen) {
        let path = format!("{}/{name}", at.trim_end_matches('/'));
        match pod_uid(&name) {
            Some(uid) => {
                let containers = children(tree, &path, seen)
                    .into_iter()
                    .map(|child| (container_id(&child).to_owned(), format!("{path}/{child}")))
                    .collect();
                found.push(PodGroup {
                    uid,
                    path,
                    containers,
                });
            }
            None if depth > 1 => find(tree, &path, depth - 1, seen, found),
            None => {}
        }
    }
}

fn children(tree: &Path, at: &str, seen: &mut usize) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(tree.join(at.trim_start_matches('/'))) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for entry in entries.flatten() {
        if *seen >= GROUPS_MAX {
            break;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            *seen += 1;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

/// `pod<uid>` or `…-pod<uid with underscores>.slice`.
fn pod_uid(name: &str) -> Option<String> {
    if let Some(uid) = name.strip_prefix("pod") {
        return Some(uid.to_owned());
    }
    let (_, uid) = name.strip_suffix(".slice")?.split_once("-pod")?;
    Some(uid.replace('_', "-"))
}

/// `<id>`, `crio-<id>`, `cri-containerd-<id>.scope`.
fn container_id(name: &str) -> &str {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    name.rsplit('-').next().unwrap_or(name)
}

fn cpu_v2(at: &Path) -> Option<GroupCpu> {
    let stat = table(&at.join("cpu.stat"))?;
    let us = |name: &str| of(&stat, name).saturating_mul(1000);
    stat.contains_key("usage_usec").then(|| GroupCpu {
        usage_ns: us("usage_usec"),
        user_ns: us("user_usec"),
        system_ns: us("system_usec"),
        periods: of(&stat, "nr_periods"),
        throttled_periods: of(&stat, "nr_throttled"),
        throttled_ns: us("throttled_usec"),
    })
}

fn cpu_v1(layout: &Layout, path: &str) -> Option<GroupCpu> {
    let at = layout.group("cpuacct", path)?;
    let usage_ns = number(&at.join("cpuacct.usage"))?;
    let parts = table(&at.join("cpuacct.stat")).unwrap_or_default();
    let limit = layout
        .group("cpu", path)
        .and_then(|at| table(&at.join("cpu.stat")))
        .unwrap_or_default();
    Some(GroupCpu {
        usage_ns,
        user_ns: of(&parts, "user").saturating_mul(NS_PER_TICK),
        system_ns: of(&parts, "system").saturating_mul(NS_PER_TICK),
        periods: of(&limit, "nr_periods"),
        throttled_periods: of(&limit, "nr_throttled"),
        throttled_ns: of(&limit, "throttled_time"),
    })
}

fn memory_v2(at: &Path) -> Option<GroupMemory> {
    let usage = number(&at.join("memory.current"))?;
    let stat = table(&at.join("memory.stat")).unwrap_or_default();
    let events = table(&at.join("memory.events")).unwrap_or_default();
    Some(GroupMemory {
        usage,
        peak: number(&at.join("memory.peak")),
        limit: number(&at.join("memory.max")),
        swap: number(&at.join("memory.swap.current")),
        failures: of(&events, "max"),
        oom_kills: of(&events, "oom_kill"),
        ..pages_v2(&stat, usage)
    })
}

fn pages_v2(stat: &BTreeMap<String, u64>, usage: u64) -> GroupMemory {
    GroupMemory {
        usage,
        working_set: usage.saturating_sub(of(stat, "inactive_file")),
        rss: of(stat, "anon"),
        cache: of(stat, "file"),
        mapped: of(stat, "file_mapped"),
        page_faults: of(stat, "pgfault"),
        major_page_faults: of(stat, "pgmajfault"),
        ..GroupMemory::default()
    }
}

fn memory_v1(at: &Path) -> Option<GroupMemory> {
    let usage = number(&at.join("memory.usage_in_bytes"))?;
    let stat = table(&at.join("memory.stat")).unwrap_or_default();
    let kills = table(&at.join("memory.oom_control")).unwrap_or_default();
    Some(GroupMemory {
        usage,
        working_set: usage.saturating_sub(of(&stat, "total_inactive_file")),
        rss: of(&stat, "total_rss"),
        cache: of(&stat, "total_cache"),
        mapped: of(&stat, "total_mapped_file"),
        peak: number(&at.join("memory.max_usage_in_bytes")),
        limit: number(&at.join("memory.limit_in_bytes")).filter(|limit| *limit < LIMIT_BYTES_MAX),
        swap: stat.get("total_swap").copied(),
        page_faults: of(&stat, "total_pgfault"),
        major_page_faults: of(&stat, "total_pgmajfault"),
        failures: number(&at.join("memory.failcnt")).unwrap_or(0),
        oom_kills: of(&kills, "oom_kill"),
    })
}

/// The root group of version 2 does not say how much it uses, but the machine does.
fn machine_memory(root: Option<&Path>) -> Option<GroupMemory> {
    let meminfo = Root::machine().read("/proc/meminfo").ok()?;
    let of = |name: &str| parse::meminfo_bytes(&meminfo, name);
    let usage = of("MemTotal")?.saturating_sub(of("MemFree")?);
    let swap = of("SwapTotal")
        .zip(of("SwapFree"))
        .map(|(total, free)| total.saturating_sub(free));
    let stat = root
        .and_then(|root| table(&root.join("memory.stat")))
        .unwrap_or_else(|| {
            let names = [
                ("inactive_file", "Inactive(file)"),
                ("anon", "AnonPages"),
                ("file", "Cached"),
                ("file_mapped", "Mapped"),
            ];
            let found = names.map(|(name, line)| (name.to_owned(), of(line).unwrap_or(0)));
            BTreeMap::from(found)
        });
    Some(GroupMemory {
        swap,
        ..pages_v2(&stat, usage)
    })
}

/// From the first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal …`.
fn machine_cpu() -> Option<GroupCpu> {
    let stat = Root::machine().read("/proc/stat").ok()?;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0).saturating_mul(NS_PER_TICK);
    let (user_ns, system_ns) = (at(0) + at(1), at(2) + at(5) + at(6));
    Some(GroupCpu {
        usage_ns: user_ns + system_ns,
        user_ns,
        system_ns,
        ..GroupCpu::default()
    })
}

/// A file with one number; `max` is none.
fn number(path: &Path) -> Option<u64> {
    read_bounded(path).ok()?.trim().parse().ok()
}

/// A file of lines `name number`.
fn table(path: &Path) -> Option<BTreeMap<String, u64>> {
    let text = read_bounded(path).ok()?;
    Some(
        text.lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(' ')?;
                Some((name.to_owned(), value.trim().parse().ok()?))
            })
            .collect(),
    )
}

fn of(table: &BTreeMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

/// Reads a file of a group.
pub fn read_group(
    layout: &Layout,
    controller: &'static str,
    path: &str,
    file: &str,
) -> Result<String, Error> {
    let at = layout
        .group(controller, path)
        .ok_or(Error::NoController(controller))?
        .join(file);
    read_bounded(&at).map_err(|source| Error::Read { path: at, source })
}

/// Writes a value into a file of a group, for example a new limit.
pub fn write_group(
    layout: &Layout,
    controller: &'static str,
    path: &str,
    file: &str,
    value: &str,
) -> Result<(), Error> {
    let at = layout
        .group(controller, path)
        .ok_or(Error::NoController(controller))?
        .join(file);
    std::fs::write(&at, value).map_err(|source| Error::Write { path: at, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::fs;

    /// A tree of groups that goes away with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let top = std::env::temp_dir().join(format!("kedge-groups-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = top.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(top)
        }

        fn v2(&self) -> Layout {
            Layout::V2 {
                mount: self.0.clone(),
                controllers: ["cpu", "memory", "pids"].map(str::to_owned).into(),
            }
        }

        fn v1(&self) -> Layout {
            Layout::V1 {
                mounts: ["cpu", "cpuacct", "memory", "pids"]
                    .map(|name| (name.to_owned(), self.0.join(name)))
                    .into(),
            }
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn version_two() {
        let tree = Tree::new(
            "v2",
            &[
                ("p/memory.current", "1000\n"),
                ("p/memory.max", "max\n"),
                ("p/memory.peak", "1500\n"),
                (
                    "p/memory.stat",
                    "anon 300\nfile 600\nfile_mapped 50\ninactive_file 400\npgfault 7\npgmajfault 2\n",
                ),
                ("p/memory.events", "low 0\nmax 3\noom_kill 1\n"),
                (
                    "p/cpu.stat",
                    "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 4\nthrottled_usec 9\n",
                ),
                ("p/pids.current", "6\n"),
            ],
        );
        expect![[r#"
            Some(
                GroupUsage {
                    cpu: Some(
                        GroupCpu {
                            usage_ns: 30000,
                            user_ns: 20000,
                            system_ns: 10000,
                            periods: 5,
                            throttled_periods: 4,
                            throttled_ns: 9000,
                        },
                    ),
                    memory: Some(
                        GroupMemory {
                            usage: 1000,
                            working_set: 600,
                            rss: 300,
                            cache: 600,
                            mapped: 50,
                            peak: Some(
                                1500,
                            ),
                            limit: None,
                            swap: None,
                            page_faults: 7,
                            major_page_faults: 2,
                            failures: 3,
                            oom_kills: 1,
                        },
                    ),
                    processes: Some(
                        6,
                    ),
                },
            )
        "#]]
        .assert_debug_eq(&group_usage(&tree.v2(), "/p"));
        assert_eq!(group_usage(&tree.v2(), "/q"), None);
    }

    #[test]
    fn version_one() {
        let tree = Tree::new(
            "v1",
            &[
                ("memory/p/memory.usage_in_bytes", "1000\n"),
                ("memory/p/memory.limit_in_bytes", "9223372036854771712\n"),
                (
                    "memory/p/memory.stat",
                    "rss 1\ntotal_rss 300\ntotal_cache 600\ntotal_inactive_file 400\ntotal_swap 8\n",
                ),
                (
                    "memory/p/memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
                ("cpuacct/p/cpuacct.usage", "30000\n"),
                ("cpuacct/p/cpuacct.stat", "user 2\nsystem 1\n"),
                (
                    "cpu/p/cpu.stat",
                    "nr_periods 5\nnr_throttled 4\nthrottled_time 9\n",
                ),
                ("memory/p/cgroup.procs", "77\n78\n"),
            ],
        );
        let usage = group_usage(&tree.v1(), "p").unwrap();
        let (cpu, memory) = (usage.cpu.unwrap(), usage.memory.unwrap());
        assert_eq!(
            (cpu.usage_ns, cpu.user_ns, cpu.throttled_ns),
            (30_000, 20_000_000, 9)
        );
        assert_eq!(
            (
                memory.working_set,
                memory.rss,
                memory.limit,
                memory.swap,
                memory.oom_kills
            ),
            (600, 300, None, Some(8), 2)
        );
        assert_eq!(usage.processes, None, "this tree has no pids controller");
        assert_eq!(first_process(&tree.v1(), "p"), Some(77));
    }

    #[test]
    fn pods_are_found_under_either_way_of_naming() {
        let tree = Tree::new(
            "names",
            &[
                ("kubepods/burstable/podaa-1/c1/x", ""),
                ("kubepods/podbb-2/c2/x", ""),
                (
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podcc_3.slice/cri-containerd-c3.scope/x",
                    "",
                ),
                ("kubepods.slice/kubepods-poddd_4.slice/crio-c4.scope/x", ""),
                ("system.slice/podman.service/x", ""),
            ],
        );
        let roots = ["/kubepods", "kubepods.slice", "/none"].map(str::to_owned);
        let mut found: Vec<String> = pod_groups(&tree.v2(), &roots)
            .iter()
            .map(|pod| format!("{} {} {:?}", pod.uid, pod.path, pod.containers))
            .collect();
        found.sort();
        expect![[r#"
            aa-1 /kubepods/burstable/podaa-1 {"c1": "/kubepods/burstable/podaa-1/c1"}
            bb-2 /kubepods/podbb-2 {"c2": "/kubepods/podbb-2/c2"}
            cc-3 /kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podcc_3.slice {"c3": "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podcc_3.slice/cri-containerd-c3.scope"}
            dd-4 /kubepods.slice/kubepods-poddd_4.slice {"c4": "/kubepods.slice/kubepods-poddd_4.slice/crio-c4.scope"}"#]]
        .assert_eq(&found.join("\n"));
    }

    #[test]
    fn this_machine_has_a_root_group() {
        let layout = crate::cgroups::layout().unwrap();
        let usage = group_usage(&layout, "/").unwrap();
        assert!(usage.cpu.is_some_and(|cpu| cpu.usage_ns > 0), "{usage:?}");
        assert!(usage.memory.is_some_and(|memory| memory.usage > 0), "{usage:?}");
    }
}
