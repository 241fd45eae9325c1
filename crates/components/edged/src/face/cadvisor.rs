//! `/metrics/cadvisor`: figures by control group, with cAdvisor's names and labels, so that its dashboards work.

use super::text::{Family, Kind, Label, Text, seconds};
use crate::stats::{Cpu, Disks, PodUsage, Usage};
use kedge_host::groups::GroupMemory;
use kedge_host::network::Interface;
use kedge_wire::Time;

/// What is told of the machine besides what is measured.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) cpus: u32,
    pub(super) memory_bytes: u64,
    pub(super) swap_bytes: u64,
    pub(super) kernel: &'a str,
    pub(super) os: &'a str,
    pub(super) device: &'a str,
}

/// One control group: the machine's, a pod's or a container's.
struct Row<'a> {
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    started_ms: Option<u64>,
    cpu: Option<Cpu>,
    memory: Option<GroupMemory>,
    processes: Option<u64>,
    network: &'a [Interface],
    /// Bytes and inodes of the writable layer.
    layer: Option<(u64, Option<u64>)>,
}

impl<'a> Row<'a> {
    /// The labels in the order of their names.
    fn labels(&self) -> Vec<Label<'a>> {
        vec![
            ("container", self.container),
            ("id", self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ]
    }

    fn labels_and(&self, name: &'static str, value: &'a str) -> Vec<Label<'a>> {
        let mut labels = self.labels();
        let place = labels.partition_point(|(label, _)| *label < name);
        labels.insert(place, (name, value));
        labels
    }
}

/// Prints a reading.
pub(super) fn print(machine: &Machine<'_>, usage: &Usage, disks: &Disks) -> String {
    let mut text = Text::default();
    text.family(
        "cadvisor_version_info",
        Kind::Gauge,
        "Always 1; the labels name kernel and system",
    )
    .sample(
        &[("kernelVersion", machine.kernel), ("osVersion", machine.os)],
        1,
        None,
    );
    text.gauge("machine_cpu_cores", "Processors of the machine", machine.cpus);
    text.gauge(
        "machine_memory_bytes",
        "Memory of the machine",
        machine.memory_bytes,
    );
    text.gauge("machine_swap_bytes", "Swap of the machine", machine.swap_bytes);
    let rows = rows(usage, disks);
    processors(&mut text, &rows, usage.at);
    memory(&mut text, &rows, usage.at);
    network(&mut text, &rows, usage.at);
    file_systems(&mut text, &rows, disks, machine.device);
    others(&mut text, &rows, usage.at);
    text.finish()
}

fn rows<'a>(usage: &'a Usage, disks: &'a Disks) -> Vec<Row<'a>> {
    let root = Row {
        container: "",
        id: "/",
        image: "",
        name: "",
        namespace: "",
        pod: "",
        started_ms: None,
        cpu: usage.node.cpu,
        memory: usage.node.memory,
        processes: None,
        network: &usage.node.network,
        layer: None,
    };
    let mut rows = vec![root];
    for pod in &usage.pods {
        rows.push(pod_row(pod));
        let layers = disks.pods.get(&pod.uid).map(|disks| &disks.layers);
        rows.extend(pod.containers.iter().map(|container| Row {
            container: &container.name,
            id: container.group.as_deref().unwrap_or_default(),
            image: &container.image,
            name: &container.id.0,
            namespace: &pod.namespace,
            pod: &pod.name,
            started_ms: Some(container.started_ms),
            cpu: container.cpu,
            memory: container.memory,
            processes: container.processes,
            network: &[],
            layer: layers.and_then(|layers| layers.get(&container.id)).copied(),
        }));
    }
    rows
}

fn pod_row(pod: &PodUsage) -> Row<'_> {
    Row {
        container: "",
        id: pod.group.as_deref().unwrap_or_default(),
        image: "",
        name: "",
        namespace: &pod.namespace,
        pod: &pod.name,
        started_ms: Some(pod.started_ms),
        cpu: pod.cpu,
        memory: pod.memory,
        processes: pod.processes,
        network: &pod.network,
        layer: None,
    }
}

