//! Everything on a machine that a container runtime could leave behind, listed before and after.
//!
//! It is exact on an [island](super::island), where nobody else makes anything.

use super::{Node, firewall};
use kedge_host::{Root, cgroups, mounts};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What was killed or removed a moment ago is gone within this time, or it is left behind.
const SETTLE_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Places outside of the runtime's own directory where runtimes and network plug-ins keep things.
const ELSEWHERE: [&str; 4] = ["/run", "/dev/shm", "/dev/mqueue", "/var/lib/cni"];
/// Programs that print what is not of nftables, where they are installed.
const FIREWALLS: [&str; 2] = ["iptables-legacy-save", "ip6tables-legacy-save"];
/// Files of the kernel that list a network namespace: interfaces, addresses, routes.
const NETWORK: [&str; 4] = ["dev", "fib_trie", "route", "if_inet6"];

/// What there is, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census(BTreeMap<String, u32>);

impl Census {
    /// Lists the machine as this process sees it.
    pub(crate) fn take(node: &Node) -> Self {
        let mut census = Self::default();
        census.processes();
        census.mounts();
        census.network();
        census.control_groups(&node.tag());
        census.descriptors();
        census.files(&node.directory.join("runtime"), u32::MAX);
        for place in ELSEWHERE {
            census.files(Path::new(place), 3);
        }
        census
    }

    /// Waits until the machine is again as it was.
    ///
    /// # Panics
    /// When it does not become so; names what is left, and what is missing.
    #[track_caller]
    pub(crate) fn assert_restored(&self, node: &Node, after: &str) {
        let began = Instant::now();
        loop {
            let changes = self.changes(&Self::take(node));
            if changes.is_empty() {
                return;
            }
            assert!(
                began.elapsed() < SETTLE_MAX,
                "after {after}:\n{}",
                changes.join("\n")
            );
            std::thread::park_timeout(LOOK_EVERY);
        }
    }

    fn changes(&self, later: &Self) -> Vec<String> {
        let count = |census: &Self, thing: &String| census.0.get(thing).copied().unwrap_or(0);
        let left = later
            .0
            .iter()
            .filter(|(thing, number)| **number > count(self, thing));
        let gone = self
            .0
            .iter()
            .filter(|(thing, number)| **number > count(later, thing));
        let left = left.map(|(thing, _)| format!("left: {thing}"));
        left.chain(gone.map(|(thing, _)| format!("gone: {thing}")))
            .collect()
    }

    fn add(&mut self, kind: &str, thing: impl std::fmt::Display) {
        *self.0.entry(format!("{kind} {thing}")).or_default() += 1;
    }

    /// Processes with the namespaces that they hold.
    fn processes(&mut self) {
        // Orphans come to us, because we are the first process; nobody else would bury them.
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
        let own = std::process::id().to_string();
        for pid in numbers("/proc") {
            let of = |file: &str| Path::new("/proc").join(&pid).join(file);
            for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
                if let Ok(namespace) = std::fs::read_link(of("ns").join(kind)) {
                    self.0
                        .entry(format!("namespace {}", namespace.display()))
                        .or_insert(1);
                }
            }
            if pid == own {
                continue;
            }
            let command = std::fs::read(of("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let name = std::fs::read_to_string(of("comm")).unwrap_or_default();
            self.add("process", format!("{pid} {} {command}", name.trim()));
        }
    }

    fn mounts(&mut self) {
        for mount in mounts::mount_points(&Root::machine()).unwrap() {
            self.add("mount", format!("{} {}", mount.file_system, mount.path.display()));
        }
    }

    fn network(&mut self) {
        for file in NETWORK {
            let text = std::fs::read_to_string(Path::new("/proc/self/net").join(file)).unwrap_or_default();
            // Behind an interface's name stand its counters; addresses of a link come and go with their link.
            let lines = text
                .lines()
                .filter(|line| file != "if_inet6" || !line.starts_with("fe80"));
            for line in lines {
                let known = if file == "dev" {
                    line.split(':').next().unwrap_or_default()
                } else {
                    line
                };
                self.add(file, known.trim());
            }
        }
        firewall::nftables()
            .into_iter()
            .for_each(|thing| self.add("nftables", thing));
        for program in FIREWALLS {
            let Ok(output) = Command::new(program).output() else {
                continue;
            };
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // Times and counters of packets change by themselves.
            let rules = text.lines().filter(|line| !line.starts_with(['#', ':']));
            rules.for_each(|rule| self.add(program, rule.trim()));
        }
    }

    fn control_groups(&mut self, tag: &str) {
        for tree in cgroups::layout().unwrap().trees() {
            self.walk("control group", tree, u32::MAX, &|path| {
                path.to_string_lossy().contains(tag)
            });
        }
    }

    /// Those of this process, which plays the agent that was started again.
    fn descriptors(&mut self) {
        for number in numbers("/proc/self/fd") {
            let Ok(to) = std::fs::read_link(Path::new("/proc/self/fd").join(number)) else {
                continue;
            };
            // `socket:[123]` is another each time.
            let to = to.to_string_lossy().into_owned();
            self.add("descriptor", to.split(":[").next().unwrap_or_default());
        }
    }

    fn files(&mut self, below: &Path, depth: u32) {
        self.walk("file", below, depth, &|_| true);
    }

    fn walk(&mut self, kind: &str, below: &Path, depth: u32, wanted: &dyn Fn(&Path) -> bool) {
        for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_group = kind == "control group";
            if (is_directory || !is_group) && wanted(&entry.path()) {
                self.add(kind, entry.path().display());
            }
            if is_directory && depth > 1 {
                self.walk(kind, &entry.path(), depth - 1, wanted);
            }
        }
    }
}

/// The names in a directory that are numbers.
fn numbers(directory: &str) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.parse::<u32>().is_ok()).collect()
}
