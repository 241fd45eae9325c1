//! The runtimes that the node has anyhow: containerd, CRI-O and what they run, over version 1 of the container runtime
//! interface.
//!
//! **Duty.** Passes orders on and shows what is. Names, labels, annotations and control groups are those of a kubelet, so
//! that this agent adopts the pods of another one, and another one ours. What the interface leaves to the agent it does:
//! the pods' control groups and log folders.
//!
//! **Inputs.** [`CriConfig`]. The runtime need not be there: it is dialled when it is needed, and may die and come back.
//!
//! **Never.** It keeps no state that matters: what it remembers of containers only spares questions. It waits for nothing
//! without a limit.
//!
//! ```text
//!   Cri ─┬─ calls ─── Channel ═══ runtime endpoint, image endpoint
//!        ├─ observe   two lists a look; a status once for each state
//!        ├─ events    the runtime's events, containerd's own, or the clock -> changed()
//!        └─ cgroups   kubepods/<class>/pod<uid>
//! ```

mod calls;
mod cgroups;
mod convert;
mod events;
mod images;
mod observe;
mod stats;

use crate::{Error, LogRotation, Runtime, Served, Session, SocketInPod};
use async_trait::async_trait;
use calls::{Act, Calls, Failure, Limit, reason};
use cgroups::PodGroups;
use convert::{LABEL_POD_UID, User};
use events::Hints;
use kedge_containers::{
    CgroupDriver, ContainerConfig, ContainerId, Credentials, ExecOutput, HandlerFeatures, Image, ImageUsage,
    ObservedSandbox, PodIdentity, Resources, RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId,
    SandboxStats, Talk,
};
use kedge_grpc::cri;
use kedge_sockets::Address;
use observe::{Seen, container_status, observe, sandbox_status};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Mutex;

/// The folder of a pod's logs and those of its containers: what ships logs reads there, whoever it runs as.
const LOG_DIRECTORY_MODE: u32 = 0o755;
/// The version of the interface's own version question.
const VERSION_OF_QUESTION: &str = "0.1.0";
const CONDITION_RUNTIME: &str = "RuntimeReady";
const CONDITION_NETWORK: &str = "NetworkReady";

/// How a runtime is reached, and what the node agent decides beside it.
#[derive(Debug, Clone)]
pub struct CriConfig {
    /// For example `unix:///run/containerd/containerd.sock`.
    pub runtime_endpoint: String,
    /// Empty: the same as the runtime's.
    pub image_endpoint: String,
    /// Below it is `kubepods`; empty for the root itself.
    pub cgroup_root: String,
    /// Who makes control groups, unless the runtime says it.
    pub cgroup_driver: CgroupDriver,
    /// Whether each pod has a control group of its own.
    pub cgroups_per_pod: bool,
    /// How long an order may take, beyond what it takes by its nature.
    pub request_timeout: Duration,
}

/// A runtime behind a socket. Cloning it gives another handle on the same runtime.
#[derive(Debug, Clone)]
pub struct Cri {
    calls: Arc<Calls>,
    seen: Arc<Mutex<Seen>>,
    /// The listener starts with the first who wants a hint.
    hints: Arc<OnceLock<Hints>>,
    groups: PodGroups,
    cgroup_driver: CgroupDriver,
}

impl Cri {
    /// Dials nothing: a runtime that is away now is no reason not to start. Fails when an endpoint is no address.
    pub fn connect(config: CriConfig) -> Result<Self, Error> {
        let address = |endpoint: &str| {
            let parsed = endpoint.parse::<Address>();
            parsed.map_err(|error| Error::failed("connect to container runtime", endpoint, error))
        };
        let runtime = address(&config.runtime_endpoint)?;
        let images = match config.image_endpoint.as_str() {
            "" => runtime.clone(),
            endpoint => address(endpoint)?,
        };
        Ok(Self {
            calls: Arc::new(Calls::new(runtime, images, config.request_timeout)),
            seen: Arc::default(),
            hints: Arc::default(),
            groups: PodGroups {
                root: config.cgroup_root,
                per_pod: config.cgroups_per_pod,
            },
            cgroup_driver: config.cgroup_driver,
        })
    }

    /// The runtime's word counts; one that says nothing works as the operator configured it.
    async fn driver(&self) -> Result<CgroupDriver, Error> {
        Ok(self.calls.cgroup_driver().await?.unwrap_or(self.cgroup_driver))
    }

    async fn sandbox_config(&self, config: &SandboxConfig) -> Result<cri::PodSandboxConfig, Error> {
        let parent = self.groups.parent(config, self.driver().await?)?;
        Ok(convert::sandbox(config, parent))
    }

