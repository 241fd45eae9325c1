//! The OCI runtime configuration of a container (`config.json`).

use super::devices::{self, Devices};
use super::records::SandboxRecord;
use super::users::User;
use crate::Error;
use crate::helper::privileges::Privileges;
use crate::image::store::StoredImage;
use kedge_containers::{
    AppArmor, ContainerConfig, Mount, PidNamespace, Propagation, Resources, Seccomp, Security,
};
use kedge_host::cgroups::Layout as Cgroups;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const STOP_SIGNAL_DEFAULT: &str = "SIGTERM";

/// What Docker and containerd grant, which is what images expect.
const CAPABILITIES_DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All there are, in the order of their numbers.
const CAPABILITIES_ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const OOM_SCORE_MIN: i32 = -1000;
const OOM_SCORE_MAX: i32 = 1000;

const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Everything a bundle is made of.
pub(super) struct Ingredients<'a> {
    pub(super) sandbox: &'a SandboxRecord,
    pub(super) sandbox_directory: &'a Path,
    pub(super) config: &'a ContainerConfig,
    pub(super) image: &'a StoredImage,
    pub(super) user: User,
    pub(super) cgroups: &'a Cgroups,
    pub(super) cgroup: &'a str,
    /// The capabilities of this process, by number: it cannot grant others.
    pub(super) held: u64,
    /// The first process of the container whose processes this one shall see.
    pub(super) target: Option<u32>,
}

/// The signal that asks this container to stop.
pub(super) fn stop_signal(config: &ContainerConfig, image: &StoredImage) -> String {
    let named = config
        .stop_signal
        .as_ref()
        .or(image.execution.stop_signal.as_ref());
    named
        .filter(|name| !name.is_empty())
        .cloned()
        .unwrap_or_else(|| STOP_SIGNAL_DEFAULT.to_owned())
}

/// Command and arguments, the pod's over the image's as Kubernetes defines it.
pub(super) fn arguments(config: &ContainerConfig, image: &StoredImage) -> Vec<String> {
    let entrypoint = image.execution.entrypoint.clone().unwrap_or_default();
    let cmd = image.execution.cmd.clone().unwrap_or_default();
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.clone(), config.args.clone()),
        (true, false) => (entrypoint, config.args.clone()),
        (true, true) => (entrypoint, cmd),
    };
    [command, args].concat()
}

/// Writes the configuration down.
pub(super) fn write(from: &Ingredients<'_>) -> Result<Value, Error> {
    let security = &from.config.security;
    let sandbox = &from.sandbox.config;
    let open_proc = security.privileged || security.proc_unmasked;
    let Devices { nodes, rules } = if security.privileged {
        devices::all()
    } else {
        devices::some(&from.config.devices)?
    };
    let mut document = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": security.read_only_root },
        "process": {
            "terminal": false,
            "user": { "uid": from.user.uid, "gid": from.user.gid, "additionalGids": from.user.groups },
            "args": arguments(from.config, from.image),
            "env": environment(from),
            "cwd": working_directory(from),
            "capabilities": granted(&privileges(from), seccomp(security)),
            "noNewPrivileges": no_new_privileges(security),
            "oomScoreAdj": oom_score(&from.config.resources, from.held),
        },
        "mounts": mounts(from)?,
        "linux": {
            "namespaces": namespaces(from),
            "cgroupsPath": from.cgroup,
            "resources": resources(&from.config.resources, rules, from.cgroups),
            "devices": nodes,
            "sysctl": sandbox.sysctls,
            "maskedPaths": if open_proc { &[][..] } else { &MASKED_PATHS[..] },
            "readonlyPaths": if open_proc { &[][..] } else { &READ_ONLY_PATHS[..] },
        },
    });
    if !sandbox.host_network {
        document["hostname"] = json!(sandbox.hostname);
    }
    if let Some(AppArmor::Localhost(profile)) = &security.apparmor {
        document["process"]["apparmorProfile"] = json!(profile);
    }
    Ok(document)
}

