//! What the node is and how it feels.

use super::{NodeTasks, status_patch};
use crate::config::Config;
use kedge_api::{
    ContainerImage, DaemonEndpoint, DaemonEndpoints, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo,
    Quantity, Timestamp,
};
use kedge_host::{Facts, Usage};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Below this a process may be killed for want of memory at any moment: a kubelet's hard threshold.
const MEMORY_AVAILABLE_MIN: u64 = 100 * 1024 * 1024;
/// Parts of a hundred of the file system of `root_dir`.
const DISK_AVAILABLE_MIN_PERCENT: u64 = 10;
const INODES_AVAILABLE_MIN_PERCENT: u64 = 5;
/// Parts of a hundred of the process ids.
const PIDS_USED_MAX_PERCENT: u64 = 95;
/// As a kubelet: more would make every status large.
const IMAGES_MAX: usize = 50;

type Amounts = BTreeMap<String, Quantity>;

/// What the machine has.
fn capacity(config: &Config, facts: &Facts, disk_bytes: u64) -> Amounts {
    BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_units(u64::from(facts.cpus))),
        ("memory".to_owned(), Quantity::from_bytes_ki(facts.memory_bytes)),
        (
            "pods".to_owned(),
            Quantity::from_units(u64::from(config.pods_max)),
        ),
        (
            "ephemeral-storage".to_owned(),
            Quantity::from_bytes_ki(disk_bytes),
        ),
    ])
}

/// What pods may use of it.
pub(crate) fn allocatable(config: &Config, facts: &Facts, disk_bytes: u64) -> Amounts {
    let mut amounts = capacity(config, facts, disk_bytes);
    let cpu = (u64::from(facts.cpus) * 1000).saturating_sub(config.reserved.cpu_milli);
    let kept = config.reserved.memory_bytes.saturating_add(MEMORY_AVAILABLE_MIN);
    amounts.insert("cpu".to_owned(), Quantity::from_milli(cpu));
    amounts.insert(
        "memory".to_owned(),
        Quantity::from_bytes_ki(facts.memory_bytes.saturating_sub(kept)),
    );
    amounts
}

/// The whole status.
pub(super) async fn compute(
    tasks: &NodeTasks,
    runtime_trouble: Option<String>,
    before: Option<&NodeStatus>,
) -> NodeStatus {
    let (config, facts) = (&tasks.config, &tasks.facts);
    let usage = usage(config.root_dir.clone()).await;
    let disk_bytes = usage.as_ref().map_or(0, |usage| usage.disk.total_bytes);
    let now = Timestamp::from_ms(tasks.now().as_ms());
    let mut addresses = vec![NodeAddress {
        type_: "Hostname".to_owned(),
        address: config.node_name.to_string(),
    }];
    if let Some(ip) = tasks.addresses.first() {
        addresses.insert(
            0,
            NodeAddress {
                type_: "InternalIP".to_owned(),
                address: ip.clone(),
            },
        );
    }
    NodeStatus {
        capacity: capacity(config, facts, disk_bytes),
        allocatable: allocatable(config, facts, disk_bytes),
        conditions: conditions(usage.as_ref(), runtime_trouble, before, now),
        addresses,
        daemon_endpoints: DaemonEndpoints {
            kubelet_endpoint: DaemonEndpoint {
                port: config.kubelet_port,
            },
        },
        node_info: info(tasks).await,
        images: images(tasks).await,
    }
}

async fn usage(root_dir: PathBuf) -> Option<Usage> {
    match tokio::task::spawn_blocking(move || kedge_host::usage(&root_dir)).await {
        Ok(Ok(usage)) => Some(usage),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the node's usage cannot be read, its pressures are unknown");
            None
        }
        Err(_) => None,
    }
}

async fn info(tasks: &NodeTasks) -> NodeSystemInfo {
    let facts = &tasks.facts;
    let version = tasks.runtime.version().await;
    NodeSystemInfo {
        machine_id: facts.machine_id.clone(),
        system_uuid: facts.system_uuid.clone(),
        boot_id: facts.boot_id.clone(),
        kernel_version: facts.kernel_version.clone(),
        os_image: facts.os_image.clone(),
        container_runtime_version: version.map_or_else(
            |_| "unknown://".to_owned(),
            |v| format!("{}://{}", v.name, v.version),
        ),
        kubelet_version: tasks.config.kubelet_version.clone(),
        kube_proxy_version: String::new(),
        operating_system: facts.operating_system.clone(),
        architecture: facts.architecture.clone(),
    }
}