    /// Removes the control group of a pod, if no sandbox but this one needs it.
    async fn remove_group(
        &self,
        pod: &PodIdentity,
        id: &SandboxId,
        driver: CgroupDriver,
    ) -> Result<(), Error> {
        if pod.uid.is_empty() || self.other_sandboxes(pod, id).await? {
            return Ok(());
        }
        let (groups, pod) = (self.groups.clone(), pod.clone());
        blocking("remove control group", move || groups.remove(&pod, driver)).await
    }

    /// Whether the pod has another sandbox than this one.
    async fn other_sandboxes(&self, pod: &PodIdentity, id: &SandboxId) -> Result<bool, Error> {
        let act = Act::question("list", "the pod's sandboxes");
        let filter = cri::PodSandboxFilter {
            label_selector: [(LABEL_POD_UID.to_owned(), pod.uid.clone())].into(),
            ..cri::PodSandboxFilter::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut client = self.calls.runtime();
        let listed = self.calls.wait(act, client.list_pod_sandbox(request)).await;
        let listed = listed.map_err(|failure| failure.of(act))?;
        Ok(listed.items.iter().any(|other| other.id != id.0))
    }

    /// Removes containers whose sandbox the runtime lost: nothing else would.
    async fn remove_containers_of(&self, id: &SandboxId) -> Result<(), Error> {
        let act = Act::question("list containers of sandbox", &id.0);
        let filter = cri::ContainerFilter {
            pod_sandbox_id: id.0.clone(),
            ..cri::ContainerFilter::default()
        };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let mut client = self.calls.runtime();
        let listed = self.calls.wait(act, client.list_containers(request)).await;
        for container in listed.map_err(|failure| failure.of(act))?.containers {
            self.remove_container(&ContainerId(container.id)).await?;
        }
        Ok(())
    }

    /// A group without a user is refused by the interface: then the image's own user is said aloud.
    async fn user(&self, config: &ContainerConfig) -> Result<User, Error> {
        let number = config.security.user;
        if number.is_some() || config.security.group.is_none() {
            return Ok(User {
                number,
                name: String::new(),
            });
        }
        let image = self
            .image_status(&config.image)
            .await?
            .ok_or_else(|| Error::ImageNotFound {
                image: config.image.clone(),
            })?;
        Ok(match image.username {
            Some(name) => User { number: None, name },
            None => User {
                number: Some(image.user.unwrap_or(0)),
                name: String::new(),
            },
        })
    }

    /// Why a container could not be made: runtimes say it in their words, the state of things says it in ours.
    async fn why_not_created(
        &self,
        sandbox: &SandboxId,
        config: &ContainerConfig,
        failure: Failure,
    ) -> Error {
        let act = Act::order("create container", &config.name);
        let status = match failure {
            Failure::Refused(status) => status,
            Failure::Error(error) => return error,
        };
        match sandbox_status(&self.calls, &sandbox.0).await {
            Ok(None) => return Error::NoSandbox(sandbox.0.clone()),
            Ok(Some(found)) if found.state() == cri::PodSandboxState::SandboxNotready => {
                return Error::failed(act.act, act.object, "its sandbox is stopped");
            }
            Ok(Some(_)) | Err(_) => {}
        }
        if let Ok(None) = self.image_status(&config.image).await {
            return Error::ImageNotFound {
                image: config.image.clone(),
            };
        }
        Error::failed(act.act, act.object, reason(&status))
    }

    async fn why_not_started(&self, id: &ContainerId, failure: Failure) -> Error {
        let act = Act::order("start container", &id.0);
        let status = match failure {
            Failure::Refused(status) => status,
            Failure::Error(error) => return error,
        };
        match container_status(&self.calls, &id.0).await {
            Ok(None) => Error::NoContainer(id.0.clone()),
            Ok(Some(found)) if was_started(&found) => {
                Error::failed(act.act, act.object, "it was started before")
            }
            Ok(Some(_)) | Err(_) => Error::failed(act.act, act.object, reason(&status)),
        }
    }
}

/// One whose start failed has ended without ever having begun.
fn was_started(status: &cri::ContainerStatus) -> bool {
    match status.state() {
        cri::ContainerState::ContainerRunning => true,
        cri::ContainerState::ContainerExited => status.started_at > 0,
        cri::ContainerState::ContainerCreated | cri::ContainerState::ContainerUnknown => false,
    }
}

/// The refusal of a call that names a container.
fn of_container(failure: Failure, act: Act<'_>) -> Error {
    // CRI-O answers as if there were none when there is one that does not run.
    if failure.is_not_found() && !failure.says("container is not created or running") {
        return Error::NoContainer(act.object.to_owned());
    }
    failure.of(act)
}

/// What is gone already need not be stopped or removed.
fn unless_gone<T: Default>(answer: Result<T, Failure>, act: Act<'_>) -> Result<T, Error> {
    match answer {
        Ok(done) => Ok(done),
        Err(failure) if failure.is_not_found() => Ok(T::default()),
        Err(failure) => Err(failure.of(act)),
    }
}

/// Whole seconds, as the interface counts: never less than what was meant, because zero means no end.
fn seconds(time: Duration) -> i64 {
    let more = u64::from(time.subsec_nanos() > 0);
    i64::try_from(time.as_secs().saturating_add(more)).unwrap_or(i64::MAX)
}

async fn make_directory(path: PathBuf) -> Result<(), Error> {
    blocking("make folder", move || {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(LOG_DIRECTORY_MODE);
        builder
            .create(&path)
            .map_err(|source| Error::io("make folder", &path, source))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    act: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::failed(act, "for a pod", error))?
}

#[async_trait]
impl Runtime for Cri {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        let act = Act::question("ask for the version of", "the container runtime");
        let request = cri::VersionRequest {
            version: VERSION_OF_QUESTION.to_owned(),
        };
        let mut client = self.calls.runtime();
        let answer = self.calls.wait(act, client.version(request)).await;
        let answer = answer.map_err(|failure| failure.of(act))?;
        Ok(RuntimeVersion {
            name: answer.runtime_name,
            version: answer.runtime_version,
        })
    }

    async fn status(&self) -> Result<RuntimeStatus, Error> {
        let act = Act::question("ask for the state of", "the container runtime");
        let mut client = self.calls.runtime();
        let asked = self
            .calls
            .wait(act, client.status(cri::StatusRequest { verbose: false }));
        let answer = asked.await.map_err(|failure| failure.of(act))?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let trouble = |name: &str| match conditions.iter().find(|condition| condition.r#type == name) {
            Some(condition) if condition.status => None,
            Some(condition) => Some(format!(
                "{name}=false reason:{} message:{}",
                condition.reason, condition.message
            )),
            None => Some(format!("the runtime does not tell its condition {name}")),
        };
        let features = answer.runtime_handlers.iter().map(|handler| {
            let told = handler.features.unwrap_or_default();
            let features = HandlerFeatures {
                recursive_read_only_mounts: told.recursive_read_only_mounts,
                user_namespaces: told.user_namespaces,
            };
            (handler.name.clone(), features)
        });
        let features = features.collect();
        let handlers = answer.runtime_handlers.into_iter().map(|handler| handler.name);
        Ok(RuntimeStatus {
            features,
            runtime_trouble: trouble(CONDITION_RUNTIME),
            network_trouble: trouble(CONDITION_NETWORK),
            handlers: handlers.filter(|name| !name.is_empty()).collect(),
            // It tells only those that it has.
            missing_handlers: std::collections::BTreeMap::new(),
            cgroup_driver: self.calls.cgroup_driver().await?,
        })
    }

    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error> {
        // One look at a time: a second one that waits finds everything known.
        let mut seen = self.seen.lock().await;
        observe(&self.calls, &mut seen).await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error> {
        let name = format!("{}/{}", config.pod.namespace, config.pod.name);
        let act = Act::order("run sandbox of", &name);
        let driver = self.driver().await?;
        make_directory(config.log_dir.clone()).await?;
        let (groups, pod) = (self.groups.clone(), config.clone());
        blocking("make control group", move || groups.make(&pod, driver)).await?;
        let request = cri::RunPodSandboxRequest {
            config: Some(self.sandbox_config(config).await?),
            runtime_handler: config.handler.clone(),
        };
        let mut client = self.calls.runtime();
        let made = self.calls.wait(act, client.run_pod_sandbox(request)).await;
        let id = match made {
            Ok(answer) => answer.pod_sandbox_id,
            Err(failure) => {
                // Nobody removes a sandbox that was not made, and with it the group.
                if let Err(error) = self
                    .remove_group(&config.pod, &SandboxId(String::new()), driver)
                    .await
                {
                    tracing::debug!(pod = name, %error, "the control group of a pod without sandbox stays");
                }
                return Err(failure.of(act));
            }
        };
        let (groups, pod) = (self.groups.clone(), config.clone());
        blocking("limit control group", move || groups.limit(&pod, driver)).await?;
        Ok(SandboxId(id))
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let act = Act::order("stop sandbox", &id.0);
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.0.clone(),
        };
        let mut client = self.calls.runtime();
        let stopped = self.calls.wait(act, client.stop_pod_sandbox(request)).await;
        unless_gone(stopped.map(drop), act)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(status) = sandbox_status(&self.calls, &id.0).await? else {
            return self.remove_containers_of(id).await;
        };
        self.stop_sandbox(id).await?;
        let act = Act::order("remove sandbox", &id.0);
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.0.clone(),
        };
        let mut client = self.calls.runtime();
        let removed = self.calls.wait(act, client.remove_pod_sandbox(request)).await;
        unless_gone(removed.map(drop), act)?;
        let metadata = status.metadata.unwrap_or_default();
        let pod = PodIdentity {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
        };
        self.remove_group(&pod, id, self.driver().await?).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        pod: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error> {
        let act = Act::order("create container", &config.name);
        if let Some(folder) = config.log_path.parent().filter(|path| *path != Path::new("")) {
            make_directory(pod.log_dir.join(folder)).await?;
        }
        let user = self.user(config).await?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.0.clone(),
            config: Some(convert::container(pod, config, user)),
            sandbox_config: Some(self.sandbox_config(pod).await?),
        };
        let mut client = self.calls.runtime();
        // On the heap: the configuration is large.
        let call = Box::pin(client.create_container(request));
        match self.calls.wait(act, call).await {
            Ok(answer) => Ok(ContainerId(answer.container_id)),
            Err(failure) => Err(self.why_not_created(sandbox, config, failure).await),
        }
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let act = Act::order("start container", &id.0);
        let request = cri::StartContainerRequest {
            container_id: id.0.clone(),
        };
        let mut client = self.calls.runtime();
        match self.calls.wait(act, client.start_container(request)).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.why_not_started(id, failure).await),
        }
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        let act = Act {
            act: "stop container",
            object: &id.0,
            limit: Limit::OrderOf(grace),
        };
        let request = cri::StopContainerRequest {
            container_id: id.0.clone(),
            timeout: seconds(grace),
        };
        let mut client = self.calls.runtime();
        let stopped = self.calls.wait(act, client.stop_container(request)).await;
        stopped.map(drop).map_err(|failure| of_container(failure, act))
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let act = Act::order("remove container", &id.0);
        let request = cri::RemoveContainerRequest {
            container_id: id.0.clone(),
        };
        let mut client = self.calls.runtime();
        let removed = self.calls.wait(act, client.remove_container(request)).await;
        unless_gone(removed.map(drop), act)
    }

    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error> {
        let act = Act::order("update container", &id.0);
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.0.clone(),
            linux: Some(convert::resources(resources)),
            ..cri::UpdateContainerResourcesRequest::default()
        };
        let mut client = self.calls.runtime();
        let updated = self
            .calls
            .wait(act, client.update_container_resources(request))
            .await;
        updated.map(drop).map_err(|failure| of_container(failure, act))
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let act = Act {
            act: "run a command in container",
            object: &id.0,
            limit: Limit::OrderOf(timeout),
        };
        let request = cri::ExecSyncRequest {
            container_id: id.0.clone(),
            cmd: command.to_vec(),
            timeout: seconds(timeout),
        };
        let mut client = self.calls.runtime();
        match self.calls.wait(act, client.exec_sync(request)).await {
            Ok(answer) if ended_by_crio(&answer) => Err(exec_timed_out(act, timeout)),
            Ok(answer) => Ok(output(answer)),
            Err(Failure::Error(Error::TimedOut { .. })) => Err(exec_timed_out(act, timeout)),
            // What containerd says when it ended the command itself.
            Err(Failure::Refused(status)) if status.message().contains("exceeded: context deadline") => {
                Err(exec_timed_out(act, timeout))
            }
            Err(failure) => Err(of_container(failure, act)),
        }
    }

    async fn exec(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        let act = Act::order("run a command in container", &id.0);
        let request = cri::ExecRequest {
            container_id: id.0.clone(),
            cmd: talk.command.clone(),
            tty: talk.tty,
            stdin: talk.stdin,
            stdout: talk.stdout,
            stderr: talk.stderr && !talk.tty,
        };
        let mut client = self.calls.runtime();
        let answer = self.calls.wait(act, client.exec(request)).await;
        let answer = answer.map_err(|failure| of_container(failure, act))?;
        Ok(Served::At(answer.url))
    }

    async fn attach(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        let act = Act::order("attach to container", &id.0);
        let request = cri::AttachRequest {
            container_id: id.0.clone(),
            tty: talk.tty,
            stdin: talk.stdin,
            stdout: talk.stdout,
            stderr: talk.stderr && !talk.tty,
        };
        let mut client = self.calls.runtime();
        let answer = self.calls.wait(act, client.attach(request)).await;
        let answer = answer.map_err(|failure| of_container(failure, act))?;
        Ok(Served::At(answer.url))
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<Served<SocketInPod>, Error> {
        let act = Act::order("connect to a port of sandbox", &id.0);
        let request = cri::PortForwardRequest {
            pod_sandbox_id: id.0.clone(),
            port: vec![port.into()],
        };
        let mut client = self.calls.runtime();
        match self.calls.wait(act, client.port_forward(request)).await {
            Ok(answer) => Ok(Served::At(answer.url)),
            Err(failure) if failure.is_not_found() => Err(Error::NoSandbox(id.0.clone())),
            Err(failure) => Err(failure.of(act)),
        }
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let act = Act::order("reopen the log of container", &id.0);
        let request = cri::ReopenContainerLogRequest {
            container_id: id.0.clone(),
        };
        let mut client = self.calls.runtime();
        let reopened = self.calls.wait(act, client.reopen_container_log(request)).await;
        reopened.map(drop).map_err(|failure| of_container(failure, act))
    }

    fn log_rotation(&self) -> LogRotation {
        LogRotation::ByAgent
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        stats::stats(&self.calls, self.list()).await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.image_status(reference).await
    }

    async fn images(&self) -> Result<Vec<Image>, Error> {
        self.list_images().await
    }

    async fn image_usage(&self) -> Result<ImageUsage, Error> {
        self.image_file_system().await
    }

    async fn pull_image(&self, reference: &str, credentials: &[Credentials]) -> Result<Image, Error> {
        self.pull(reference, credentials).await
    }

    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error> {
        Err(Error::Unsupported {
            act: "import image",
            object: archive.display().to_string(),
            reason: "the runtime interface cannot import; use the runtime's own tool, for example \
                     `ctr --namespace k8s.io images import FILE`",
        })
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        self.remove_one_image(reference).await
    }

    async fn changed(&self) {
        let listen = || Hints::listen(self.calls.channel().clone());
        self.hints.get_or_init(listen).changed().await;
    }
}

