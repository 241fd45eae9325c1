//! The state of each container, in the words of a kubelet.

use super::{Facts, PULL_ERROR_SHOWN_FOR};
use crate::backoff::Trouble;
use crate::instances::{self, EXIT_CODE_UNSEEN};
use crate::qos;
use kedge_api::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Timestamp, VolumeMountStatus,
};
use kedge_containers::{ContainerState as Observed, ObservedContainer};

pub(super) fn container_status(facts: &Facts<'_>, spec: &Container, init: bool) -> ContainerStatus {
    let latest = facts.instances.latest(&spec.name);
    let past = facts.instances.past(&spec.name);
    let prefix = facts.prefix;
    let state = state(facts, spec, latest);
    let running = state.running.is_some();
    let id = latest.map(|c| &c.id);
    let started = running && id.is_some_and(|id| facts.probes.started(id));
    let sidecar = init && qos::is_sidecar(spec);
    let ready = if init && !sidecar {
        state.terminated.as_ref().is_some_and(|t| t.exit_code == 0)
    } else {
        running && id.is_some_and(|id| facts.probes.ready(id))
    };
    // An init container that is not a sidecar is never "started": it is done or not.
    let started = started && (!init || sidecar);
    ContainerStatus {
        name: spec.name.clone(),
        last_state: last_state(facts, spec, &state, latest),
        state,
        ready,
        restart_count: past.map_or(0, |past| past.attempt),
        image: latest.map_or_else(|| spec.image.clone(), |c| c.image.clone()),
        image_id: past.map(|p| p.image_id.clone()).unwrap_or_default(),
        container_id: latest
            .map(|c| format!("{prefix}{}", c.id.0))
            .or_else(|| past.and_then(|past| past.container_id.clone())),
        started: Some(started),
        volume_mounts: if latest.is_some() {
            volume_mounts(facts, spec)
        } else {
            Vec::new()
        },
    }
}

fn volume_mounts(facts: &Facts<'_>, spec: &Container) -> Vec<VolumeMountStatus> {
    let recursive = |mount: &kedge_api::VolumeMount| match mount.recursive_read_only.as_deref() {
        Some("Enabled") => "Enabled",
        Some("IfPossible") if facts.config.makes_recursive_read_only(facts.pod) => "Enabled",
        Some(_) | None => "Disabled",
    };
    let status = |mount: &kedge_api::VolumeMount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: mount.read_only.then(|| recursive(mount).to_owned()),
    };
    spec.volume_mounts.iter().map(status).collect()
}

fn state(facts: &Facts<'_>, spec: &Container, latest: Option<&ObservedContainer>) -> ContainerState {
    let idle = if facts.pod.spec.init_containers.is_empty() {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    if let Some(Observed::Running { started_ms, .. }) = latest.map(|c| &c.state) {
        return ContainerState::running(Timestamp::from_ms(*started_ms));
    }
    let ended = latest
        .and_then(|c| instances::terminated(c, facts.prefix))
        .or_else(|| {
            facts
                .instances
                .past(&spec.name)
                .and_then(|p| p.terminated.clone())
                .filter(|_| latest.is_none())
        });
    if let Some(ended) = ended
        .clone()
        .filter(|_| facts.terminal.is_some() || facts.stopping)
    {
        return ContainerState::terminated(ended);
    }
    if facts.ended().is_some() && facts.initialized {
        return ContainerState::terminated(unknown_end());
    }
    if facts.terminal.is_some() || facts.stopping {
        return ContainerState::waiting(idle, None);
    }
    if let Some(waiting) = waiting(facts, spec) {
        return waiting;
    }
    match ended {
        Some(ended) => ContainerState::terminated(ended),
        None => ContainerState::waiting(idle, None),
    }
}

/// A pod that has ended has no container that still waits, whatever became of it.
fn unknown_end() -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: EXIT_CODE_UNSEEN,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        ..ContainerStateTerminated::default()
    }
}

/// A container that waits for something with a name.
fn waiting(facts: &Facts<'_>, spec: &Container) -> Option<ContainerState> {
    if let Some(trouble) = facts.trouble.get(&spec.name) {
        return Some(trouble_state(facts, spec, trouble));
    }
    // What is wrong with the pod's volumes or its sandbox is told by events; a container waits under the usual word.
    let delay = facts.crash_waits.get(&spec.name)?;
    let key = crate::PodKey::of(facts.pod);
    let message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        duration(delay.as_secs()),
        spec.name,
        key.name,
        key.namespace,
        facts.pod.uid()
    );
    Some(ContainerState::waiting("CrashLoopBackOff", Some(message)))
}

/// Seconds as Go prints a duration: `40s`, `2m40s`, `5m0s`.
fn duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        (_, _) => format!("{hours}h{minutes}m{rest}s"),
    }
}

fn trouble_state(facts: &Facts<'_>, spec: &Container, trouble: &Trouble) -> ContainerState {
    if trouble.is_pull() && facts.now >= trouble.since + PULL_ERROR_SHOWN_FOR {
        let message = format!(
            "Back-off pulling image \"{}\": {}: {}",
            spec.image, trouble.reason, trouble.message
        );
        return ContainerState::waiting("ImagePullBackOff", Some(message));
    }
    ContainerState::waiting(&trouble.reason, Some(trouble.message.clone()))
}

/// How the instance before this one ended; or this one, while its restart waits.
fn last_state(
    facts: &Facts<'_>,
    spec: &Container,
    state: &ContainerState,
    latest: Option<&ObservedContainer>,
) -> ContainerState {
    let past = || {
        facts
            .instances
            .past(&spec.name)
            .and_then(|past| past.terminated.clone())
    };
    let previous = || {
        facts
            .instances
            .previous(&spec.name)
            .and_then(|c| instances::terminated(c, facts.prefix))
    };
    let of_latest = latest.and_then(|c| instances::terminated(c, facts.prefix));
    let last = if state.waiting.is_some() {
        // One that is created but does not run yet has no end of its own; the one before it has.
        of_latest.or_else(previous).or_else(past)
    } else if state.terminated.is_some() {
        previous()
    } else {
        previous().or_else(past)
    };
    last.map(ContainerState::terminated).unwrap_or_default()
}
