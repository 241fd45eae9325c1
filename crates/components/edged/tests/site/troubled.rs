//! The hollow runtime with troubles that a real one can have, and a memory of what it was asked for.

use async_trait::async_trait;
use kedge_containers::{
    ContainerConfig, ContainerId, Credentials, ExecOutput, Image, ImageUsage, ObservedSandbox, Resources,
    RuntimeStatus, RuntimeVersion, SandboxConfig, SandboxId, SandboxStats, Talk,
};
use kedge_runtime::{Error, Hollow, LogRotation, Runtime, Served, Session, SocketInPod};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;

/// How the pull of an image goes.
#[derive(Debug, Clone)]
pub struct Pull {
    pub takes: Duration,
    /// The registry's or the runtime's words; `None`: it succeeds.
    pub fails: Option<&'static str>,
}

#[derive(Debug, Default)]
pub struct Troubled {
    pub hollow: Hollow,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    gone: bool,
    hung: bool,
    rotates_by_agent: bool,
    deaf: bool,
    missing: BTreeSet<String>,
    pulls: BTreeMap<String, Pull>,
    under_way: usize,
    most_under_way: usize,
    calls: Vec<String>,
    /// Where containers run, by pod UID and container.
    cpus: BTreeMap<ContainerId, (String, String)>,
    updates_fail: bool,
}

impl Troubled {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// It answers every call with an error.
    pub fn set_gone(&self, gone: bool) {
        self.state().gone = gone;
    }

    /// It takes calls and never answers.
    pub fn set_hung(&self, hung: bool) {
        self.state().hung = hung;
        self.changed.notify_waiters();
    }

    /// Containers ignore the stop signal and go when they are killed.
    pub fn set_deaf(&self, deaf: bool) {
        self.state().deaf = deaf;
    }

    pub fn rotate_by_agent(&self) {
        self.state().rotates_by_agent = true;
    }

    /// The node does not have this image, and its pull goes like this.
    pub fn set_pull(&self, image: &str, pull: Pull) {
        let mut state = self.state();
        state.missing.insert(image.to_owned());
        state.pulls.insert(image.to_owned(), pull);
    }

    /// The same for an image that the node has.
    pub fn set_pull_of_present(&self, image: &str, pull: Pull) {
        self.state().pulls.insert(image.to_owned(), pull);
    }

    /// It does not change containers that run.
    pub fn set_updates_fail(&self, fail: bool) {
        self.state().updates_fail = fail;
    }

    /// Where a container runs that was bound to CPUs: the newest one of this name.
    pub fn cpus(&self, name: &str) -> Option<String> {
        let state = self.state();
        let mut found = state.cpus.values().filter(|(known, _)| known == name);
        found.next_back().map(|(_, cpus)| cpus.clone())
    }

    /// What was asked for, in order.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    pub fn count(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|made| *made == call).count()
    }

    pub fn most_pulls_at_once(&self) -> usize {
        self.state().most_under_way
    }

    fn note(&self, call: String) {
        self.state().calls.push(call);
    }

    async fn obstacle(&self) -> Result<(), Error> {
        loop {
            let freed = self.changed.notified();
            let (gone, hung) = {
                let state = self.state();
                (state.gone, state.hung)
            };
            if gone {
                return Err(Error::Unavailable {
                    endpoint: "unix:///run/test.sock".to_owned(),
                    reason: "connection refused".to_owned(),
                });
            }
            if !hung {
                return Ok(());
            }
            freed.await;
        }
    }
}

/// Ends a pull, however it ends.
struct UnderWay<'a>(&'a Troubled);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
    }
}

