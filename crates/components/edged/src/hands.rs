//! Doing what the pod workers decided: one task per action, one outcome per task.

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::events::Events;
use crate::objects::{self, Snapshot};
use crate::volumes;
use kedge_api::{Container, Pod};
use kedge_containers::{ContainerId, Image, SandboxId};
use kedge_pods::translate::{self, Inputs};
use kedge_pods::{Action, Config, EventReason, Outcome, PodEvent, PodKey, Refusal, VolumesReady};
use kedge_runtime::{Error, Runtime};
use kedge_telemetry::Scope;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Pods that are being started at one time: more would only make each of them slower on a small device.
pub(crate) const STARTS_MAX: usize = 8;
/// A runtime call that makes something and takes longer than this has failed.
const MAKE_MAX: Duration = Duration::from_secs(120);
/// The same for a removal.
const REMOVE_MAX: Duration = Duration::from_secs(120);
/// What a stop may take beyond its grace.
const STOP_SLACK: Duration = Duration::from_secs(30);
/// A large image over a slow link.
const PULL_MAX: Duration = Duration::from_secs(30 * 60);

/// Everything that an action needs. Cloned into each task.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cloud: Cloud,
    pub(crate) events: Events,
    pub(crate) config: Arc<Config>,
    pub(crate) clock: Clock,
    pub(crate) starts: Arc<Semaphore>,
}

impl Hands {
    /// Performs an action of a pod. `wait` ends when the pod shall not run any more: it cuts short what only waits for
    /// others (the cloud, a registry), never a change that the runtime is making.
    pub(crate) async fn perform(
        &self,
        pod: &Pod,
        snapshot: &Snapshot,
        action: Action,
        wait: &Scope,
    ) -> Outcome {
        match action {
            Action::PrepareVolumes => Outcome::Volumes(self.prepare_volumes(pod, snapshot, wait).await),
            Action::RunSandbox { attempt } => Outcome::Sandbox(self.run_sandbox(pod, attempt).await),
            Action::StartContainer {
                sandbox,
                container,
                attempt,
                pod_ips,
            } => {
                let start = Start {
                    pod,
                    snapshot,
                    sandbox: &sandbox,
                    attempt,
                    pod_ips: &pod_ips,
                    wait,
                };
                let result = match pod.container(&container) {
                    Some(spec) => self.start_container(&start, spec).await,
                    None => Err(Refusal::new(
                        "CreateContainerError",
                        format!("the pod has no container {container}"),
                    )),
                };
                if let Err(refusal) = &result {
                    self.tell(
                        pod,
                        Some(&container),
                        EventReason::Failed,
                        format!("Error: {}", refusal.message),
                    );
                }
                Outcome::Container {
                    name: container,
                    result,
                }
            }
            Action::StopContainers { containers, grace } => {
                let ids = containers.into_iter().map(|(id, _)| id).collect();
                Outcome::ContainersStopped(self.stop(ids, grace).await)
            }
            Action::RemoveContainers(ids) => Outcome::ContainersRemoved(self.remove_containers(&ids).await),
            Action::StopSandbox(id) => {
                let stopped = within(REMOVE_MAX, "stop", self.runtime.stop_sandbox(&id)).await;
                Outcome::SandboxStopped(stopped.map_err(|error| warn("KillPodSandboxError", error)))
            }
            Action::RemoveSandboxes(ids) => Outcome::SandboxesRemoved(self.remove_sandboxes(&ids).await),
            Action::RemoveVolumes => Outcome::VolumesRemoved(self.remove_volumes(pod).await),
        }
    }

