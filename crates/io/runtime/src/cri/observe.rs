//! What exists, at the price of two calls.
//!
//! The lists say which sandboxes and containers there are and in what state; everything else about them is asked for
//! once a state. A container that has exited stays as it ended, so a quiet node costs two calls a look.

use super::calls::{Act, Calls, Failure};
use super::convert::{
    ANNOTATION_HASH, ANNOTATION_RESTARTS, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID,
};
use crate::Error;
use futures_util::StreamExt;
use futures_util::stream;
use kedge_containers::{
    ContainerId, ContainerState, ExitReason, ObservedContainer, ObservedSandbox, PodIdentity, SandboxId,
};
use kedge_grpc::cri;
use std::collections::{BTreeMap, HashMap};

/// Questions at one time, after a start or a burst: enough to hide the way, too few to be felt by the runtime.
const QUESTIONS_AT_ONCE: usize = 8;
const NS_PER_MS: i64 = 1_000_000;

/// What was learnt of each sandbox and container; never more than the lists show.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sandboxes: HashMap<String, SandboxDetail>,
    containers: HashMap<String, ContainerDetail>,
}

/// What only the status of a sandbox tells.
#[derive(Debug, Clone)]
struct SandboxDetail {
    state: cri::PodSandboxState,
    ips: Vec<String>,
}

/// What only the status of a container tells.
#[derive(Debug, Clone)]
struct ContainerDetail {
    state: cri::ContainerState,
    observed: ObservedContainer,
}

/// Reads what exists.
pub(super) async fn observe(calls: &Calls, seen: &mut Seen) -> Result<Vec<ObservedSandbox>, Error> {
    let (sandboxes, containers) = tokio::try_join!(sandboxes(calls), containers(calls))?;
    seen.forget_all_but(&sandboxes, &containers);
    seen.learn_sandboxes(calls, &sandboxes).await?;
    seen.learn_containers(calls, &containers).await?;
    Ok(seen.put_together(sandboxes, containers))
}

/// The sandboxes that a node agent made. Others that share the runtime are none of ours.
async fn sandboxes(calls: &Calls) -> Result<Vec<cri::PodSandbox>, Error> {
    let act = Act::question("list", "sandboxes");
    let mut client = calls.runtime();
    let listed = calls.wait(
        act,
        client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }),
    );
    let mut items = listed.await.map_err(|failure| failure.of(act))?.items;
    items.retain(|sandbox| sandbox.labels.contains_key(LABEL_POD_UID));
    Ok(items)
}

async fn containers(calls: &Calls) -> Result<Vec<cri::Container>, Error> {
    let act = Act::question("list", "containers");
    let mut client = calls.runtime();
    let listed = calls.wait(
        act,
        client.list_containers(cri::ListContainersRequest { filter: None }),
    );
    let mut containers = listed.await.map_err(|failure| failure.of(act))?.containers;
    containers.retain(|container| container.labels.contains_key(LABEL_POD_UID));
    Ok(containers)
}

impl Seen {
    fn forget_all_but(&mut self, sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) {
        let listed: std::collections::HashSet<&str> = sandboxes
            .iter()
            .map(|sandbox| sandbox.id.as_str())
            .chain(containers.iter().map(|container| container.id.as_str()))
            .collect();
        self.sandboxes.retain(|id, _| listed.contains(id.as_str()));
        self.containers.retain(|id, _| listed.contains(id.as_str()));
    }

    async fn learn_sandboxes(&mut self, calls: &Calls, listed: &[cri::PodSandbox]) -> Result<(), Error> {
        let unknown: Vec<String> = listed
            .iter()
            .filter(|sandbox| !self.knows_sandbox(sandbox))
            .map(|sandbox| sandbox.id.clone())
            .collect();
        let mut answers = stream::iter(unknown.into_iter().map(|id| async move {
            let detail = sandbox_detail(calls, &id).await;
            (id, detail)
        }))
        .buffer_unordered(QUESTIONS_AT_ONCE);
        while let Some((id, answer)) = answers.next().await {
            if let Some(detail) = unless_silent("sandbox", &id, answer)? {
                self.sandboxes.insert(id, detail);
            }
        }
        Ok(())
    }

    fn knows_sandbox(&self, listed: &cri::PodSandbox) -> bool {
        let known = self.sandboxes.get(&listed.id);
        known.is_some_and(|known| known.state == listed.state())
    }

    async fn learn_containers(&mut self, calls: &Calls, listed: &[cri::Container]) -> Result<(), Error> {
        let unknown: Vec<String> = listed
            .iter()
            .filter(|container| !self.knows_container(container))
            .map(|container| container.id.clone())
            .collect();
        let mut answers = stream::iter(unknown.into_iter().map(|id| async move {
            let detail = container_detail(calls, &id).await;
            (id, detail)
        }))
        .buffer_unordered(QUESTIONS_AT_ONCE);
        while let Some((id, answer)) = answers.next().await {
            if let Some(detail) = unless_silent("container", &id, answer)? {
                self.containers.insert(id, detail);
            }
        }
        Ok(())
    }

