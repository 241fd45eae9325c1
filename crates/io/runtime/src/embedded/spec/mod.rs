//! The OCI runtime configuration of a container (`config.json`).

mod capabilities;
mod mounts;
mod named;
mod resources;

use super::apparmor;
use super::cdi::Part;
use super::devices::{self, Devices};
use super::handlers::Maker;
use super::launch::Launcher;
use super::records::{DevicePath, Hooks, SandboxRecord};
use super::sandboxes::user_pin;
use super::users::User;
use crate::helper::Verb;
use crate::helper::privileges::Privileges;
use crate::image::store::StoredImage;
use crate::{Error, seccomp};
use kedge_containers::{ContainerConfig, PidNamespace, SandboxConfig, Seccomp, Security, UserNamespace};
use kedge_host::cgroups::Layout as Cgroups;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) use mounts::IMAGE_VOLUMES;
pub(super) use mounts::shared_memory;

/// Of the configuration.
pub(super) const OCI_VERSION: &str = "1.0.2";
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of a user that the image does not know.
const HOME_DEFAULT: &str = "/";
/// What a program behind a terminal is told about it, as every runtime does.
const TERMINAL: &str = "TERM=xterm";
const STOP_SIGNAL_DEFAULT: &str = "SIGTERM";
/// As every runtime sets it, whatever the node agent's own is.
const UMASK: u32 = 0o022;

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Each processor tells how often it got too hot, which tells a container what its neighbours do.
const PROCESSORS: &str = "/sys/devices/system/cpu";
const OF_PROCESSOR_MASKED: &str = "thermal_throttle";

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What programs that are not root expect of a network of their own: to listen on any port, and to ping.
const NETWORK_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    (PING_GROUPS, "0 2147483647"),
];
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Everything a bundle is made of.
pub(super) struct Ingredients<'a> {
    pub(super) sandbox: &'a SandboxRecord,
    pub(super) sandbox_directory: &'a Path,
    /// The container's own.
    pub(super) directory: &'a Path,
    pub(super) config: &'a ContainerConfig,
    pub(super) image: &'a StoredImage,
    pub(super) user: User,
    pub(super) maker: &'a Maker,
    pub(super) cgroups: &'a Cgroups,
    pub(super) cgroup: &'a str,
    /// The capabilities of this process, by number: it cannot grant others.
    pub(super) held: u64,
    /// The first process of the container whose processes this one shall see.
    pub(super) target: Option<u32>,
    /// What its devices by name add.
    pub(super) named: &'a [Part],
    /// Runs hooks for libcontainer.
    pub(super) launcher: &'a Launcher,
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

/// A bundle's configuration, and what is not said in it.
pub(super) struct Written {
    pub(super) document: Value,
    /// Where the container's devices are on the node.
    pub(super) devices: Vec<DevicePath>,
    /// What is run while libcontainer makes it.
    pub(super) hooks: Hooks,
}

/// Writes the configuration down.
pub(super) fn write(from: &Ingredients<'_>) -> Result<Written, Error> {
    let security = &from.config.security;
    let sandbox = &from.sandbox.config;
    let open_proc = security.privileged || security.proc_unmasked;
    let named = named::named(from)?;
    let mut devices = if security.privileged {
        devices::all()
    } else {
        devices::some(&from.config.devices)?
    };
    named.nodes.into_iter().for_each(|node| devices.replace(node));
    let Devices { nodes, rules, paths } = devices;
    let masked = if open_proc { Vec::new() } else { masked_paths() };
    let limits = resources::resources(&from.config.resources, rules, from.cgroups, from.cgroup)?;
    let mut document = json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": "rootfs", "readonly": security.read_only_root },
        "process": {
            "terminal": from.config.tty,
            "user": {
                "uid": from.user.uid, "gid": from.user.gid, "additionalGids": groups(&from.user), "umask": UMASK,
            },
            "args": arguments(from.config, from.image),
            "env": environment(from, &named.env),
            "cwd": working_directory(from),
            "noNewPrivileges": capabilities::no_new_privileges(security),
            "oomScoreAdj": resources::oom_score(&from.config.resources, from.held),
        },
        "mounts": mounts::mounts(from, named.mounts)?,
        "annotations": from.config.annotations,
        "linux": {
            "namespaces": namespaces(from),
            "cgroupsPath": from.cgroup,
            "resources": limits,
            "devices": nodes,
            "sysctl": sysctls(sandbox),
            "maskedPaths": masked,
            "readonlyPaths": if open_proc { &[][..] } else { &READ_ONLY_PATHS[..] },
        },
    });
    if !sandbox.host_network {
        document["hostname"] = json!(sandbox.hostname);
    }
    if limits_are_ours(from.cgroups) {
        document["linux"]["resources"] = Value::Null;
    }
    confine(from, &mut document)?;
    if let Some(hooks) = hooks(from, &named.hooks) {
        document["hooks"] = hooks;
    }
    Ok(Written {
        document,
        devices: paths,
        hooks: named.hooks,
    })
}

/// Another runtime runs the hooks itself. Of libcontainer nobody learns which of them failed, and why; and what they left
/// behind would outlive their time: so it runs a helper, which runs them. Those within the container are run by its own
/// first process.
fn hooks(from: &Ingredients<'_>, hooks: &Hooks) -> Option<Value> {
    if matches!(from.maker, Maker::AnotherRuntime(_)) {
        return named::document(hooks);
    }
    let of_node = !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty();
    let stages = [
        ("createRuntime", Verb::RuntimeHooks, of_node),
        (
            "createContainer",
            Verb::ContainerHooks,
            !hooks.create_container.is_empty(),
        ),
    ];
    let mut document = serde_json::Map::new();
    for (stage, verb, _) in stages.into_iter().filter(|(.., wanted)| *wanted) {
        let args = from.launcher.calling(verb, from.directory);
        document.insert(
            stage.to_owned(),
            json!([{ "path": "/proc/self/exe", "args": args }]),
        );
    }
    (!document.is_empty()).then_some(Value::Object(document))
}

