//! What the cloud says to an edge: a closed vocabulary.

use crate::{Body, Envelope, Group, Letter, ObjectKey, ResourceVersion, Route, Source};

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

/// An answer. `route.operation` is `response`, `error` or `applicationResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub route: Route,
    pub version: Option<ResourceVersion>,
    pub body: Body,
}

impl ToEdge {
    /// Types an envelope. Total: an unknown route becomes `Other`.
    pub fn open(_envelope: Envelope) -> Letter<ToEdge> {
        todo!()
    }

    /// Whether the protocol wants the edge to acknowledge this message (spec: protocol 4.2).
    pub fn needs_ack(&self) -> bool {
        todo!()
    }
}

impl Letter<ToEdge> {
    /// The envelope that carries this letter.
    pub fn seal(self) -> Envelope {
        todo!()
    }
}
