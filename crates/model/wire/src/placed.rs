//! The kinds of which the cloud decides which nodes hold them.

use crate::ObjectKind;

/// A kind that is placed on nodes: sent to them unasked, held by them, recorded as held. Everything else that an edge keeps
/// (tokens, leases, claims it asked for) is its own cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PlacedKind {
    Pod,
    ConfigMap,
    Secret,
    Node,
}

impl PlacedKind {
    /// How many there are; each `as usize` is below it.
    pub const COUNT: usize = 4;

    /// The Kubernetes kind; all of them are in `v1`.
    pub fn kubernetes(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Node => "Node",
        }
    }
}

impl ObjectKind {
    /// The placed kind that this is, if it is one.
    pub fn placed(&self) -> Option<PlacedKind> {
        match self {
            Self::Pod => Some(PlacedKind::Pod),
            Self::ConfigMap => Some(PlacedKind::ConfigMap),
            Self::Secret => Some(PlacedKind::Secret),
            Self::Node => Some(PlacedKind::Node),
            Self::PodPatch
            | Self::PodStatus
            | Self::ServiceAccountToken
            | Self::NodePatch
            | Self::NodeStatus
            | Self::Lease
            | Self::Event
            | Self::PersistentVolume
            | Self::PersistentVolumeClaim
            | Self::VolumeAttachment
            | Self::CertificateSigningRequest
            | Self::ServiceAccountAccess
            | Self::Device
            | Self::DeviceModel
            | Self::Volume
            | Self::Other(_) => None,
        }
    }
}