fn processors(text: &mut Text, rows: &[Row<'_>], at: Time) {
    type Read = fn(&Cpu) -> u64;
    let times: [(&str, &str, Read, bool); 4] = [
        (
            "container_cpu_usage_seconds_total",
            "Processor time that was used, in seconds",
            |cpu| cpu.total.usage_ns,
            true,
        ),
        (
            "container_cpu_user_seconds_total",
            "Processor time of programs, in seconds",
            |cpu| cpu.total.user_ns,
            false,
        ),
        (
            "container_cpu_system_seconds_total",
            "Processor time of the kernel, in seconds",
            |cpu| cpu.total.system_ns,
            false,
        ),
        (
            "container_cpu_cfs_throttled_seconds_total",
            "How long the limit held processes back, in seconds",
            |cpu| cpu.total.throttled_ns,
            false,
        ),
    ];
    for (name, help, read, by_cpu) in times {
        let mut family = text.family(name, Kind::Counter, help);
        for row in rows {
            let Some(cpu) = &row.cpu else { continue };
            let labels = if by_cpu {
                row.labels_and("cpu", "total")
            } else {
                row.labels()
            };
            family.sample(&labels, seconds(read(cpu)), Some(at));
        }
    }
    let counts: [(&str, &str, Read); 2] = [
        (
            "container_cpu_cfs_periods_total",
            "Periods in which the processor limit was looked at",
            |cpu| cpu.total.periods,
        ),
        (
            "container_cpu_cfs_throttled_periods_total",
            "Periods in which the processor limit was reached",
            |cpu| cpu.total.throttled_periods,
        ),
    ];
    for (name, help, read) in counts {
        let mut family = text.family(name, Kind::Counter, help);
        for row in rows {
            if let Some(cpu) = &row.cpu {
                family.sample(&row.labels(), read(cpu), Some(at));
            }
        }
    }
}

fn memory(text: &mut Text, rows: &[Row<'_>], at: Time) {
    type Read = fn(&GroupMemory) -> Option<u64>;
    let figures: [(&str, Kind, &str, Read); 10] = [
        (
            "container_memory_usage_bytes",
            Kind::Gauge,
            "Memory that is used, with everything the kernel may drop",
            |memory| Some(memory.usage),
        ),
        (
            "container_memory_working_set_bytes",
            Kind::Gauge,
            "Memory without file pages that were not used lately",
            |memory| Some(memory.working_set),
        ),
        (
            "container_memory_rss",
            Kind::Gauge,
            "Memory that no file is behind",
            |memory| Some(memory.rss),
        ),
        (
            "container_memory_cache",
            Kind::Gauge,
            "Memory that files are behind",
            |memory| Some(memory.cache),
        ),
        (
            "container_memory_mapped_file",
            Kind::Gauge,
            "Memory of files that are mapped",
            |memory| Some(memory.mapped),
        ),
        (
            "container_memory_swap",
            Kind::Gauge,
            "Swap that is used",
            |memory| memory.swap,
        ),
        (
            "container_memory_max_usage_bytes",
            Kind::Gauge,
            "The most memory that was used",
            |memory| memory.peak,
        ),
        (
            "container_memory_failcnt",
            Kind::Counter,
            "How often the memory limit was reached",
            |memory| Some(memory.failures),
        ),
        (
            "container_oom_events_total",
            Kind::Counter,
            "How often a process was killed for memory",
            |memory| Some(memory.oom_kills),
        ),
        (
            "container_spec_memory_limit_bytes",
            Kind::Gauge,
            "The memory limit; 0 is none",
            |memory| Some(memory.limit.unwrap_or(0)),
        ),
    ];
    for (name, kind, help, read) in figures {
        let mut family = text.family(name, kind, help);
        for row in rows {
            if let Some(value) = row.memory.as_ref().and_then(read) {
                family.sample(&row.labels(), value, Some(at));
            }
        }
    }
    let mut faults = text.family(
        "container_memory_failures_total",
        Kind::Counter,
        "Page faults; major ones had to be read from a disk",
    );
    for row in rows {
        let Some(memory) = row.memory else { continue };
        for (kind, count) in [
            ("pgfault", memory.page_faults),
            ("pgmajfault", memory.major_page_faults),
        ] {
            let mut labels = row.labels_and("failure_type", kind);
            labels.push(("scope", "hierarchy"));
            faults.sample(&labels, count, Some(at));
        }
    }
}

fn network(text: &mut Text, rows: &[Row<'_>], at: Time) {
    type Read = fn(&Interface) -> u64;
    let figures: [(&str, &str, Read); 8] = [
        (
            "container_network_receive_bytes_total",
            "Bytes that came in",
            |interface| interface.received_bytes,
        ),
        (
            "container_network_receive_packets_total",
            "Packets that came in",
            |interface| interface.received_packets,
        ),
        (
            "container_network_receive_errors_total",
            "Errors of what came in",
            |interface| interface.received_errors,
        ),
        (
            "container_network_receive_packets_dropped_total",
            "Packets that came in and were dropped",
            |interface| interface.received_dropped,
        ),
        (
            "container_network_transmit_bytes_total",
            "Bytes that went out",
            |interface| interface.sent_bytes,
        ),
        (
            "container_network_transmit_packets_total",
            "Packets that went out",
            |interface| interface.sent_packets,
        ),
        (
            "container_network_transmit_errors_total",
            "Errors of what went out",
            |interface| interface.sent_errors,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Packets that should have gone out and were dropped",
            |interface| interface.sent_dropped,
        ),
    ];
    for (name, help, read) in figures {
        let mut family = text.family(name, Kind::Counter, help);
        for row in rows {
            for interface in row.network {
                let labels = row.labels_and("interface", &interface.name);
                family.sample(&labels, read(interface), Some(at));
            }
        }
    }
}

fn file_systems(text: &mut Text, rows: &[Row<'_>], disks: &Disks, device: &str) {
    let at = Some(disks.at);
    type Figure = fn(&Row<'_>, &Disks) -> Option<u64>;
    let figures: [(&str, &str, Figure); 4] = [
        (
            "container_fs_usage_bytes",
            "Bytes that are taken on the file system",
            |row, disks| match row.id {
                "/" => disks.node.map(|node| node.used_bytes),
                _ => row.layer.map(|(bytes, _)| bytes),
            },
        ),
        (
            "container_fs_limit_bytes",
            "Bytes that the file system can hold",
            |row, disks| {
                let layers = disks.images.as_ref().map(|(fs, _)| *fs).or(disks.node);
                let fs = if row.id == "/" {
                    disks.node
                } else {
                    layers.filter(|_| row.layer.is_some())
                };
                fs.map(|fs| fs.capacity_bytes)
            },
        ),
        (
            "container_fs_inodes_total",
            "Inodes of the file system",
            |row, disks| disks.node.filter(|_| row.id == "/").map(|node| node.inodes),
        ),
        (
            "container_fs_inodes_free",
            "Inodes of the file system that are free",
            |row, disks| disks.node.filter(|_| row.id == "/").map(|node| node.inodes_free),
        ),
    ];
    for (name, help, read) in figures {
        let mut family = text.family(name, Kind::Gauge, help);
        for row in rows {
            if let Some(value) = read(row, disks) {
                family.sample(&row.labels_and("device", device), value, at);
            }
        }
    }
}

fn others(text: &mut Text, rows: &[Row<'_>], at: Time) {
    let each = |family: &mut Family<'_>, read: &dyn Fn(&Row<'_>) -> Option<u64>| {
        for row in rows {
            if let Some(value) = read(row) {
                family.sample(&row.labels(), value, Some(at));
            }
        }
    };
    let help = "Processes that run";
    each(
        &mut text.family("container_processes", Kind::Gauge, help),
        &|row| row.processes,
    );
    let help = "When it started, in seconds since 1970";
    each(
        &mut text.family("container_start_time_seconds", Kind::Gauge, help),
        &|row| row.started_ms.map(|ms| ms / 1000),
    );
    let help = "When it was looked at last, in seconds since 1970";
    each(
        &mut text.family("container_last_seen", Kind::Gauge, help),
        &|_| Some(at.as_ms() / 1000),
    );
}
