//! Who answers a request: a decision without I/O.

use crate::sweep;
use kedge_wire::{ObjectKey, ObjectKind, Operation, Request};

/// How a request of edged is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// From the store only: official clouds do not answer such a query.
    Held,
    /// From the store when held, else from the cloud, and kept.
    HeldElseCloud,
    /// From the cloud, and kept; from the store when the cloud is away.
    CloudElseHeld,
    /// A service account token: kept for most of its life.
    Token,
    /// The node's lease: has a place reserved, because the node's life hangs on it.
    Lease,
    /// By nobody: it is a form of reporting, and official clouds leave such a question without an answer.
    Nobody,
    /// From the cloud only. With `keep_object` the object in the answer is kept under the request's key.
    Cloud { keep_object: bool },
    /// A report that must survive: into the outbox first.
    Report(ReportClass),
}

/// What kind of report, lowest priority first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReportClass {
    /// Kept one by one; answered as soon as it is durable, because no cloud confirms it to edged.
    Event,
    /// Only the newest of each pod matters.
    PodStatus,
    /// The pod has ended here; the cloud waits for this before it lets the object go.
    PodDelete,
}

impl ReportClass {
    /// The priority in the outbox.
    pub(crate) fn priority(self) -> u8 {
        match self {
            Self::Event => 10,
            Self::PodStatus => 20,
            Self::PodDelete => 30,
        }
    }

    /// What a later report must share with an earlier one to replace it.
    pub(crate) fn coalesce(self, request: &Request) -> Option<String> {
        match self {
            Self::Event => None,
            Self::PodStatus => Some(request.key.to_string()),
            // The options hold the uid: the end of another pod of that name is another report.
            Self::PodDelete => Some(format!("delete {} {}", request.key, request.body.json())),
        }
    }
}

/// Decides by operation and kind.
pub(crate) fn plan(request: &Request) -> Plan {
    let kind = &request.key.kind;
    match (&request.route.operation, kind) {
        (_, ObjectKind::Lease) => Plan::Lease,
        (Operation::Query, kind) => plan_query(kind),
        (Operation::Insert | Operation::Update | Operation::Patch, ObjectKind::Event) => {
            Plan::Report(ReportClass::Event)
        }
        (Operation::Patch, ObjectKind::PodPatch) => Plan::Report(ReportClass::PodStatus),
        (Operation::Delete, ObjectKind::Pod) => Plan::Report(ReportClass::PodDelete),
        (Operation::Insert, ObjectKind::Node) => Plan::Cloud { keep_object: true },
        (_other, _object) => Plan::Cloud { keep_object: false },
    }
}

fn plan_query(kind: &ObjectKind) -> Plan {
    match kind {
        ObjectKind::Pod | ObjectKind::Node => Plan::Held,
        ObjectKind::ConfigMap | ObjectKind::Secret => Plan::HeldElseCloud,
        ObjectKind::ServiceAccountToken => Plan::Token,
        ObjectKind::PersistentVolume | ObjectKind::PersistentVolumeClaim | ObjectKind::VolumeAttachment => {
            Plan::CloudElseHeld
        }
        ObjectKind::Lease => Plan::Lease,
        ObjectKind::PodPatch
        | ObjectKind::PodStatus
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus
        | ObjectKind::Event
        | ObjectKind::Volume => Plan::Nobody,
        ObjectKind::Other(kind) if sweep::is_own_kind(kind) => Plan::CloudElseHeld,
        ObjectKind::CertificateSigningRequest
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Other(_) => Plan::Cloud { keep_object: false },
    }
}

/// Whether edged follows objects of this kind.
pub(crate) fn is_for_edged(key: &ObjectKey) -> bool {
    key.kind.placed().is_some()
}

/// Whether the cloud decides that the node holds objects of this kind, so that they belong into the digest. The rest
/// the node keeps on its own account (answers to its questions).
pub(crate) fn is_placed(kind: &ObjectKind) -> bool {
    match kind {
        ObjectKind::Pod
        | ObjectKind::ConfigMap
        | ObjectKind::Secret
        | ObjectKind::Node
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel => true,
        ObjectKind::Other(kind) => !sweep::is_own_kind(kind),
        ObjectKind::PodPatch
        | ObjectKind::PodStatus
        | ObjectKind::ServiceAccountToken
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus
        | ObjectKind::Lease
        | ObjectKind::Event
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::Volume => false,
    }
}
