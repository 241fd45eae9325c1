//! The containers of one pod as the runtime shows them, and what is remembered of those that are gone.

use kedge_api::{ContainerStateTerminated, ContainerStatus, Timestamp};
use kedge_containers::{ContainerState, ExitReason, ObservedContainer, ObservedSandbox, SandboxId};
use kedge_wire::Time;
use std::collections::BTreeMap;

/// Exit code of a container whose end nobody saw: as if killed.
pub(crate) const EXIT_CODE_UNSEEN: i32 = 137;

/// The sandboxes of one pod, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Instances {
    sandboxes: Vec<ObservedSandbox>,
    past: BTreeMap<String, Past>,
    sandbox_attempts: Option<u32>,
}

/// What is remembered of a container whose records were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) attempt: u32,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) container_id: Option<String>,
    pub(crate) terminated: Option<ContainerStateTerminated>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) started: Time,
    pub(crate) finished: Time,
    pub(crate) exit_code: i32,
}

impl Instances {
    /// What the cloud knows of earlier instances, after a restart of this process.
    pub(crate) fn recall(&mut self, statuses: &[ContainerStatus]) {
        for status in statuses.iter().filter(|s| s.container_id.is_some()) {
            let terminated = status
                .state
                .terminated
                .clone()
                .or_else(|| status.last_state.terminated.clone());
            self.past.entry(status.name.clone()).or_insert_with(|| Past {
                attempt: status.restart_count,
                image: status.image.clone(),
                image_id: status.image_id.clone(),
                container_id: status.container_id.clone(),
                terminated,
            });
        }
    }

    /// Takes a new observation. What vanished is remembered.
    pub(crate) fn observe(&mut self, mut seen: Vec<ObservedSandbox>, prefix: &str) {
        seen.sort_by_key(|sandbox| (sandbox.attempt, sandbox.created_ms));
        for sandbox in &mut seen {
            sandbox.containers.sort_by_key(|c| (c.attempt, c.created_ms));
            self.sandbox_attempts = self.sandbox_attempts.max(Some(sandbox.attempt));
        }
        self.sandboxes = seen;
        let mut newest: BTreeMap<String, Past> = BTreeMap::new();
        for container in self.all() {
            let past = Past {
                attempt: container.attempt,
                image: container.image.clone(),
                image_id: container.image_ref.clone(),
                container_id: Some(format!("{prefix}{}", container.id.0)),
                terminated: terminated(container, prefix),
            };
            newest.insert(container.name.clone(), past);
        }
        for (name, past) in newest {
            let keep = self
                .past
                .remove(&name)
                .filter(|old| past.terminated.is_none() && old.attempt < past.attempt);
            let terminated = past
                .terminated
                .clone()
                .or_else(|| keep.and_then(|old| old.terminated));
            self.past.insert(name, Past { terminated, ..past });
        }
    }

    pub(crate) fn sandboxes(&self) -> &[ObservedSandbox] {
        &self.sandboxes
    }

    /// Sandboxes that are not in use and of whose containers nothing is kept.
    pub(crate) fn empty_sandboxes(&self) -> Vec<SandboxId> {
        let in_use = self.ready_sandbox().map(|sandbox| &sandbox.id);
        let empty = self.sandboxes.iter().filter(|s| s.containers.is_empty());
        empty
            .filter(|s| Some(&s.id) != in_use)
            .map(|s| s.id.clone())
            .collect()
    }

    pub(crate) fn sandbox_ids(&self) -> Vec<SandboxId> {
        self.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect()
    }

