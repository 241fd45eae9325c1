//! Stopping and removing.

use super::hooks::Subject;
use super::{Hands, chain, warn, within};
use kedge_api::Pod;
use kedge_containers::{ContainerId, ObservedContainer, ObservedSandbox, SandboxId};
use kedge_pods::{EventReason, Refusal, Stop};
use kedge_runtime::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The signal has this long at least, whatever the hook took.
const SIGNAL_GRACE_MIN: Duration = Duration::from_secs(2);
/// What a stop may take beyond its grace.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// A runtime call that removes something and takes longer than this has failed.
const REMOVE_MAX: Duration = Duration::from_secs(120);

impl Hands {
    /// Stops all of them at the same time: the grace of one is not added to that of the next.
    pub(super) async fn stop(&self, pod: Option<&Arc<Pod>>, stops: Vec<Stop>) -> Result<(), Refusal> {
        let mut tasks = tokio::task::JoinSet::new();
        for stop in stops {
            let (hands, pod) = (self.clone(), pod.cloned());
            tasks.spawn(async move { hands.stop_one(pod.as_deref(), &stop).await });
        }
        let mut result = Ok(());
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(refusal)) = ended {
                result = Err(refusal);
            }
        }
        result
    }

    pub(super) async fn stop_one(&self, pod: Option<&Pod>, stop: &Stop) -> Result<(), Refusal> {
        let begin = Instant::now();
        if let Some(pod) = pod.filter(|_| stop.run_pre_stop && !stop.grace.is_zero()) {
            self.pre_stop(pod, stop).await;
        }
        let left = stop.grace.saturating_sub(begin.elapsed()).max(SIGNAL_GRACE_MIN);
        let stopping = self.runtime.stop_container(&stop.id, left);
        let why = match tokio::time::timeout(left + STOP_SLACK, stopping).await {
            Ok(Ok(()) | Err(Error::NoContainer(_))) => return Ok(()),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("the runtime took longer than {}s", (left + STOP_SLACK).as_secs()),
        };
        if let Some(pod) = pod {
            let message = format!(
                "error killing pod: failed to \"KillContainer\" for \"{}\": {why}",
                stop.name
            );
            self.tell(pod, None, EventReason::FailedKillPod, message);
        }
        Err(warn("KillContainerError", why))
    }

    /// A hook that fails or takes too long is told; the container is stopped all the same.
    async fn pre_stop(&self, pod: &Pod, stop: &Stop) {
        let Some(spec) = pod.container(&stop.name) else {
            return;
        };
        let Some(handler) = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else {
            return;
        };
        let ips = self.pod_ips(&stop.id);
        let subject = Subject {
            pod,
            spec,
            id: &stop.id,
            ip: self.address(pod, &ips),
        };
        if let Err(why) = self.hook(subject, handler, stop.grace).await {
            tracing::warn!(pod = pod.uid(), container = stop.name, why, "preStop hook failed");
            let message = "PreStopHook failed".to_owned();
            self.tell(pod, Some(&stop.name), EventReason::FailedPreStopHook, message);
        }
    }

    /// Where the pod is called: its own address, or the node's when it shares its network.
    pub(super) fn address<'a>(&'a self, pod: &Pod, pod_ips: &'a [String]) -> Option<&'a str> {
        let ips = if pod.spec.host_network {
            &self.config.host_ips
        } else {
            pod_ips
        };
        ips.first().map(String::as_str)
    }

    /// The addresses of the sandbox of a container, as they were seen last.
    fn pod_ips(&self, id: &ContainerId) -> Vec<String> {
        let seen = self.seen.borrow();
        let has = |sandbox: &&ObservedSandbox| sandbox.containers.iter().any(|c| c.id == *id);
        let sandbox = seen.iter().find(has);
        sandbox.map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }

    pub(super) async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Refusal> {
        let stopped = within(REMOVE_MAX, "stop the sandbox", self.runtime.stop_sandbox(id)).await;
        stopped.map_err(|message| warn("KillPodSandboxError", message))
    }

    pub(super) async fn remove_containers(&self, ids: &[ContainerId]) -> Result<(), Refusal> {
        for id in ids {
            let removing = self.runtime.remove_container(id);
            let removed = within(REMOVE_MAX, "remove the container", removing).await;
            removed.map_err(|message| warn("RemoveContainerError", message))?;
            if let Some(container) = self.seen_container(id) {
                self.clean_up("remove the log of a container", move |logs| {
                    logs.remove_container(&container)
                })
                .await;
            }
        }
        Ok(())
    }

    fn seen_container(&self, id: &ContainerId) -> Option<ObservedContainer> {
        let seen = self.seen.borrow();
        let mut containers = seen.iter().flat_map(|sandbox| &sandbox.containers);
        containers.find(|container| container.id == *id).cloned()
    }

    pub(super) async fn remove_sandboxes(&self, ids: &[SandboxId]) -> Result<(), Refusal> {
        for id in ids {
            let removing = self.runtime.remove_sandbox(id);
            within(REMOVE_MAX, "remove the sandbox", removing)
                .await
                .map_err(|message| warn("KillPodSandboxError", message))?;
        }
        Ok(())
    }

    /// Removes what belongs to no pod.
    pub(crate) async fn remove_orphan(
        &self,
        uid: &str,
        sandboxes: &[SandboxId],
        containers: Vec<ContainerId>,
        grace: Duration,
    ) {
        let stops = containers.into_iter().map(|id| Stop {
            id,
            name: String::new(),
            grace,
            run_pre_stop: false,
        });
        let pod = {
            let seen = self.seen.borrow();
            let sandbox = seen.iter().find(|sandbox| sandbox.pod.uid == uid);
            sandbox.map(|sandbox| sandbox.pod.clone())
        };
        // A failure is logged where it happens; the next list shows the orphan again.
        if self.stop(None, stops.collect()).await.is_ok() && self.remove_sandboxes(sandboxes).await.is_ok() {
            if let Err(refusal) = self.volumes.remove(uid).await {
                tracing::warn!(uid, why = refusal.message, "volumes of an unknown pod are left");
            }
            let Some(pod) = pod else { return };
            self.clean_up("remove the logs of a pod", move |logs| logs.remove_pod(&pod))
                .await;
        }
    }
}
