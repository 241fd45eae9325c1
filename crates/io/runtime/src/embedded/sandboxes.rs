use super::records::{SandboxOrder, SandboxRecord};
use super::{Inner, cgroup, files, new_id, now_ms, records};
use crate::network::{SandboxNetwork, is_namespace};
use crate::{Error, durable};
use kedge_containers::{ContainerId, SandboxConfig, SandboxId};
use std::path::{Path, PathBuf};

impl Inner {
    pub(super) fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, Error> {
        refuse_unsupported(&config)?;
        self.handlers.maker(&config)?;
        self.require_users(&config)?;
        let id = new_id()?;
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed("run sandbox", &id, error))?;
        let network = self.network.plan(&id, &config)?;
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

    /// What a pod with users of its own needs of this node.
    fn require_users(&self, config: &SandboxConfig) -> Result<(), Error> {
        if config.user_namespace.is_none() {
            return Ok(());
        }
        let pod = format!("{}/{}", config.pod.namespace, config.pod.name);
        let refuse = |reason: String| Err(Error::failed("run sandbox of pod", &pod, reason));
        if config.host_network || config.host_pid || config.host_ipc {
            return refuse(
                "a pod with users of its own (hostUsers: false) shares neither network nor processes nor IPC with the \
                 node"
                    .to_owned(),
            );
        }
        if !config.handler.is_empty() {
            return refuse(format!(
                "users of its own (hostUsers: false) are for the built-in runtime, not for its handler {}",
                config.handler
            ));
        }
        match self.user_namespaces() {
            Ok(()) => Ok(()),
            Err(why) => refuse(format!(
                "this node cannot give it users of its own (hostUsers: false): {why}"
            )),
        }
    }

    /// Takes the namespaces and the network down; every process in it has ended before.
    pub(super) fn take_down_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(mut record) = self.sandbox_record(&id.0)? else {
            return Ok(());
        };
        if !record.stopped {
            record.stopped = true;
            // On a full disk it is taken down all the same; without its namespaces it is not ready either.
            if let Err(error) = self.write_sandbox(&record) {
                tracing::warn!(sandbox = id.0, %error, "that it is stopped is not written down");
            }
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
        records::sandboxes(&self.layout)
    }

    pub(super) fn sandbox_record(&self, id: &str) -> Result<Option<SandboxRecord>, Error> {
        records::sandbox(&self.layout, id)
    }

    /// Whether containers can be made in it.
    pub(super) fn is_ready(&self, record: &SandboxRecord, boot_id: &str) -> bool {
        let order = self.order_of(record);
        let pins = [order.network_pin, order.ipc_pin, order.pid_pin, order.user_pin];
        record.made
            && !record.stopped
            && record.boot_id == boot_id
            && pins.iter().flatten().all(|pin| is_namespace(pin))
    }

    /// Takes down sandboxes whose making was interrupted.
    pub(super) fn clear_unmade_sandboxes(&self) -> Result<(), Error> {
        for record in self.sandbox_records()?.iter().filter(|record| !record.made) {
            // A plug-in of the network that fails must not keep the runtime from starting; the next start tries again.
            if let Err(error) = self.discard_sandbox(record) {
                tracing::warn!(sandbox = record.id, %error, "unfinished sandbox not cleaned up");
            }
        }
        for id in durable::names(&self.layout.sandboxes())? {
            // One whose record is not understood can be neither told of nor taken down otherwise.
            if !matches!(self.sandbox_record(&id), Ok(Some(_))) {
                self.clear_unknown_sandbox(&id)?;
            }
        }
        Ok(())
    }

