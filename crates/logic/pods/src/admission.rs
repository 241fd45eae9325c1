//! Whether a new pod fits on the node.

use crate::{Capacity, Refusal, qos};
use kedge_api::{Container, Pod, Quantity, RestartPolicy};

/// What a pod asks for.
pub(crate) fn requested(pod: &Pod) -> Capacity {
    let of = |container: &Container, name: &str, read: fn(&Quantity) -> i64| {
        qos::request(&container.resources, name).map_or(0, read)
    };
    let sum = |name: &str, read: fn(&Quantity) -> i64| {
        let is_sidecar = |c: &&Container| c.restart_policy == Some(RestartPolicy::Always);
        let sidecars: i64 = pod
            .spec
            .init_containers
            .iter()
            .filter(is_sidecar)
            .map(|c| of(c, name, read))
            .sum();
        let mains: i64 = pod.spec.containers.iter().map(|c| of(c, name, read)).sum();
        let init = pod
            .spec
            .init_containers
            .iter()
            .map(|c| of(c, name, read))
            .max()
            .unwrap_or(0);
        mains.saturating_add(sidecars).max(init)
    };
    Capacity {
        cpu_milli: sum("cpu", Quantity::milli),
        memory_bytes: sum("memory", Quantity::units),
        pods: 1,
    }
}

/// Refuses a pod that asks for more than is left.
pub(crate) fn judge(pod: &Pod, used: Capacity, allocatable: Capacity) -> Result<(), Refusal> {
    let asked = requested(pod);
    let rows = [
        ("cpu", asked.cpu_milli, used.cpu_milli, allocatable.cpu_milli),
        (
            "memory",
            asked.memory_bytes,
            used.memory_bytes,
            allocatable.memory_bytes,
        ),
        ("pods", asked.pods, used.pods, allocatable.pods),
    ];
    for (name, asked, used, limit) in rows {
        if limit > 0 && asked > 0 && used.saturating_add(asked) > limit {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {limit}"
            );
            return Err(Refusal::new(&format!("OutOf{name}"), message));
        }
    }
    Ok(())
}
