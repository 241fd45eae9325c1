use super::records::{ContainerRecord, Phase, StateRecord, identity, understood};
use super::{Inner, cgroup, now_ms};
use crate::network::SandboxNetwork;
use crate::{Error, durable};
use kedge_containers::{
    ContainerId, ContainerState, ExitReason, ObservedContainer, ObservedSandbox, SandboxId,
};
use kedge_host::process::Identity;
use std::collections::BTreeMap;

/// What is reported for a container whose end nobody saw.
const EXIT_CODE_LOST: i32 = 255;

impl Inner {
    /// Reads everything there is.
    pub(super) fn observe(&self) -> Result<Vec<ObservedSandbox>, Error> {
        let boot_id = kedge_host::boot_id().map_err(|error| Error::failed("list", "sandboxes", error))?;
        self.replace_lost_supervisors(&boot_id)?;
        let mut containers: BTreeMap<String, Vec<ObservedContainer>> = BTreeMap::new();
        for record in self.container_records()? {
            let sandbox = record.sandbox.clone();
            containers
                .entry(sandbox)
                .or_default()
                .push(self.observe_container(record)?);
        }
        let records = self.sandbox_records()?.into_iter().filter(|record| record.made);
        Ok(records
            .map(|record| ObservedSandbox {
                ready: self.is_ready(&record, &boot_id),
                containers: containers.remove(&record.id).unwrap_or_default(),
                ips: record
                    .network
                    .iter()
                    .flat_map(SandboxNetwork::addresses)
                    .map(|address| address.to_string())
                    .collect(),
                id: SandboxId(record.id),
                pod: record.config.pod,
                attempt: record.config.attempt,
                created_ms: record.created_ms,
            })
            .collect())
    }

    /// The first process of a container that runs.
    pub(super) fn process_of(&self, id: &ContainerId) -> Result<Option<u32>, Error> {
        let state = self.state_of(id)?;
        Ok(state.and_then(|state| match state.phase {
            Phase::Running { .. } => Some(state.process.pid),
            Phase::Created | Phase::Exited { .. } => None,
        }))
    }

    /// What became of a container. One that ended unseen is written down as ended, once.
    pub(super) fn state_of(&self, id: &ContainerId) -> Result<Option<StateRecord>, Error> {
        let Some(mut state) = self.state_record(&id.0) else {
            return Ok(None);
        };
        let started_ms = match state.phase {
            Phase::Exited { .. } => return Ok(Some(state)),
            Phase::Created => 0,
            Phase::Running { started_ms } => started_ms,
        };
        // The supervisor is asked second: if it ended just now, its last word is read below.
        if alive(&identity(&state.process))? || alive(&identity(&state.supervisor))? {
            return Ok(Some(state));
        }
        if let Some(last) = self
            .state_record(&id.0)
            .filter(|last| matches!(last.phase, Phase::Exited { .. }))
        {
            return Ok(Some(last));
        }
        let message = match kedge_host::boot_id() {
            Ok(boot) if boot == state.process.boot_id => {
                "its supervisor was killed; the exit code is not known"
            }
            Ok(_) | Err(_) => "the node was restarted while it ran",
        };
        state.phase = Phase::Exited {
            started_ms,
            finished_ms: now_ms(),
            exit_code: EXIT_CODE_LOST,
            reason: ExitReason::Error,
            message: message.to_owned(),
        };
        // Nobody else ends what its first process left behind.
        if let Some(record) = self.container_record(&id.0)? {
            cgroup::remove_tree(&self.cgroups, &record.cgroup)?;
        }
        // On a full disk it is worked out anew at the next look.
        if let Err(error) = durable::write_record(&self.layout.state(&id.0), &state) {
            tracing::warn!(container = id.0, %error, "the end of a container is not written down");
        }
        Ok(Some(state))
    }

    /// What was written last of a container; `None` also when a power cut has torn it, and then nothing of it runs.
    pub(super) fn state_record(&self, id: &str) -> Option<StateRecord> {
        understood(id, durable::read_record(&self.layout.state(id)))
    }

    fn observe_container(&self, record: ContainerRecord) -> Result<ObservedContainer, Error> {
        let id = ContainerId(record.id);
        let state = match self.state_of(&id) {
            Ok(state) => state.map_or(ContainerState::Unknown, observed),
            Err(error) => {
                tracing::warn!(container = id.0, %error, "state of container cannot be read");
                ContainerState::Unknown
            }
        };
        Ok(ObservedContainer {
            id,
            name: record.config.name,
            attempt: record.config.attempt,
            image: record.config.image,
            image_ref: record.image_ref,
            spec_hash: record.config.spec_hash,
            created_ms: record.created_ms,
            state,
            log_path: record.log_path,
        })
    }
}

fn alive(process: &Identity) -> Result<bool, Error> {
    process
        .is_alive()
        .map_err(|error| Error::failed("look at process", process.pid.to_string(), error))
}

fn observed(state: StateRecord) -> ContainerState {
    match state.phase {
        Phase::Created => ContainerState::Created,
        Phase::Running { started_ms } => ContainerState::Running { started_ms },
        Phase::Exited {
            started_ms,
            finished_ms,
            exit_code,
            reason,
            message,
        } => ContainerState::Exited {
            started_ms,
            finished_ms,
            exit_code,
            reason,
            message,
        },
    }
}