/// What the container's processes may do.
pub(super) fn privileges(from: &Ingredients<'_>) -> Privileges {
    let security = &from.config.security;
    let bounding: Vec<String> = capabilities(security, from.cgroups)
        .into_iter()
        .filter(|name| is_held(name, from.held))
        .collect();
    Privileges {
        // Root has its capabilities; others may gain them only from a file that carries them.
        held: if from.user.uid == 0 {
            bounding.clone()
        } else {
            Vec::new()
        },
        bounding,
        no_new_privileges: no_new_privileges(security),
    }
}

fn no_new_privileges(security: &Security) -> bool {
    !security.allow_privilege_escalation && !security.privileged
}

/// A privileged container is not confined.
pub(super) fn seccomp(security: &Security) -> &Seccomp {
    if security.privileged {
        &Seccomp::Unconfined
    } else {
        &security.seccomp
    }
}

fn environment(from: &Ingredients<'_>) -> Vec<String> {
    let image = from.image.execution.env.clone().unwrap_or_default();
    let mut all: Vec<String> = vec![
        PATH_DEFAULT.to_owned(),
        format!("HOSTNAME={}", from.sandbox.config.hostname),
    ];
    let given = from
        .config
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    for variable in image.into_iter().chain(given) {
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        all.retain(|earlier| earlier.split('=').next() != Some(name.as_str()));
        all.push(variable);
    }
    all
}

fn working_directory(from: &Ingredients<'_>) -> String {
    let named = from
        .config
        .working_dir
        .as_ref()
        .or(from.image.execution.working_dir.as_ref());
    named
        .filter(|path| path.starts_with('/'))
        .cloned()
        .unwrap_or_else(|| "/".to_owned())
}

/// Without the right to lower scores a container gets the lowest one that needs none.
fn oom_score(resources: &Resources, held: u64) -> i32 {
    let lowest = if is_held("CAP_SYS_RESOURCE", held) {
        OOM_SCORE_MIN
    } else {
        0
    };
    resources.oom_score_adj.unwrap_or(0).clamp(lowest, OOM_SCORE_MAX)
}

/// Without the device filter of version 1 groups, a container that may make device nodes could open the disk.
fn capabilities(security: &Security, cgroups: &Cgroups) -> Vec<String> {
    if security.privileged {
        return CAPABILITIES_ALL.map(str::to_owned).to_vec();
    }
    let long = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        }
    };
    let added: Vec<String> = security.add_capabilities.iter().map(long).collect();
    let dropped: Vec<String> = security.drop_capabilities.iter().map(long).collect();
    let everything = added.iter().any(|name| name == "CAP_ALL");
    let nothing = dropped.iter().any(|name| name == "CAP_ALL");
    let start: &[&str] = match (everything, nothing) {
        (true, _) => &CAPABILITIES_ALL,
        (false, true) => &[],
        (false, false) => &CAPABILITIES_DEFAULT,
    };
    let filtered = !matches!(cgroups, Cgroups::V2 { .. });
    let mut granted: Vec<String> = start
        .iter()
        .filter(|name| everything || filtered || **name != "CAP_MKNOD")
        .map(|name| (*name).to_owned())
        .filter(|name| !dropped.contains(name))
        .collect();
    let known = added
        .into_iter()
        .filter(|name| CAPABILITIES_ALL.contains(&name.as_str()));
    granted.extend(known);
    granted.sort();
    granted.dedup();
    granted
}

/// Whether this process has a capability itself. A node agent in a container lacks some, and so do its containers.
fn is_held(name: &str, held: u64) -> bool {
    CAPABILITIES_ALL
        .iter()
        .position(|known| *known == name)
        .is_some_and(|number| held & (1 << number) != 0)
}

