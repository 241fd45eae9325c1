//! The words between the decisions and the hands.

use kedge_api::{HttpHeader, Pod, QosClass, Quantity};
use kedge_containers::{ContainerId, SandboxId};
use kedge_wire::Time;
use std::collections::BTreeMap;
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
    /// Reserve what the pod's containers have to themselves, devices and CPUs: sent once, before anything else, and only
    /// for a pod that may ask for such. A refusal rejects the pod.
    Allocate {
        /// The pod was made by an earlier life of this process, and goes on whatever it gets.
        standing: bool,
    },
    /// Make the volumes, or bring their contents up to date. Idempotent.
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    /// See to the image, create, start, run the postStart hook. A hook that fails ends the container, and the start
    /// with it, with the reason `PostStartHookError`.
    StartContainer {
        sandbox: SandboxId,
        container: String,
        attempt: u32,
        pod_ips: Vec<String>,
        /// An ephemeral container sees the processes of this one.
        target: Option<ContainerId>,
    },
    /// Stop all of them at the same time, each with its own grace.
    StopContainers {
        containers: Vec<Stop>,
    },
    RemoveContainers(Vec<ContainerId>),
    /// End what is left of a finished pod, but keep its containers' records and logs.
    StopSandbox(SandboxId),
    RemoveSandboxes(Vec<SandboxId>),
    RemoveVolumes,
}

/// One container to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub id: ContainerId,
    pub name: String,
    /// For the hook and the stop signal together; a signal has two seconds at least, whatever the hook took.
    pub grace: Duration,
    /// Its preStop hook comes before the signal.
    pub run_pre_stop: bool,
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The pod ends with the reason of a refusal, unless it stands.
    Allocated(Result<(), Refusal>),
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
    /// Sandboxes of no desired pod: stop and remove them and what else is left of the pod (its volumes and its
    /// directory), then call `handle_orphan_removed`.
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
    /// Show a static pod in the cloud.
    CreateMirror {
        pod: Arc<Pod>,
    },
    /// A mirror whose static pod is gone or another one: remove the object, with grace 0 and this UID as precondition.
    DeleteMirror {
        key: PodKey,
        uid: String,
    },
    Event(PodEvent),
}

/// Why a pod must leave the node now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// The pod's reason afterwards, for example `Evicted` or `Preempting`.
    pub reason: String,
    pub message: String,
    /// Shortens the pod's own grace, never prolongs it.
    pub grace: Duration,
}

/// A pod that uses the node, as those who rank pods for eviction see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub uid: String,
    pub key: PodKey,
    pub priority: i32,
    pub qos: QosClass,
    /// What the pod as a whole asks for, by resource.
    pub requests: BTreeMap<String, Quantity>,
    /// Static, mirrored or of a system priority: never evicted.
    pub critical: bool,
}

/// Where a pod was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodSource {
    /// The cloud wants it.
    Api,
    /// A file of the node.
    File,
}

impl PodSource {
    /// As the annotation `kubernetes.io/config.source` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
        }
    }
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

/// The event reasons of this node's pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventReason {
    Pulled,
    Pulling,
    Created,
    Started,
    Killing,
    BackOff,
    /// The same word for a pull that waits.
    PullBackOff,
    Failed,
    InspectFailed,
    ErrImageNeverPull,
    FailedToRetrieveImagePullSecret,
    Unhealthy,
    ProbeWarning,
    FailedMount,
    FailedMapVolume,
    FailedAttachVolume,
    FailedCreatePodSandBox,
    SandboxChanged,
    FailedKillPod,
    NetworkNotReady,
    MissingClusterDns,
    FailedPreStopHook,
    FailedPostStartHook,
    DeadlineExceeded,
    /// Other resources were asked for while the container runs.
    ResizeInfeasible,
    Evicted,
    Preempting,
    /// The node refused the pod for this reason, for example `OutOfcpu`.
    Rejected(String),
}

impl EventReason {
    /// As Kubernetes spells it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pulled => "Pulled",
            Self::Pulling => "Pulling",
            Self::Created => "Created",
            Self::Started => "Started",
            Self::Killing => "Killing",
            Self::BackOff | Self::PullBackOff => "BackOff",
            Self::Failed => "Failed",
            Self::InspectFailed => "InspectFailed",
            Self::ErrImageNeverPull => "ErrImageNeverPull",
            Self::FailedToRetrieveImagePullSecret => "FailedToRetrieveImagePullSecret",
            Self::Unhealthy => "Unhealthy",
            Self::ProbeWarning => "ProbeWarning",
            Self::FailedMount => "FailedMount",
            Self::FailedMapVolume => "FailedMapVolume",
            Self::FailedAttachVolume => "FailedAttachVolume",
            Self::FailedCreatePodSandBox => "FailedCreatePodSandBox",
            Self::SandboxChanged => "SandboxChanged",
            Self::FailedKillPod => "FailedKillPod",
            Self::NetworkNotReady => "NetworkNotReady",
            Self::MissingClusterDns => "MissingClusterDNS",
            Self::FailedPreStopHook => "FailedPreStopHook",
            Self::FailedPostStartHook => "FailedPostStartHook",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::ResizeInfeasible => "ResizeInfeasible",
            Self::Evicted => "Evicted",
            Self::Preempting => "Preempting",
            Self::Rejected(reason) => reason,
        }
    }

    /// `Normal` or `Warning`.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::Pulled
            | Self::Pulling
            | Self::Created
            | Self::Started
            | Self::Killing
            | Self::PullBackOff
            | Self::SandboxChanged
            | Self::DeadlineExceeded => "Normal",
            Self::BackOff
            | Self::Failed
            | Self::InspectFailed
            | Self::ErrImageNeverPull
            | Self::FailedToRetrieveImagePullSecret
            | Self::Unhealthy
            | Self::ProbeWarning
            | Self::FailedMount
            | Self::FailedMapVolume
            | Self::FailedAttachVolume
            | Self::FailedCreatePodSandBox
            | Self::FailedKillPod
            | Self::NetworkNotReady
            | Self::MissingClusterDns
            | Self::FailedPreStopHook
            | Self::FailedPostStartHook
            | Self::ResizeInfeasible
            | Self::Evicted
            | Self::Preempting
            | Self::Rejected(_) => "Warning",
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
    /// The health service of gRPC, without TLS. An empty service is the server as a whole.
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
    /// Exit code 0 is success.
    Exec {
        container: ContainerId,
        command: Vec<String>,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    Success,
    /// Healthy, but something is worth an event: a redirection that leads elsewhere.
    Warning(String),
    Failure(String),
    /// It could not be asked: neither healthy nor sick.
    Error(String),
}
