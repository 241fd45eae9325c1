//! The words between the decisions and the hands.

use kedge_api::{HttpHeader, Pod};
use kedge_containers::{ContainerId, SandboxId};
use kedge_wire::Time;
use std::sync::Arc;
use std::time::Duration;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

impl PodKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
    /// The key of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self::new(pod.namespace(), &pod.metadata.name)
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Names a `list` of the runtime, in the order in which they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ObservationId(pub u64);

/// One thing to do for one pod. The hand answers with the [`Outcome`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the volumes, or bring their contents up to date. Idempotent.
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    /// See to the image, create, start.
    StartContainer {
        sandbox: SandboxId,
        container: String,
        attempt: u32,
        pod_ips: Vec<String>,
    },
    /// Stop all of them at the same time; each has this grace.
    StopContainers {
        containers: Vec<(ContainerId, String)>,
        grace: Duration,
    },
    RemoveContainers(Vec<ContainerId>),
    /// End what is left of a finished pod, but keep its containers' records and logs.
    StopSandbox(SandboxId),
    RemoveSandboxes(Vec<SandboxId>),
    RemoveVolumes,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Volumes(Result<VolumesReady, Refusal>),
    Sandbox(Result<(), Refusal>),
    Container {
        name: String,
        result: Result<(), Refusal>,
    },
    ContainersStopped(Result<(), Refusal>),
    ContainersRemoved(Result<(), Refusal>),
    SandboxStopped(Result<(), Refusal>),
    SandboxesRemoved(Result<(), Refusal>),
    VolumesRemoved(Result<(), Refusal>),
}

/// The volumes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumesReady {
    /// When a token in them must be renewed.
    pub refresh_at: Option<Time>,
}

/// Why something could not be done, as the pod's status tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A waiting reason of Kubernetes, for example `ErrImagePull`.
    pub reason: String,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// What the owner must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Do this for the pod, then call `handle_outcome`.
    Do {
        pod: Arc<Pod>,
        action: Action,
    },
    /// A sandbox that belongs to no desired pod: stop and remove it, then call `handle_orphan_removed`.
    RemoveOrphan {
        uid: String,
        sandboxes: Vec<SandboxId>,
        containers: Vec<ContainerId>,
        grace: Duration,
    },
    /// Ask the container, then call `handle_probe`.
    Probe {
        id: ProbeId,
        target: ProbeTarget,
        timeout: Duration,
    },
    /// The newest status of the pod, as a strategic merge patch. Replaces an older one that was not sent yet.
    Report {
        key: PodKey,
        uid: String,
        patch: String,
    },
    /// Everything of the pod is gone: tell the cloud to remove the object, with grace 0 and this UID as precondition.
    ReportDeleted {
        key: PodKey,
        uid: String,
    },
    Event(PodEvent),
}

/// Something worth an event of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    pub key: PodKey,
    pub uid: String,
    pub container: Option<String>,
    pub reason: EventReason,
    pub message: String,
}

/// The closed set of event reasons of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventReason {
    Pulled,
    Pulling,
    Created,
    Started,
    Killing,
    BackOff,
    Failed,
    Unhealthy,
    FailedMount,
    FailedCreatePodSandBox,
    FailedPreStopHook,
    FailedPostStartHook,
    DeadlineExceeded,
    Rejected,
}

impl EventReason {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulled => "Pulled",
            Self::Pulling => "Pulling",
            Self::Created => "Created",
            Self::Started => "Started",
            Self::Killing => "Killing",
            Self::BackOff => "BackOff",
            Self::Failed => "Failed",
            Self::Unhealthy => "Unhealthy",
            Self::FailedMount => "FailedMount",
            Self::FailedCreatePodSandBox => "FailedCreatePodSandBox",
            Self::FailedPreStopHook => "FailedPreStopHook",
            Self::FailedPostStartHook => "FailedPostStartHook",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Rejected => "FailedAdmission",
        }
    }

    /// `Normal` or `Warning`.
    pub fn event_type(self) -> &'static str {
        match self {
            Self::Pulled | Self::Pulling | Self::Created | Self::Started | Self::Killing => "Normal",
            Self::BackOff
            | Self::Failed
            | Self::Unhealthy
            | Self::FailedMount
            | Self::FailedCreatePodSandBox
            | Self::FailedPreStopHook
            | Self::FailedPostStartHook
            | Self::DeadlineExceeded
            | Self::Rejected => "Warning",
        }
    }
}

/// The three probes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl std::fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// Names one probe of one container instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId {
    pub uid: String,
    pub container: ContainerId,
    pub kind: ProbeKind,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    Http {
        host: String,
        port: u16,
        path: String,
        tls: bool,
        headers: Vec<HttpHeader>,
    },
    Tcp {
        host: String,
        port: u16,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    Success,
    Failure(String),
    /// The hands cannot ask this way: neither healthy nor sick.
    Unsupported(String),
}
