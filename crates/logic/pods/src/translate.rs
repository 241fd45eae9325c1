//! From a pod to what a runtime understands.
//!
//! Names and numbers only: config maps, secrets and volume directories are given by the caller, who has made sure that
//! they exist.

mod container;
mod dns;
mod env;
mod expand;
mod fields;
mod hosts;
mod sandbox;
mod security;

pub use container::{Allocated, Inputs, MountSource, container, etc_hosts, termination_log};
pub(crate) use dns::lacks_cluster_dns;
pub use expand::expand;
pub use fields::{field, resource_field};
pub use hosts::hosts_file;
pub(crate) use sandbox::protocol;
pub use sandbox::sandbox;

use crate::Config;
use kedge_api::{ConfigMap, Container, Pod, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Labels that other tools look for.
const LABEL_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const LABEL_NAME: &str = "io.kubernetes.pod.name";
const LABEL_UID: &str = "io.kubernetes.pod.uid";
const LABEL_CONTAINER: &str = "io.kubernetes.container.name";

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
        // A driver that makes a volume for one pod may need a secret of its namespace.
        let of_driver = volume
            .csi
            .iter()
            .filter_map(|source| source.node_publish_secret_ref.as_ref());
        found
            .secrets
            .extend(of_driver.map(|reference| reference.name.clone()));
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
    let all = pod
        .all_containers()
        .map(env_references)
        .chain([volume_references(pod)]);
    all.into_iter().any(|found| {
        if is_secret {
            found.secrets.contains(name)
        } else {
            found.config_maps.contains(name)
        }
    })
}

/// What makes a running container another one: its name and its image, the only parts of it that a pod may change.
/// Kubelets keep this value with their containers (FNV-1a of 32 bits over a dump of the fields, in hexadecimal), and it
/// is the same here, so that containers outlive a change of the agent.
pub fn spec_hash(container: &Container) -> String {
    let fields = BTreeMap::from([("image", &container.image), ("name", &container.name)]);
    // Text becomes JSON always; without it nothing would ever be adopted, which is seen at once.
    let json = serde_json::to_string(&fields).unwrap_or_default();
    // As Go prints text in JSON.
    let json = json
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    let mut dump = String::from("([]uint8)[");
    for (at, byte) in json.bytes().enumerate() {
        let space = if at == 0 { "" } else { " " };
        dump.push_str(&format!("{space}{byte}"));
    }
    dump.push(']');
    let hash = dump.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:x}")
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
