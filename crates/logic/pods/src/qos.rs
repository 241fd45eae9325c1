//! Quality of service: how firmly a pod's resources are promised, and what that means for cgroups.

use kedge_api::{Container, Pod, QosClass, Quantity, ResourceRequirements};
use kedge_containers::Resources;
use std::collections::BTreeMap;

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
/// The kernel's default scheduling period.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below 1 ms.
const CPU_QUOTA_US_MIN: i64 = 1000;
/// The kernel refuses fewer shares.
const CPU_SHARES_MIN: u64 = 2;
/// A pod that promised nothing is the first to go when memory ends.
const OOM_SCORE_BEST_EFFORT: i32 = 1000;

/// The class of a pod.
pub fn qos_class(pod: &Pod) -> QosClass {
    let containers = || pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let set = |list: &BTreeMap<String, Quantity>, name: &str| list.get(name).is_some_and(|q| q.milli() > 0);
    let any = containers().any(|c| {
        [CPU, MEMORY]
            .iter()
            .any(|name| set(&c.resources.requests, name) || set(&c.resources.limits, name))
    });
    if !any {
        return QosClass::BestEffort;
    }
    let guaranteed = containers().all(|c| {
        [CPU, MEMORY].iter().all(|name| {
            set(&c.resources.limits, name)
                && request(&c.resources, name).map(Quantity::milli)
                    == c.resources.limits.get(*name).map(Quantity::milli)
        })
    });
    if guaranteed {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// Where the pod's cgroup stands below the runtime's root.
pub fn cgroup_parent(pod: &Pod) -> String {
    let uid = pod.uid();
    match qos_class(pod) {
        QosClass::Guaranteed => format!("pod{uid}"),
        QosClass::Burstable => format!("burstable/pod{uid}"),
        QosClass::BestEffort => format!("besteffort/pod{uid}"),
    }
}

/// A request, which is the limit where none is given.
pub(crate) fn request<'a>(resources: &'a ResourceRequirements, name: &str) -> Option<&'a Quantity> {
    resources
        .requests
        .get(name)
        .or_else(|| resources.limits.get(name))
}

/// Limits of one container.
pub(crate) fn container_resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> Resources {
    let cpu_request = request(&container.resources, CPU).map_or(0, Quantity::milli);
    let cpu_limit = container.resources.limits.get(CPU).map(Quantity::milli);
    let memory_limit = container.resources.limits.get(MEMORY).map(Quantity::units);
    let memory_request = request(&container.resources, MEMORY).map_or(0, Quantity::units);
    Resources {
        oom_score_adj: Some(oom_score(qos_class(pod), memory_request, node_memory_bytes)),
        ..limits(cpu_request, cpu_limit, memory_limit)
    }
}

/// Limits of the whole pod: a limit only where every container has one.
pub(crate) fn pod_resources(pod: &Pod) -> Resources {
    let sum = |of: &dyn Fn(&Container) -> Option<i64>| -> Option<i64> {
        pod.spec
            .containers
            .iter()
            .map(of)
            .try_fold(0_i64, |sum, part| Some(sum.saturating_add(part?)))
    };
    let init_max = |of: &dyn Fn(&Container) -> Option<i64>| -> Option<i64> {
        pod.spec
            .init_containers
            .iter()
            .map(of)
            .try_fold(0_i64, |max, part| Some(max.max(part?)))
    };
    let both = |of: &dyn Fn(&Container) -> Option<i64>| Some(sum(of)?.max(init_max(of)?));
    let cpu_request = sum(&|c| Some(request(&c.resources, CPU).map_or(0, Quantity::milli))).unwrap_or(0);
    limits(
        cpu_request,
        both(&|c| c.resources.limits.get(CPU).map(Quantity::milli)),
        both(&|c| c.resources.limits.get(MEMORY).map(Quantity::units)),
    )
}

fn limits(cpu_request_milli: i64, cpu_limit_milli: Option<i64>, memory_limit: Option<i64>) -> Resources {
    let request = u64::try_from(cpu_request_milli).unwrap_or(0);
    let cpu_limit = cpu_limit_milli.filter(|milli| *milli > 0);
    Resources {
        cpu_shares: Some((request.saturating_mul(1024) / 1000).max(CPU_SHARES_MIN)),
        cpu_quota_us: cpu_limit.map(|milli| (milli.saturating_mul(100)).max(CPU_QUOTA_US_MIN)),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        memory_bytes_max: memory_limit.filter(|bytes| *bytes > 0),
        pids_max: None,
        oom_score_adj: None,
    }
}

/// The larger the promised memory, the later the container is killed. A node agent without special rights cannot
/// lower a score, so a guaranteed pod has 0 instead of Kubernetes' -997.
fn oom_score(class: QosClass, memory_request: i64, node_memory_bytes: i64) -> i32 {
    match class {
        QosClass::Guaranteed => 0,
        QosClass::BestEffort => OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable if node_memory_bytes <= 0 => 999,
        QosClass::Burstable => {
            let promised = memory_request.saturating_mul(1000) / node_memory_bytes;
            i32::try_from((1000 - promised).clamp(2, 999)).unwrap_or(999)
        }
    }
}
