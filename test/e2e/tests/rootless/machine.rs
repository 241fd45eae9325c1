//! A machine as an ordinary user would have it: what root gives to a user, given to one for the time of a test.

use kedge_e2e::{User, binary, free_ports, proc};
use kedge_host::cgroups::Layout;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `nobody`, which every machine has: the programs that map ids want a user with a name.
const USER: u32 = 65534;
/// Ids that belong to nobody else.
const FIRST_ID: u32 = 1_610_612_736;
const IDS: u32 = 65_536;

const TUNNEL_NUMBER: (u32, u32) = (10, 200);

/// The groups of a process are the process's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Something that root has not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    Pasta,
    Ids,
    Mappers,
    Groups,
    Tunnel,
}

/// The user's things, and this thread's mounts. They go when it is dropped.
pub(crate) struct Machine {
    home: PathBuf,
    /// Each tree with the group that was handed over, and the one that this process came from.
    groups: Vec<(PathBuf, PathBuf)>,
    _one: MutexGuard<'static, ()>,
}

impl Machine {
    pub(crate) fn new(without: &[Without]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = std::env::temp_dir().join(format!("kedge-e2e-rootless-{}-{number}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        chown(&home, Some(USER), Some(USER)).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(binary("kedge"), home.join("kedge")).unwrap();
        let machine = Self {
            groups: if without.contains(&Without::Groups) {
                Vec::new()
            } else {
                hand_over(number)
            },
            home,
            _one: one,
        };
        machine.furnish(without);
        machine
    }

    /// Mounts that only this thread and its children have.
    fn furnish(&self, without: &[Without]) {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let ids = self.home.join("ids");
        let line = match without.contains(&Without::Ids) {
            true => String::new(),
            false => format!("{USER}:{FIRST_ID}:{IDS}\n"),
        };
        fs::write(&ids, line).unwrap();
        for file in ["/etc/subuid", "/etc/subgid"] {
            mount_bind(&ids, file).unwrap();
        }
        mount(
            "tunnel",
            "/dev/net",
            "tmpfs",
            MountFlags::empty(),
            Some(c"mode=755"),
        )
        .unwrap();
        if !without.contains(&Without::Tunnel) {
            let (major, minor) = TUNNEL_NUMBER;
            let device = rustix::fs::makedev(major, minor);
            let path = "/dev/net/tun";
            rustix::fs::mknodat(
                CWD,
                path,
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o600),
                device,
            )
            .unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        }
        for (thing, program) in [
            (Without::Pasta, "/usr/bin/pasta"),
            (Without::Mappers, "/usr/bin/newuidmap"),
        ] {
            if without.contains(&thing) {
                // No file, so no program.
                mount_bind("/dev/null", program).unwrap();
            }
        }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn user(&self) -> User {
        User {
            uid: USER,
            gid: USER,
            program: self.home.join("kedge"),
        }
    }

    /// What `kedge up` says that cannot come up.
    pub(crate) fn try_up(&self) -> String {
        let (api, hub) = free_ports();
        let output = Command::new(self.home.join("kedge"))
            .arg("--data-dir")
            .arg(self.home.join("data"))
            .args([
                "up",
                "--api-port",
                &api.to_string(),
                "--hub-port",
                &hub.to_string(),
            ])
            .uid(USER)
            .gid(USER)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Processes of the user, and of the users that it has in its node.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let is_users = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Uid:"))
                .unwrap_or_default();
            let uid: Option<u32> = line.split_whitespace().next().and_then(|uid| uid.parse().ok());
            uid.is_some_and(|uid| (FIRST_ID..FIRST_ID + IDS).contains(&uid))
        };
        let mut found = proc::find(&[&self.home.to_string_lossy()]);
        found.extend(proc::find(&["kedge-node"]).into_iter().filter(|pid| {
            fs::metadata(format!("/proc/{pid}"))
                .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == USER)
        }));
        found.extend(proc::find(&[]).into_iter().filter(is_users));
        found
    }

    pub(crate) fn end_pasta(&self) {
        let found = proc::find(&["pasta", &self.home.to_string_lossy()]);
        assert_eq!(found.len(), 1);
        for pid in found {
            let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            // Its command line is gone a moment before it is.
            kedge_e2e::wait_for("the end of pasta", || match proc::is_alive(pid) {
                true => Err("it lives".to_owned()),
                false => Ok(()),
            });
        }
    }

    /// Groups below those that were handed over, but for the one that the node's own processes move to.
    pub(crate) fn groups(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (group, _) in &self.groups {
            for entry in fs::read_dir(group).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() && entry.file_name() != "kedge-node" {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }

    /// The memory limits that somebody set below the groups that were handed over.
    pub(crate) fn memory_limits(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (group, _) in &self.groups {
            collect(group, &mut found);
        }
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (group, home) in &self.groups {
            let _ = fs::write(home.join("cgroup.procs"), std::process::id().to_string());
            let _ = fs::remove_dir(group.join("kedge-node"));
            // What has just ended is in it for a moment more.
            kedge_e2e::wait_for("an empty group", || {
                fs::remove_dir(group).map_err(|error| format!("{}: {error}", group.display()))
            });
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn collect(group: &Path, found: &mut Vec<String>) {
    for name in ["memory.limit_in_bytes", "memory.max"] {
        let limit = fs::read_to_string(group.join(name)).unwrap_or_default();
        let limit = limit.trim();
        // Without a limit a group says the most that it can.
        if limit.parse().is_ok_and(|bytes: u64| bytes < 1 << 40) {
            found.push(limit.to_owned());
        }
    }
    for entry in fs::read_dir(group).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), found);
        }
    }
}

/// Gives the user a group in every tree, as systemd does, and moves this process there, so that what it starts is in it.
fn hand_over(number: u32) -> Vec<(PathBuf, PathBuf)> {
    let layout = kedge_host::cgroups::layout().unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut groups = Vec::new();
    for tree in layout.trees() {
        let group = tree.join(format!("kedge-e2e-rootless-{}-{number}", std::process::id()));
        if let Layout::V2 { mount, .. } = &layout {
            fs::write(mount.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
        }
        fs::create_dir(&group).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // In version 1 nobody can be in a group without processors.
            let of_all = tree.join(file);
            if of_all.exists() {
                fs::copy(of_all, group.join(file)).unwrap();
            }
        }
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let path = group.join(file);
            if path.exists() {
                chown(path, Some(USER), Some(USER)).unwrap();
            }
        }
        fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        groups.push((group, tree.join(own_group(tree, &layout, &own))));
    }
    groups
}

/// Where this process is in a tree, without the slash that it begins with.
fn own_group(tree: &Path, layout: &Layout, own: &str) -> PathBuf {
    let controller = match layout {
        Layout::V2 { .. } => "",
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => mounts
            .iter()
            .find(|(_, mount)| *mount == tree)
            .map_or("", |(name, _)| name.as_str()),
    };
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.trim_start_matches('/'))
    });
    PathBuf::from(path.unwrap())
}
