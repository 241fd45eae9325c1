//! One container.

use super::{
    LABEL_CONTAINER, LABEL_NAME, LABEL_NAMESPACE, LABEL_UID, Objects, env, expand, pod_dir, security,
    spec_hash,
};
use crate::{Config, Refusal, qos};
use kedge_api::{Container, Pod, VolumeMount};
use kedge_containers::{ContainerConfig, ContainerId, Device, Mount, Propagation};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

const REASON: &str = "CreateContainerConfigError";
/// Where a container leaves its last words unless the pod says otherwise.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
const ETC_HOSTS: &str = "/etc/hosts";
/// A block device of a volume may be read, written and made.
const BLOCK_PERMISSIONS: &str = "mrw";

/// What a volume is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A directory or a file.
    Path { path: PathBuf, read_only: bool },
    /// A block device, for `volumeDevices`.
    Block { path: PathBuf, read_only: bool },
}

/// What device plug-ins gave to one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocated {
    pub devices: Vec<Device>,
    pub cdi_devices: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub annotations: BTreeMap<String, String>,
}

/// What a translation needs besides the container.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub config: &'a Config,
    pub pod: &'a Pod,
    /// Addresses of the sandbox; empty with host network.
    pub pod_ips: &'a [String],
    pub objects: &'a Objects,
    /// By volume name.
    pub volumes: &'a BTreeMap<String, MountSource>,
    /// The numeric user of the image, if it has one.
    pub image_user: Option<u32>,
    /// The user of the image, if it is a name.
    pub image_username: Option<&'a str>,
    pub allocated: &'a Allocated,
    /// Whose processes an ephemeral container sees.
    pub target: Option<&'a ContainerId>,
    /// The handler that runs the pod can make the mounts below a read-only mount read-only as well.
    pub recursive_read_only: bool,
}

/// The file that stands behind the termination message path of one instance.
pub fn termination_log(config: &Config, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    pod_dir(config, pod)
        .join("containers")
        .join(container)
        .join(format!("{attempt}.termination-log"))
}

/// The file that stands behind `/etc/hosts` of all containers of a pod.
pub fn etc_hosts(config: &Config, pod: &Pod) -> PathBuf {
    pod_dir(config, pod).join("etc-hosts")
}

/// The container as a runtime understands it.
pub fn container(inputs: &Inputs<'_>, spec: &Container, attempt: u32) -> Result<ContainerConfig, Refusal> {
    let env = env::environment(inputs, spec)?;
    let lookup = |name: &str| env::lookup(&env, name);
    let expanded = |list: &[String]| list.iter().map(|text| expand(text, lookup)).collect::<Vec<_>>();
    let mounts = mounts(inputs, spec, attempt, &lookup)?;
    let allocated = inputs.allocated;
    let mut devices = allocated.devices.clone();
    devices.extend(block_devices(inputs, spec)?);
    let annotations = allocated
        .annotations
        .clone()
        .into_iter()
        .chain(annotations(inputs.pod, spec, attempt));
    Ok(ContainerConfig {
        name: spec.name.clone(),
        attempt,
        image: spec.image.clone(),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().filter(|dir| !dir.is_empty()),
        mounts,
        devices,
        cdi_devices: allocated.cdi_devices.clone(),
        labels: labels(inputs.pod, spec),
        annotations: annotations.collect(),
        log_path: Path::new(&spec.name).join(format!("{attempt}.log")),
        resources: qos::container_resources(inputs.config, inputs.pod, spec),
        security: security::container(inputs, spec)?,
        stop_signal: spec.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        spec_hash: spec_hash(spec),
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        env,
    })
}

