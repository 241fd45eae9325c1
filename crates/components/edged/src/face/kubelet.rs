//! `/metrics`: what this process counts, and the kubelet's figures that dashboards look for; `/metrics/slis`.

use super::text::{Kind, Text, seconds};
use crate::beside::PodView;
use crate::stats::Disks;
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_pods::PodSource;
use kedge_telemetry::metrics::Registry;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who tells.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) name: String,
    pub(super) version: &'a str,
    pub(super) architecture: &'a str,
}

/// Prints everything. `disks` only where there are persistent claims.
pub(super) fn print(
    metrics: &Registry,
    node: &Node<'_>,
    pods: &[PodView],
    seen: &[ObservedSandbox],
    disks: Option<&Disks>,
) -> String {
    let mut text = Text::default();
    let counted = metrics.text();
    text.push(counted.strip_suffix("# EOF\n").unwrap_or(&counted));
    identity(&mut text, node);
    counts(&mut text, pods, seen);
    if let Some(disks) = disks {
        volumes(&mut text, pods, disks);
    }
    process(&mut text);
    text.finish()
}

fn identity(text: &mut Text, node: &Node<'_>) {
    let platform = format!("linux/{}", node.architecture);
    text.family(
        "kubernetes_build_info",
        Kind::Gauge,
        "Always 1; the labels name the version",
    )
    .sample(
        &[
            ("git_version", node.version),
            ("major", "1"),
            ("minor", "32"),
            ("platform", &platform),
        ],
        1,
        None,
    );
    text.family(
        "kubelet_node_name",
        Kind::Gauge,
        "Always 1; the label names the node",
    )
    .sample(&[("node", &node.name)], 1, None);
}

fn counts(text: &mut Text, pods: &[PodView], seen: &[ObservedSandbox]) {
    let of = |source: PodSource| pods.iter().filter(|view| view.source == source).count();
    let mut desired = text.family(
        "kubelet_desired_pods",
        Kind::Gauge,
        "Pods that this node shall run",
    );
    desired.sample(&[("static", "")], of(PodSource::Api), None);
    desired.sample(&[("static", "true")], of(PodSource::File), None);
    let ready = seen.iter().filter(|sandbox| sandbox.ready).count();
    text.gauge("kubelet_running_pods", "Pods whose sandbox stands", ready);
    let mut states = [("created", 0), ("running", 0), ("exited", 0), ("unknown", 0)];
    for container in seen.iter().flat_map(|sandbox| &sandbox.containers) {
        let place = match container.state {
            ContainerState::Created => 0,
            ContainerState::Running { .. } => 1,
            ContainerState::Exited { .. } => 2,
            ContainerState::Unknown => 3,
        };
        states[place].1 += 1;
    }
    let mut containers = text.family(
        "kubelet_running_containers",
        Kind::Gauge,
        "Containers by the state that the runtime shows",
    );
    for (state, count) in states {
        containers.sample(&[("container_state", state)], count, None);
    }
}

fn volumes(text: &mut Text, pods: &[PodView], disks: &Disks) {
    type Read = fn(&crate::stats::VolumeUsage) -> u64;
    let figures: [(&str, &str, Read); 6] = [
        (
            "kubelet_volume_stats_capacity_bytes",
            "Bytes that the volume can hold",
            |volume| volume.file_system.capacity_bytes,
        ),
        (
            "kubelet_volume_stats_available_bytes",
            "Bytes of the volume that are free",
            |volume| volume.file_system.available_bytes,
        ),
        (
            "kubelet_volume_stats_used_bytes",
            "Bytes of the volume that are taken",
            |volume| volume.used.bytes,
        ),
        ("kubelet_volume_stats_inodes", "Inodes of the volume", |volume| {
            volume.file_system.inodes
        }),
        (
            "kubelet_volume_stats_inodes_free",
            "Inodes of the volume that are free",
            |volume| volume.file_system.inodes_free,
        ),
        (
            "kubelet_volume_stats_inodes_used",
            "Inodes of the volume that are taken",
            |volume| volume.used.inodes,
        ),
    ];
    for (name, help, read) in figures {
        let mut family = text.family(name, Kind::Gauge, help);
        for view in pods {
            let of_pod = disks.pods.get(view.pod.uid());
            for volume in of_pod.into_iter().flat_map(|of_pod| &of_pod.volumes) {
                if let Some(claim) = &volume.claim {
                    let labels = [
                        ("namespace", view.pod.namespace()),
                        ("persistentvolumeclaim", claim),
                    ];
                    family.sample(&labels, read(volume), None);
                }
            }
        }
    }
}

fn process(text: &mut Text) {
    let Ok(own) = kedge_host::own::own_usage() else {
        return;
    };
    text.family(
        "process_cpu_seconds_total",
        Kind::Counter,
        "Processor time of this process, in seconds",
    )
    .sample(&[], seconds(own.cpu_ns), None);
    text.gauge(
        "process_resident_memory_bytes",
        "Memory of this process",
        own.resident_bytes,
    );
    text.gauge(
        "process_virtual_memory_bytes",
        "Address space of this process",
        own.virtual_bytes,
    );
    text.gauge(
        "process_open_fds",
        "Files that this process has open",
        own.open_files,
    );
    text.gauge(
        "process_start_time_seconds",
        "When this process started, in seconds since 1970",
        own.started_ms as f64 / 1000.0,
    );
}

/// How often the health of the owner of the pods was looked at, and what was found.
#[derive(Debug, Default)]
pub(super) struct Checks {
    successes: AtomicU64,
    errors: AtomicU64,
}

impl Checks {
    pub(super) fn count(&self, success: bool) {
        let of = if success { &self.successes } else { &self.errors };
        of.fetch_add(1, Ordering::Relaxed);
    }

    /// Prints the service level indicators.
    pub(super) fn print(&self, turning: bool) -> String {
        let mut text = Text::default();
        let (successes, errors) = (
            self.successes.load(Ordering::Relaxed),
            self.errors.load(Ordering::Relaxed),
        );
        let mut now = text.family(
            "kubernetes_healthcheck",
            Kind::Gauge,
            "1 if the check succeeds, 0 otherwise",
        );
        for (name, good) in [("log", true), ("ping", true), ("syncloop", turning)] {
            now.sample(&[("name", name), ("type", "healthz")], u8::from(good), None);
        }
        let mut all = text.family(
            "kubernetes_healthchecks_total",
            Kind::Counter,
            "Checks by what was found",
        );
        for (name, status, count) in [
            ("log", "success", successes + errors),
            ("ping", "success", successes + errors),
            ("syncloop", "error", errors),
            ("syncloop", "success", successes),
        ] {
            let labels = [("name", name), ("status", status), ("type", "healthz")];
            all.sample(&labels, count, None);
        }
        text.finish()
    }
}