/// With any limit libcontainer filters devices in version 1, which the kernel lets nobody do in a user namespace. There
/// the runtime makes the container's groups with their limits itself.
pub(super) fn limits_are_ours(cgroups: &Cgroups) -> bool {
    match cgroups {
        Cgroups::V2 { .. } => false,
        Cgroups::V1 { .. } | Cgroups::Hybrid { .. } => kedge_host::users::in_namespace(),
    }
}

/// Rights, and the filter of system calls: this runtime installs its own, another one wants it in the configuration.
fn confine(from: &Ingredients<'_>, document: &mut Value) -> Result<(), Error> {
    let (privileges, filter) = (privileges(from)?, seccomp(&from.config.security));
    if let Some(profile) = &privileges.apparmor {
        document["process"]["apparmorProfile"] = json!(profile);
    }
    if !matches!(from.maker, Maker::AnotherRuntime(_)) {
        document["process"]["capabilities"] = capabilities::left_by_libcontainer(&privileges, filter);
        return Ok(());
    }
    document["process"]["capabilities"] = capabilities::granted_by_another(&privileges);
    let profile = seccomp::document(filter, &privileges.bounding)
        .map_err(|error| Error::failed("create container", &from.config.name, error))?;
    if let Some(profile) = profile {
        document["linux"]["seccomp"] = profile;
    }
    Ok(())
}

/// What the container's processes may do.
pub(super) fn privileges(from: &Ingredients<'_>) -> Result<Privileges, Error> {
    let security = &from.config.security;
    let apparmor = apparmor::profile(security)
        .map_err(|reason| Error::failed("create container", &from.config.name, reason))?;
    Ok(Privileges {
        apparmor,
        ..capabilities::privileges(security, from.user.uid, from.cgroups, from.held)
    })
}

/// A privileged container is not confined.
pub(super) fn seccomp(security: &Security) -> &Seccomp {
    if security.privileged {
        &Seccomp::Unconfined
    } else {
        &security.seccomp
    }
}

/// The user's own group is named as well: without a list a process would keep the node agent's groups, and a program
/// that changes its group would leave a group behind that files may shut out.
fn groups(user: &User) -> Vec<u32> {
    let mut groups: Vec<u32> = user.groups.iter().copied().chain([user.gid]).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn environment(from: &Ingredients<'_>, named: &[(String, String)]) -> Vec<String> {
    let image = from.image.execution.env.clone().unwrap_or_default();
    let mut all: Vec<String> = vec![
        PATH_DEFAULT.to_owned(),
        format!("HOSTNAME={}", hostname(&from.sandbox.config)),
    ];
    if from.config.tty {
        all.push(TERMINAL.to_owned());
    }
    let given = from
        .config
        .env
        .iter()
        .chain(named)
        .map(|(name, value)| format!("{name}={value}"));
    for variable in image.into_iter().chain(given) {
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        all.retain(|earlier| earlier.split('=').next() != Some(name.as_str()));
        all.push(variable);
    }
    if !all.iter().any(|variable| variable.starts_with("HOME=")) {
        let home = if from.user.home.is_empty() {
            HOME_DEFAULT
        } else {
            &from.user.home
        };
        all.push(format!("HOME={home}"));
    }
    all
}

/// A pod on the node's network may go without a name of its own.
fn hostname(sandbox: &SandboxConfig) -> String {
    if sandbox.hostname.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        sandbox.hostname.clone()
    }
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

fn masked_paths() -> Vec<PathBuf> {
    let processors = std::fs::read_dir(PROCESSORS).into_iter().flatten().flatten();
    let hot = processors
        .map(|entry| entry.path().join(OF_PROCESSOR_MASKED))
        .filter(|path| path.exists());
    MASKED_PATHS.iter().map(PathBuf::from).chain(hot).collect()
}

/// The pod's, and what a pod's own network has of itself.
fn sysctls(sandbox: &SandboxConfig) -> BTreeMap<String, String> {
    let mut sysctls = sandbox.sysctls.clone();
    if !sandbox.host_network {
        let highest = |ids: &UserNamespace| format!("0 {}", ids.gids.length.saturating_sub(1));
        for (name, value) in NETWORK_SYSCTLS {
            // The kernel takes no groups that the pod does not have.
            let value = match &sandbox.user_namespace {
                Some(ids) if name == PING_GROUPS => highest(ids),
                None if name == PING_GROUPS && kedge_host::users::in_namespace() => {
                    format!("0 {}", kedge_host::users::highest_group())
                }
                Some(_) | None => value.to_owned(),
            };
            if Path::new("/proc/sys").join(name.replace('.', "/")).exists() {
                sysctls.entry(name.to_owned()).or_insert(value);
            }
        }
    }
    sysctls
}

fn namespaces(from: &Ingredients<'_>) -> Vec<Value> {
    let config = &from.sandbox.config;
    let pin = |name: &str| from.sandbox_directory.join(name);
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    if config.user_namespace.is_some() {
        namespaces.push(json!({ "type": "user", "path": user_pin(from.sandbox_directory) }));
    }
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
