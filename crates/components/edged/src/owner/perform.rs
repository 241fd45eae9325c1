//! What is handed out: each action, probe and letter in a task of its own.

use super::{Event, Owner};
use crate::hands::pull_references;
use crate::objects::Snapshot;
use kedge_api::Pod;
use kedge_pods::translate::{References, env_references, volume_references};
use kedge_pods::{Action, Effect, PodKey};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

impl Owner {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Do { pod, action } => self.act(pod, action),
            Effect::RemoveOrphan {
                uid,
                sandboxes,
                containers,
                grace,
            } => {
                self.under_way += 1;
                tracing::info!(uid, "containers of an unknown pod are removed");
                let (hands, results) = (self.hands.clone(), self.results.clone());
                self.scope.spawn_until_cancelled("edged-orphan", async move {
                    hands.remove_orphan(&uid, &sandboxes, containers, grace).await;
                    let _ = results.send(Event::Orphan { uid }).await;
                });
            }
            Effect::Probe { id, target, timeout } => {
                let (prober, results) = (self.hands.prober.clone(), self.results.clone());
                self.scope.spawn_until_cancelled("edged-probe", async move {
                    let begin = Instant::now();
                    let result = prober.ask(&target, timeout).await;
                    let took = begin.elapsed();
                    let _ = results.send(Event::Probe { id, result, took }).await;
                });
            }
            Effect::Report { key, uid, patch } => {
                self.board_stale = true;
                self.reports.status(key, uid, patch);
            }
            Effect::ReportDeleted { key, uid } => {
                self.board_stale = true;
                self.reports.deleted(key, uid);
            }
            Effect::CreateMirror { pod } => self.create_mirror(pod),
            Effect::DeleteMirror { key, uid } => self.delete_mirror(key, &uid),
            Effect::Event(event) => self.hands.events.tell(event),
        }
    }

    /// One action in a task of its own.
    fn act(&mut self, pod: Arc<Pod>, action: Action) {
        self.under_way += 1;
        let snapshot = self.snapshot(&pod, &action);
        let (hands, results) = (self.hands.clone(), self.results.clone());
        tracing::debug!(pod = %PodKey::of(&pod), ?action, "action");
        let wait = self.scope.child();
        if waits_for_others(&action) {
            self.waits
                .insert(pod.uid().to_owned(), (PodKey::of(&pod), wait.clone()));
        }
        let task = async move {
            let outcome = hands.perform(&pod, &snapshot, action, &wait).await;
            let _ = results
                .send(Event::Outcome {
                    uid: pod.uid().to_owned(),
                    outcome,
                })
                .await;
        };
        // A task that is dropped half way leaves what the next start finds in the runtime's list.
        self.scope.spawn_until_cancelled("edged-pod", task);
    }

    /// The held objects that the action may need.
    fn snapshot(&self, pod: &Pod, action: &Action) -> Snapshot {
        let references = match action {
            Action::PrepareVolumes => volume_references(pod),
            Action::StartContainer { container, .. } => {
                let mut references = pod
                    .container(container)
                    .map_or_else(References::default, env_references);
                references.secrets.extend(pull_references(pod).secrets);
                references
            }
            Action::Allocate { .. }
            | Action::RunSandbox { .. }
            | Action::StopContainers { .. }
            | Action::RemoveContainers(_)
            | Action::StopSandbox(_)
            | Action::RemoveSandboxes(_)
            | Action::RemoveVolumes => References::default(),
        };
        self.held.snapshot(pod.namespace(), &references)
    }

    /// Removes what pods that nobody knows have left on the disk, once after a start: what later ones leave goes with
    /// them. Pods that still have containers are orphans, whose turn comes when those are gone.
    pub(super) fn sweep(&mut self) {
        if self.swept || !self.complete || !self.observer.has_seen() {
            return;
        }
        self.swept = true;
        let wanted = self.pods.known().map(|known| known.pod.uid().to_owned());
        let seen = self.board.seen.borrow().clone();
        let keep: BTreeSet<String> = wanted
            .chain(seen.iter().map(|sandbox| sandbox.pod.uid.clone()))
            .collect();
        let hands = self.hands.clone();
        // Looked for now, so that no pod that comes meanwhile is among them.
        let orphans = hands.volumes.orphans(&keep);
        self.scope.spawn_until_cancelled("edged-sweep", async move {
            hands.volumes.remove_orphans(orphans).await;
            hands
                .clean_up("remove the logs of unknown pods", move |logs| logs.sweep(&keep))
                .await;
        });
    }
}

/// Whether the action waits for a registry, the cloud, a plug-in or a hook, which a pod that ends does not.
fn waits_for_others(action: &Action) -> bool {
    match action {
        Action::Allocate { .. } | Action::PrepareVolumes | Action::StartContainer { .. } => true,
        Action::RunSandbox { .. }
        | Action::StopContainers { .. }
        | Action::RemoveContainers(_)
        | Action::StopSandbox(_)
        | Action::RemoveSandboxes(_)
        | Action::RemoveVolumes => false,
    }
}
