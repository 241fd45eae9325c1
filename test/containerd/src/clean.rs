//! Leaving nothing behind, whatever happened before.

use crate::{Daemon, LOOK_EVERY, Make};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A process that was killed is gone within this time.
const GONE_MAX: Duration = Duration::from_secs(10);
/// Where the network plug-ins note what they did, for all networks of the machine.
const CNI_RESULTS: &str = "/var/lib/cni/results";

impl<M: Make> Daemon<M> {
    /// Removes everything. What is gone already is no error, so it may be called again.
    pub(crate) fn clean(&mut self) {
        self.thaw();
        let containers = M::end_containers(self);
        self.kill();
        self.kill_everybody();
        for mount in self.mounts().into_iter().rev() {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
        drop(
            Command::new("ip")
                .args(["link", "delete", &self.bridge()])
                .output(),
        );
        for file in self.results(&containers) {
            drop(fs::remove_file(file));
        }
        for group in self.groups() {
            remove_group(&group);
        }
        drop(fs::remove_dir_all(&self.directory));
    }

    /// Supervisors name the folder of their daemon; what they started is below them.
    fn kill_everybody(&self) {
        let deadline = Instant::now() + GONE_MAX;
        loop {
            let own = self.processes();
            if own.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in own {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Its supervisors, and what is in its control groups.
    fn processes(&self) -> Vec<i32> {
        let folder = self.directory.to_string_lossy().into_owned();
        let mut found: Vec<i32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command);
                command.contains(M::SUPERVISOR) && command.contains(&folder)
            })
            .collect();
        for group in self.groups() {
            found.extend(processes_below(&group));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .map(PathBuf::from)
            .filter(|point| point.starts_with(&self.directory))
            .collect()
    }

    /// Those of its network, and those of the loopback devices of these containers.
    fn results(&self, containers: &[String]) -> Vec<PathBuf> {
        let start = format!("{}-", self.network_name());
        let entries = fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten();
        let own = entries.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&start) || containers.iter().any(|id| name.contains(id))
        });
        own.map(|entry| entry.path()).collect()
    }

    /// Its control group in every tree, the one of systemd's own bookkeeping included.
    fn groups(&self) -> Vec<PathBuf> {
        let name = self.cgroup_root();
        let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let trees = trees
            .map(|entry| entry.path())
            .chain([PathBuf::from("/sys/fs/cgroup")]);
        let groups = trees.map(|tree| tree.join(name.trim_start_matches('/')));
        groups.filter(|group| group.is_dir()).collect()
    }

    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new(), "processes left");
        assert_eq!(self.mounts(), Vec::<PathBuf>::new(), "mounts left");
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "control groups left");
        assert_eq!(
            self.results(&[]),
            Vec::<PathBuf>::new(),
            "results of the network left"
        );
        let bridge = Path::new("/sys/class/net").join(self.bridge());
        assert!(!bridge.exists(), "{} left", bridge.display());
        assert!(!self.directory.exists(), "{} left", self.directory.display());
    }
}

fn processes_below(group: &Path) -> Vec<i32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes_below(&entry.path()));
        }
    }
    found
}

fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let deadline = Instant::now() + GONE_MAX;
    // The kernel needs a moment to forget the last process.
    while fs::remove_dir(group).is_err() && group.exists() && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}
