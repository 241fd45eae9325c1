//! The Kubernetes objects that an edge node reads and writes, as slim Rust types.
//!
//! **Duty.** Parse what the API sends (pods, nodes, config maps, secrets, leases, events, token requests), print what
//! the edge reports, and understand the small grammars inside them: quantities, timestamps, `IntOrString`.
//!
//! **Inputs and outputs.** JSON by serde, spelled as Kubernetes spells it. A field that this version does not act on is
//! ignored when read: the edge never writes a whole object back, it sends status patches, so nothing is lost by that.
//! `null` is read like an absent field, because Go prints empty lists that way.
//!
//! **Never.** No validation that the API server has done already, no I/O, no clock.

mod event;
mod int_or_string;
mod lease;
mod meta;
mod node;
mod null;
mod object;
mod pod;
mod pod_status;
mod probe;
mod quantity;
mod security;
mod timestamp;
mod token;
mod volume;

pub use event::{Event, EventSource, ObjectReference};
pub use int_or_string::IntOrString;
pub use lease::{Lease, LeaseSpec};
pub use meta::{ObjectMeta, OwnerReference};
pub use node::{
    ContainerImage, DaemonEndpoint, DaemonEndpoints, Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus,
    NodeSystemInfo, Taint,
};
pub use object::{ConfigMap, Secret};
pub use pod::{
    ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, HostAlias,
    KeySelector, LocalObjectReference, ObjectFieldSelector, Pod, PodDnsConfig, PodDnsOption, PodSpec,
    QosClass, ResourceFieldSelector, ResourceRequirements, RestartPolicy, Toleration, VolumeMount,
};
pub use pod_status::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIp, PodCondition, PodIp, PodPhase, PodStatus,
};
pub use probe::{
    ExecAction, GrpcAction, Handler, HttpGetAction, HttpHeader, Lifecycle, Probe, SleepAction,
    TcpSocketAction,
};
pub use quantity::{InvalidQuantity, Quantity};
pub use security::{Capabilities, PodSecurityContext, SecurityContext};
pub use timestamp::{MicroTime, Timestamp};
pub use token::{BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus};
pub use volume::{
    ConfigMapProjection, ConfigMapVolumeSource, DownwardApiItem, DownwardApiSource, EmptyDirVolumeSource,
    HostPathType, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, SecretProjection,
    SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
