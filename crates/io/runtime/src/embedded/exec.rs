//! Commands in containers that run, and new limits for them.

use super::records::{LAUNCH_RECORD, LaunchRecord, Phase, identity};
use super::{Inner, cgroup};
use crate::helper::exec::ExecOrder;
use crate::{Error, durable};
use kedge_containers::{ContainerId, ExecOutput, Resources, Talk};
use serde::Deserialize;
use std::time::Duration;

const ACT: &str = "run a command in container";

/// The parts of `config.json` that a command shares with the container's own process.
#[derive(Debug, Deserialize)]
struct Bundle {
    process: Process,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    user: User,
    env: Vec<String>,
    cwd: String,
    oom_score_adj: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    #[serde(default)]
    additional_gids: Vec<u32>,
}

impl Inner {
    /// Runs a command as the container's own process would. Blocks until it has ended, at most `timeout`.
    pub(super) fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let talk = Talk {
            command,
            ..Talk::default()
        };
        let order = self.exec_order(id, &talk, timeout)?;
        self.launcher.exec(&id.0, &order)
    }

    /// What is run, and as whom: as the container's own process.
    pub(super) fn exec_order(
        &self,
        id: &ContainerId,
        talk: &Talk,
        timeout: Duration,
    ) -> Result<ExecOrder, Error> {
        let failed = |reason: &str| Err(Error::failed(ACT, &id.0, reason));
        if talk.command.first().is_none_or(String::is_empty) {
            return failed("there is no command");
        }
        if self.container_record(&id.0)?.is_none() {
            return Err(Error::NoContainer(id.0.clone()));
        }
        let state = self.state_of(id)?;
        let Some(state) = state.filter(|state| matches!(state.phase, Phase::Running { .. })) else {
            return failed("it does not run");
        };
        let directory = self.layout.container(&id.0);
        let launch: Option<LaunchRecord> = durable::read_record(&directory.join(LAUNCH_RECORD))?;
        let bundle: Option<Bundle> = durable::read_record(&directory.join("config.json"))?;
        let (Some(launch), Some(bundle)) = (launch, bundle) else {
            return failed("its configuration is not there any more");
        };
        if launch.interpreter.is_some() {
            return Err(Error::Unsupported {
                act: ACT,
                object: id.0.clone(),
                reason: "it is a WebAssembly module, beside which no commands are run",
            });
        }
        let process = bundle.process;
        Ok(ExecOrder {
            process: identity(&state.process),
            cgroup: launch.cgroup,
            args: talk.command.clone(),
            env: process.env,
            cwd: process.cwd,
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids,
            privileges: launch.privileges,
            seccomp: launch.seccomp,
            oom_score_adj: process.oom_score_adj,
            tty: talk.tty,
            stdin: talk.stdin,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2),
        })
    }

    /// Gives a container other limits. One that has ended needs none.
    pub(super) fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Err(Error::NoContainer(id.0.clone()));
        };
        cgroup::limit_existing(&self.cgroups, &record.cgroup, resources)
    }
}