    fn knows_container(&self, listed: &cri::Container) -> bool {
        let known = self.containers.get(&listed.id);
        known.is_some_and(|known| known.state == listed.state())
    }

    fn put_together(
        &self,
        sandboxes: Vec<cri::PodSandbox>,
        containers: Vec<cri::Container>,
    ) -> Vec<ObservedSandbox> {
        let mut shown: BTreeMap<SandboxId, ObservedSandbox> = sandboxes
            .into_iter()
            .map(|sandbox| {
                let shown = self.show_sandbox(sandbox);
                (shown.id.clone(), shown)
            })
            .collect();
        for container in containers {
            let sandbox = SandboxId(container.pod_sandbox_id.clone());
            // A container may outlive the record of its sandbox. It is shown with one that is not ready, so that
            // somebody removes it.
            let place = shown
                .entry(sandbox)
                .or_insert_with_key(|id| lost_sandbox(id, &container.labels, container.created_at));
            place.containers.push(self.show_container(container));
        }
        let mut all: Vec<ObservedSandbox> = shown.into_values().collect();
        for sandbox in &mut all {
            sandbox
                .containers
                .sort_by_key(|container| (container.created_ms, container.attempt));
        }
        all.sort_by_key(|sandbox| (sandbox.created_ms, sandbox.attempt));
        all
    }

    fn show_sandbox(&self, sandbox: cri::PodSandbox) -> ObservedSandbox {
        let detail = self.sandboxes.get(&sandbox.id);
        let state = detail.map_or(sandbox.state(), |detail| detail.state);
        let metadata = sandbox.metadata.unwrap_or_default();
        ObservedSandbox {
            ips: detail.map(|detail| detail.ips.clone()).unwrap_or_default(),
            id: SandboxId(sandbox.id),
            pod: PodIdentity {
                namespace: metadata.namespace,
                name: metadata.name,
                uid: metadata.uid,
            },
            attempt: metadata.attempt,
            ready: state == cri::PodSandboxState::SandboxReady,
            created_ms: ms(sandbox.created_at),
            containers: Vec::new(),
        }
    }

    fn show_container(&self, container: cri::Container) -> ObservedContainer {
        match self.containers.get(&container.id) {
            Some(detail) => detail.observed.clone(),
            None => {
                let state = container.state();
                let status = cri::ContainerStatus {
                    id: container.id,
                    metadata: container.metadata,
                    created_at: container.created_at,
                    image: container.image,
                    image_ref: container.image_ref,
                    annotations: container.annotations,
                    labels: container.labels,
                    ..cri::ContainerStatus::default()
                };
                // It went between the list and the question: nobody knows any more how.
                let shown = match state {
                    cri::ContainerState::ContainerCreated => ContainerState::Created,
                    cri::ContainerState::ContainerRunning
                    | cri::ContainerState::ContainerExited
                    | cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
                };
                observed(status, shown)
            }
        }
    }
}

/// One of which the runtime cannot tell more must not hide the others: it is shown as the list has it, like one that went
/// meanwhile. A runtime that does not answer at all is another matter.
fn unless_silent<T>(what: &str, id: &str, answer: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error @ (Error::Unavailable { .. } | Error::TimedOut { .. })) => Err(error),
        Err(error) => {
            tracing::warn!(what, id, %error, "the runtime lists it, but does not tell how it is");
            Ok(None)
        }
        Ok(found) => Ok(found),
    }
}

async fn sandbox_detail(calls: &Calls, id: &str) -> Result<Option<SandboxDetail>, Error> {
    let Some(status) = sandbox_status(calls, id).await? else {
        return Ok(None);
    };
    let state = status.state();
    let network = status.network.unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|more| more.ip);
    let ips = [network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty());
    Ok(Some(SandboxDetail {
        state,
        ips: ips.collect(),
    }))
}

/// What a sandbox is; `None` when there is none.
pub(super) async fn sandbox_status(calls: &Calls, id: &str) -> Result<Option<cri::PodSandboxStatus>, Error> {
    let act = Act::question("look at sandbox", id);
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: false,
    };
    let mut client = calls.runtime();
    found(
        act,
        calls
            .wait(act, client.pod_sandbox_status(request))
            .await
            .map(|answer| answer.status),
    )
}

