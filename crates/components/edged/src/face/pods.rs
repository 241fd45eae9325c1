//! `/pods` and `/runningpods`: lists of pods.

use crate::beside::PodView;
use kedge_api::{Container, ObjectMeta, Pod, PodSpec};
use kedge_containers::{ContainerState, ObservedSandbox};
use serde::Serialize;

/// `v1.PodList`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodList {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    items: Vec<Pod>,
}

#[derive(Debug, Serialize)]
struct Empty {}

impl PodList {
    fn of(items: Vec<Pod>) -> Self {
        Self {
            kind: "PodList",
            api_version: "v1",
            metadata: Empty {},
            items,
        }
    }
}

/// Every pod of the node as it is desired, with its status as this node computed it.
pub(super) fn desired(views: &[PodView]) -> PodList {
    let pod = |view: &PodView| Pod {
        // The list says it for all.
        api_version: String::new(),
        kind: String::new(),
        status: (*view.status).clone(),
        ..(*view.pod).clone()
    };
    PodList::of(views.iter().map(pod).collect())
}

/// What the runtime runs, desired or not.
pub(super) fn running(seen: &[ObservedSandbox]) -> PodList {
    let pod = |sandbox: &ObservedSandbox| {
        let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        let containers: Vec<Container> = sandbox
            .containers
            .iter()
            .filter(|container| runs(&container.state))
            .map(|container| Container {
                name: container.name.clone(),
                image: container.image.clone(),
                ..Container::default()
            })
            .collect();
        (!containers.is_empty()).then(|| Pod {
            metadata: ObjectMeta {
                name: sandbox.pod.name.clone(),
                namespace: Some(sandbox.pod.namespace.clone()),
                uid: Some(sandbox.pod.uid.clone()),
                ..ObjectMeta::default()
            },
            spec: PodSpec {
                containers,
                ..PodSpec::default()
            },
            ..Pod::default()
        })
    };
    PodList::of(seen.iter().filter_map(pod).collect())
}
