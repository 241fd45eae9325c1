//! Which class of traffic a message belongs to, for the metrics.

use kedge_wire::{Envelope, ObjectKind, Operation, Packet, Resource, ToCloud};

/// Classes of messages. A message is classed by what it is about, whichever way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Heartbeat,
    Lease,
    /// States of pods and nodes, and the answers to them.
    Status,
    /// An object that a node must hold.
    Object,
    Ack,
    /// A node could not do what it was asked, or the cloud what the node asked.
    Refusal,
    Event,
    /// Any other question, and its answer.
    Query,
    /// Devices, jobs, rules, the digest, and what is not known.
    Other,
}

/// Bytes of an envelope besides its content: ids, route and punctuation, within a few dozen.
const ENVELOPE_BYTES: usize = 300;
/// A heartbeat with its frame.
const HEARTBEAT_BYTES: usize = 6;

impl Class {
    pub(crate) const ALL: [Self; 9] = [
        Self::Heartbeat,
        Self::Lease,
        Self::Status,
        Self::Object,
        Self::Ack,
        Self::Refusal,
        Self::Event,
        Self::Query,
        Self::Other,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Lease => "lease",
            Self::Status => "status",
            Self::Object => "object",
            Self::Ack => "ack",
            Self::Refusal => "refusal",
            Self::Event => "event",
            Self::Query => "query",
            Self::Other => "other",
        }
    }

    pub(crate) fn of_received(packet: &Packet) -> Self {
        let Packet::Envelope(envelope) = packet else {
            return Self::Heartbeat;
        };
        let operation = Operation::parse(&envelope.route.operation);
        if operation == Operation::Response {
            Self::Ack
        } else if operation == Operation::Error {
            Self::Refusal
        } else {
            Self::of_resource(envelope)
        }
    }

    pub(crate) fn of_sent(packet: &Packet) -> Self {
        match packet {
            Packet::Ping | Packet::Pong => Self::Heartbeat,
            Packet::Envelope(envelope) if envelope.header.parent.is_none() => Self::Object,
            Packet::Envelope(envelope) => Self::of_resource(envelope),
        }
    }

    fn of_resource(envelope: &Envelope) -> Self {
        match Resource::parse(&envelope.route.resource) {
            Resource::Object(key) => Self::of_kind(&key.kind),
            Resource::Keepalive => Self::Heartbeat,
            Resource::KubernetesCa | Resource::Collection { .. } => Self::Query,
            Resource::Device(_) | Resource::Application(_) | Resource::Task(_) | Resource::Other(_) => {
                Self::Other
            }
        }
    }

    fn of_kind(kind: &ObjectKind) -> Self {
        match kind {
            ObjectKind::Lease => Self::Lease,
            ObjectKind::PodPatch | ObjectKind::PodStatus | ObjectKind::NodePatch | ObjectKind::NodeStatus => {
                Self::Status
            }
            ObjectKind::Event => Self::Event,
            ObjectKind::Pod
            | ObjectKind::ConfigMap
            | ObjectKind::Secret
            | ObjectKind::ServiceAccountToken
            | ObjectKind::Node
            | ObjectKind::PersistentVolume
            | ObjectKind::PersistentVolumeClaim
            | ObjectKind::VolumeAttachment
            | ObjectKind::CertificateSigningRequest
            | ObjectKind::ServiceAccountAccess => Self::Query,
            ObjectKind::Device | ObjectKind::DeviceModel | ObjectKind::Volume | ObjectKind::Other(_) => {
                Self::Other
            }
        }
    }
}

/// Kinds of messages that nobody takes in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unserved {
    Twin,
    Application,
    Upload,
    Task,
    Volume,
    Unknown,
}

impl Unserved {
    pub(crate) const ALL: [Self; 6] = [
        Self::Twin,
        Self::Application,
        Self::Upload,
        Self::Task,
        Self::Volume,
        Self::Unknown,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Twin => "twin",
            Self::Application => "application",
            Self::Upload => "upload",
            Self::Task => "task",
            Self::Volume => "volume",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn of(message: &ToCloud) -> Self {
        match message {
            ToCloud::Twin { .. } => Self::Twin,
            ToCloud::Application { .. } => Self::Application,
            ToCloud::Upload { .. } => Self::Upload,
            ToCloud::Task { .. } => Self::Task,
            ToCloud::Volume { .. } => Self::Volume,
            // All but the first are served by the link or the session, and never come here.
            ToCloud::Other { .. }
            | ToCloud::KeepAlive
            | ToCloud::Ack(_)
            | ToCloud::Refusal(_)
            | ToCloud::Request(_)
            | ToCloud::Resume { .. }
            | ToCloud::KubernetesCa { .. } => Self::Unknown,
        }
    }
}

/// The size of a message, nearly: what it takes uncompressed.
pub(crate) fn bytes_of(packet: &Packet) -> usize {
    match packet {
        Packet::Envelope(envelope) => ENVELOPE_BYTES + envelope.content.json().len(),
        Packet::Ping | Packet::Pong => HEARTBEAT_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_wire::{Body, Header, MessageId, RawRoute};

    fn packet(operation: &str, resource: &str, parent: &str) -> Packet {
        let mut header = Header::new(MessageId::new("m"), 1);
        header.parent = (!parent.is_empty()).then(|| MessageId::new(parent));
        let route = RawRoute {
            operation: operation.into(),
            resource: resource.into(),
            ..RawRoute::default()
        };
        let content = Body::null();
        Envelope {
            header,
            route,
            content,
        }
        .into()
    }

    #[test]
    fn messages_are_classed_by_what_they_are_about() {
        use Class as C;
        let lease = "kube-node-lease/lease/edge-1";
        for (operation, resource, received) in [
            ("update", lease, C::Lease),
            ("patch", "default/podpatch/web", C::Status),
            ("keepalive", "node", C::Heartbeat),
            ("response", "default/pod/web", C::Ack),
            ("error", "default/pod/web", C::Refusal),
            ("update", "default/event/web.1", C::Event),
            ("query", "default/configmap/lease", C::Query),
            ("query", "k8s/ca.crt", C::Query),
            ("update", "device/default/sensor/twin", C::Other),
        ] {
            assert_eq!(
                Class::of_received(&packet(operation, resource, "")),
                received,
                "{resource}"
            );
        }
        for (resource, parent, sent) in [
            ("default/pod/web", "", C::Object),
            (lease, "p", C::Lease),
            ("default/podpatch/web", "p", C::Status),
            ("default/configmap/web", "p", C::Query),
        ] {
            assert_eq!(
                Class::of_sent(&packet("update", resource, parent)),
                sent,
                "{resource}"
            );
        }
        assert_eq!(Class::of_sent(&Packet::Pong), C::Heartbeat);
    }
}