    /// Removes what belongs to no pod.
    pub(crate) async fn remove_orphan(
        &self,
        sandboxes: &[SandboxId],
        containers: Vec<ContainerId>,
        grace: Duration,
    ) {
        if self.stop(containers, grace).await.is_ok() {
            // A failure is logged where it happens; the next list shows the orphan again.
            let _ = self.remove_sandboxes(sandboxes).await;
        }
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
        let mounts = volumes::mount_sources(&self.config, pod);
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: &[],
            objects: &sources.objects,
            volumes: &mounts,
            image_user: None,
        };
        match volumes::prepare(&inputs, &sources, &self.cloud, self.clock.now()).await {
            Ok(prepared) => Ok(VolumesReady {
                refresh_at: prepared.refresh_at,
            }),
            Err(refusal) => {
                self.tell(pod, None, EventReason::FailedMount, refusal.message.clone());
                Err(refusal)
            }
        }
    }

    async fn run_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(), Refusal> {
        let _place = self.starts.acquire().await;
        let config = translate::sandbox(&self.config, pod, attempt);
        match within(MAKE_MAX, "create the sandbox", self.runtime.run_sandbox(&config)).await {
            Ok(id) => {
                tracing::info!(pod = %PodKey::of(pod), uid = pod.uid(), sandbox = id.0, "sandbox runs");
                Ok(())
            }
            Err(message) => {
                self.tell(pod, None, EventReason::FailedCreatePodSandBox, message.clone());
                Err(Refusal::new("CreatePodSandboxError", message))
            }
        }
    }

    async fn start_container(&self, start: &Start<'_>, spec: &Container) -> Result<(), Refusal> {
        let pod = start.pod;
        let image = unless_over(start.wait, self.image(pod, spec)).await??;
        let references = translate::env_references(spec);
        let gather = objects::gather(start.snapshot, &self.cloud, pod.namespace(), &references);
        let found = unless_over(start.wait, gather).await?;
        let mounts = volumes::mount_sources(&self.config, pod);
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: start.pod_ips,
            objects: &found.objects,
            volumes: &mounts,
            image_user: image.user,
        };
        let config = translate::container(&inputs, spec, start.attempt)
            .map_err(|refusal| objects::explain(refusal, &found.unknown))?;
        let log = translate::termination_log(&self.config, pod, &spec.name, start.attempt);
        volumes::make_mount_points(&translate::pod_dir(&self.config, pod), &config.mounts, &log)?;

        let _place = self.starts.acquire().await;
        let id = within(
            MAKE_MAX,
            "create the container",
            self.runtime.create_container(start.sandbox, &config),
        )
        .await
        .map_err(|message| Refusal::new("CreateContainerError", message))?;
        self.tell(
            pod,
            Some(&spec.name),
            EventReason::Created,
            format!("Created container: {}", spec.name),
        );
        within(MAKE_MAX, "start the container", self.runtime.start_container(&id))
            .await
            .map_err(|message| Refusal::new("RunContainerError", message))?;
        self.tell(
            pod,
            Some(&spec.name),
            EventReason::Started,
            format!("Started container {}", spec.name),
        );
        if spec
            .lifecycle
            .as_ref()
            .is_some_and(|lifecycle| lifecycle.post_start.is_some())
        {
            let message =
                "this version does not run postStart hooks; the container runs without it".to_owned();
            self.tell(pod, Some(&spec.name), EventReason::FailedPostStartHook, message);
        }
        tracing::info!(pod = %PodKey::of(pod), container = spec.name, attempt = start.attempt, "container runs");
        Ok(())
    }

    /// Sees to the image as its pull policy says. Where the registry cannot be reached, the image that the node has
    /// will do: a device without a network must start its pods.
    async fn image(&self, pod: &Pod, spec: &Container) -> Result<Image, Refusal> {
        let name = &spec.image;
        let local = self
            .runtime
            .image(name)
            .await
            .map_err(|error| pull_refusal(&error))?;
        let policy = spec.image_pull_policy.as_deref().unwrap_or(default_policy(name));
        let present = |image: Image| {
            let message = format!("Container image \"{name}\" already present on machine");
            self.tell(pod, Some(&spec.name), EventReason::Pulled, message);
            Ok(image)
        };
        match (local, policy) {
            (Some(image), "IfNotPresent" | "Never") => return present(image),
            (None, "Never") => {
                let message = format!("Container image \"{name}\" is not present with pull policy of Never");
                return Err(Refusal::new("ErrImageNeverPull", message));
            }
            (Some(image), _) => {
                self.tell(
                    pod,
                    Some(&spec.name),
                    EventReason::Pulling,
                    format!("Pulling image \"{name}\""),
                );
                match tokio::time::timeout(PULL_MAX, self.runtime.pull_image(name)).await {
                    Ok(Ok(pulled)) => return Ok(pulled),
                    Ok(Err(error)) => {
                        tracing::debug!(image = name, %error, "not pulled, the local image is used")
                    }
                    Err(_) => tracing::warn!(image = name, "pull took too long, the local image is used"),
                }
                return present(image);
            }
            (None, _) => {}
        }
        self.tell(
            pod,
            Some(&spec.name),
            EventReason::Pulling,
            format!("Pulling image \"{name}\""),
        );
        match tokio::time::timeout(PULL_MAX, self.runtime.pull_image(name)).await {
            Ok(Ok(image)) => {
                self.tell(
                    pod,
                    Some(&spec.name),
                    EventReason::Pulled,
                    format!("Successfully pulled image \"{name}\""),
                );
                Ok(image)
            }
            Ok(Err(error)) => Err(pull_refusal(&error)),
            Err(_) => Err(Refusal::new(
                "ErrImagePull",
                format!("pull of {name} took longer than {PULL_MAX:?}"),
            )),
        }
    }

    async fn stop(&self, containers: Vec<ContainerId>, grace: Duration) -> Result<(), Refusal> {
        let stops = containers.into_iter().map(|id| {
            let runtime = Arc::clone(&self.runtime);
            async move {
                let stop = runtime.stop_container(&id, grace);
                match within(grace + STOP_SLACK, "stop the container", stop).await {
                    Err(message) if !message.contains("no container") => {
                        Err(warn("KillContainerError", message))
                    }
                    Ok(()) | Err(_) => Ok(()),
                }
            }
        });
        // All at the same time: the grace of one is not added to that of the next.
        let mut tasks = tokio::task::JoinSet::new();
        stops.for_each(|stop| {
            tasks.spawn(stop);
        });
        let mut result = Ok(());
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(refusal)) = ended {
                result = Err(refusal);
            }
        }
        result
    }

    async fn remove_containers(&self, ids: &[ContainerId]) -> Result<(), Refusal> {
        for id in ids {
            within(
                REMOVE_MAX,
                "remove the container",
                self.runtime.remove_container(id),
            )
            .await
            .map_err(|message| warn("RemoveContainerError", message))?;
        }
        Ok(())
    }

    async fn remove_sandboxes(&self, ids: &[SandboxId]) -> Result<(), Refusal> {
        for id in ids {
            within(REMOVE_MAX, "remove the sandbox", self.runtime.remove_sandbox(id))
                .await
                .map_err(|message| warn("KillPodSandboxError", message))?;
        }
        Ok(())
    }

    async fn remove_volumes(&self, pod: &Pod) -> Result<(), Refusal> {
        let (config, pod) = (Arc::clone(&self.config), pod.clone());
        let removed = tokio::task::spawn_blocking(move || volumes::remove(&config, &pod)).await;
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(warn("RemoveVolumesError", error.to_string())),
            Err(_) => Err(warn("RemoveVolumesError", "the removal was stopped".to_owned())),
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

/// What a start of a container needs besides its spec.
struct Start<'a> {
    pod: &'a Pod,
    snapshot: &'a Snapshot,
    sandbox: &'a SandboxId,
    attempt: u32,
    pod_ips: &'a [String],
    wait: &'a Scope,
}

/// Waits, unless the pod shall not run any more.
async fn unless_over<T>(wait: &Scope, work: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::select! {
        biased;
        () = wait.cancelled() => Err(Refusal::new("ContainerCreating", "the pod shall not run any more")),
        value = work => Ok(value),
    }
}

/// `latest`, written or meant, is looked for each time.
fn default_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let tagged = name.contains(':') && !name.ends_with(":latest");
    if tagged || name.contains('@') {
        "IfNotPresent"
    } else {
        "Always"
    }
}

fn pull_refusal(error: &Error) -> Refusal {
    Refusal::new("ErrImagePull", chain(error))
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

fn chain(error: &dyn std::error::Error) -> String {
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
