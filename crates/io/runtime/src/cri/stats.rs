//! What pods use, as the runtime counts it.

use super::calls::{Act, Calls, Failure};
use super::convert::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use super::observe::ms;
use crate::Error;
use futures_util::{StreamExt, stream};
use kedge_containers::{
    ContainerId, ContainerStats, CpuStats, InterfaceStats, MemoryStats, ObservedSandbox, PodIdentity,
    SandboxId, SandboxStats,
};
use kedge_grpc::cri;
use std::collections::BTreeMap;
use std::future::Future;

/// Questions at one time, where each pod is asked for on its own.
const QUESTIONS_AT_ONCE: usize = 8;

/// Figures of all pods: of whole pods where the runtime has them, else only those of their containers.
pub(super) async fn stats(
    calls: &Calls,
    seen: impl Future<Output = Result<Vec<ObservedSandbox>, Error>>,
) -> Result<Vec<SandboxStats>, Error> {
    if calls.has_pod_stats() == Some(false) {
        return containers(calls, &seen.await?).await;
    }
    let act = Act::question("count", "what pods use");
    let mut client = calls.runtime();
    let call = client.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: None });
    match calls.wait(act, call).await {
        Ok(answer) => {
            calls.note_pod_stats(true);
            Ok(answer.stats.into_iter().filter_map(sandbox).collect())
        }
        Err(failure) if failure.is_unimplemented() => {
            calls.note_pod_stats(false);
            containers(calls, &seen.await?).await
        }
        // containerd 1.6 tells nothing of all pods while one of them has stopped.
        Err(Failure::Refused(_)) => each(calls, &seen.await?).await,
        Err(failure) => Err(failure.of(act)),
    }
}

async fn each(calls: &Calls, seen: &[ObservedSandbox]) -> Result<Vec<SandboxStats>, Error> {
    let ready: Vec<String> = seen
        .iter()
        .filter(|sandbox| sandbox.ready)
        .map(|sandbox| sandbox.id.0.clone())
        .collect();
    let mut answers = stream::iter(ready.into_iter().map(|id| one(calls, id))).buffered(QUESTIONS_AT_ONCE);
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await {
        all.extend(answer?);
    }
    Ok(all)
}

/// `None`: the runtime cannot count this one, for example because it ends just now.
async fn one(calls: &Calls, id: String) -> Result<Option<SandboxStats>, Error> {
    let act = Act::question("count what is used by sandbox", &id);
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: id.clone(),
    };
    let mut client = calls.runtime();
    match calls.wait(act, client.pod_sandbox_stats(request)).await {
        Ok(answer) => Ok(answer.stats.and_then(sandbox)),
        Err(Failure::Refused(status)) => {
            tracing::debug!(sandbox = id, %status, "no figures");
            Ok(None)
        }
        Err(failure) => Err(failure.of(act)),
    }
}

async fn containers(calls: &Calls, seen: &[ObservedSandbox]) -> Result<Vec<SandboxStats>, Error> {
    let act = Act::question("count", "what containers use");
    let mut client = calls.runtime();
    let call = client.list_container_stats(cri::ListContainerStatsRequest { filter: None });
    let answer = calls.wait(act, call).await.map_err(|failure| failure.of(act))?;
    let mut counted: BTreeMap<ContainerId, ContainerStats> = answer
        .stats
        .into_iter()
        .filter_map(container)
        .map(|stats| (stats.id.clone(), stats))
        .collect();
    let ready = seen.iter().filter(|sandbox| sandbox.ready);
    Ok(ready
        .map(|sandbox| {
            let own = sandbox.containers.iter();
            let containers: Vec<ContainerStats> = own
                .filter_map(|container| counted.remove(&container.id))
                .collect();
            SandboxStats {
                id: sandbox.id.clone(),
                pod: sandbox.pod.clone(),
                taken_ms: containers.iter().map(|stats| stats.taken_ms).max().unwrap_or(0),
                cpu: None,
                memory: None,
                processes: None,
                network: Vec::new(),
                containers,
            }
        })
        .collect())
}

fn sandbox(stats: cri::PodSandboxStats) -> Option<SandboxStats> {
    let attributes = stats.attributes?;
    let label = |name: &str| attributes.labels.get(name).cloned();
    let pod = PodIdentity {
        uid: label(LABEL_POD_UID)?,
        namespace: label(LABEL_POD_NAMESPACE)?,
        name: label(LABEL_POD_NAME)?,
    };
    let linux = stats.linux.unwrap_or_default();
    let taken = linux.cpu.as_ref().map_or(0, |cpu| cpu.timestamp);
    let network = linux.network.unwrap_or_default();
    let interfaces = network.default_interface.into_iter().chain(network.interfaces);
    Some(SandboxStats {
        id: SandboxId(attributes.id),
        pod,
        taken_ms: ms(taken),
        cpu: linux.cpu.and_then(cpu),
        memory: linux.memory.and_then(memory),
        processes: linux
            .process
            .and_then(|process| process.process_count)
            .map(|count| count.value),
        network: interfaces.map(interface).collect(),
        containers: linux.containers.into_iter().filter_map(container).collect(),
    })
}

fn container(stats: cri::ContainerStats) -> Option<ContainerStats> {
    let attributes = stats.attributes?;
    let taken = stats.cpu.as_ref().map_or(0, |cpu| cpu.timestamp);
    let layer = stats.writable_layer.unwrap_or_default();
    Some(ContainerStats {
        id: ContainerId(attributes.id),
        name: attributes.metadata.unwrap_or_default().name,
        taken_ms: ms(taken),
        cpu: stats.cpu.and_then(cpu),
        memory: stats.memory.and_then(memory),
        layer_bytes: layer.used_bytes.map(|bytes| bytes.value),
        layer_inodes: layer.inodes_used.map(|inodes| inodes.value),
    })
}

fn cpu(usage: cri::CpuUsage) -> Option<CpuStats> {
    let usage_ns = usage.usage_core_nano_seconds?.value;
    Some(CpuStats { usage_ns })
}

fn memory(usage: cri::MemoryUsage) -> Option<MemoryStats> {
    let value = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
    // The one figure that every runtime has.
    let working_set_bytes = usage.working_set_bytes?.value;
    Some(MemoryStats {
        usage_bytes: value(usage.usage_bytes),
        working_set_bytes,
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    })
}

fn interface(usage: cri::NetworkInterfaceUsage) -> InterfaceStats {
    let value = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
    InterfaceStats {
        name: usage.name,
        received_bytes: value(usage.rx_bytes),
        received_errors: value(usage.rx_errors),
        sent_bytes: value(usage.tx_bytes),
        sent_errors: value(usage.tx_errors),
    }
}