fn exec_timed_out(act: Act<'_>, limit: Duration) -> Error {
    Error::TimedOut {
        act: act.act,
        object: act.object.to_owned(),
        limit,
    }
}

/// What CRI-O answers when it ended the command itself. No process ends with this code.
fn ended_by_crio(answer: &cri::ExecSyncResponse) -> bool {
    answer.exit_code == -1 && answer.stderr == b"command timed out"
}

fn output(answer: cri::ExecSyncResponse) -> ExecOutput {
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(ExecOutput::BYTES_MAX);
        bytes
    };
    ExecOutput {
        exit_code: answer.exit_code,
        stdout: cut(answer.stdout),
        stderr: cut(answer.stderr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_never_cut_short() {
        let table = [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (30_000, 30)];
        for (ms, wanted) in table {
            assert_eq!(seconds(Duration::from_millis(ms)), wanted, "{ms} ms");
        }
        assert_eq!(seconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn a_command_that_crio_ended_is_told_from_one_that_failed() {
        let table = [
            (-1, "command timed out", true),
            (-1, "exec failed", false),
            (1, "command timed out", false),
        ];
        for (exit_code, stderr, wanted) in table {
            let answer = cri::ExecSyncResponse {
                stdout: Vec::new(),
                stderr: stderr.into(),
                exit_code,
            };
            assert_eq!(ended_by_crio(&answer), wanted, "{exit_code} {stderr}");
        }
    }

    #[test]
    fn a_container_that_does_not_run_is_told_from_one_that_is_not_there() {
        use kedge_grpc::tonic::{Code, Status};
        let act = Act::order("run a command in container", "c1");
        let table = [
            (Code::NotFound, "no such thing", "no container c1"),
            (
                Code::Unknown,
                "could not find container \"c1\": ID does not exist",
                "no container c1",
            ),
            (
                Code::NotFound,
                "container is not created or running: its state is stopped",
                "run a command in container c1: container is not created or running: its state is stopped",
            ),
        ];
        for (code, message, wanted) in table {
            let failure = Failure::Refused(Status::new(code, message));
            assert_eq!(of_container(failure, act).to_string(), wanted);
        }
    }
}