/// What libcontainer shall leave. Installing a filter of system calls needs a right unless new privileges are given up,
/// so it is kept until then; the container's first process drops it before it executes anything.
fn granted(privileges: &Privileges, seccomp: &Seccomp) -> Value {
    const FOR_FILTERS: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SETPCAP"];
    let needed = *seccomp != Seccomp::Unconfined && !privileges.no_new_privileges;
    let with = |names: &[String]| -> Vec<String> {
        let more = FOR_FILTERS
            .iter()
            .filter(|_| needed)
            .map(|name| (*name).to_owned());
        let mut all: Vec<String> = names.iter().cloned().chain(more).collect();
        all.sort();
        all.dedup();
        all
    };
    let (bounding, held) = (with(&privileges.bounding), with(&privileges.held));
    json!({ "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": [] })
}

fn namespaces(from: &Ingredients<'_>) -> Vec<Value> {
    let config = &from.sandbox.config;
    let pin = |name: &str| from.sandbox_directory.join(name);
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    let seen = &from.config.security.pid;
    match (seen, from.target) {
        _ if config.host_pid => {}
        (PidNamespace::Node, _) => {}
        (PidNamespace::Target(_), Some(pid)) => {
            namespaces.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        }
        (PidNamespace::Pod, _) => namespaces.push(json!({ "type": "pid", "path": pin("pid") })),
        (PidNamespace::Target(_), None) | (PidNamespace::Container, _) => {
            namespaces.push(json!({ "type": "pid" }));
        }
    }
    if !config.host_network {
        namespaces.push(json!({ "type": "network", "path": pin("net") }));
        namespaces.push(json!({ "type": "uts" }));
    }
    if !config.host_ipc {
        namespaces.push(json!({ "type": "ipc", "path": pin("ipc") }));
    }
    namespaces
}

fn mounts(from: &Ingredients<'_>) -> Result<Vec<Value>, Error> {
    let privileged = from.config.security.privileged;
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": safe(&[]) }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "bind", "source": shared_memory(from), "options": BIND }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": safe(&[sys]) }),
    ];
    if !from.sandbox.config.host_ipc {
        mounts.push(
            json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe(&[]) }),
        );
    }
    if matches!(from.cgroups, Cgroups::V2 { .. }) {
        mounts.push(
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": safe(&[sys]) }),
        );
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = Path::new("/etc").join(name);
        if !from
            .config
            .mounts
            .iter()
            .any(|mount| mount.container_path == destination)
        {
            let source = from.sandbox_directory.join(name);
            mounts.push(
                json!({ "destination": destination, "type": "bind", "source": source, "options": BIND }),
            );
        }
    }
    for mount in &from.config.mounts {
        mounts.push(volume(mount)?);
    }
    Ok(mounts)
}

/// Options of a mount from which nothing is executed, with some more.
fn safe<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut options = vec!["nosuid", "noexec", "nodev"];
    options.extend(more);
    options
}

const BIND: [&str; 3] = ["rbind", "rprivate", "rw"];

/// One for all containers of the pod, or the node's own.
fn shared_memory(from: &Ingredients<'_>) -> PathBuf {
    if from.sandbox.config.host_ipc {
        PathBuf::from("/dev/shm")
    } else {
        from.sandbox_directory.join("shm")
    }
}

fn volume(mount: &Mount) -> Result<Value, Error> {
    let refuse = |reason: &str| {
        Err(Error::failed(
            "mount",
            mount.container_path.display().to_string(),
            reason,
        ))
    };
    if !mount.container_path.is_absolute() {
        return refuse("a path in a container begins with /");
    }
    let rights = match (mount.read_only, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => {
            return Err(Error::Unsupported {
                act: "mount",
                object: mount.container_path.display().to_string(),
                reason: "the built-in runtime cannot pass mounts from a container to the node \
                         (mountPropagation: Bidirectional); use containerd",
            });
        }
    };
    let source = &mount.host_path;
    if !source.exists() {
        return refuse(&format!("{} does not exist on the node", source.display()));
    }
    Ok(
        json!({ "destination": mount.container_path, "type": "bind", "source": source,
                "options": ["rbind", propagation, rights] }),
    )
}

