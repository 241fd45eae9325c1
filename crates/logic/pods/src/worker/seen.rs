//! What a pod's worker learns: observations of the runtime, and how its actions ended.

use super::{CONFIG_RETRY, REMOVE_RETRY, SANDBOX_RETRY_MIN, Volumes, Worker};
use crate::admission::Rejection;
use crate::backoff::{self, Trouble};
use crate::{Config, Effect, ObservationId, Outcome, Refusal, VolumesReady};
use kedge_containers::{ContainerId, ContainerState, ObservedSandbox};
use kedge_wire::Time;
use std::collections::{BTreeSet, VecDeque};

impl Worker {
    pub(crate) fn observe(
        &mut self,
        config: &Config,
        id: ObservationId,
        seen: Vec<ObservedSandbox>,
        now: Time,
    ) {
        self.seen = Some(id);
        self.starting &= self.busy > 0 || id < self.fresh_after;
        self.instances.observe(seen, &config.container_id_prefix);
        let running: Vec<_> = self
            .instances
            .all()
            .filter_map(|c| match c.state {
                ContainerState::Running { started_ms, .. } => {
                    Some((c.id.clone(), c.name.clone(), Time::from_ms(started_ms)))
                }
                ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => None,
            })
            .collect();
        let told = &self.pod.status;
        let known: Vec<_> = told
            .init_container_statuses
            .iter()
            .chain(&told.container_statuses)
            .collect();
        self.probes.follow(&self.pod, &running, &known, now);
        let ended: Vec<_> = self
            .instances
            .all()
            .filter(|c| crate::instances::end(c).is_some())
            .map(|c| (c.name.clone(), c.id.clone()))
            .collect();
        for (name, id) in ended {
            let entry = self.ends_seen.entry(name).or_insert_with(|| (id.clone(), now));
            if entry.0 != id {
                *entry = (id, now);
            }
        }
        let alive: BTreeSet<ContainerId> = self.instances.all().map(|c| c.id.clone()).collect();
        self.replaced.retain(|id| alive.contains(id));
        self.hooks_sent.retain(|id| alive.contains(id));
        let sandboxes = self.instances.sandbox_ids();
        self.stopped_sandboxes.retain(|id| sandboxes.contains(id));
    }

    /// An action ended; decide again on an observation from `fresh_after` on.
    pub(crate) fn outcome(
        &mut self,
        outcome: Outcome,
        now: Time,
        fresh_after: ObservationId,
        out: &mut VecDeque<Effect>,
    ) {
        self.busy = self.busy.saturating_sub(1);
        if self.busy == 0 {
            self.stopping_with = None;
        }
        match outcome {
            Outcome::Allocated(Ok(())) => return,
            // What runs goes on with what it has.
            Outcome::Allocated(Err(_)) if self.exists() => return,
            Outcome::Allocated(Err(refusal)) => {
                let rejection = Rejection::new(&refusal.reason, refusal.message);
                return self.reject(&rejection, out);
            }
            Outcome::Volumes(result) => return self.volumes_prepared(result, now),
            Outcome::Sandbox(Ok(())) => self.pod_trouble = None,
            Outcome::Sandbox(Err(refusal)) => self.refuse_pod(refusal, now),
            Outcome::Container { name, result: Ok(()) } => {
                self.trouble.remove(&name);
            }
            Outcome::Container {
                name,
                result: Err(refusal),
            } => self.refuse_container(name, refusal, now),
            // What these two change is known without a look at the runtime, and a device that starts has many of them.
            Outcome::VolumesRemoved(Ok(())) => {
                self.volumes = Volumes::Removed;
                return;
            }
            Outcome::SandboxStopped(Ok(())) => return,
            Outcome::ContainersStopped(Ok(()))
            | Outcome::ContainersRemoved(Ok(()))
            | Outcome::SandboxesRemoved(Ok(())) => {}
            Outcome::SandboxStopped(Err(_)) => {
                self.stopped_sandboxes.clear();
                self.remove_retry_at = Some(now + REMOVE_RETRY);
            }
            Outcome::ContainersStopped(Err(_))
            | Outcome::ContainersRemoved(Err(_))
            | Outcome::SandboxesRemoved(Err(_))
            | Outcome::VolumesRemoved(Err(_)) => self.remove_retry_at = Some(now + REMOVE_RETRY),
        }
        self.fresh_after = fresh_after;
    }

    fn volumes_prepared(&mut self, result: Result<VolumesReady, Refusal>, now: Time) {
        match result {
            Ok(ready) => {
                self.pod_trouble = None;
                self.volumes = Volumes::Ready {
                    refresh_at: ready.refresh_at,
                };
            }
            Err(refusal) => {
                // Volumes that stood keep their old content; a running pod does not suffer from a failed refresh.
                if self.volumes == Volumes::Stale {
                    self.volumes = Volumes::Ready {
                        refresh_at: Some(now + CONFIG_RETRY),
                    };
                } else if let Volumes::Ready { refresh_at } = &mut self.volumes {
                    *refresh_at = Some(now + CONFIG_RETRY);
                } else {
                    self.refuse_pod(refusal, now);
                }
            }
        }
    }

    fn refuse_pod(&mut self, refusal: Refusal, now: Time) {
        let delay = match &self.pod_trouble {
            _ if refusal.reason == backoff::CONFIG_ERROR => CONFIG_RETRY,
            Some(trouble) => backoff::next(trouble.delay),
            None => SANDBOX_RETRY_MIN,
        };
        self.pod_trouble = Some(Trouble {
            reason: refusal.reason,
            message: refusal.message,
            since: now,
            delay,
        });
    }

    fn refuse_container(&mut self, name: String, refusal: Refusal, now: Time) {
        let delay = match self.trouble.get(&name) {
            _ if refusal.reason == backoff::CONFIG_ERROR => CONFIG_RETRY,
            Some(trouble) => backoff::next(trouble.delay),
            None => backoff::BACKOFF_MIN,
        };
        let trouble = Trouble {
            reason: refusal.reason,
            message: refusal.message,
            since: now,
            delay,
        };
        self.backoff_told.remove(&name);
        self.trouble.insert(name, trouble);
    }
}
