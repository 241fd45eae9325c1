//! The sandbox of a pod.

use super::{LABEL_NAME, LABEL_NAMESPACE, LABEL_UID, dns, log_dir, security};
use crate::{Config, Refusal, qos};
use kedge_api::{ContainerPort, Pod};
use kedge_containers::{PodIdentity, PortMapping, Protocol, SandboxConfig};
use std::collections::BTreeMap;

/// Reason of a pod whose sandbox cannot be made.
const REASON: &str = "CreatePodSandboxError";
/// A host name has 63 characters at most.
const HOSTNAME_BYTES_MAX: usize = 63;
/// The kernel keeps 64 characters of a host name.
const FQDN_BYTES_MAX: usize = 64;

/// The sandbox of a pod. Which ids it has, where it has its own, is added by whoever keeps the book of them.
pub fn sandbox(config: &Config, pod: &Pod, attempt: u32) -> Result<SandboxConfig, Refusal> {
    let spec = &pod.spec;
    if spec.host_users == Some(false) {
        refuse_with_own_users(pod)?;
    }
    let mut labels = pod.metadata.labels.clone();
    labels.insert(LABEL_NAMESPACE.to_owned(), pod.namespace().to_owned());
    labels.insert(LABEL_NAME.to_owned(), pod.metadata.name.clone());
    labels.insert(LABEL_UID.to_owned(), pod.uid().to_owned());
    Ok(SandboxConfig {
        pod: PodIdentity {
            namespace: pod.namespace().to_owned(),
            name: pod.metadata.name.clone(),
            uid: pod.uid().to_owned(),
        },
        attempt,
        hostname: hostname(config, pod)?,
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        host_ipc: spec.host_ipc,
        user_namespace: None,
        share_pid: spec.share_process_namespace == Some(true),
        dns: dns::dns(config, pod),
        host_aliases: spec
            .host_aliases
            .iter()
            .map(|a| (a.ip.clone(), a.hostnames.clone()))
            .collect(),
        cgroup_parent: qos::cgroup_parent(pod),
        resources: qos::pod_resources(config, pod),
        log_dir: log_dir(config, pod),
        labels,
        annotations: pod.metadata.annotations.clone(),
        ports: ports(pod),
        sysctls: sysctls(pod),
        security: security::sandbox(config, pod)?,
        // A class is asked for its handler by whoever runs the sandbox; without an answer the two have one name.
        handler: spec.runtime_class_name.clone().unwrap_or_default(),
        overhead: qos::overhead(config, pod),
    })
}

/// Who is nobody on the node has no say in what is the node's. The API refuses such a pod; a file of this node may still
/// say it.
fn refuse_with_own_users(pod: &Pod) -> Result<(), Refusal> {
    let spec = &pod.spec;
    let shared = [
        (spec.host_network, "hostNetwork"),
        (spec.host_pid, "hostPID"),
        (spec.host_ipc, "hostIPC"),
        (
            pod.all_containers().any(|c| !c.volume_devices.is_empty()),
            "volumeDevices",
        ),
    ];
    match shared.iter().find(|(asked, _)| *asked) {
        None => Ok(()),
        Some((_, what)) => {
            let message = format!("a pod with users of its own (hostUsers: false) cannot have {what}");
            Err(Refusal::new(REASON, message))
        }
    }
}

/// The ports of the node that lead to the pod.
fn ports(pod: &Pod) -> Vec<PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let sidecars = pod.spec.init_containers.iter().filter(|c| qos::is_sidecar(c));
    let containers = pod.spec.containers.iter().chain(sidecars);
    containers.flat_map(|c| &c.ports).filter_map(mapping).collect()
}

fn mapping(port: &ContainerPort) -> Option<PortMapping> {
    let number = |port: i32| u16::try_from(port).ok().filter(|number| *number > 0);
    Some(PortMapping {
        protocol: protocol(port),
        container_port: number(port.container_port)?,
        host_port: number(port.host_port?)?,
        host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
    })
}

pub(crate) fn protocol(port: &ContainerPort) -> Protocol {
    match port.protocol.as_deref() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) | None => Protocol::Tcp,
    }
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod.spec.security_context.iter();
    context
        .flat_map(|context| &context.sysctls)
        // The kernel's own spelling has points, the path spelling is allowed too.
        .map(|sysctl| (crate::admission::sysctl_name(&sysctl.name), sysctl.value.clone()))
        .collect()
}

/// The pod's own host name; the node's where the pod shares its network.
fn hostname(config: &Config, pod: &Pod) -> Result<String, Refusal> {
    if pod.spec.host_network {
        return Ok(config.node_name.clone());
    }
    let short = short_hostname(pod);
    if pod.spec.set_hostname_as_fqdn != Some(true) {
        return Ok(short);
    }
    let full = match domain(config, pod) {
        Some(domain) => format!("{short}.{domain}"),
        None => short,
    };
    if full.len() > FQDN_BYTES_MAX {
        let message = format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long ({FQDN_BYTES_MAX} characters is the max, {} characters requested)",
            full.len()
        );
        return Err(Refusal::new(REASON, message));
    }
    Ok(full)
}

pub(super) fn short_hostname(pod: &Pod) -> String {
    let given = pod.spec.hostname.as_deref().filter(|name| !name.is_empty());
    let name = given.unwrap_or(&pod.metadata.name);
    let cut: String = name.chars().take(HOSTNAME_BYTES_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `<subdomain>.<namespace>.svc.<cluster domain>`, of a pod with a sub domain.
pub(super) fn domain(config: &Config, pod: &Pod) -> Option<String> {
    let subdomain = pod.spec.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!(
        "{subdomain}.{}.svc.{}",
        pod.namespace(),
        config.cluster_domain
    ))
}