fn labels(pod: &Pod, spec: &Container) -> BTreeMap<String, String> {
    [
        (LABEL_NAMESPACE, pod.namespace()),
        (LABEL_NAME, &pod.metadata.name),
        (LABEL_UID, pod.uid()),
        (LABEL_CONTAINER, &spec.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// What a kubelet keeps with its containers, so that either agent finds the other's.
fn annotations(pod: &Pod, spec: &Container, attempt: u32) -> Vec<(String, String)> {
    let policy = spec.termination_message_policy.as_deref().unwrap_or("File");
    let mut list = vec![
        ("io.kubernetes.container.hash", spec_hash(spec)),
        ("io.kubernetes.container.restartCount", attempt.to_string()),
        (
            "io.kubernetes.container.terminationMessagePath",
            message_path(spec).to_owned(),
        ),
        (
            "io.kubernetes.container.terminationMessagePolicy",
            policy.to_owned(),
        ),
    ];
    let seconds = pod.metadata.deletion_grace_period_seconds;
    list.extend(seconds.map(|s| ("io.kubernetes.pod.deletionGracePeriod", s.to_string())));
    let seconds = pod.spec.termination_grace_period_seconds;
    list.extend(seconds.map(|s| ("io.kubernetes.pod.terminationGracePeriod", s.to_string())));
    let hook = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    // These types become JSON always; a missing annotation would only be missed by a kubelet after a change back.
    let hook = hook.and_then(|hook| serde_json::to_string(hook).ok());
    list.extend(hook.map(|hook| ("io.kubernetes.container.preStopHandler", hook)));
    let ports = serde_json::to_string(&spec.ports)
        .ok()
        .filter(|_| !spec.ports.is_empty());
    list.extend(ports.map(|ports| ("io.kubernetes.container.ports", ports)));
    list.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn message_path(spec: &Container) -> &str {
    let path = spec.termination_message_path.as_deref();
    path.filter(|path| !path.is_empty())
        .unwrap_or(TERMINATION_MESSAGE_PATH)
}

fn mounts(
    inputs: &Inputs<'_>,
    spec: &Container,
    attempt: u32,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, Refusal> {
    let mut mounts = Vec::new();
    for mount in &spec.volume_mounts {
        mounts.push(volume_mount(inputs, mount, lookup)?);
    }
    mounts.extend(inputs.allocated.mounts.iter().cloned());
    let taken = |mounts: &[Mount], path: &Path| mounts.iter().any(|m| m.container_path == path);
    let has_address = inputs.pod.spec.host_network || !inputs.pod_ips.is_empty();
    if has_address && !taken(&mounts, Path::new(ETC_HOSTS)) {
        mounts.push(Mount::bind(
            etc_hosts(inputs.config, inputs.pod),
            ETC_HOSTS,
            false,
        ));
    }
    let words = absolute(message_path(spec));
    if !taken(&mounts, &words) {
        let file = termination_log(inputs.config, inputs.pod, &spec.name, attempt);
        mounts.push(Mount::bind(file, words, false));
    }
    Ok(mounts)
}

fn volume_mount(
    inputs: &Inputs<'_>,
    mount: &VolumeMount,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Mount, Refusal> {
    let (path, volume_read_only) = match inputs.volumes.get(&mount.name) {
        Some(MountSource::Path { path, read_only }) => (path, *read_only),
        Some(MountSource::Block { .. }) => {
            return Err(refuse(format!(
                "volume {} is a block device, which volumeDevices names and not volumeMounts",
                mount.name
            )));
        }
        None => {
            return Err(refuse(format!(
                "volume mount {} names no volume of the pod",
                mount.name
            )));
        }
    };
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(expression)) if !expression.is_empty() => resolved(expression, lookup)?,
        (Some(path), _) => path.clone(),
        (None, _) => String::new(),
    };
    let host_path = if sub_path.is_empty() {
        path.clone()
    } else {
        path.join(below(&sub_path)?)
    };
    let read_only = volume_read_only || mount.read_only;
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(_) | None => Propagation::Private,
    };
    Ok(Mount {
        host_path,
        container_path: absolute(&mount.mount_path),
        read_only,
        recursive_read_only: recursive(inputs.recursive_read_only, mount, propagation)?,
        propagation,
    })
}

/// `able`: the runtime can do it.
fn recursive(able: bool, mount: &VolumeMount, propagation: Propagation) -> Result<bool, Refusal> {
    let why = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some("IfPossible") => {
            let plain = mount.read_only && propagation == Propagation::Private;
            return Ok(plain && able);
        }
        Some("Enabled") if !mount.read_only => "it is not read-only",
        Some("Enabled") if propagation != Propagation::Private => "it has a mount propagation",
        Some("Enabled") if !able => "it is not supported by the runtime",
        Some("Enabled") => return Ok(true),
        Some(_) => "the mode is not known",
    };
    Err(refuse(format!(
        "failed to resolve recursive read-only mode: volume \"{}\" requested recursive read-only mode, but {why}",
        mount.name
    )))
}

fn block_devices(inputs: &Inputs<'_>, spec: &Container) -> Result<Vec<Device>, Refusal> {
    let mut devices = Vec::new();
    for device in &spec.volume_devices {
        match inputs.volumes.get(&device.name) {
            Some(MountSource::Block { path, read_only }) => devices.push(Device {
                host_path: path.clone(),
                container_path: PathBuf::from(&device.device_path),
                permissions: if *read_only { "r" } else { BLOCK_PERMISSIONS }.to_owned(),
            }),
            Some(MountSource::Path { .. }) => {
                return Err(refuse(format!("volume {} is not a block device", device.name)));
            }
            None => {
                return Err(refuse(format!(
                    "volume device {} names no volume of the pod",
                    device.name
                )));
            }
        }
    }
    Ok(devices)
}

/// An expression whose variables are all known.
fn resolved(expression: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, Refusal> {
    let missing = std::cell::RefCell::new(None);
    let text = expand(expression, |name| {
        let value = lookup(name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing.into_inner() {
        None => Ok(text),
        Some(name) => Err(refuse(format!(
            "missing value for \"{name}\" in subPathExpr {expression:?}"
        ))),
    }
}

fn absolute(path: &str) -> PathBuf {
    if path.starts_with('/') {
        PathBuf::from(path)
    } else {
        Path::new("/").join(path)
    }
}

/// A sub path stays below its volume.
fn below(sub_path: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(sub_path);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain {
        Ok(path)
    } else {
        Err(refuse(format!("subPath {sub_path:?} leaves its volume")))
    }
}

fn refuse(message: String) -> Refusal {
    Refusal::new(REASON, message)
}
