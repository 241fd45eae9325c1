//! Who goes first.

use super::{DiskUse, PodUsage, Resource, Signal};
use crate::amounts;
use kedge_api::Pod;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Which of a pod's files count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// What its containers wrote over their images.
    pub(super) root: bool,
    /// Logs and volumes.
    pub(super) rest: bool,
}

/// A pod with what decides about it.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) pod: &'a Pod,
    /// Nothing is known about a pod that cannot be measured; it goes before all others.
    measured: bool,
    exceeds: bool,
    priority: i32,
    /// What it uses beyond its request.
    excess: i128,
}

/// Judges every pod.
pub(super) fn candidates<'a>(
    pods: &[&'a Pod],
    usage: &BTreeMap<&str, &PodUsage>,
    signal: Signal,
    scope: Scope,
) -> Vec<Candidate<'a>> {
    let judge = |pod: &&'a Pod| {
        let usage = usage.get(pod.uid());
        let used = usage.map_or(0, |usage| used(usage, signal.resource(), scope));
        let asked = asked(pod, signal.resource());
        let excess = i128::from(used) - i128::from(asked);
        Candidate {
            pod,
            measured: usage.is_some(),
            // Process ids cannot be asked for, so nobody has too many.
            exceeds: signal.resource() != Resource::Pids && excess > 0,
            priority: pod.spec.priority.unwrap_or(0),
            excess,
        }
    };
    pods.iter().map(judge).collect()
}

/// Who exceeds its request before who does not, the lower priority before the higher, the larger excess before the
/// smaller; the name decides last, so that the order is always the same.
pub(super) fn first_to_go(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let name = |c: &Candidate<'_>| (c.pod.namespace().to_owned(), c.pod.metadata.name.clone());
    a.measured
        .cmp(&b.measured)
        .then_with(|| b.exceeds.cmp(&a.exceeds))
        .then_with(|| a.priority.cmp(&b.priority))
        .then_with(|| b.excess.cmp(&a.excess))
        .then_with(|| name(a).cmp(&name(b)))
}

fn used(usage: &PodUsage, resource: Resource, scope: Scope) -> u64 {
    match resource {
        Resource::Memory => usage.memory_working_set,
        Resource::EphemeralStorage => disk(usage, scope).bytes,
        Resource::Inodes => disk(usage, scope).inodes,
        Resource::Pids => usage.pids,
    }
}

pub(super) fn disk(usage: &PodUsage, scope: Scope) -> DiskUse {
    let mut sum = DiskUse::default();
    if scope.root {
        sum = sum + usage.containers.iter().map(|container| container.root).sum();
    }
    if scope.rest {
        sum = sum + usage.containers.iter().map(|container| container.logs).sum();
        sum = sum + usage.volumes.iter().map(|volume| volume.disk).sum();
    }
    sum
}

/// What the pod asks for. Inodes and process ids cannot be asked for.
fn asked(pod: &Pod, resource: Resource) -> i64 {
    let name = match resource {
        Resource::Memory => "memory",
        Resource::EphemeralStorage => "ephemeral-storage",
        Resource::Inodes | Resource::Pids => return 0,
    };
    amounts::requests(pod).get(name).copied().unwrap_or(0)
}
