//! Which instance of a container is meant.

use crate::beside::PodView;
use kedge_api::{ContainerStateWaiting, ContainerStatus};
use kedge_containers::ContainerId;

/// The instance whose log is asked for: the one that runs or ended last; `previous` is the one before it. The words of a
/// refusal are a kubelet's.
pub(super) fn choose(view: &PodView, container: &str, previous: bool) -> Result<ContainerId, String> {
    let pod = view.pod.metadata.name.as_str();
    if view.pod.container(container).is_none() {
        return Err(format!("container {container:?} not found in pod {pod:?}"));
    }
    let status = &view.status;
    let mut statuses = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses);
    let Some(status) = statuses.find(|status| status.name == container) else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let last = status.last_state.terminated.as_ref();
    let last = last.and_then(|last| last.container_id.as_deref());
    if previous {
        let none = || format!("previous terminated container {container:?} in pod {pod:?} not found");
        return last.map(bare).ok_or_else(none);
    }
    let ended = status.state.terminated.as_ref();
    let ended = ended.and_then(|ended| ended.container_id.as_deref());
    let runs = status.state.running.as_ref().and(status.container_id.as_deref());
    let found = runs.or(ended).or(last).map(bare);
    found.ok_or_else(|| {
        format!(
            "container {container:?} in pod {pod:?} is waiting to start: {}",
            why(status)
        )
    })
}

/// Without the name of the runtime.
fn bare(id: &str) -> ContainerId {
    ContainerId(id.split_once("://").map_or(id, |(_, id)| id).to_owned())
}

fn why(status: &ContainerStatus) -> String {
    let waiting = status.state.waiting.as_ref();
    let reason = |waiting: &ContainerStateWaiting| waiting.reason.clone();
    match waiting.and_then(reason).as_deref() {
        Some("ErrImagePull") => "image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
        Some(reason) => reason.to_owned(),
        None => "no reason is known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_api::{Pod, PodStatus};
    use kedge_pods::PodSource;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn choose_in(state: Value, last: Value, previous: bool) -> Result<String, String> {
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "web" },
            "spec": { "containers": [{ "name": "c" }, { "name": "new" }] } }))
        .unwrap();
        let status: PodStatus = serde_json::from_value(json!({ "containerStatuses": [
            { "name": "c", "state": state, "lastState": last, "containerID": "hollow://run" }] }))
        .unwrap();
        let view = PodView {
            pod: Arc::new(pod),
            status: Arc::new(status),
            source: PodSource::Api,
            admitted: true,
        };
        assert!(
            choose(&view, "new", false)
                .unwrap_err()
                .contains("is not available")
        );
        assert!(
            choose(&view, "other", false)
                .unwrap_err()
                .contains("not found in pod")
        );
        choose(&view, "c", previous).map(|id| id.0)
    }

    #[test]
    fn table() {
        let ended = |id: &str| json!({ "terminated": { "exitCode": 1, "containerID": id } });
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
        let running = json!({ "running": {} });
        let rows = [
            (running.clone(), json!({}), false, Ok("run")),
            (running.clone(), ended("hollow://old"), false, Ok("run")),
            (running.clone(), ended("hollow://old"), true, Ok("old")),
            (running, json!({}), true, Err("previous terminated container")),
            (ended("hollow://now"), json!({}), false, Ok("now")),
            (
                waiting("CrashLoopBackOff"),
                ended("hollow://old"),
                false,
                Ok("old"),
            ),
            (
                waiting("CrashLoopBackOff"),
                ended("hollow://old"),
                true,
                Ok("old"),
            ),
            (
                waiting("ContainerCreating"),
                json!({}),
                false,
                Err("start: ContainerCreating"),
            ),
            (
                waiting("ImagePullBackOff"),
                json!({}),
                false,
                Err("failing to pull image"),
            ),
        ];
        for (state, last, previous, wanted) in rows {
            let found = choose_in(state.clone(), last, previous);
            match (found, wanted) {
                (Ok(id), Ok(wanted)) => assert_eq!(id, wanted, "{state}"),
                (Err(why), Err(wanted)) => assert!(why.contains(wanted), "{why}"),
                (found, wanted) => panic!("{state}: {found:?} instead of {wanted:?}"),
            }
        }
    }
}