async fn images(tasks: &NodeTasks) -> Vec<ContainerImage> {
    // A runtime that does not answer is told by the Ready condition.
    let mut images = tasks.runtime.images().await.unwrap_or_default();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images.truncate(IMAGES_MAX);
    let names = |digests: Vec<String>, tags: Vec<String>| digests.into_iter().chain(tags).collect();
    images
        .into_iter()
        .map(|image| ContainerImage {
            names: names(image.digests, image.tags),
            size_bytes: image.size_bytes,
        })
        .collect()
}

fn conditions(
    usage: Option<&Usage>,
    runtime_trouble: Option<String>,
    before: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let pressure = |judge: &dyn Fn(&Usage) -> bool| usage.map(judge);
    let percent = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole);
    let memory = pressure(&|usage| usage.memory_available_bytes < MEMORY_AVAILABLE_MIN);
    let disk = pressure(&|usage| {
        let disk = &usage.disk;
        percent(disk.available_bytes, disk.total_bytes).is_some_and(|left| left < DISK_AVAILABLE_MIN_PERCENT)
            || percent(disk.available_inodes, disk.total_inodes)
                .is_some_and(|l| l < INODES_AVAILABLE_MIN_PERCENT)
    });
    let pids = pressure(&|usage| {
        percent(usage.pids, usage.pids_max).is_some_and(|used| used > PIDS_USED_MAX_PERCENT)
    });
    let ready = match runtime_trouble {
        None => ("True", "EdgeReady", "edge is posting ready status".to_owned()),
        Some(why) => (
            "False",
            "KubeletNotReady",
            format!("container runtime is down: {why}"),
        ),
    };
    let rows = [
        (
            "MemoryPressure",
            judged(
                memory,
                "memory",
                "KubeletHasSufficientMemory",
                "KubeletHasInsufficientMemory",
            ),
        ),
        (
            "DiskPressure",
            judged(disk, "disk", "KubeletHasNoDiskPressure", "KubeletHasDiskPressure"),
        ),
        (
            "PIDPressure",
            judged(
                pids,
                "PID",
                "KubeletHasSufficientPID",
                "KubeletHasInsufficientPID",
            ),
        ),
        ("Ready", ready),
    ];
    rows.into_iter()
        .map(|(type_, judged)| condition(type_, judged, before, now))
        .collect()
}

type Judged = (&'static str, &'static str, String);

fn judged(pressed: Option<bool>, what: &str, fine: &'static str, bad: &'static str) -> Judged {
    match pressed {
        Some(false) => ("False", fine, format!("kubelet has sufficient {what} available")),
        Some(true) => ("True", bad, format!("kubelet has insufficient {what} available")),
        None => (
            "Unknown",
            "UsageUnknown",
            format!("the node's {what} usage cannot be read"),
        ),
    }
}

fn condition(type_: &str, judged: Judged, before: Option<&NodeStatus>, now: Timestamp) -> NodeCondition {
    let (status, reason, message) = judged;
    let old = before.and_then(|before| {
        before
            .conditions
            .iter()
            .find(|c| c.type_ == type_ && c.status == status)
    });
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        last_heartbeat_time: Some(now),
        last_transition_time: old.and_then(|old| old.last_transition_time).or(Some(now)),
        reason: reason.to_owned(),
        message,
    }
}

/// Decides when a status is worth sending.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    sent: Option<(NodeStatus, Time)>,
    /// The cloud may have changed it while it was away (it sets conditions to Unknown).
    again: bool,
}

impl Reporter {
    /// The last status, for the times of transition.
    pub(super) fn before(&self) -> Option<&NodeStatus> {
        self.sent.as_ref().map(|(status, _)| status)
    }

    pub(super) fn forget_sent(&mut self) {
        self.again = true;
    }

    pub(super) fn patch(&self, config: &Config, status: &NodeStatus, now: Time) -> Option<String> {
        let due = match &self.sent {
            None => true,
            Some((sent, at)) => {
                self.again
                    || now.since(*at) >= config.status_report_interval
                    || timeless(sent) != timeless(status)
            }
        };
        due.then(|| status_patch(status))
    }

    pub(super) fn sent(&mut self, status: NodeStatus, now: Time) {
        self.sent = Some((status, now));
        self.again = false;
    }
}

/// Without heartbeats, which alone are no news.
fn timeless(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in &mut status.conditions {
        condition.last_heartbeat_time = None;
    }
    status
}
