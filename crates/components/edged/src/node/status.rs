//! The status of the node: what it is and how it feels. Times are not in it: [`super::report`] writes them.

use super::addresses;
use crate::config::Config;
use kedge_api::{
    ContainerImage, DaemonEndpoint, DaemonEndpoints, NodeCondition, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use kedge_containers::{HandlerFeatures, Image, RuntimeVersion};
use kedge_host::Facts;
use kedge_pods::allocatable::{self, Machine};
use std::collections::BTreeMap;

/// As a kubelet: an image with many names would make the status large.
const NAMES_PER_IMAGE_MAX: usize = 5;
/// Tags and digests that an image has lost.
const NAMELESS: &str = "<none>";

/// Everything that one look saw.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sight {
    pub(super) machine: Machine,
    pub(super) ip: Option<String>,
    pub(super) version: Option<RuntimeVersion>,
    pub(super) handlers: BTreeMap<String, HandlerFeatures>,
    pub(super) images: Vec<Image>,
    pub(super) volumes_in_use: Vec<String>,
    pub(super) conditions: Vec<NodeCondition>,
}

/// Puts the status together.
pub(super) fn status(config: &Config, facts: &Facts, sight: &Sight) -> NodeStatus {
    let rules = config.allocatable_rules();
    NodeStatus {
        capacity: allocatable::capacity(&sight.machine, &rules),
        allocatable: allocatable::allocatable(&sight.machine, &rules),
        conditions: sight.conditions.clone(),
        addresses: addresses::listed(config.node_name.as_str(), sight.ip.as_deref()),
        daemon_endpoints: DaemonEndpoints {
            kubelet_endpoint: DaemonEndpoint {
                port: config.node.kubelet_port,
            },
        },
        node_info: info(config, facts, sight.version.as_ref()),
        images: images(&sight.images, config.node.images_max),
        volumes_in_use: sight.volumes_in_use.clone(),
        runtime_handlers: handlers(&sight.handlers),
        ..NodeStatus::default()
    }
}

/// What must be known of a node before pods can be placed on it.
pub(super) fn missing_capacity(config: &Config, machine: &Machine) -> Option<String> {
    let has = allocatable::capacity(machine, &config.allocatable_rules());
    let needed = ["cpu", "memory", "pods", "ephemeral-storage"];
    let needed = needed
        .iter()
        .filter(|name| **name != "ephemeral-storage" || config.node.local_storage);
    let missing: Vec<&str> = needed.copied().filter(|name| !has.contains_key(*name)).collect();
    (!missing.is_empty()).then(|| format!("missing node capacity for resources: {}", missing.join(", ")))
}

fn info(config: &Config, facts: &Facts, version: Option<&RuntimeVersion>) -> NodeSystemInfo {
    NodeSystemInfo {
        machine_id: facts.machine_id.clone(),
        system_uuid: facts.system_uuid.clone(),
        boot_id: facts.boot_id.clone(),
        kernel_version: facts.kernel_version.clone(),
        os_image: facts.os_image.clone(),
        container_runtime_version: version.map_or_else(
            || "unknown://".to_owned(),
            |version| format!("{}://{}", version.name, version.version),
        ),
        kubelet_version: config.node.kubelet_version.clone(),
        kube_proxy_version: String::new(),
        operating_system: facts.operating_system.clone(),
        architecture: facts.architecture.clone(),
    }
}

/// The largest images first.
fn images(all: &[Image], max: Option<usize>) -> Vec<ContainerImage> {
    let mut sorted: Vec<&Image> = all.iter().collect();
    sorted.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    let told = sorted.into_iter().take(max.unwrap_or(usize::MAX));
    let names = |image: &Image| {
        let names = image.digests.iter().chain(&image.tags);
        names
            .filter(|name| !name.contains(NAMELESS))
            .take(NAMES_PER_IMAGE_MAX)
            .cloned()
            .collect()
    };
    told.map(|image| ContainerImage {
        names: names(image),
        size_bytes: image.size_bytes,
    })
    .collect()
}

fn handlers(features: &BTreeMap<String, HandlerFeatures>) -> Vec<NodeRuntimeHandler> {
    let handler = |(name, features): (&String, &HandlerFeatures)| NodeRuntimeHandler {
        name: name.clone(),
        features: NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        },
    };
    features.iter().map(handler).collect()
}
