//! What the cloud says to an edge: a closed vocabulary.

use crate::to_cloud::resume_route;
use crate::{
    Body, Envelope, Group, Letter, ObjectKey, ObjectKind, Operation, Resource, ResourceVersion, Route, Source,
};

/// A message from cloud to edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToEdge {
    /// The edge must hold this object, or must not: acknowledged after commit.
    Object(ObjectChange),
    /// The answer to something the edge asked (header `parent` names it).
    Reply(Reply),
    /// Device and twin traffic (group `twin`): membership updates, confirmations.
    Twin { route: Route, body: Body },
    /// User traffic of rules (group `user`).
    User { route: Route, body: Body },
    /// Node jobs (group `taskmanager`).
    Task { route: Route, body: Body },
    /// CSI volume commands.
    Volume { route: Route, body: Body },
    /// Our own: everything that the node must hold has been acknowledged since its digest.
    Resumed,
    /// A route this version does not know. Counted, logged once per kind, never acted on.
    Other { route: Route, body: Body },
}

/// What shall happen to an object on the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeVerb {
    Insert,
    Update,
    Delete,
}

impl ChangeVerb {
    /// The verb as an operation of a route.
    pub fn operation(self) -> Operation {
        match self {
            Self::Insert => Operation::Insert,
            Self::Update => Operation::Update,
            Self::Delete => Operation::Delete,
        }
    }

    fn of(operation: &Operation) -> Option<Self> {
        match operation {
            Operation::Insert => Some(Self::Insert),
            Operation::Update => Some(Self::Update),
            Operation::Delete => Some(Self::Delete),
            _no_change => None,
        }
    }
}

/// Insert, update or delete of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectChange {
    /// The controller that speaks; `edgecontroller` for pods, config maps, secrets and nodes.
    pub source: Source,
    /// `resource` from official controllers.
    pub group: Group,
    pub verb: ChangeVerb,
    pub key: ObjectKey,
    /// Header `resourceversion`: the version of `body`.
    pub version: Option<ResourceVersion>,
    /// The whole object with `apiVersion` and `kind`; for a delete at least `metadata.{name,namespace,uid}`.
    pub body: Body,
}

impl ObjectChange {
    /// A change as the official EdgeController says it.
    pub fn from_edge_controller(
        verb: ChangeVerb,
        key: ObjectKey,
        version: Option<ResourceVersion>,
        body: Body,
    ) -> Self {
        Self {
            source: Source::EdgeController,
            group: Group::Resource,
            verb,
            key,
            version,
            body,
        }
    }
}

/// An answer. `route.operation` is `response`, `error` or `applicationResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub route: Route,
    pub version: Option<ResourceVersion>,
    pub body: Body,
}

impl Reply {
    /// The answer of the official EdgeController about `resource`, which must be the one that was asked about.
    pub fn response(resource: Resource, version: Option<ResourceVersion>, body: Body) -> Self {
        Self {
            route: Route::from_edge_controller(Operation::Response, resource),
            version,
            body,
        }
    }

    /// A refusal in words: operation `error`, which no edge stores.
    pub fn error(resource: Resource, text: &str) -> Self {
        let route = Route::from_edge_controller(Operation::Error, resource);
        Self {
            route,
            version: None,
            body: Body::text(text),
        }
    }

    /// Whether the cloud refused in words.
    pub fn is_error(&self) -> bool {
        self.route.operation == Operation::Error
    }
}

impl ToEdge {
    /// Types an envelope. Total: an unknown route becomes `Other`.
    ///
    /// The order is the edge's own: the group says who handles a message; within `resource` and `func`, a parent makes
    /// it an answer and everything else must be a change of one object.
    pub fn open(envelope: Envelope) -> Letter<ToEdge> {
        let Envelope {
            header,
            route,
            content: body,
        } = envelope;
        let route = Route::parse(&route);
        let message = match &route.group {
            Group::Twin => Self::Twin { route, body },
            Group::User => Self::User { route, body },
            Group::TaskManager => Self::Task { route, body },
            Group::Resource | Group::Func => {
                if route.operation.is_volume_command() {
                    Self::Volume { route, body }
                } else if header.parent.is_some() {
                    answer(route, header.resource_version.clone(), body)
                } else {
                    change(route, header.resource_version.clone(), body)
                }
            }
            Group::Hub if route == resume_route() => Self::Resumed,
            Group::None | Group::Meta | Group::Hub | Group::DynamicController | Group::Other(_) => {
                Self::Other { route, body }
            }
        };
        Letter { header, message }
    }

    /// The route of the message.
    pub fn route(&self) -> Route {
        match self {
            Self::Object(change) => Route::new(
                change.source.clone(),
                change.group.clone(),
                change.verb.operation(),
                Resource::Object(change.key.clone()),
            ),
            Self::Reply(Reply { route, .. })
            | Self::Twin { route, .. }
            | Self::User { route, .. }
            | Self::Task { route, .. }
            | Self::Volume { route, .. }
            | Self::Other { route, .. } => route.clone(),
            Self::Resumed => resume_route(),
        }
    }

