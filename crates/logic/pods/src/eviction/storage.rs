//! Limits of local disk that a pod set itself.

use super::{PodUsage, rank};
use crate::allocatable::binary;
use crate::amounts;
use kedge_api::{Container, Pod, Quantity, Volume};

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
const MEMORY_MEDIUM: &str = "Memory";

/// Whether there is any limit to watch. A volume in memory has its size from the kernel.
pub(super) fn is_limited(pod: &Pod) -> bool {
    let limited = |volume: &Volume| limit_of(volume).is_some();
    pod.spec.volumes.iter().any(limited) || pod_limit(pod).is_some()
}

/// Why the pod must go, if it holds more than it may.
pub(super) fn excess(pod: &Pod, usage: &PodUsage, own_imagefs: bool) -> Option<String> {
    volume_excess(pod, usage)
        .or_else(|| pod_excess(pod, usage, own_imagefs))
        .or_else(|| container_excess(pod, usage, own_imagefs))
}

fn volume_excess(pod: &Pod, usage: &PodUsage) -> Option<String> {
    pod.spec.volumes.iter().find_map(|volume| {
        let limit = limit_of(volume)?;
        let held = usage.volumes.iter().find(|held| held.name == volume.name)?;
        exceeds(held.disk.bytes, limit).then(|| {
            format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name,
                limit.as_str()
            )
        })
    })
}

fn pod_excess(pod: &Pod, usage: &PodUsage, own_imagefs: bool) -> Option<String> {
    let limit = pod_limit(pod)?;
    let scope = rank::Scope {
        root: !own_imagefs,
        rest: true,
    };
    let held = rank::disk(usage, scope).bytes;
    (held > limit).then(|| {
        let limit = binary(limit);
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    })
}

fn container_excess(pod: &Pod, usage: &PodUsage, own_imagefs: bool) -> Option<String> {
    usage.containers.iter().find_map(|container| {
        let limit = limit(pod.container(&container.name)?)?;
        let root = if own_imagefs { 0 } else { container.root.bytes };
        exceeds(root.saturating_add(container.logs.bytes), limit).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name,
                limit.as_str()
            )
        })
    })
}

fn limit_of(volume: &Volume) -> Option<&Quantity> {
    let empty_dir = volume.empty_dir.as_ref()?;
    let on_disk = empty_dir.medium.as_deref() != Some(MEMORY_MEDIUM);
    empty_dir
        .size_limit
        .as_ref()
        .filter(|limit| on_disk && limit.milli() > 0)
}

/// The limits of the containers together; those without one add nothing.
fn pod_limit(pod: &Pod) -> Option<u64> {
    let limit = *amounts::limits(pod).get(EPHEMERAL_STORAGE)?;
    u64::try_from(limit).ok()
}

fn exceeds(used: u64, limit: &Quantity) -> bool {
    i128::from(used) > i128::from(limit.units())
}

fn limit(container: &Container) -> Option<&Quantity> {
    container.resources.limits.get(EPHEMERAL_STORAGE)
}
