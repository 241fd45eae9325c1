//! The Kubernetes objects that an edge node reads and writes, as slim Rust types.
//!
//! **Duty.** Parse what the API sends (pods, nodes, config maps, secrets, leases, events, token requests), print what
//! the edge reports, and understand the small grammars inside them: quantities, timestamps, `IntOrString`.
//!
//! **Inputs and outputs.** JSON by serde, spelled as Kubernetes spells it. A field that this version does not act on is
//! ignored when read: the edge sends status patches and writes no object back. Pods are the exception, because a static
//! pod is shown in the cloud: what their specification has besides the known fields is kept.
//! `null` is read like an absent field, because Go prints empty lists that way.
//!
//! **Never.** No validation that the API server has done already, no I/O, no clock.

mod affinity;
mod event;
mod int_or_string;
mod lease;
mod meta;
mod node;
mod null;
mod object;
mod persistent;
mod pod;
mod pod_status;
mod probe;
mod quantity;
mod security;
mod timestamp;
mod token;
mod volume;

pub use affinity::{Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
pub use event::{Event, EventSource, ObjectReference};
pub use int_or_string::IntOrString;
pub use lease::{Lease, LeaseSpec};
pub use meta::{ObjectMeta, OwnerReference};
pub use node::{
    AttachedVolume, ContainerImage, DaemonEndpoint, DaemonEndpoints, Node, NodeAddress, NodeCondition,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
pub use object::{ConfigMap, Secret};
pub use persistent::{
    ClaimReference, CsiPersistentVolumeSource, LocalVolumeSource, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, PersistentVolumeSpec, SecretReference,
    VolumeAttachment, VolumeAttachmentSpec, VolumeAttachmentStatus, VolumeError, VolumeNodeAffinity,
};
pub use pod::{
    ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, HostAlias,
    KeySelector, LocalObjectReference, ObjectFieldSelector, Pod, PodDnsConfig, PodDnsOption, PodOs,
    PodReadinessGate, PodSpec, QosClass, ResourceFieldSelector, ResourceRequirements, RestartPolicy,
    Toleration, VolumeDevice, VolumeMount,
};
pub use pod_status::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIp, PodCondition, PodIp, PodPhase, PodStatus, VolumeMountStatus,
};
pub use probe::{
    ExecAction, GrpcAction, Handler, HttpGetAction, HttpHeader, Lifecycle, Probe, SleepAction,
    TcpSocketAction,
};
pub use quantity::{InvalidQuantity, Quantity};
pub use security::{
    Capabilities, PodSecurityContext, SeLinuxOptions, SecurityContext, SecurityProfile, Sysctl,
};
pub use timestamp::{MicroTime, Timestamp};
pub use token::{BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus};
pub use volume::{
    ConfigMapProjection, ConfigMapVolumeSource, CsiVolumeSource, DownwardApiItem, DownwardApiSource,
    EmptyDirVolumeSource, HostPathType, HostPathVolumeSource, ImageVolumeSource, KeyToPath, NfsVolumeSource,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretProjection, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