    /// Whether the protocol wants the edge to acknowledge this message (spec: protocol 4.2). Decided by type, so an
    /// object that is merely *named* like a message without acknowledgement keeps its reliability.
    pub fn needs_ack(&self) -> bool {
        match self {
            Self::Object(change) => change.needs_ack(),
            Self::Reply(reply) => reply.needs_ack(),
            Self::Twin { .. }
            | Self::User { .. }
            | Self::Task { .. }
            | Self::Volume { .. }
            | Self::Resumed
            | Self::Other { .. } => false,
        }
    }
}

impl Operation {
    /// Whether this is one of the four CSI commands.
    pub fn is_volume_command(&self) -> bool {
        matches!(
            self,
            Self::CreateVolume
                | Self::DeleteVolume
                | Self::ControllerPublishVolume
                | Self::ControllerUnpublishVolume
        )
    }
}

/// A message with a parent in a group of objects.
fn answer(route: Route, version: Option<ResourceVersion>, body: Body) -> ToEdge {
    match &route.operation {
        Operation::Response | Operation::Error | Operation::ApplicationResponse => {
            ToEdge::Reply(Reply { route, version, body })
        }
        _not_an_answer => ToEdge::Other { route, body },
    }
}

/// A message without a parent in a group of objects.
fn change(route: Route, version: Option<ResourceVersion>, body: Body) -> ToEdge {
    match (ChangeVerb::of(&route.operation), &route.resource) {
        (Some(verb), Resource::Object(key)) if route.destination.is_empty() => ToEdge::Object(ObjectChange {
            key: key.clone(),
            source: route.source,
            group: route.group,
            verb,
            version,
            body,
        }),
        _other_shape => ToEdge::Other { route, body },
    }
}

/// How far a kind is acknowledged when the EdgeController speaks.
enum Acknowledged {
    /// Never: it is only ever an answer that nobody stores.
    Never,
    /// As a change, but not as an answer.
    Changes,
    Always,
}

impl ObjectKind {
    fn acknowledged(&self) -> Acknowledged {
        match self {
            Self::ServiceAccountToken
            | Self::Lease
            | Self::NodePatch
            | Self::NodeStatus
            | Self::PodPatch
            | Self::PodStatus
            | Self::Event
            | Self::CertificateSigningRequest
            | Self::Volume => Acknowledged::Never,
            Self::Pod | Self::Node => Acknowledged::Changes,
            Self::ConfigMap
            | Self::Secret
            | Self::PersistentVolume
            | Self::PersistentVolumeClaim
            | Self::VolumeAttachment
            | Self::ServiceAccountAccess
            | Self::Device
            | Self::DeviceModel
            | Self::Other(_) => Acknowledged::Always,
        }
    }
}

impl ObjectChange {
    fn needs_ack(&self) -> bool {
        let jobs = matches!(
            self.source,
            Source::TaskManager | Source::NodeUpgradeJobController
        );
        // Of nodes only updates are ever delivered; a node's delete ends its session.
        let node_gone = self.key.kind == ObjectKind::Node && self.verb != ChangeVerb::Update;
        if jobs || (self.source == Source::EdgeController && node_gone) {
            return false;
        }
        match self.key.kind.acknowledged() {
            // Another controller may watch leases or events for an application on the edge, reliably.
            Acknowledged::Never => self.source != Source::EdgeController,
            Acknowledged::Changes | Acknowledged::Always => true,
        }
    }
}

impl Reply {
    fn needs_ack(&self) -> bool {
        let Resource::Object(key) = &self.route.resource else {
            return false;
        };
        // A reply without a version is never sent reliably: the official cloud has nothing to remember about it.
        self.route.operation == Operation::Response
            && self.version.is_some()
            && self.body.json() != "\"OK\""
            && matches!(key.kind.acknowledged(), Acknowledged::Always)
    }
}

impl Letter<ToEdge> {
    /// The envelope that carries this letter. What the message itself holds (version) wins over the header.
    pub fn seal(self) -> Envelope {
        let Self { mut header, message } = self;
        let route = message.route().print();
        let content = match message {
            ToEdge::Object(ObjectChange { version, body, .. })
            | ToEdge::Reply(Reply { version, body, .. }) => {
                header.resource_version = version;
                body
            }
            ToEdge::Twin { body, .. }
            | ToEdge::User { body, .. }
            | ToEdge::Task { body, .. }
            | ToEdge::Volume { body, .. }
            | ToEdge::Other { body, .. } => body,
            ToEdge::Resumed => Body::null(),
        };
        Envelope {
            header,
            route,
            content,
        }
    }
}