/// What a container is; `None` when there is none.
pub(super) async fn container_status(calls: &Calls, id: &str) -> Result<Option<cri::ContainerStatus>, Error> {
    let act = Act::question("look at container", id);
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let mut client = calls.runtime();
    found(
        act,
        calls
            .wait(act, client.container_status(request))
            .await
            .map(|answer| answer.status),
    )
}

fn found<T>(act: Act<'_>, answer: Result<Option<T>, Failure>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(found),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure.of(act)),
    }
}

async fn container_detail(calls: &Calls, id: &str) -> Result<Option<ContainerDetail>, Error> {
    let Some(status) = container_status(calls, id).await? else {
        return Ok(None);
    };
    let state = status.state();
    let shown = life(state, &status);
    Ok(Some(ContainerDetail {
        state,
        observed: observed(status, shown),
    }))
}

fn life(state: cri::ContainerState, status: &cri::ContainerStatus) -> ContainerState {
    match state {
        cri::ContainerState::ContainerCreated => ContainerState::Created,
        cri::ContainerState::ContainerRunning => ContainerState::Running {
            started_ms: ms(status.started_at),
        },
        cri::ContainerState::ContainerExited => ContainerState::Exited {
            started_ms: ms(status.started_at),
            finished_ms: ms(status.finished_at),
            exit_code: status.exit_code,
            reason: exit_reason(status),
            message: status.message.clone(),
        },
        cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

/// Runtimes agree on these words, and have others for rarer ends, which the exit code tells.
fn exit_reason(status: &cri::ContainerStatus) -> ExitReason {
    match status.reason.as_str() {
        "OOMKilled" => ExitReason::OomKilled,
        "StartError" | "ContainerCannotRun" => ExitReason::StartError,
        _ if status.exit_code == 0 => ExitReason::Completed,
        _ => ExitReason::Error,
    }
}

fn observed(status: cri::ContainerStatus, state: ContainerState) -> ObservedContainer {
    let metadata = status.metadata.unwrap_or_default();
    let restarts = status.annotations.get(ANNOTATION_RESTARTS);
    ObservedContainer {
        id: ContainerId(status.id),
        name: metadata.name,
        attempt: restarts
            .and_then(|count| count.parse().ok())
            .unwrap_or(metadata.attempt),
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_ref: status.image_ref,
        spec_hash: status
            .annotations
            .get(ANNOTATION_HASH)
            .cloned()
            .unwrap_or_default(),
        created_ms: ms(status.created_at),
        state,
        log_path: status.log_path.into(),
    }
}

fn lost_sandbox(id: &SandboxId, labels: &BTreeMap<String, String>, created_at: i64) -> ObservedSandbox {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    ObservedSandbox {
        id: id.clone(),
        pod: PodIdentity {
            namespace: label(LABEL_POD_NAMESPACE),
            name: label(LABEL_POD_NAME),
            uid: label(LABEL_POD_UID),
        },
        attempt: 0,
        ready: false,
        created_ms: ms(created_at),
        ips: Vec::new(),
        containers: Vec::new(),
    }
}

/// The interface counts nanoseconds since 1970; zero or less is "never".
pub(super) fn ms(ns: i64) -> u64 {
    u64::try_from(ns / NS_PER_MS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn container(id: &str, sandbox: &str) -> cri::Container {
        cri::Container {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            state: cri::ContainerState::ContainerRunning.into(),
            labels: [(LABEL_POD_UID.to_owned(), "u1".to_owned())].into(),
            ..cri::Container::default()
        }
    }

    #[test]
    fn a_container_without_its_sandbox_is_shown_where_somebody_removes_it() {
        let shown = Seen::default().put_together(Vec::new(), vec![container("c1", "gone")]);
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].id.0.as_str(), shown[0].ready), ("gone", false));
        assert_eq!(shown[0].pod.uid, "u1");
        assert_eq!(shown[0].containers[0].state, ContainerState::Unknown);
    }

    #[test]
    fn ends() {
        let table = [
            ("Completed", 0),
            ("Error", 3),
            ("OOMKilled", 137),
            ("StartError", 128),
            ("Unknown", 255),
            ("", 0),
        ];
        let reasons = table.map(|(reason, exit_code)| {
            let status = cri::ContainerStatus {
                reason: reason.to_owned(),
                exit_code,
                ..Default::default()
            };
            (reason, exit_code, exit_reason(&status))
        });
        expect![[r#"[("Completed", 0, Completed), ("Error", 3, Error), ("OOMKilled", 137, OomKilled), ("StartError", 128, StartError), ("Unknown", 255, Error), ("", 0, Completed)]"#]]
            .assert_eq(&format!("{reasons:?}"));
    }

    #[test]
    fn times_that_never_were_are_zero() {
        assert_eq!(
            [ms(0), ms(i64::MIN), ms(1_700_000_000_123_456_789)],
            [0, 0, 1_700_000_000_123]
        );
    }
}
