//! What sandboxes and containers use, read from their control groups and layers.

use super::Inner;
use super::RootfsMode;
use super::now_ms;
use super::records::Phase;
use crate::Error;
use kedge_containers::{
    ContainerId, ContainerStats, CpuStats, InterfaceStats, MemoryStats, SandboxId, SandboxStats,
};
use kedge_host::disks::tree_usage;
use kedge_host::groups::{self, GroupMemory, GroupUsage};
use kedge_host::network::{self, Interface};

/// A layer with more entries is told as large as was seen.
const LAYER_ENTRIES_MAX: usize = 100_000;

impl Inner {
    /// Measures what runs.
    pub(super) fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed("measure", "sandboxes", error))?;
        let containers = self.container_records()?;
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
        let layer = tree_usage(
            &directory.join(match self.rootfs {
                RootfsMode::Overlay => "upper",
                RootfsMode::Copy => "rootfs",
            }),
            LAYER_ENTRIES_MAX,
        );
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
