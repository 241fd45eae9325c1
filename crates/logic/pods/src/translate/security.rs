//! Who a container runs as and what it may do.

use super::Inputs;
use crate::{Config, Refusal};
use kedge_api::{Container, Pod, PodSecurityContext, SeLinuxOptions, SecurityContext, SecurityProfile};
use kedge_containers::{AppArmor, PidNamespace, SandboxSecurity, Seccomp, Security, Selinux};
use std::path::{Component, Path};

/// Reason of a container that cannot be made as the pod wants it.
const REASON: &str = "CreateContainerConfigError";
/// Where the profile of a container stood before it had a field.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The sandbox itself: as little as possible.
pub(super) fn sandbox(_config: &Config, pod: &Pod) -> Result<SandboxSecurity, Refusal> {
    let context = pod.spec.security_context.clone().unwrap_or_default();
    let privileged = pod
        .all_containers()
        .filter_map(|c| c.security_context.as_ref())
        .any(|own| own.privileged == Some(true));
    let user = id("runAsUser", context.run_as_user)?;
    Ok(SandboxSecurity {
        // A group without a user is not something that a runtime can set.
        group: id("runAsGroup", context.run_as_group)?.filter(|_| user.is_some()),
        user,
        supplemental_groups: groups(&context)?,
        privileged,
        seccomp: Seccomp::RuntimeDefault,
        apparmor: None,
        selinux: selinux(context.se_linux_options.as_ref()),
    })
}

/// One container.
pub(super) fn container(inputs: &Inputs<'_>, spec: &Container) -> Result<Security, Refusal> {
    let pod = inputs.pod.spec.security_context.clone().unwrap_or_default();
    let own = spec.security_context.clone().unwrap_or_default();
    let user = id("runAsUser", own.run_as_user.or(pod.run_as_user))?;
    let group = id("runAsGroup", own.run_as_group.or(pod.run_as_group))?;
    let run_as_non_root = own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false);
    if run_as_non_root {
        refuse_root(inputs, spec, user)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    Ok(Security {
        user,
        group,
        supplemental_groups: groups(&pod)?,
        run_as_non_root,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        privileged,
        allow_privilege_escalation: own.allow_privilege_escalation.unwrap_or(true),
        seccomp: seccomp(inputs.config, &pod, &own, privileged)?,
        apparmor: apparmor(inputs.pod, &pod, &own, &spec.name)?,
        selinux: selinux(own.se_linux_options.as_ref().or(pod.se_linux_options.as_ref())),
        proc_unmasked: own.proc_mount.as_deref() == Some("Unmasked"),
        pid: pid(inputs),
        add_capabilities: own.capabilities.clone().unwrap_or_default().add,
        drop_capabilities: own.capabilities.unwrap_or_default().drop,
    })
}

fn pid(inputs: &Inputs<'_>) -> PidNamespace {
    let spec = &inputs.pod.spec;
    if let Some(target) = inputs.target {
        PidNamespace::Target(target.clone())
    } else if spec.host_pid {
        PidNamespace::Node
    } else if spec.share_process_namespace == Some(true) {
        PidNamespace::Pod
    } else {
        PidNamespace::Container
    }
}

fn groups(context: &PodSecurityContext) -> Result<Vec<u32>, Refusal> {
    let mut groups = Vec::new();
    for group in context.fs_group.iter().chain(&context.supplemental_groups) {
        let group = id("supplementalGroups", Some(*group))?;
        groups.extend(group.filter(|group| !groups.contains(group)));
    }
    Ok(groups)
}

fn refuse_root(inputs: &Inputs<'_>, spec: &Container, user: Option<u32>) -> Result<(), Refusal> {
    let pod = inputs.pod;
    let place = format!(
        "(pod: \"{}_{}({})\", container: {})",
        pod.metadata.name,
        pod.namespace(),
        pod.uid(),
        spec.name
    );
    let why = match (user, inputs.image_user, inputs.image_username) {
        (Some(0), _, _) => "container's runAsUser breaks non-root policy".to_owned(),
        (Some(_), _, _) => return Ok(()),
        (None, Some(0), _) | (None, None, None) => {
            "container has runAsNonRoot and image will run as root".to_owned()
        }
        (None, Some(_), _) => return Ok(()),
        (None, None, Some(name)) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
    };
    Err(Refusal::new(REASON, format!("{why} {place}")))
}

fn seccomp(
    config: &Config,
    pod: &PodSecurityContext,
    own: &SecurityContext,
    privileged: bool,
) -> Result<Seccomp, Refusal> {
    let profile = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    match profile {
        _ if privileged => Ok(Seccomp::Unconfined),
        None if config.seccomp_default => Ok(Seccomp::RuntimeDefault),
        None => Ok(Seccomp::Unconfined),
        Some(profile) => match profile.type_.as_str() {
            "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
            "Localhost" => {
                let name = local_profile(profile, "seccompProfile")?;
                let below = Path::new(name)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
                if !below {
                    return Err(refuse(format!(
                        "seccomp profile {name:?} is not below the node's profiles"
                    )));
                }
                Ok(Seccomp::Localhost(config.seccomp_dir.join(name)))
            }
            "Unconfined" => Ok(Seccomp::Unconfined),
            other => Err(refuse(format!("seccomp profile type {other:?} is not known"))),
        },
    }
}

fn apparmor(
    pod: &Pod,
    context: &PodSecurityContext,
    own: &SecurityContext,
    container: &str,
) -> Result<Option<AppArmor>, Refusal> {
    let profile = own
        .app_armor_profile
        .as_ref()
        .or(context.app_armor_profile.as_ref());
    if let Some(profile) = profile {
        return match profile.type_.as_str() {
            "RuntimeDefault" => Ok(Some(AppArmor::RuntimeDefault)),
            "Unconfined" => Ok(Some(AppArmor::Unconfined)),
            "Localhost" => {
                let name = local_profile(profile, "appArmorProfile")?;
                Ok(Some(AppArmor::Localhost(name.to_owned())))
            }
            other => Err(refuse(format!("AppArmor profile type {other:?} is not known"))),
        };
    }
    let annotation = pod
        .metadata
        .annotations
        .get(&format!("{APPARMOR_ANNOTATION}{container}"));
    match annotation.map(String::as_str) {
        None | Some("") => Ok(None),
        Some("runtime/default") => Ok(Some(AppArmor::RuntimeDefault)),
        Some("unconfined") => Ok(Some(AppArmor::Unconfined)),
        Some(text) => match text.strip_prefix("localhost/") {
            Some(name) => Ok(Some(AppArmor::Localhost(name.to_owned()))),
            None => Err(refuse(format!("AppArmor profile {text:?} is not known"))),
        },
    }
}

fn local_profile<'a>(profile: &'a SecurityProfile, what: &str) -> Result<&'a str, Refusal> {
    let name = profile
        .localhost_profile
        .as_deref()
        .filter(|name| !name.is_empty());
    name.ok_or_else(|| {
        let message = format!("localhostProfile must be set if {what} type is Localhost.");
        Refusal::new(REASON, message)
    })
}

fn selinux(options: Option<&SeLinuxOptions>) -> Option<Selinux> {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    options.map(|options| Selinux {
        user: text(&options.user),
        role: text(&options.role),
        type_: text(&options.type_),
        level: text(&options.level),
    })
}

fn refuse(message: String) -> Refusal {
    Refusal::new(REASON, message)
}

fn id(what: &str, value: Option<i64>) -> Result<Option<u32>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let number =
        u32::try_from(value).map_err(|_| refuse(format!("{what} {value} is not a user or group")))?;
    Ok(Some(number))
}
