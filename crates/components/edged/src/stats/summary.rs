//! The kubelet's summary (`stats/v1alpha1`), which metrics servers and dashboards read.

use super::reading::{ContainerUsage, Cpu, PodUsage};
use super::{Disks, PodDisks, Usage};
use kedge_api::Timestamp;
use kedge_host::disks::{FileSystem, TreeUsage};
use kedge_host::groups::GroupMemory;
use kedge_host::network::Interface;
use kedge_wire::Time;
use serde::Serialize;

/// What the summary says of the node besides what is measured.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) node_name: String,
    /// When the machine started.
    pub(crate) booted: Time,
    pub(crate) memory_bytes: u64,
    pub(crate) swap_bytes: u64,
    pub(crate) pids_max: Option<u64>,
    pub(crate) processes: Option<u64>,
    /// This process.
    pub(crate) own: Own,
}

/// This process, as a part of the node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Own {
    pub(crate) started: Time,
    pub(crate) cpu_ns: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
    system_containers: Vec<ContainerStats>,
    start_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<RlimitStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodReference,
    start_time: Timestamp,
    containers: Vec<ContainerStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeStats>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<FsStats>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    processes: Option<ProcessStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Debug, Serialize)]
struct PodReference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    start_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    usage_core_nano_seconds: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    working_set_bytes: u64,
    rss_bytes: u64,
    page_faults: u64,
    major_page_faults: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkStats {
    time: Timestamp,
    #[serde(flatten)]
    main: InterfaceStats,
    interfaces: Vec<InterfaceStats>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats {
    name: String,
    rx_bytes: u64,
    rx_errors: u64,
    tx_bytes: u64,
    tx_errors: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: Timestamp,
    available_bytes: u64,
    capacity_bytes: u64,
    used_bytes: u64,
    inodes_free: u64,
    inodes: u64,
    inodes_used: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeStats {
    #[serde(flatten)]
    fs: FsStats,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pvc_ref: Option<ClaimReference>,
}

#[derive(Debug, Serialize)]
struct ClaimReference {
    name: String,
    namespace: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeStats {
    image_fs: FsStats,
    container_fs: FsStats,
}

#[derive(Debug, Serialize)]
struct RlimitStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    maxpid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    curproc: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ProcessStats {
    process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SwapStats {
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_available_bytes: Option<u64>,
    swap_usage_bytes: u64,
}

impl Summary {
    /// Puts the parts together; without `disks` it is the short form, of processors and memory only.
    pub(crate) fn new(about: &About, usage: &Usage, disks: Option<&Disks>) -> Self {
        let has_swap = about.swap_bytes > 0;
        let pods = usage.pods.iter().filter(|pod| !pod.containers.is_empty());
        Self {
            node: node(about, usage, disks),
            pods: pods
                .map(|pod| {
                    let of_pod = disks.map(|disks| (disks, disks.pods.get(&pod.uid)));
                    pod_stats(pod, usage.at, of_pod, has_swap)
                })
                .collect(),
        }
    }
}

fn node(about: &About, usage: &Usage, disks: Option<&Disks>) -> NodeStats {
    let at = usage.at;
    let memory = usage.node.memory;
    let fs = disks.and_then(|disks| Some((disks.at, disks.node?)));
    let images = disks.and_then(|disks| Some((disks.at, disks.images.as_ref()?)));
    let network =
        disks.and_then(|_| network(&usage.node.network, usage.node.default_interface.as_deref(), at));
    NodeStats {
        node_name: about.node_name.clone(),
        system_containers: system_containers(about, usage),
        start_time: timestamp(about.booted),
        cpu: usage.node.cpu.map(|of| cpu(of, at)),
        memory: memory.map(|of| memory_stats(of, Some(about.memory_bytes), at)),
        network,
        fs: fs.map(|(at, fs)| whole(&fs, at)),
        runtime: images.map(|(at, (fs, images))| {
            let used = TreeUsage {
                bytes: images.bytes,
                inodes: images.inodes,
                complete: true,
            };
            RuntimeStats {
                image_fs: part(fs, used, at),
                container_fs: whole(fs, at),
            }
        }),
        rlimit: disks.map(|_| RlimitStats {
            time: timestamp(at),
            maxpid: about.pids_max,
            curproc: about.processes,
        }),
        swap: swap(memory.and_then(|memory| memory.swap), about.swap_bytes, at),
    }
}

/// This process, which does a kubelet's work, and all pods together.
fn system_containers(about: &About, usage: &Usage) -> Vec<ContainerStats> {
    let at = usage.at;
    let own = about.own;
    let kubelet = ContainerStats {
        name: "kubelet".to_owned(),
        start_time: timestamp(own.started),
        cpu: Some(CpuStats {
            time: timestamp(at),
            usage_nano_cores: None,
            usage_core_nano_seconds: own.cpu_ns,
        }),
        memory: Some(MemoryStats {
            time: timestamp(at),
            available_bytes: None,
            usage_bytes: own.resident_bytes,
            working_set_bytes: own.resident_bytes,
            rss_bytes: own.resident_bytes,
            page_faults: own.page_faults,
            major_page_faults: own.major_page_faults,
        }),
        rootfs: None,
        logs: None,
        swap: None,
    };
    let pods = usage.node.pods.map(|(of_cpu, of_memory)| ContainerStats {
        name: "pods".to_owned(),
        start_time: timestamp(about.booted),
        cpu: of_cpu.map(|of| cpu(of, at)),
        memory: of_memory.map(|of| memory_stats(of, Some(about.memory_bytes), at)),
        rootfs: None,
        logs: None,
        swap: None,
    });
    std::iter::once(kubelet).chain(pods).collect()
}

fn pod_stats(
    pod: &PodUsage,
    at: Time,
    disks: Option<(&Disks, Option<&PodDisks>)>,
    has_swap: bool,
) -> PodStats {
    let of_pod = disks.and_then(|(disks, of_pod)| Some((disks, of_pod?)));
    PodStats {
        pod_ref: PodReference {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
        },
        start_time: Timestamp::from_ms(pod.started_ms),
        containers: pod
            .containers
            .iter()
            .map(|container| container_stats(container, at, of_pod, has_swap))
            .collect(),
        cpu: pod.cpu.map(|of| cpu(of, at)),
        memory: pod.memory.map(|of| memory_stats(of, of.limit, at)),
        network: disks.and_then(|_| network(&pod.network, None, at)),
        volumes: of_pod.map_or_else(Vec::new, |(disks, of_pod)| volumes(pod, disks, of_pod)),
        ephemeral_storage: of_pod
            .and_then(|(disks, of_pod)| Some(part(&disks.node?, of_pod.ephemeral, disks.at))),
        processes: disks
            .and(pod.processes)
            .map(|process_count| ProcessStats { process_count }),
        swap: pod_swap(pod.memory, has_swap, at),
    }
}

fn container_stats(
    container: &ContainerUsage,
    at: Time,
    disks: Option<(&Disks, &PodDisks)>,
    has_swap: bool,
) -> ContainerStats {
    let rootfs = disks.and_then(|(disks, of_pod)| {
        let (bytes, inodes) = of_pod.layers.get(&container.id)?;
        let used = TreeUsage {
            bytes: *bytes,
            inodes: inodes.unwrap_or(0),
            complete: true,
        };
        let fs = disks.images.as_ref().map(|(fs, _)| *fs).or(disks.node)?;
        Some(part(&fs, used, disks.at))
    });
    let logs = disks.and_then(|(disks, of_pod)| {
        let used = of_pod.logs.get(&container.name)?;
        Some(part(&disks.node?, *used, disks.at))
    });
    ContainerStats {
        name: container.name.clone(),
        start_time: Timestamp::from_ms(container.started_ms),
        cpu: container.cpu.map(|of| cpu(of, at)),
        memory: container.memory.map(|of| memory_stats(of, of.limit, at)),
        rootfs,
        logs,
        swap: pod_swap(container.memory, has_swap, at),
    }
}

fn volumes(pod: &PodUsage, disks: &Disks, of_pod: &PodDisks) -> Vec<VolumeStats> {
    let volume = |volume: &super::VolumeUsage| VolumeStats {
        fs: part(&volume.file_system, volume.used, disks.at),
        name: volume.name.clone(),
        pvc_ref: volume.claim.clone().map(|name| ClaimReference {
            name,
            namespace: pod.namespace.clone(),
        }),
    };
    of_pod.volumes.iter().map(volume).collect()
}

fn timestamp(time: Time) -> Timestamp {
    Timestamp::from_ms(time.as_ms())
}

fn cpu(of: Cpu, at: Time) -> CpuStats {
    CpuStats {
        time: timestamp(at),
        usage_nano_cores: of.rate,
        usage_core_nano_seconds: of.total.usage_ns,
    }
}

fn memory_stats(of: GroupMemory, limit: Option<u64>, at: Time) -> MemoryStats {
    MemoryStats {
        time: timestamp(at),
        available_bytes: limit.map(|limit| limit.saturating_sub(of.working_set)),
        usage_bytes: of.usage,
        working_set_bytes: of.working_set,
        rss_bytes: of.rss,
        page_faults: of.page_faults,
        major_page_faults: of.major_page_faults,
    }
}

/// The interface of the default route is the main one, else `eth0`, else the first.
fn network(interfaces: &[Interface], default: Option<&str>, at: Time) -> Option<NetworkStats> {
    let all: Vec<InterfaceStats> = interfaces.iter().map(interface).collect();
    let named = |name: &str| all.iter().find(|interface| interface.name == name);
    let main = default
        .and_then(named)
        .or_else(|| named("eth0"))
        .or(all.first())?;
    Some(NetworkStats {
        time: timestamp(at),
        main: main.clone(),
        interfaces: all,
    })
}

fn interface(of: &Interface) -> InterfaceStats {
    InterfaceStats {
        name: of.name.clone(),
        rx_bytes: of.received_bytes,
        rx_errors: of.received_errors,
        tx_bytes: of.sent_bytes,
        tx_errors: of.sent_errors,
    }
}

fn whole(fs: &FileSystem, at: Time) -> FsStats {
    let used = TreeUsage {
        bytes: fs.used_bytes,
        inodes: fs.inodes_used(),
        complete: true,
    };
    part(fs, used, at)
}

/// What a part takes of a file system.
fn part(fs: &FileSystem, used: TreeUsage, at: Time) -> FsStats {
    FsStats {
        time: timestamp(at),
        available_bytes: fs.available_bytes,
        capacity_bytes: fs.capacity_bytes,
        used_bytes: used.bytes,
        inodes_free: fs.inodes_free,
        inodes: fs.inodes,
        inodes_used: used.inodes,
    }
}

/// A node without swap says nothing about it.
fn swap(used: Option<u64>, total: u64, at: Time) -> Option<SwapStats> {
    let used = used.filter(|_| total > 0)?;
    Some(SwapStats {
        time: timestamp(at),
        swap_available_bytes: Some(total.saturating_sub(used)),
        swap_usage_bytes: used,
    })
}

fn pod_swap(memory: Option<GroupMemory>, has_swap: bool, at: Time) -> Option<SwapStats> {
    let swap_usage_bytes = memory?.swap.filter(|_| has_swap)?;
    Some(SwapStats {
        time: timestamp(at),
        swap_available_bytes: None,
        swap_usage_bytes,
    })
}
