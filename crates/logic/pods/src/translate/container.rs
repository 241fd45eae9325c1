//! One container.

use super::{Objects, env, expand, pod_dir, spec_hash};
use crate::{Config, Refusal, qos};
use kedge_api::{Container, Pod, SecurityContext};
use kedge_containers::{ContainerConfig, Mount, Security};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

const REASON: &str = "CreateContainerConfigError";
/// Where a container leaves its last words unless the pod says otherwise.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// What a volume is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    Path {
        path: PathBuf,
        read_only: bool,
    },
    /// An `emptyDir` in memory.
    Tmpfs,
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
}

/// The file that stands behind the termination message path of one instance.
pub fn termination_log(config: &Config, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    pod_dir(config, pod)
        .join("containers")
        .join(container)
        .join(format!("{attempt}.termination-log"))
}

/// The container as a runtime understands it.
pub fn container(inputs: &Inputs<'_>, spec: &Container, attempt: u32) -> Result<ContainerConfig, Refusal> {
    let env = env::environment(inputs, spec)?;
    let lookup = |name: &str| env::lookup(&env, name);
    let expanded = |list: &[String]| list.iter().map(|text| expand(text, lookup)).collect::<Vec<_>>();
    let mounts = mounts(inputs, spec, attempt, &lookup)?;
    Ok(ContainerConfig {
        name: spec.name.clone(),
        attempt,
        image: spec.image.clone(),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().filter(|dir| !dir.is_empty()),
        mounts,
        resources: qos::container_resources(inputs.pod, spec, inputs.config.allocatable.memory_bytes),
        security: security(inputs, spec)?,
        stop_signal: spec.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        spec_hash: spec_hash(spec),
        tty: spec.tty,
        stdin: spec.stdin,
        env,
    })
}

fn mounts(
    inputs: &Inputs<'_>,
    spec: &Container,
    attempt: u32,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, Refusal> {
    let mut mounts = Vec::new();
    for mount in &spec.volume_mounts {
        let source = inputs.volumes.get(&mount.name).ok_or_else(|| {
            Refusal::new(
                REASON,
                format!("volume mount {} names no volume of the pod", mount.name),
            )
        })?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) if !expression.is_empty() => expand(expression, lookup),
            (Some(path), _) => path.clone(),
            (None, _) => String::new(),
        };
        let (host_path, read_only) = match source {
            MountSource::Tmpfs if sub_path.is_empty() => (None, false),
            MountSource::Tmpfs => {
                let message = format!(
                    "volume {} is in memory, where this version has no subPath",
                    mount.name
                );
                return Err(Refusal::new(REASON, message));
            }
            MountSource::Path { path, read_only } if sub_path.is_empty() => (Some(path.clone()), *read_only),
            MountSource::Path { path, read_only } => (Some(path.join(below(&sub_path)?)), *read_only),
        };
        mounts.push(Mount {
            host_path,
            container_path: absolute(&mount.mount_path),
            read_only: read_only || mount.read_only,
        });
    }
    let words = spec
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or(TERMINATION_MESSAGE_PATH);
    mounts.push(Mount {
        host_path: Some(termination_log(inputs.config, inputs.pod, &spec.name, attempt)),
        container_path: absolute(words),
        read_only: false,
    });
    Ok(mounts)
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
        Err(Refusal::new(
            REASON,
            format!("subPath {sub_path:?} leaves its volume"),
        ))
    }
}

fn security(inputs: &Inputs<'_>, spec: &Container) -> Result<Security, Refusal> {
    let pod = inputs.pod.spec.security_context.clone().unwrap_or_default();
    let own = spec.security_context.clone().unwrap_or_default();
    let user = id("runAsUser", own.run_as_user.or(pod.run_as_user))?;
    let group = id("runAsGroup", own.run_as_group.or(pod.run_as_group))?;
    let run_as_non_root = own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false);
    if run_as_non_root {
        refuse_root(user.or(inputs.image_user), user.is_some())?;
    }
    let mut supplemental_groups = Vec::new();
    for group in pod.supplemental_groups.iter().chain(&pod.fs_group) {
        supplemental_groups.extend(id("supplementalGroups", Some(*group))?);
    }
    let SecurityContext {
        read_only_root_filesystem,
        privileged,
        allow_privilege_escalation,
        capabilities,
        ..
    } = own;
    let capabilities = capabilities.unwrap_or_default();
    Ok(Security {
        user,
        group,
        supplemental_groups,
        run_as_non_root,
        read_only_root: read_only_root_filesystem.unwrap_or(false),
        privileged: privileged.unwrap_or(false),
        allow_privilege_escalation: allow_privilege_escalation.unwrap_or(true),
        add_capabilities: capabilities.add,
        drop_capabilities: capabilities.drop,
    })
}

fn refuse_root(user: Option<u32>, from_pod: bool) -> Result<(), Refusal> {
    let message = match user {
        Some(0) if from_pod => {
            "the container shall run as user 0 and as non-root, which contradict each other"
        }
        Some(0) => "the container shall run as non-root, but its image runs as user 0; set runAsUser",
        Some(_) | None => return Ok(()),
    };
    Err(Refusal::new(REASON, message))
}

fn id(what: &str, value: Option<i64>) -> Result<Option<u32>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let number = u32::try_from(value)
        .map_err(|_| Refusal::new(REASON, format!("{what} {value} is not a user or group")))?;
    Ok(Some(number))
}
