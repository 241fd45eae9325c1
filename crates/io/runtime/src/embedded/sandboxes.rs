use super::records::{SandboxNetwork, SandboxOrder, SandboxRecord};
use super::{Inner, cgroup, files, new_id, now_ms};
use crate::{Error, durable};
use kedge_containers::{ContainerId, Resources, SandboxConfig, SandboxId};
use std::path::{Path, PathBuf};

/// An interface's name has at most 15 bytes.
const VETH_ID_BYTES: usize = 11;

/// A pinned namespace's file system says so.
const NAMESPACE_MAGIC: i64 = 0x6e73_6673;

impl Inner {
    pub(super) fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, Error> {
        refuse_unsupported(&config)?;
        let id = new_id()?;
        let network = if config.host_network {
            None
        } else {
            Some(self.take_address(&id)?)
        };
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed("run sandbox", &id, error))?;
        let created_ms = now_ms();
        let mut record = SandboxRecord {
            id: id.clone(),
            config,
            created_ms,
            network,
            made: false,
            stopped: false,
            boot_id,
        };
        match self.make_sandbox(&mut record) {
            Ok(()) => Ok(SandboxId(id)),
            Err(error) => {
                self.discard_sandbox(&record)
                    .inspect_err(|error| tracing::warn!(%error, "sandbox not cleaned up"))
                    .ok();
                Err(error)
            }
        }
    }

    /// Takes the namespaces and the network down; every process in it has ended before.
    pub(super) fn take_down_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(mut record) = self.sandbox_record(&id.0)? else {
            return Ok(());
        };
        if !record.stopped {
            record.stopped = true;
            self.write_sandbox(&record)?;
        }
        self.take_down(&record)
    }

    /// Removes what is left of a sandbox that was taken down.
    pub(super) fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(record) = self.sandbox_record(&id.0)? else {
            return Ok(());
        };
        for container in self.containers_of(id)? {
            self.remove_container(&container)?;
        }
        self.discard_sandbox(&record)
    }

    pub(super) fn containers_of(&self, id: &SandboxId) -> Result<Vec<ContainerId>, Error> {
        let records = self.container_records()?.into_iter();
        Ok(records
            .filter(|record| record.sandbox == id.0)
            .map(|record| ContainerId(record.id))
            .collect())
    }

    pub(super) fn sandbox_records(&self) -> Result<Vec<SandboxRecord>, Error> {
        let ids = durable::names(&self.layout.sandboxes())?;
        let records: Result<Vec<_>, Error> = ids.iter().map(|id| self.sandbox_record(id)).collect();
        Ok(records?.into_iter().flatten().collect())
    }

    pub(super) fn sandbox_record(&self, id: &str) -> Result<Option<SandboxRecord>, Error> {
        durable::read_record(&record_path(&self.layout.sandbox(id)))
    }

    /// Whether containers can be made in it.
    pub(super) fn is_ready(&self, record: &SandboxRecord, boot_id: &str) -> bool {
        let order = self.order_of(record);
        let pins = [order.network_pin, order.ipc_pin, order.pid_pin];
        record.made
            && !record.stopped
            && record.boot_id == boot_id
            && pins.iter().flatten().all(|pin| is_namespace(pin))
    }

    /// Takes down sandboxes whose making was interrupted.
    pub(super) fn clear_unmade_sandboxes(&self) -> Result<(), Error> {
        for record in self.sandbox_records()?.iter().filter(|record| !record.made) {
            self.discard_sandbox(record)?;
        }
        for id in durable::names(&self.layout.sandboxes())? {
            if self.sandbox_record(&id)?.is_none() {
                durable::remove_directory(&self.layout.sandbox(&id))?;
            }
        }
        Ok(())
    }

    pub(super) fn pod_cgroup(&self, record: &SandboxRecord) -> Result<String, Error> {
        cgroup::path(&[&self.cgroup_root, &record.config.cgroup_parent])
    }

    fn make_sandbox(&self, record: &mut SandboxRecord) -> Result<(), Error> {
        let directory = self.layout.sandbox(&record.id);
        let group = self.pod_cgroup(record)?;
        durable::make_directory(&directory)?;
        self.write_sandbox(record)?;
        files::write(
            &directory,
            &record.config,
            record.network.as_ref().map(|network| network.address),
        )?;
        if record.config.resources != Resources::default() {
            cgroup::make_pod(&self.cgroups, &group, &record.config.resources)?;
        }
        let order = self.order_of(record);
        if order.has_work() {
            self.launcher.sandbox_up(&directory, &order)?;
        }
        record.made = true;
        self.write_sandbox(record)
    }

    fn discard_sandbox(&self, record: &SandboxRecord) -> Result<(), Error> {
        self.take_down(record)?;
        durable::remove_directory(&self.layout.sandbox(&record.id))?;
        if let Some(network) = &record.network {
            self.addresses().give_back(network.address);
        }
        Ok(())
    }

    /// A pod may have a new sandbox before its old one is removed, and both are in the pod's group.
    fn shares_its_group(&self, record: &SandboxRecord) -> Result<bool, Error> {
        let parent = &record.config.cgroup_parent;
        let others = self.sandbox_records()?;
        Ok(others
            .iter()
            .any(|other| other.id != record.id && !other.stopped && other.config.cgroup_parent == *parent))
    }

    fn take_down(&self, record: &SandboxRecord) -> Result<(), Error> {
        let directory = self.layout.sandbox(&record.id);
        let order = self.order_of(record);
        if order.has_work() {
            self.launcher.sandbox_down(&directory, &order)?;
        }
        if self.shares_its_group(record)? {
            return Ok(());
        }
        cgroup::remove_tree(&self.cgroups, &self.pod_cgroup(record)?)
    }

    fn order_of(&self, record: &SandboxRecord) -> SandboxOrder {
        let directory = self.layout.sandbox(&record.id);
        SandboxOrder {
            network: record.network.clone(),
            network_pin: (!record.config.host_network).then(|| directory.join("net")),
            ipc_pin: (!record.config.host_ipc).then(|| directory.join("ipc")),
            pid_pin: (record.config.share_pid && !record.config.host_pid).then(|| directory.join("pid")),
            shared_memory: (!record.config.host_ipc).then(|| directory.join("shm")),
        }
    }

    fn take_address(&self, id: &str) -> Result<SandboxNetwork, Error> {
        let assigned = self.addresses().take()?;
        let bridge = self
            .network
            .as_ref()
            .map(|network| network.bridge.clone())
            .unwrap_or_default();
        Ok(SandboxNetwork {
            bridge,
            veth: format!("kv{}", &id[..VETH_ID_BYTES.min(id.len())]),
            address: assigned.address,
            gateway: assigned.gateway,
            prefix: assigned.prefix,
        })
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, super::Addresses> {
        // Taking and giving back are single steps; a panic cannot leave them half done.
        self.addresses
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write_sandbox(&self, record: &SandboxRecord) -> Result<(), Error> {
        durable::write_record(&record_path(&self.layout.sandbox(&record.id)), record)
    }
}

fn refuse_unsupported(config: &SandboxConfig) -> Result<(), Error> {
    let refuse = |reason: &'static str| {
        Err(Error::Unsupported {
            act: "run sandbox of pod",
            object: format!("{}/{}", config.pod.namespace, config.pod.name),
            reason,
        })
    };
    if !config.handler.is_empty() {
        return refuse("the built-in runtime has no handlers (runtimeClassName); use containerd");
    }
    if !config.host_network && config.ports.iter().any(|port| port.host_port != 0) {
        return refuse("the built-in runtime does not open host ports; use hostNetwork: true, or containerd");
    }
    const OF_IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    let is_of_ipc = |name: &String| OF_IPC.iter().any(|prefix| name.starts_with(prefix));
    if config.host_ipc && config.sysctls.keys().any(is_of_ipc) {
        return refuse(
            "sysctls of its memory and queues would be the node's own, because the pod shares them (hostIPC)",
        );
    }
    if config.host_network && config.sysctls.keys().any(|name| name.starts_with("net.")) {
        return refuse(
            "sysctls of the network would be the node's own, because the pod is on the node's network",
        );
    }
    Ok(())
}

fn record_path(directory: &Path) -> PathBuf {
    directory.join("sandbox.json")
}

#[allow(
    clippy::useless_conversion,
    reason = "the kernel's type is narrower on 32-bit machines"
)]
fn is_namespace(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|system| i64::from(system.f_type) == NAMESPACE_MAGIC)
}