    /// The newest ready sandbox.
    pub(crate) fn ready_sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandboxes.iter().rev().find(|sandbox| sandbox.ready)
    }

    /// The attempt number of the next sandbox.
    pub(crate) fn next_sandbox_attempt(&self) -> u32 {
        self.sandbox_attempts
            .map_or(0, |attempt| attempt.saturating_add(1))
    }

    /// Every container instance, oldest first.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &ObservedContainer> {
        self.sandboxes.iter().flat_map(|sandbox| &sandbox.containers)
    }

    /// The newest instance of a container in any sandbox.
    pub(crate) fn latest(&self, name: &str) -> Option<&ObservedContainer> {
        self.all().rev().find(|container| container.name == name)
    }

    /// The newest instance in the ready sandbox.
    pub(crate) fn current(&self, name: &str) -> Option<&ObservedContainer> {
        self.ready_sandbox()?
            .containers
            .iter()
            .rev()
            .find(|container| container.name == name)
    }

    /// The instance before the newest one, if the runtime still has it.
    pub(crate) fn previous(&self, name: &str) -> Option<&ObservedContainer> {
        self.all().rev().filter(|container| container.name == name).nth(1)
    }

    pub(crate) fn past(&self, name: &str) -> Option<&Past> {
        self.past.get(name)
    }

    /// How the newest instance ended, as far as anybody knows. One whose records are gone counts as killed.
    pub(crate) fn exit_code(&self, name: &str) -> Option<i32> {
        if let Some(latest) = self.latest(name) {
            return end(latest).map(|end| end.exit_code);
        }
        let past = self.past.get(name)?;
        let own = past
            .terminated
            .as_ref()
            .filter(|t| t.container_id == past.container_id);
        Some(own.map_or(EXIT_CODE_UNSEEN, |t| t.exit_code))
    }

    /// Whether this container ever ran, as far as anybody knows.
    pub(crate) fn ever_ran(&self, name: &str) -> bool {
        self.past.contains_key(name)
    }

    /// The attempt number of the next instance.
    pub(crate) fn next_attempt(&self, name: &str) -> u32 {
        self.past
            .get(name)
            .map_or(0, |past| past.attempt.saturating_add(1))
    }

    /// Everything that still may have processes.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &ObservedContainer> {
        self.all().filter(|container| match container.state {
            ContainerState::Running { .. } => true,
            ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => false,
        })
    }

    /// Dead instances before the newest one of each container, newest first, with how many of the same container are
    /// newer and dead, too.
    pub(crate) fn spare(&self) -> Vec<(&ObservedContainer, usize)> {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut spare = Vec::new();
        for container in self.all().rev() {
            let Some(newer) = seen.get_mut(container.name.as_str()) else {
                seen.insert(&container.name, 0);
                continue;
            };
            if !matches!(container.state, ContainerState::Running { .. }) {
                spare.push((container, *newer));
                *newer += 1;
            }
        }
        spare
    }
}

/// How an instance ended, if it did. One whose end nobody saw counts as killed.
pub(crate) fn end(container: &ObservedContainer) -> Option<End> {
    match &container.state {
        ContainerState::Exited {
            started_ms,
            finished_ms,
            exit_code,
            ..
        } => Some(End {
            started: Time::from_ms(*started_ms),
            finished: Time::from_ms(*finished_ms),
            exit_code: *exit_code,
        }),
        ContainerState::Unknown => Some(End {
            started: Time::from_ms(container.created_ms),
            finished: Time::from_ms(container.created_ms),
            exit_code: EXIT_CODE_UNSEEN,
        }),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}

/// The same as the pod's status tells it.
pub(crate) fn terminated(container: &ObservedContainer, prefix: &str) -> Option<ContainerStateTerminated> {
    let container_id = Some(format!("{prefix}{}", container.id.0));
    match &container.state {
        ContainerState::Exited {
            started_ms,
            finished_ms,
            exit_code,
            reason,
            message,
        } => Some(ContainerStateTerminated {
            exit_code: *exit_code,
            reason: Some(exit_reason(*reason).to_owned()),
            message: Some(message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(Timestamp::from_ms(*started_ms)),
            finished_at: Some(Timestamp::from_ms(*finished_ms)),
            container_id,
        }),
        ContainerState::Unknown => Some(ContainerStateTerminated {
            exit_code: EXIT_CODE_UNSEEN,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was restarted".to_owned()),
            container_id,
            ..ContainerStateTerminated::default()
        }),
        ContainerState::Created | ContainerState::Running { .. } => None,
    }
}

fn exit_reason(reason: ExitReason) -> &'static str {
    match reason {
        ExitReason::Completed => "Completed",
        ExitReason::Error => "Error",
        ExitReason::OomKilled => "OOMKilled",
        ExitReason::StartError => "StartError",
    }
}
