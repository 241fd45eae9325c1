//! What sandboxes and containers use, read from their control groups and layers.

use super::Inner;
use super::now_ms;
use super::records::Phase;
use crate::Error;
use kedge_containers::{
    ContainerId, ContainerStats, CpuStats, InterfaceStats, MemoryStats, SandboxId, SandboxStats,
};
use kedge_host::disks::{TreeUsage, tree_usage};
use kedge_host::groups::{self, GroupMemory, GroupUsage};
use kedge_host::network::{self, Interface};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A layer with more entries is told as large as was seen.
const LAYER_ENTRIES_MAX: usize = 100_000;
/// How long a measured layer is taken for what it was: looking at every file of every container each time somebody asks
/// would be most of what an idle node does.
const LAYER_KEPT_MIN: Duration = Duration::from_secs(10);
/// Measuring takes at most one part in so many of the time.
const LAYER_REST: u32 = 20;

/// What writable layers were when they were last measured, by container.
#[derive(Debug, Default)]
pub(super) struct LayerUsage(Mutex<HashMap<String, Measured>>);

#[derive(Debug, Clone, Copy)]
struct Measured {
    at: Instant,
    took: Duration,
    usage: TreeUsage,
}

impl LayerUsage {
    /// The usage of a container's layer, measured anew if it is old.
    fn of(&self, id: &str, measure: impl FnOnce() -> TreeUsage) -> TreeUsage {
        let known = self.kept().get(id).copied();
        let now = Instant::now();
        if let Some(known) = known
            && now.saturating_duration_since(known.at) < LAYER_KEPT_MIN.max(known.took * LAYER_REST)
        {
            return known.usage;
        }
        let usage = measure();
        let measured = Measured {
            at: now,
            took: now.elapsed(),
            usage,
        };
        self.kept().insert(id.to_owned(), measured);
        usage
    }

    /// Forgets containers that are gone.
    fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.kept().retain(|id, _| is_there(id));
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Measured>> {
        // Every change is a single step; a panic cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Measures what runs.
    pub(super) fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed("measure", "sandboxes", error))?;
        let containers = self.container_records()?;
        self.layers
            .keep(|id| containers.iter().any(|record| record.id == id));
        let mut all = Vec::new();
        for sandbox in self.sandbox_records()? {
            if !self.is_ready(&sandbox, &boot_id) {
                continue;
            }
            let mut measured = Vec::new();
            let mut process = None;
            for record in containers.iter().filter(|record| record.sandbox == sandbox.id) {
                let id = ContainerId(record.id.clone());
                let running = self
                    .state_of(&id)?
                    .filter(|state| matches!(state.phase, Phase::Running { .. }));
                let Some(state) = running else { continue };
                process = process.or(Some(state.process.pid));
                measured.push(self.container_stats(id, &record.config.name, &record.cgroup));
            }
            let usage = groups::group_usage(&self.cgroups, &self.pod_cgroup(&sandbox)?).unwrap_or_default();
            let on_node = sandbox.config.host_network;
            let interfaces = process
                .filter(|_| !on_node)
                .map_or_else(Vec::new, network::interfaces_of);
            all.push(SandboxStats {
                id: SandboxId(sandbox.id),
                pod: sandbox.config.pod,
                taken_ms: now_ms(),
                cpu: cpu(&usage),
                memory: usage.memory.map(memory),
                processes: usage.processes,
                network: interfaces.into_iter().map(interface).collect(),
                containers: measured,
            });
        }
        Ok(all)
    }

    fn container_stats(&self, id: ContainerId, name: &str, cgroup: &str) -> ContainerStats {
        let usage = groups::group_usage(&self.cgroups, cgroup).unwrap_or_default();
        let directory = self.layout.container(&id.0);
        // It says itself how it was made, which is not how they are made by now. A copied one has nothing but its root.
        let upper = directory.join("upper");
        let writable = if upper.is_dir() {
            upper
        } else {
            directory.join("rootfs")
        };
        let layer = self.layers.of(&id.0, || tree_usage(&writable, LAYER_ENTRIES_MAX));
        ContainerStats {
            id,
            name: name.to_owned(),
            taken_ms: now_ms(),
            cpu: cpu(&usage),
            memory: usage.memory.map(memory),
            layer_bytes: Some(layer.bytes),
            layer_inodes: Some(layer.inodes),
        }
    }
}

fn cpu(usage: &GroupUsage) -> Option<CpuStats> {
    usage.cpu.map(|cpu| CpuStats {
        usage_ns: cpu.usage_ns,
    })
}

fn memory(of: GroupMemory) -> MemoryStats {
    MemoryStats {
        usage_bytes: of.usage,
        working_set_bytes: of.working_set,
        rss_bytes: of.rss,
        page_faults: of.page_faults,
        major_page_faults: of.major_page_faults,
    }
}

fn interface(of: Interface) -> InterfaceStats {
    InterfaceStats {
        name: of.name,
        received_bytes: of.received_bytes,
        received_errors: of.received_errors,
        sent_bytes: of.sent_bytes,
        sent_errors: of.sent_errors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_layer_is_not_measured_each_time() {
        let (layers, measured) = (LayerUsage::default(), Cell::new(0));
        let look = |id: &str| {
            layers
                .of(id, || {
                    measured.set(measured.get() + 1);
                    TreeUsage {
                        bytes: measured.get(),
                        ..TreeUsage::default()
                    }
                })
                .bytes
        };
        assert_eq!((look("a"), look("a"), look("b"), look("a")), (1, 1, 2, 1));
        layers.keep(|id| id == "b");
        assert_eq!((look("b"), look("a")), (2, 3), "a was forgotten");
    }
}
