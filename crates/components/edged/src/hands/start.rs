//! Making sandboxes and containers.

use super::hooks::Subject;
use super::{Hands, Start, unless_over, within};
use crate::logs::Places;
use crate::objects;
use kedge_api::{Container, Pod};
use kedge_containers::{ContainerConfig, ContainerId, SandboxConfig};
use kedge_pods::translate::{self, Inputs};
use kedge_pods::{EventReason, PodKey, Refusal, Stop};
use std::time::Duration;

/// A runtime call that makes something and takes longer than this has failed.
const MAKE_MAX: Duration = Duration::from_secs(120);
/// Kubernetes' grace where the pod names none.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// A hook without an end of its own ends with the pod's wish to run.
const POST_START_MAX: Duration = Duration::MAX;

impl Hands {
    pub(super) async fn run_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(), Refusal> {
        let made = self.make_sandbox(pod, attempt).await;
        if let Err(refusal) = &made {
            let message = format!("Failed to create pod sandbox: {}", refusal.message);
            self.tell(pod, None, EventReason::FailedCreatePodSandBox, message);
        }
        made
    }

    async fn make_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(), Refusal> {
        let mut config = translate::sandbox(&self.config, pod, attempt)?;
        if let Some(class) = pod
            .spec
            .runtime_class_name
            .as_deref()
            .filter(|class| !class.is_empty())
        {
            config.handler = self.handler(class).await?;
        }
        config.user_namespace = self.user_namespace(pod, &config.handler).await?;
        let _place = self.starts.acquire().await;
        let made = within(MAKE_MAX, "create the sandbox", self.runtime.run_sandbox(&config)).await;
        let id = made.map_err(|message| Refusal::new("CreatePodSandboxError", message))?;
        tracing::info!(pod = %PodKey::of(pod), uid = pod.uid(), sandbox = id.0, "sandbox runs");
        Ok(())
    }

    pub(super) async fn start_named(&self, start: &Start<'_>, name: &str) -> Result<(), Refusal> {
        let result = match start.pod.container(name) {
            Some(spec) => self.start_container(start, spec).await,
            None => Err(Refusal::new(
                "CreateContainerError",
                format!("the pod has no container {name}"),
            )),
        };
        if let Err(refusal) = &result
            && !start.wait.is_cancelled()
        {
            let text = match refusal.reason.as_str() {
                // Those were told where they were found.
                "PostStartHookError" => return result,
                "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => {
                    &refusal.reason
                }
                _other => &refusal.message,
            };
            self.tell(
                start.pod,
                Some(name),
                EventReason::Failed,
                format!("Error: {text}"),
            );
        }
        result
    }

    async fn start_container(&self, start: &Start<'_>, spec: &Container) -> Result<(), Refusal> {
        let (sandbox, config) = self.container_config(start, spec).await?;
        let id = self.create_and_start(start, spec, &sandbox, &config).await?;
        if self.logs.links_dir.is_some() {
            let log = sandbox.log_dir.join(&config.log_path);
            let (name, linked) = (spec.name.clone(), id.clone());
            let link = move |logs: &Places| logs.link(&sandbox.pod, &name, &linked, &log);
            self.clean_up("link the log of a container", link).await;
        }
        tracing::info!(pod = %PodKey::of(start.pod), container = spec.name, attempt = start.attempt, "container runs");
        self.post_start(start, spec, id).await
    }

    async fn container_config(
        &self,
        start: &Start<'_>,
        spec: &Container,
    ) -> Result<(SandboxConfig, ContainerConfig), Refusal> {
        let pod = start.pod;
        let image = self.image(start, spec).await?;
        let references = translate::env_references(spec);
        let gather = objects::gather(start.snapshot, &self.cloud, pod.namespace(), &references);
        let found = unless_over(start.wait, gather).await?;
        let mounts = self.volumes.mount_sources(pod);
        let devices = self.devices.container(pod.uid(), &spec.name);
        let allocated = unless_over(start.wait, devices).await??;
        let inputs = Inputs {
            config: &self.config,
            pod,
            pod_ips: start.pod_ips,
            objects: &found.objects,
            volumes: &mounts,
            image_user: image.user,
            image_username: image.username.as_deref(),
            allocated: &allocated,
            target: start.target,
            recursive_read_only: self.makes_recursive_read_only(pod, spec).await?,
        };
        let mut config = translate::container(&inputs, spec, start.attempt)
            .map_err(|refusal| objects::explain(refusal, &found.unknown))?;
        self.volumes
            .make_mount_points(&self.config, pod, spec, start.attempt, start.pod_ips, &mut config)
            .await?;
        self.pinning.place(pod.uid(), &spec.name, &mut config.resources);
        // Its attempt is no part of what a container is made from.
        let mut sandbox = translate::sandbox(&self.config, pod, 0)?;
        sandbox.user_namespace = self.known_user_namespace(pod).await?;
        Ok((sandbox, config))
    }

    async fn create_and_start(
        &self,
        start: &Start<'_>,
        spec: &Container,
        sandbox: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Refusal> {
        let _place = self.starts.acquire().await;
        let creating = self.runtime.create_container(start.sandbox, sandbox, config);
        let id = within(MAKE_MAX, "create the container", creating)
            .await
            .map_err(|message| Refusal::new("CreateContainerError", message))?;
        self.pinning.made(&id, &config.resources);
        let created = format!("Created container: {}", spec.name);
        self.tell(start.pod, Some(&spec.name), EventReason::Created, created);
        within(MAKE_MAX, "start the container", self.runtime.start_container(&id))
            .await
            .map_err(|message| Refusal::new("RunContainerError", message))?;
        let started = format!("Started container {}", spec.name);
        self.tell(start.pod, Some(&spec.name), EventReason::Started, started);
        Ok(id)
    }

    /// A hook that fails ends the container.
    async fn post_start(&self, start: &Start<'_>, spec: &Container, id: ContainerId) -> Result<(), Refusal> {
        let pod = start.pod;
        let Some(handler) = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let subject = Subject {
            pod,
            spec,
            id: &id,
            ip: self.address(pod, start.pod_ips),
        };
        let Err(why) = unless_over(start.wait, self.hook(subject, handler, POST_START_MAX)).await? else {
            return Ok(());
        };
        tracing::warn!(pod = %PodKey::of(pod), container = spec.name, why, "postStart hook failed");
        let failed = "PostStartHook failed".to_owned();
        self.tell(pod, Some(&spec.name), EventReason::FailedPostStartHook, failed);
        let killing = "FailedPostStartHook".to_owned();
        self.tell(pod, Some(&spec.name), EventReason::Killing, killing);
        let grace = pod.spec.termination_grace_period_seconds;
        let stop = Stop {
            id,
            name: spec.name.clone(),
            grace: grace.map_or(GRACE_DEFAULT, |s| {
                Duration::from_secs(u64::try_from(s).unwrap_or(0))
            }),
            run_pre_stop: true,
        };
        // What cannot be stopped now is seen running, and judged again.
        let _ = self.stop_one(Some(pod), &stop).await;
        Err(Refusal::new("PostStartHookError", why))
    }
}
