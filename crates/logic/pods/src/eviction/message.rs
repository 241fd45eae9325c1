//! What a pod is told, word for word as a kubelet says it.

use super::{Observation, PodUsage, Resource, Threshold};
use crate::allocatable::{binary, decimal};
use kedge_api::{Pod, Quantity};
use std::fmt::Write as _;

/// A threshold and what was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met {
    pub(super) threshold: Threshold,
    pub(super) observed: Observation,
}

/// Why the pod goes: what is short, and which of its containers use more of it than they asked for.
pub(super) fn starved(pod: &Pod, usage: Option<&PodUsage>, resource: Resource, met: Option<Met>) -> String {
    let name = resource.as_str();
    let mut text = format!("The node was low on resource: {name}. ");
    if let Some(met) = met {
        let wanted = binary(met.threshold.amount.of(met.observed.capacity));
        let available = match resource {
            Resource::Memory | Resource::EphemeralStorage => binary(met.observed.available),
            Resource::Inodes | Resource::Pids => decimal(met.observed.available),
        };
        let _ = write!(text, "Threshold quantity: {wanted}, available: {available}. ");
    }
    for container in usage.map(|usage| usage.containers.iter()).into_iter().flatten() {
        let used = match resource {
            Resource::Memory => container.memory_working_set,
            Resource::EphemeralStorage => (container.root + container.logs).bytes,
            // Containers are not blamed for what they cannot ask for.
            Resource::Inodes | Resource::Pids => continue,
        };
        let Some(desired) = pod.container(&container.name) else {
            continue;
        };
        let asked = desired.resources.requests.get(name);
        let most = asked.map_or(0, Quantity::units);
        if i128::from(used) > i128::from(most) {
            let asked = asked.map_or("0", Quantity::as_str);
            let used = binary(used);
            let _ = write!(
                text,
                "Container {} was using {used}, request is {asked}, has larger consumption of {name}. ",
                container.name
            );
        }
    }
    text
}
