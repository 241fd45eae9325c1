//! Quality of service: how firmly a pod's resources are promised, and what that means for control groups.

use crate::{Config, Swap, amounts, static_pods};
use kedge_api::{Container, Pod, QosClass, Quantity, ResourceRequirements, RestartPolicy};
use kedge_containers::Resources;
use std::collections::BTreeMap;

pub(crate) const CPU: &str = "cpu";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const HUGE_PAGES: &str = "hugepages-";
/// The kernel's default scheduling period.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below 1 ms.
const CPU_QUOTA_US_MIN: i64 = 1000;
/// The kernel refuses fewer shares.
const CPU_SHARES_MIN: u64 = 2;
/// The kernel refuses more shares.
const CPU_SHARES_MAX: u64 = 262_144;
/// A pod that promised nothing is the first to go when memory ends.
const OOM_SCORE_BEST_EFFORT: i32 = 1000;
/// A pod that has all it may use goes last of all pods.
const OOM_SCORE_GUARANTEED: i32 = -997;
/// The processes of a sandbox itself, without which none of its containers has a network.
const OOM_SCORE_SANDBOX: i32 = -998;
/// Memory limits are cut to whole pages.
const PAGE_BYTES: i64 = 4096;
/// From this priority on a pod belongs to the system.
const PRIORITY_SYSTEM: i32 = 2_000_000_000;

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

/// Whether the pod belongs to the system: it is never evicted, and others make room for it.
pub fn is_critical(pod: &Pod) -> bool {
    static_pods::is_mirror(pod)
        || static_pods::is_static(pod)
        || pod
            .spec
            .priority
            .is_some_and(|priority| priority >= PRIORITY_SYSTEM)
}

/// A request, which is the limit where none is given.
pub(crate) fn request<'a>(resources: &'a ResourceRequirements, name: &str) -> Option<&'a Quantity> {
    resources
        .requests
        .get(name)
        .or_else(|| resources.limits.get(name))
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy == Some(RestartPolicy::Always)
}

/// Limits of one container.
pub(crate) fn container_resources(config: &Config, pod: &Pod, container: &Container) -> Resources {
    let asked = &container.resources;
    let cpu_request = request(asked, CPU).map_or(0, Quantity::milli);
    let cpu_limit = asked.limits.get(CPU).map(Quantity::milli);
    let memory_limit = asked.limits.get(MEMORY).map(Quantity::units);
    Resources {
        oom_score_adj: Some(oom_score(pod, container, config.memory_capacity_bytes)),
        hugepages: huge_pages(config, &asked.limits),
        unified: unified(config, pod, asked),
        ..limits(config, cpu_request, cpu_limit, memory_limit)
    }
}

/// Limits of the whole pod: a limit only where every container has one.
pub(crate) fn pod_resources(config: &Config, pod: &Pod) -> Resources {
    let declared = |name: &str| {
        pod.spec
            .containers
            .iter()
            .chain(&pod.spec.init_containers)
            .all(|c| c.resources.limits.get(name).is_some_and(|q| q.milli() > 0))
    };
    let asked = amounts::requests(pod);
    let limited = amounts::limits(pod);
    let cpu_limit = limited.get(CPU).copied().filter(|_| declared(CPU));
    let memory_limit = limited.get(MEMORY).copied().filter(|_| declared(MEMORY));
    let quantities: BTreeMap<String, Quantity> = limited
        .iter()
        .map(|(name, amount)| (name.clone(), amounts::quantity(name, *amount)))
        .collect();
    Resources {
        pids_max: config.pod_pids_max.filter(|max| *max > 0),
        hugepages: huge_pages(config, &quantities),
        oom_score_adj: Some(OOM_SCORE_SANDBOX),
        ..limits(
            config,
            asked.get(CPU).copied().unwrap_or(0),
            cpu_limit,
            memory_limit,
        )
    }
}

/// What the sandbox itself takes.
pub(crate) fn overhead(config: &Config, pod: &Pod) -> Resources {
    let overhead = &pod.spec.overhead;
    if overhead.is_empty() {
        return Resources::default();
    }
    let cpu = overhead.get(CPU).map(Quantity::milli);
    let memory = overhead.get(MEMORY).map(Quantity::units);
    limits(config, cpu.unwrap_or(0), cpu, memory)
}

