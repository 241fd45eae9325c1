//! Doing what the pod workers decided: one task per action, one outcome per task.
//!
//! | file | does |
//! |---|---|
//! | `start` | sandboxes and containers |
//! | `image` | sees to the image of a container |
//! | `classes` | finds the handler of a runtime class |
//! | `users` | gives a pod ids of its own |
//! | `hooks` | postStart and preStop |
//! | `stop` | stops and removes |

mod classes;
mod hooks;
mod image;
mod start;
mod stop;
mod users;

pub(crate) use image::pull_references;
pub(crate) use users::IdBook;

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::devices::Devices;
use crate::events::Events;
use crate::images::Images;
use crate::logs::{Places, Seen};
use crate::objects::{self, Snapshot};
use crate::pinning::Pinning;
use crate::probe::Prober;
use crate::volumes::Volumes;
use kedge_api::Pod;
use kedge_containers::SandboxId;
use kedge_pods::translate::{self, Allocated, Inputs};
use kedge_pods::{Action, Config, EventReason, Outcome, PodEvent, PodKey, Refusal, VolumesReady};
use kedge_runtime::{Error, Runtime};
use kedge_telemetry::Scope;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Pods that are being started at one time: more would only make each of them slower on a small device.
pub(crate) const STARTS_MAX: usize = 8;

/// Everything that an action needs. Cloned into each task.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cloud: Cloud,
    pub(crate) events: Events,
    pub(crate) config: Arc<Config>,
    pub(crate) root_dir: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) starts: Arc<Semaphore>,
    pub(crate) ids: Arc<IdBook>,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) devices: Devices,
    pub(crate) pinning: Pinning,
    pub(crate) prober: Prober,
    pub(crate) logs: Arc<Places>,
    /// What the runtime showed last.
    pub(crate) seen: Seen,
}

/// What a start of a container needs besides its spec.
struct Start<'a> {
    pod: &'a Pod,
    snapshot: &'a Snapshot,
    sandbox: &'a SandboxId,
    attempt: u32,
    pod_ips: &'a [String],
    target: Option<&'a kedge_containers::ContainerId>,
    wait: &'a Scope,
}

impl Hands {
    /// Performs an action of a pod. `wait` ends when the pod shall not run any more: it cuts short what only waits for
    /// others (the cloud, a registry, a hook), never a change that the runtime is making.
    pub(crate) async fn perform(
        &self,
        pod: &Arc<Pod>,
        snapshot: &Snapshot,
        action: Action,
        wait: &Scope,
    ) -> Outcome {
        match action {
            Action::Allocate { standing } => Outcome::Allocated(self.allocate(pod, standing, wait).await),
            Action::PrepareVolumes => Outcome::Volumes(self.prepare_volumes(pod, snapshot, wait).await),
            Action::RunSandbox { attempt } => Outcome::Sandbox(self.run_sandbox(pod, attempt).await),
            Action::StartContainer {
                sandbox,
                container,
                attempt,
                pod_ips,
                target,
            } => {
                let start = Start {
                    pod,
                    snapshot,
                    sandbox: &sandbox,
                    attempt,
                    pod_ips: &pod_ips,
                    target: target.as_ref(),
                    wait,
                };
                let result = self.start_named(&start, &container).await;
                Outcome::Container {
                    name: container,
                    result,
                }
            }
            Action::StopContainers { containers } => {
                Outcome::ContainersStopped(self.stop(Some(pod), containers).await)
            }
            Action::RemoveContainers(ids) => Outcome::ContainersRemoved(self.remove_containers(&ids).await),
            Action::StopSandbox(id) => Outcome::SandboxStopped(self.stop_sandbox(&id).await),
            Action::RemoveSandboxes(ids) => Outcome::SandboxesRemoved(self.remove_sandboxes(&ids).await),
            Action::RemoveVolumes => Outcome::VolumesRemoved(self.remove_volumes(pod).await),
        }
    }

    async fn allocate(&self, pod: &Pod, standing: bool, wait: &Scope) -> Result<(), Refusal> {
        let allocated = unless_over(wait, self.pinning.allocate(pod, &self.devices, standing)).await;
        allocated.unwrap_or_else(|over| Err(Refusal::new("UnexpectedAdmissionError", over.message)))
    }

    async fn prepare_volumes(
        &self,
        pod: &Pod,
        snapshot: &Snapshot,
        wait: &Scope,
    ) -> Result<VolumesReady, Refusal> {
        let references = translate::volume_references(pod);
        let sources = unless_over(
            wait,
            objects::gather(snapshot, &self.cloud, pod.namespace(), &references),
        )
        .await?;
        let mounts = self.volumes.mount_sources(pod);
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: &[],
            objects: &sources.objects,
            volumes: &mounts,
            image_user: None,
            image_username: None,
            allocated: &Allocated::default(),
            target: None,
            recursive_read_only: false,
        };
        match self.volumes.prepare(&inputs, &sources, self.clock.now()).await {
            Ok(prepared) => Ok(VolumesReady {
                refresh_at: prepared.refresh_at,
            }),
            Err(refusal) => {
                self.tell(pod, None, EventReason::FailedMount, refusal.message.clone());
                Err(refusal)
            }
        }
    }

    async fn remove_volumes(&self, pod: &Pod) -> Result<(), Refusal> {
        let removed = self.volumes.remove(pod.uid()).await;
        removed.map_err(|refusal| warn(&refusal.reason, refusal.message))
    }

    /// Changes files that are in nobody's way: a failure is logged, and the next sweep tries again.
    pub(crate) async fn clean_up(
        &self,
        what: &'static str,
        work: impl FnOnce(&Places) -> io::Result<()> + Send + 'static,
    ) {
        let logs = Arc::clone(&self.logs);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || work(&logs)).await {
            tracing::warn!(%error, "cannot {what}");
        }
    }

    fn tell(&self, pod: &Pod, container: Option<&str>, reason: EventReason, message: String) {
        let container = container.map(str::to_owned);
        let event = PodEvent {
            key: PodKey::of(pod),
            uid: pod.uid().to_owned(),
            container,
            reason,
            message,
        };
        self.events.tell(event);
    }
}

/// Waits, unless the pod shall not run any more.
async fn unless_over<T>(wait: &Scope, work: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        () = wait.cancelled() => Err(Refusal::new("ContainerCreating", "the pod shall not run any more")),
        value = work => Ok(value),
    }
}

/// Runs a call of the runtime with a limit; the error is one line.
async fn within<T>(
    limit: Duration,
    act: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!(
            "{act}: the runtime took longer than {}s",
            limit.as_secs()
        )),
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A failure that will be tried again.
fn warn(reason: &str, message: String) -> Refusal {
    tracing::warn!(reason, message, "will be tried again");
    Refusal::new(reason, message)
}
