//! What an edge says to the cloud: a closed vocabulary.

use crate::{Body, Envelope, Letter, MessageId, ObjectKey, Route};

/// A message from edge to cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToCloud {
    KeepAlive,
    /// The object in message `parent` is durable on the edge (operation `response`).
    Ack(Ack),
    /// The edge could not do what message `parent` asked (operation `error`); not an acknowledgement.
    Refusal(Refusal),
    /// Something about one object that the cloud must answer or apply.
    Request(Request),
    /// Our own: what the edge holds, `[{"key","uid","version"}]`; only after both ends agreed.
    Resume { body: Body },
    /// `query k8s/ca.crt`.
    KubernetesCa { route: Route },
    /// Twin and membership reports (source `twin`).
    Twin { route: Route, body: Body },
    /// MetaServer pass-through (source `metaserver`).
    Application { route: Route, body: Body },
    /// User traffic of rules (operation `upload`).
    Upload { route: Route, body: Body },
    /// Reports of node jobs.
    Task { route: Route, body: Body },
    /// A route this version does not know.
    Other { route: Route, body: Body },
}

/// An acknowledgement after commit. Its route is copied from the message it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub parent: MessageId,
    pub route: Route,
    /// `"OK"` from official edges; never inspected.
    pub body: Body,
}

/// A failed commit, said aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub parent: Option<MessageId>,
    pub route: Route,
    pub body: Body,
}

/// A request about one object. `route.operation` is one of insert, update, patch, delete, query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub route: Route,
    pub key: ObjectKey,
    pub body: Body,
}

impl ToCloud {
    /// Types an envelope. Total: an unknown route becomes `Other`.
    pub fn open(_envelope: Envelope) -> Letter<ToCloud> {
        todo!()
    }
}

impl Letter<ToCloud> {
    /// The envelope that carries this letter.
    pub fn seal(self) -> Envelope {
        todo!()
    }
}