#[async_trait]
impl Runtime for Troubled {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        self.obstacle().await?;
        self.hollow.version().await
    }

    async fn status(&self) -> Result<RuntimeStatus, Error> {
        self.obstacle().await?;
        self.hollow.status().await
    }

    async fn list(&self) -> Result<Vec<ObservedSandbox>, Error> {
        self.obstacle().await?;
        self.hollow.list().await
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, Error> {
        self.obstacle().await?;
        self.note(format!("sandbox {} under {:?}", config.pod.uid, config.handler));
        self.hollow.run_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.obstacle().await?;
        self.hollow.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.obstacle().await?;
        self.hollow.remove_sandbox(id).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        pod: &SandboxConfig,
        config: &ContainerConfig,
    ) -> Result<ContainerId, Error> {
        self.obstacle().await?;
        self.note(format!("create {}/{}", pod.pod.uid, config.name));
        let id = self.hollow.create_container(sandbox, pod, config).await?;
        if let Some(cpus) = &config.resources.cpuset_cpus {
            let name = format!("{}/{}", pod.pod.uid, config.name);
            self.state().cpus.insert(id.clone(), (name, cpus.clone()));
        }
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.obstacle().await?;
        self.hollow.start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.obstacle().await?;
        self.note(format!("stop within {}s", grace.as_secs()));
        if self.state().deaf {
            tokio::time::sleep(grace).await;
        }
        self.hollow.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.obstacle().await?;
        self.hollow.remove_container(id).await
    }

    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error> {
        self.hollow.update_container(id, resources).await?;
        let list = self.hollow.list().await?;
        let of_sandbox = |sandbox: &ObservedSandbox| {
            let container = sandbox.containers.iter().find(|container| container.id == *id)?;
            Some(format!("{}/{}", sandbox.pod.uid, container.name))
        };
        if let (Some(name), Some(cpus)) = (list.iter().find_map(of_sandbox), &resources.cpuset_cpus) {
            self.note(format!("update {name} to {cpus}"));
            if self.state().updates_fail {
                return Err(Error::Unavailable {
                    endpoint: "test".to_owned(),
                    reason: "busy".to_owned(),
                });
            }
            self.state().cpus.insert(id.clone(), (name, cpus.clone()));
        }
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        self.obstacle().await?;
        self.note(format!("exec {}", command.join(" ")));
        self.hollow.exec_sync(id, command, timeout).await
    }

    async fn exec(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        self.hollow.exec(id, talk).await
    }

    async fn attach(&self, id: &ContainerId, talk: &Talk) -> Result<Served<Session>, Error> {
        self.hollow.attach(id, talk).await
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<Served<SocketInPod>, Error> {
        self.hollow.connect(id, port).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.note("reopen".to_owned());
        self.hollow.reopen_log(id).await
    }

    fn log_rotation(&self) -> LogRotation {
        if self.state().rotates_by_agent {
            LogRotation::ByAgent
        } else {
            LogRotation::ByRuntime
        }
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, Error> {
        self.hollow.stats().await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.obstacle().await?;
        if self.state().missing.contains(reference) {
            return Ok(None);
        }
        self.hollow.image(reference).await
    }

    async fn images(&self) -> Result<Vec<Image>, Error> {
        self.hollow.images().await
    }

    async fn image_usage(&self) -> Result<ImageUsage, Error> {
        self.hollow.image_usage().await
    }

    async fn pull_image(&self, reference: &str, credentials: &[Credentials]) -> Result<Image, Error> {
        self.obstacle().await?;
        let users: Vec<&str> = credentials.iter().map(|c| c.username.as_str()).collect();
        let pull = {
            let mut state = self.state();
            state
                .calls
                .push(format!("pull {reference} as [{}]", users.join(",")));
            state.under_way += 1;
            state.most_under_way = state.most_under_way.max(state.under_way);
            state.pulls.get(reference).cloned()
        };
        let _under_way = UnderWay(self);
        if let Some(pull) = pull {
            tokio::time::sleep(pull.takes).await;
            if let Some(reason) = pull.fails {
                return Err(Error::Failed {
                    act: "pull image",
                    object: reference.to_owned(),
                    reason: reason.to_owned(),
                });
            }
            self.state().missing.remove(reference);
        }
        self.hollow.pull_image(reference, credentials).await
    }

    async fn import_image(&self, archive: PathBuf) -> Result<Vec<Image>, Error> {
        self.hollow.import_image(archive).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        self.hollow.remove_image(reference).await
    }

    async fn changed(&self) {
        self.hollow.changed().await;
    }
}
