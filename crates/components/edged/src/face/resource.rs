//! `/metrics/resource`: the few figures that a metrics server needs, each with the moment at which it was read.

use super::text::{Kind, Label, Text, seconds};
use crate::stats::{ContainerUsage, PodUsage, Usage};

/// Prints a reading.
pub(super) fn print(usage: &Usage) -> String {
    let mut text = Text::default();
    let at = Some(usage.at);
    containers(&mut text, usage);
    let node = &usage.node;
    if let Some(cpu) = node.cpu {
        text.family(
            "node_cpu_usage_seconds_total",
            Kind::Counter,
            "Processor time that the node has used, in core-seconds",
        )
        .sample(&[], seconds(cpu.total.usage_ns), at);
    }
    if let Some(memory) = node.memory {
        text.family(
            "node_memory_working_set_bytes",
            Kind::Gauge,
            "Working set of the node in bytes",
        )
        .sample(&[], memory.working_set, at);
        if let Some(swap) = memory.swap {
            text.family(
                "node_swap_usage_bytes",
                Kind::Gauge,
                "Swap that the node uses, in bytes",
            )
            .sample(&[], swap, at);
        }
    }
    pods(&mut text, usage);
    // A reading that failed is empty, and nodes always use some processor time.
    let failed = u8::from(node.cpu.is_none());
    text.gauge(
        "resource_scrape_error",
        "1 if the figures could not be read, 0 otherwise",
        failed,
    );
    // The name that scrapers of older kubelets look for.
    text.gauge(
        "scrape_error",
        "1 if the figures could not be read, 0 otherwise",
        failed,
    );
    text.finish()
}

fn containers(text: &mut Text, usage: &Usage) {
    let at = Some(usage.at);
    let each = || {
        let pods = usage.pods.iter();
        pods.flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
    };
    let mut cpu = text.family(
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        "Processor time that the container has used, in core-seconds",
    );
    for (pod, container) in each() {
        if let Some(of) = container.cpu {
            cpu.sample(&of_container(pod, container), seconds(of.total.usage_ns), at);
        }
    }
    let mut memory = text.family(
        "container_memory_working_set_bytes",
        Kind::Gauge,
        "Working set of the container in bytes",
    );
    for (pod, container) in each() {
        if let Some(of) = container.memory {
            memory.sample(&of_container(pod, container), of.working_set, at);
        }
    }
    let mut start = text.family(
        "container_start_time_seconds",
        Kind::Gauge,
        "When the container started, in seconds since 1970",
    );
    for (pod, container) in each() {
        let started = container.started_ms as f64 / 1000.0;
        start.sample(&of_container(pod, container), started, None);
    }
    let mut swap = text.family(
        "container_swap_usage_bytes",
        Kind::Gauge,
        "Swap that the container uses, in bytes",
    );
    for (pod, container) in each() {
        if let Some(of) = container.memory.and_then(|memory| memory.swap) {
            swap.sample(&of_container(pod, container), of, at);
        }
    }
}

fn pods(text: &mut Text, usage: &Usage) {
    let at = Some(usage.at);
    let mut cpu = text.family(
        "pod_cpu_usage_seconds_total",
        Kind::Counter,
        "Processor time that the pod has used, in core-seconds",
    );
    for pod in &usage.pods {
        if let Some(of) = pod.cpu {
            cpu.sample(&of_pod(pod), seconds(of.total.usage_ns), at);
        }
    }
    let mut memory = text.family(
        "pod_memory_working_set_bytes",
        Kind::Gauge,
        "Working set of the pod in bytes",
    );
    for pod in &usage.pods {
        if let Some(of) = pod.memory {
            memory.sample(&of_pod(pod), of.working_set, at);
        }
    }
    let mut swap = text.family(
        "pod_swap_usage_bytes",
        Kind::Gauge,
        "Swap that the pod uses, in bytes",
    );
    for pod in &usage.pods {
        if let Some(of) = pod.memory.and_then(|memory| memory.swap) {
            swap.sample(&of_pod(pod), of, at);
        }
    }
}

fn of_container<'a>(pod: &'a PodUsage, container: &'a ContainerUsage) -> [Label<'a>; 3] {
    [
        ("container", &container.name),
        ("namespace", &pod.namespace),
        ("pod", &pod.name),
    ]
}

fn of_pod(pod: &PodUsage) -> [Label<'_>; 2] {
    [("namespace", &pod.namespace), ("pod", &pod.name)]
}
