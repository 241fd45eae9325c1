//! Stopping a pod's containers, in their order and within one grace.

use super::{GRACE_MIN, Wish, Worker, grace};
use crate::{Action, Effect, EventReason, Stop, qos};
use kedge_containers::{ContainerId, ObservedContainer};
use kedge_wire::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// The last in the row still get a moment, whatever those before them took.
const GRACE_LAST: Duration = Duration::from_secs(2);

impl Worker {
    /// How long the pod as a whole may take to end.
    fn stop_grace(&self) -> Option<Duration> {
        match self.wish {
            Wish::Delete { grace } | Wish::Forget { grace } => Some(
                self.evicted_with
                    .map_or(grace, |own| own.min(grace))
                    .max(GRACE_MIN),
            ),
            Wish::Run if self.terminal.is_some() => {
                let own = grace(&self.pod);
                Some(
                    self.evicted_with
                        .map_or(own, |given| given.min(own))
                        .max(GRACE_MIN),
                )
            }
            Wish::Run => None,
        }
    }

    /// What is left of the grace.
    fn grace_left(&self, now: Time) -> Option<Duration> {
        let grace = self.stop_grace()?;
        let since = self.stopping_since.unwrap_or(now);
        Some(grace.saturating_sub(now.since(since)).max(GRACE_LAST.min(grace)))
    }

    /// A stop is under way that must be made faster: from now on the shorter grace counts.
    pub(super) fn must_hurry(&self) -> bool {
        match (self.stop_grace(), self.stopping_with) {
            (Some(grace), Some(with)) => grace < with,
            (Some(_) | None, _) => false,
        }
    }

    /// Stops the main containers together, then the sidecars one by one, the last first.
    pub(super) fn stop_alive(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        self.stopping_since.get_or_insert(now);
        let grace = self.grace_left(now).unwrap_or_else(|| grace(&self.pod));
        let is_sidecar = |c: &&ObservedContainer| {
            let mut init = self.pod.spec.init_containers.iter();
            init.any(|spec| spec.name == c.name && qos::is_sidecar(spec))
        };
        let pair = |c: &ObservedContainer| (c.id.clone(), c.name.clone());
        let mut containers: Vec<(ContainerId, String)> = self
            .instances
            .alive()
            .filter(|c| !is_sidecar(c))
            .map(pair)
            .collect();
        if containers.is_empty() {
            let last = self.pod.spec.init_containers.iter().rev().find_map(|spec| {
                let mut alive = self.instances.alive();
                alive.find(|c| c.name == spec.name).map(pair)
            });
            containers.extend(last);
        }
        if containers.is_empty() {
            return;
        }
        // Of the whole, because that is what a later wish is compared with.
        self.stopping_with = self.stop_grace();
        let mut stops = Vec::new();
        for (id, name) in containers {
            stops.push(self.stop(id, name, grace, None, out));
        }
        self.send(Action::StopContainers { containers: stops }, out);
    }

    /// One container to stop; its hook is ordered once.
    pub(super) fn stop(
        &mut self,
        id: ContainerId,
        name: String,
        grace: Duration,
        why: Option<String>,
        out: &mut VecDeque<Effect>,
    ) -> Stop {
        let first = self.hooks_sent.insert(id.clone());
        if first {
            let message = why.unwrap_or_else(|| format!("Stopping container {name}"));
            self.event(Some(name.clone()), EventReason::Killing, message, out);
        }
        let lifecycle = self.pod.container(&name).and_then(|spec| spec.lifecycle.as_ref());
        let has_hook = lifecycle.is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
        Stop {
            run_pre_stop: first && has_hook,
            id,
            name,
            grace,
        }
    }
}