fn resources(limits: &Resources, devices: Vec<Value>, cgroups: &Cgroups) -> Value {
    let mut resources = json!({ "devices": devices });
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu.insert("quota".to_owned(), json!(quota));
        cpu.insert(
            "period".to_owned(),
            json!(limits.cpu_period_us.unwrap_or(100_000)),
        );
    }
    for (key, value) in [("cpus", &limits.cpuset_cpus), ("mems", &limits.cpuset_mems)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            cpu.insert(key.to_owned(), json!(value));
        }
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(bytes) = limits.memory_bytes_max {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(pids) = limits.pids_max {
        resources["pids"] = json!({ "limit": pids });
    }
    // Each container is kept from huge pages that it did not ask for, where the machine can do that.
    let counted = cgroups.has("hugetlb");
    let asked: Vec<_> = limits
        .hugepages
        .iter()
        .filter(|(_, bytes)| counted || **bytes > 0)
        .collect();
    if !asked.is_empty() {
        let limit = |(size, bytes): (&String, &u64)| json!({ "pageSize": size, "limit": bytes });
        resources["hugepageLimits"] = asked.into_iter().map(limit).collect();
    }
    if !limits.unified.is_empty() {
        resources["unified"] = json!(limits.unified);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn granted_with(add: &[&str], drop: &[&str], cgroups: &Cgroups) -> Vec<String> {
        let security = Security {
            add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..Security::default()
        };
        capabilities(&security, cgroups)
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let v1 = Cgroups::V1 {
            mounts: BTreeMap::new(),
        };
        assert_eq!(granted_with(&[], &[], &v1).len(), CAPABILITIES_DEFAULT.len());
        assert_eq!(
            granted_with(&["NET_BIND_SERVICE"], &["ALL"], &v1),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(
            granted_with(&["ALL"], &["sys_boot"], &v1).len(),
            CAPABILITIES_ALL.len() - 1
        );
        assert!(granted_with(&["CAP_NO_SUCH"], &["ALL"], &v1).is_empty());
    }

    #[test]
    fn without_a_device_filter_no_devices_are_made() {
        let v2 = Cgroups::V2 {
            mount: "/sys/fs/cgroup".into(),
            controllers: Default::default(),
        };
        assert!(!granted_with(&[], &[], &v2).contains(&"CAP_MKNOD".to_owned()));
        assert!(
            granted_with(&["MKNOD"], &[], &v2).contains(&"CAP_MKNOD".to_owned()),
            "asked for by name"
        );
    }

    #[test]
    fn what_is_not_held_is_not_granted() {
        const ALL_BUT_SYS_RESOURCE: u64 = 0x1ff_feff_ffff;
        let granted = CAPABILITIES_ALL
            .iter()
            .filter(|name| is_held(name, ALL_BUT_SYS_RESOURCE))
            .count();
        assert_eq!(granted, CAPABILITIES_ALL.len() - 1);
        assert!(
            !is_held("CAP_SYS_RESOURCE", ALL_BUT_SYS_RESOURCE)
                && is_held("CAP_SYS_NICE", ALL_BUT_SYS_RESOURCE)
        );
    }

    #[test]
    fn scores_are_lowered_only_with_the_right_to() {
        const NOTHING: u64 = 0;
        const EVERYTHING: u64 = u64::MAX;
        let with = |score, held| {
            let resources = Resources {
                oom_score_adj: Some(score),
                ..Resources::default()
            };
            oom_score(&resources, held)
        };
        assert_eq!((with(999, NOTHING), with(-997, NOTHING)), (999, 0));
        assert_eq!((with(999, EVERYTHING), with(-997, EVERYTHING)), (999, -997));
    }
}