fn limits(
    config: &Config,
    cpu_request_milli: i64,
    cpu_limit_milli: Option<i64>,
    memory_limit: Option<i64>,
) -> Resources {
    let request = u64::try_from(cpu_request_milli).unwrap_or(0);
    let shares = (request.saturating_mul(1024) / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX);
    let period = config
        .cpu_period_us
        .filter(|period| *period > 0)
        .unwrap_or(CPU_PERIOD_US);
    let cpu_limit = cpu_limit_milli.filter(|milli| *milli > 0 && !config.cpu_quota_off);
    let quota = |milli: i64| {
        let us = i128::from(milli) * i128::from(period) / 1000;
        i64::try_from(us).unwrap_or(i64::MAX).max(CPU_QUOTA_US_MIN)
    };
    Resources {
        cpu_shares: Some(shares),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| period),
        memory_bytes_max: memory_limit.filter(|bytes| *bytes > 0),
        ..Resources::default()
    }
}

/// Bytes of huge pages by page size. A size of the node that is not asked for may not be used.
fn huge_pages(config: &Config, limits: &BTreeMap<String, Quantity>) -> BTreeMap<String, u64> {
    let mut pages: BTreeMap<String, u64> = config
        .huge_page_sizes
        .iter()
        .map(|size| (size.clone(), 0))
        .collect();
    for (name, limit) in limits {
        let size = name
            .strip_prefix(HUGE_PAGES)
            .and_then(|size| Quantity::parse(size).ok())
            .and_then(|size| page_size_name(size.units()));
        if let Some(size) = size {
            pages.insert(size, u64::try_from(limit.units()).unwrap_or(0));
        }
    }
    pages
}

/// A page size as control groups spell it: `2MB`, `1GB`, `64KB`.
fn page_size_name(bytes: i64) -> Option<String> {
    [(1_i64 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes % unit == 0)
        .map(|(unit, name)| format!("{}{name}", bytes / unit))
}

/// What only version 2 of the control groups has.
fn unified(config: &Config, pod: &Pod, asked: &ResourceRequirements) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    if !config.cgroup_v2 {
        return files;
    }
    if let Some(swap) = config.swap {
        let bytes = swap_bytes(swap, config.memory_capacity_bytes, pod, asked);
        files.insert("memory.swap.max".to_owned(), bytes.to_string());
    }
    if !config.oom_kills_one_process {
        files.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    let Some(permille) = config.memory_throttling_permille else {
        return files;
    };
    let request = asked.requests.get(MEMORY).map_or(0, Quantity::units);
    if request > 0 {
        files.insert("memory.min".to_owned(), request.to_string());
    }
    // A guaranteed container has what it may use; there is nothing to slow it down for.
    if qos_class(pod) != QosClass::Guaranteed {
        let allocatable = config.allocatable.get(MEMORY).map_or(0, Quantity::units);
        let limit = asked.limits.get(MEMORY).map_or(allocatable, Quantity::units);
        let more = i128::from((limit - request).max(0)) * i128::from(permille) / 1000;
        let high = request.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
        let high = high / PAGE_BYTES * PAGE_BYTES;
        if high > request {
            files.insert("memory.high".to_owned(), high.to_string());
        }
    }
    files
}

/// What a container may have of the swap. One that is promised all it may use needs none, one that is promised nothing
/// earns none, and the system's own must not become slow.
fn swap_bytes(swap: Swap, node_memory_bytes: i64, pod: &Pod, asked: &ResourceRequirements) -> i64 {
    let promised = request(asked, MEMORY).map_or(0, Quantity::units);
    let all = asked
        .limits
        .get(MEMORY)
        .is_some_and(|limit| limit.units() == promised);
    let earns = qos_class(pod) == QosClass::Burstable && !is_critical(pod) && promised > 0 && !all;
    match swap {
        Swap::Limited { bytes } if earns && node_memory_bytes > 0 => {
            let part = i128::from(promised) * i128::from(bytes) / i128::from(node_memory_bytes);
            i64::try_from(part).unwrap_or(bytes).min(bytes)
        }
        Swap::Limited { .. } | Swap::None => 0,
    }
}

/// The larger the promised memory, the later the container is killed.
fn oom_score(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i32 {
    if pod.spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return OOM_SCORE_GUARANTEED;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => return OOM_SCORE_GUARANTEED,
        QosClass::BestEffort => return OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable => {}
    }
    let (least, most) = (1000 + OOM_SCORE_GUARANTEED, OOM_SCORE_BEST_EFFORT - 1);
    if node_memory_bytes <= 0 {
        return most;
    }
    let of = |c: &Container| request(&c.resources, MEMORY).map_or(0, Quantity::units);
    let mut promised = of(container);
    if is_sidecar(container) {
        // A sidecar is not killed before the containers that it serves.
        promised = promised.max(pod.spec.containers.iter().map(of).min().unwrap_or(0));
    }
    let score = 1000 - i128::from(promised) * 1000 / i128::from(node_memory_bytes);
    i32::try_from(score.clamp(i128::from(least), i128::from(most))).unwrap_or(most)
}
