//! From a pod to what a runtime understands.
//!
//! Names and numbers only: config maps, secrets and volume directories are given by the caller, who has made sure that
//! they exist.

mod container;
mod env;
mod expand;
mod fields;

pub use container::{Inputs, MountSource, container, termination_log};
pub use expand::expand;
pub use fields::{field, resource_field};

use crate::{Config, qos};
use kedge_api::{ConfigMap, Container, Pod, Secret};
use kedge_containers::{DnsConfig, PodIdentity, SandboxConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Labels that other tools look for.
const LABEL_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const LABEL_NAME: &str = "io.kubernetes.pod.name";
const LABEL_UID: &str = "io.kubernetes.pod.uid";
/// A host name has 63 characters at most.
const HOSTNAME_BYTES_MAX: usize = 63;

/// The config maps and secrets of the pod's namespace that the pod uses and that exist.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What a pod names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// Everything that the environment of this container names.
pub fn env_references(container: &Container) -> References {
    let mut found = References::default();
    for source in &container.env_from {
        found
            .config_maps
            .extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().filter_map(|var| var.value_from.as_ref()) {
        found
            .config_maps
            .extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        found
            .secrets
            .extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    found
}

/// Everything that the pod's volumes name.
pub fn volume_references(pod: &Pod) -> References {
    let mut found = References::default();
    for volume in &pod.spec.volumes {
        found
            .config_maps
            .extend(volume.config_map.iter().map(|source| source.name.clone()));
        found
            .secrets
            .extend(volume.secret.iter().map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            found
                .config_maps
                .extend(source.config_map.iter().map(|source| source.name.clone()));
            found
                .secrets
                .extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    found
}

/// Whether the pod uses this config map or secret of its namespace.
pub(crate) fn uses(pod: &Pod, is_secret: bool, name: &str) -> bool {
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let all = containers.map(env_references).chain([volume_references(pod)]);
    all.into_iter().any(|found| {
        if is_secret {
            found.secrets.contains(name)
        } else {
            found.config_maps.contains(name)
        }
    })
}

/// What makes a running container another one: its name and its image, the only parts of it that a pod may change.
/// FNV-1a, because the value is kept with containers and must be the same in every version of this program.
pub fn spec_hash(container: &Container) -> String {
    let bytes = container.name.bytes().chain([0]).chain(container.image.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// `<log_dir>/<namespace>_<name>_<uid>`, as log collectors expect.
pub fn log_dir(config: &Config, pod: &Pod) -> PathBuf {
    config
        .log_dir
        .join(format!("{}_{}_{}", pod.namespace(), pod.metadata.name, pod.uid()))
}

/// `<pods_dir>/<uid>`.
pub fn pod_dir(config: &Config, pod: &Pod) -> PathBuf {
    config.pods_dir.join(pod.uid())
}

/// The sandbox of a pod.
pub fn sandbox(config: &Config, pod: &Pod, attempt: u32) -> SandboxConfig {
    let spec = &pod.spec;
    let mut labels = pod.metadata.labels.clone();
    labels.insert(LABEL_NAMESPACE.to_owned(), pod.namespace().to_owned());
    labels.insert(LABEL_NAME.to_owned(), pod.metadata.name.clone());
    labels.insert(LABEL_UID.to_owned(), pod.uid().to_owned());
    SandboxConfig {
        pod: PodIdentity {
            namespace: pod.namespace().to_owned(),
            name: pod.metadata.name.clone(),
            uid: pod.uid().to_owned(),
        },
        attempt,
        hostname: hostname(config, pod),
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        host_ipc: spec.host_ipc,
        dns: dns(config, pod),
        host_aliases: spec
            .host_aliases
            .iter()
            .map(|a| (a.ip.clone(), a.hostnames.clone()))
            .collect(),
        cgroup_parent: qos::cgroup_parent(pod),
        resources: qos::pod_resources(pod),
        log_dir: log_dir(config, pod),
        labels,
    }
}

/// The pod's own host name; the node's where the pod shares its network.
fn hostname(config: &Config, pod: &Pod) -> String {
    if pod.spec.host_network {
        return config.node_name.clone();
    }
    let name = pod
        .spec
        .hostname
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(&pod.metadata.name);
    let cut: String = name.chars().take(HOSTNAME_BYTES_MAX).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn dns(config: &Config, pod: &Pod) -> DnsConfig {
    let policy = pod.spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = !config.cluster_dns.is_empty()
        && (policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !pod.spec.host_network);
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster {
        cluster_dns(config, pod)
    } else if pod.spec.dns_config.is_some() {
        config.node_dns.clone()
    } else {
        return DnsConfig::default();
    };
    if let Some(own) = &pod.spec.dns_config {
        add(&mut dns.servers, own.nameservers.iter().cloned());
        add(&mut dns.searches, own.searches.iter().cloned());
        for option in &own.options {
            let name = &option.name;
            let same = |o: &String| o.split(':').next() == Some(name.as_str());
            dns.options.retain(|o| !same(o));
            dns.options.push(
                option
                    .value
                    .as_ref()
                    .map_or_else(|| name.clone(), |value| format!("{name}:{value}")),
            );
        }
    }
    dns
}

fn cluster_dns(config: &Config, pod: &Pod) -> DnsConfig {
    let domain = &config.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![
            format!("{}.svc.{domain}", pod.namespace()),
            format!("svc.{domain}"),
            domain.clone(),
        ];
    }
    add(&mut searches, config.node_dns.searches.iter().cloned());
    DnsConfig {
        servers: config.cluster_dns.clone(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn add(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}
