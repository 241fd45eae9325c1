//! Containers that run are where they belong: they are told when that changes, and only then.

use super::state::{self, Content};
use super::{CpuSet, FORGOTTEN_AFTER, Giver, Shared};
use crate::checkpoint;
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox, Resources};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A runtime that takes longer to change one container is hung; the container's turn comes again.
const UPDATE_MAX: Duration = Duration::from_secs(10);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut changes = shared.state.subscribe();
    let (mut pods, mut seen) = (shared.pods.clone(), shared.seen.clone());
    // What the file says may have been too much.
    shared.save().await;
    let (mut looked, mut undone) = (false, false);
    loop {
        changes.mark_unchanged();
        pods.mark_unchanged();
        // A runtime without containers shows nothing new.
        looked |= seen.has_changed().unwrap_or(false) || shared.until_forgotten().is_none();
        seen.mark_unchanged();
        if shared.release_gone() {
            shared.save().await;
        }
        let all_told = shared.tell().await;
        if all_told && looked && !undone {
            undone = shared.undo().await;
        }
        let pause = if all_told {
            shared.until_forgotten()
        } else {
            Some(shared.rules.retry)
        };
        let pause = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Whichever it is, all is looked at anew.
            changed = changes.changed() => if changed.is_err() { return },
            changed = pods.changed() => if changed.is_err() { return },
            changed = seen.changed() => if changed.is_err() { return } else { looked = true },
            () = pause => {}
        }
    }
}

impl Shared {
    /// Tells every container that runs elsewhere than it shall. False when one could not be told.
    async fn tell(&self) -> bool {
        let seen = self.seen.borrow().clone();
        let of_sandbox = |sandbox: &ObservedSandbox| {
            let uid = sandbox.pod.uid.clone();
            let each = sandbox.containers.iter().cloned();
            each.map(|container| (uid.clone(), container)).collect::<Vec<_>>()
        };
        let containers: Vec<(String, ObservedContainer)> = seen.iter().flat_map(of_sandbox).collect();
        let there: BTreeSet<&ContainerId> = containers.iter().map(|(_, container)| &container.id).collect();
        self.told().retain(|id, _| there.contains(id));
        let mut all_told = true;
        for (uid, container) in &containers {
            if !matches!(container.state, ContainerState::Running { .. }) {
                continue;
            }
            let Some(cpus) = self.place(uid, &container.name) else {
                continue;
            };
            if self.told().get(&container.id) == Some(&cpus) {
                continue;
            }
            match self.update(&container.id, &cpus).await {
                Ok(()) => drop(self.told().insert(container.id.clone(), cpus)),
                Err(why) => {
                    all_told = false;
                    tracing::warn!(uid, container = container.name, %cpus, why, "a container is not yet where it shall run; tried again");
                }
            }
        }
        all_told
    }

    async fn update(&self, id: &ContainerId, cpus: &CpuSet) -> Result<(), String> {
        let resources = Resources {
            cpuset_cpus: Some(cpus.to_string()),
            ..Resources::default()
        };
        match tokio::time::timeout(UPDATE_MAX, self.runtime.update_container(id, &resources)).await {
            // It has gone meanwhile.
            Ok(Ok(()) | Err(kedge_runtime::Error::NoContainer(_))) => Ok(()),
            Ok(Err(error)) => Err(crate::hands::chain(&error)),
            Err(_) => Err(format!("the runtime took longer than {}s", UPDATE_MAX.as_secs())),
        }
    }

    /// When pods that nobody knows any more give their CPUs back.
    fn until_forgotten(&self) -> Option<Duration> {
        let passed = self.clock.now().since(self.started);
        FORGOTTEN_AFTER.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// Where nobody has CPUs alone any more and all run everywhere again, the file says so. True when nothing of that is
    /// left to do.
    async fn undo(&self) -> bool {
        if !matches!(self.state.borrow().giver, Giver::Undo(_)) {
            return true;
        }
        let file = self.file.clone();
        let write = move || checkpoint::write(&file, &state::print(&Content::none()));
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(
                    error = crate::hands::chain(&error),
                    "the next start gives all CPUs back once more"
                );
            }
            Err(error) => tracing::error!(%error, "the next start gives all CPUs back once more"),
        }
        true
    }
}