    /// Takes down whatever there may be of a sandbox.
    fn clear_unknown_sandbox(&self, id: &str) -> Result<(), Error> {
        let directory = self.layout.sandbox(id);
        self.end_supervision(id)?;
        for record in self.container_records()? {
            if record.sandbox != id {
                continue;
            }
            self.remove_container(&ContainerId(record.id))?;
            // The pod's own group is the one above; only its containers still say which.
            if let Some((group, _)) = record
                .cgroup
                .rsplit_once('/')
                .filter(|(group, _)| !group.is_empty())
            {
                cgroup::remove_empty_tree(&self.cgroups, group)
                    .inspect_err(|error| tracing::warn!(sandbox = id, %error, "the pod's group stays"))
                    .ok();
            }
        }
        self.network
            .down_unknown(id, &network_pin(&directory), &directory);
        let everything = SandboxOrder {
            network: None,
            network_pin: Some(network_pin(&directory)),
            ipc_pin: Some(directory.join("ipc")),
            pid_pin: Some(directory.join("pid")),
            shared_memory: Some(directory.join("shm")),
            user_pin: Some(user_pin(&directory)),
            users: None,
        };
        self.launcher.sandbox_down(&directory, &everything)?;
        durable::remove_directory(&directory)
    }

    pub(super) fn pod_cgroup(&self, record: &SandboxRecord) -> Result<String, Error> {
        cgroup::path(&[&self.cgroup_root, &record.config.cgroup_parent])
    }

    fn make_sandbox(&self, record: &mut SandboxRecord) -> Result<(), Error> {
        let directory = self.layout.sandbox(&record.id);
        let group = self.pod_cgroup(record)?;
        durable::make_directory(&directory)?;
        self.write_sandbox(record)?;
        // Also without limits: what a container may use is looked up in the group above it.
        cgroup::make_pod(&self.cgroups, &group, &record.config.resources)?;
        let order = self.order_of(record);
        if order.has_work() {
            self.launcher.sandbox_up(&directory, &order)?;
        }
        record.network = self.network.up(record, &network_pin(&directory), &directory)?;
        let addresses = record.network.as_ref().map(SandboxNetwork::addresses);
        files::write(&directory, &record.config, addresses.as_deref())?;
        self.begin_supervision(record)?;
        record.made = true;
        self.write_sandbox(record)
    }

    fn discard_sandbox(&self, record: &SandboxRecord) -> Result<(), Error> {
        self.take_down(record)?;
        durable::remove_directory(&self.layout.sandbox(&record.id))?;
        self.network.free(record.network.as_ref());
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
        self.end_supervision(&record.id)?;
        self.network.down(record, &network_pin(&directory), &directory)?;
        if order.has_work() {
            self.launcher.sandbox_down(&directory, &order)?;
        }
        if self.shares_its_group(record)? {
            return Ok(());
        }
        cgroup::remove_tree(&self.cgroups, &self.pod_cgroup(record)?)
    }

    pub(super) fn order_of(&self, record: &SandboxRecord) -> SandboxOrder {
        let directory = self.layout.sandbox(&record.id);
        SandboxOrder {
            network: record.network.as_ref().and_then(SandboxNetwork::bridge).cloned(),
            network_pin: (!record.config.host_network).then(|| network_pin(&directory)),
            ipc_pin: (!record.config.host_ipc).then(|| directory.join("ipc")),
            pid_pin: (record.config.share_pid && !record.config.host_pid).then(|| directory.join("pid")),
            shared_memory: (!record.config.host_ipc).then(|| directory.join("shm")),
            user_pin: record.config.user_namespace.map(|_| user_pin(&directory)),
            users: record.config.user_namespace,
        }
    }

    fn write_sandbox(&self, record: &SandboxRecord) -> Result<(), Error> {
        let path = record_path(&self.layout.sandbox(&record.id));
        match &record.network {
            // Plug-ins keep books on the disk, from which a sandbox has to be struck after a power cut, too.
            Some(SandboxNetwork::Cni(_)) => durable::write_record(&path, record),
            Some(SandboxNetwork::Bridge(_)) | None => durable::write_record_for_boot(&path, record),
        }
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

/// Where the sandbox's network namespace is held.
fn network_pin(directory: &Path) -> PathBuf {
    directory.join("net")
}

/// Where the namespace of the pod's own users is held.
pub(super) fn user_pin(directory: &Path) -> PathBuf {
    directory.join(kedge_supervision::USER_PIN)
}
