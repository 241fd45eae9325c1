//! What an edge says to the cloud: a closed vocabulary.

use crate::{
    Body, Envelope, Group, Letter, MessageId, ObjectKey, ObjectKind, Operation, Resource, Route, Source,
    ToEdge,
};

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
    /// Our own: what the edge holds and how much it takes at once, `{"window", "held": [{"key","uid","version"}]}`; only
    /// after both ends agreed.
    Resume {
        body: Body,
    },
    /// `query k8s/ca.crt`.
    KubernetesCa {
        route: Route,
    },
    /// Twin and membership reports (source `twin`).
    Twin {
        route: Route,
        body: Body,
    },
    /// MetaServer pass-through (source `metaserver`).
    Application {
        route: Route,
        body: Body,
    },
    /// User traffic of rules (operation `upload`).
    Upload {
        route: Route,
        body: Body,
    },
    /// Reports of node jobs.
    Task {
        route: Route,
        body: Body,
    },
    /// The answer to a CSI command (resource `<ns>/volume/<id>`).
    Volume {
        route: Route,
        body: Body,
    },
    /// A route this version does not know.
    Other {
        route: Route,
        body: Body,
    },
}

/// An acknowledgement after commit. Its route is copied from the message it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub parent: MessageId,
    pub route: Route,
    /// `"OK"` from official edges; never inspected.
    pub body: Body,
}

impl Ack {
    /// The acknowledgement of `message`, which came under the id `parent`.
    pub fn of(parent: MessageId, message: &ToEdge) -> Self {
        Self {
            parent,
            route: message.route().acknowledged(),
            body: Body::text("OK"),
        }
    }
}

/// A failed commit, said aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub parent: Option<MessageId>,
    pub route: Route,
    pub body: Body,
}

impl Refusal {
    /// Says that `message`, which came under the id `parent`, could not be made durable.
    pub fn of(parent: MessageId, message: &ToEdge, why: &str) -> Self {
        let Route { group, resource, .. } = message.route();
        let route = Route::new(Source::MetaManager, group, Operation::Error, resource);
        Self {
            parent: Some(parent),
            route,
            body: Body::text(why),
        }
    }
}

/// A request about one object. `route.operation` is one of insert, update, patch, delete, query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names `key` as its resource.
    pub route: Route,
    pub key: ObjectKey,
    pub body: Body,
}

impl Request {
    /// A request as the official Edged sends it: source `edged`, group `meta`.
    pub fn from_edged(operation: Operation, key: ObjectKey, body: Body) -> Self {
        Self {
            route: Route::from_edged(operation, key.clone()),
            key,
            body,
        }
    }

    /// Asks for an object.
    pub fn query(key: ObjectKey) -> Self {
        Self::from_edged(Operation::Query, key, Body::null())
    }

    /// Asks for a token of a service account; `token_request` is an `authentication.k8s.io/v1` TokenRequest.
    pub fn query_token(namespace: &str, service_account: &str, token_request: Body) -> Self {
        let key = ObjectKey::namespaced(ObjectKind::ServiceAccountToken, namespace, service_account);
        Self::from_edged(Operation::Query, key, token_request)
    }

    /// Creates an object.
    pub fn insert(key: ObjectKey, object: Body) -> Self {
        Self::from_edged(Operation::Insert, key, object)
    }

    /// Replaces an object.
    pub fn update(key: ObjectKey, object: Body) -> Self {
        Self::from_edged(Operation::Update, key, object)
    }

    /// Deletes an object; `options` is a `metav1.DeleteOptions`.
    pub fn delete(key: ObjectKey, options: Body) -> Self {
        Self::from_edged(Operation::Delete, key, options)
    }

    /// Patches the status of a pod. `patch` is the JSON of a strategic merge patch and travels as a string.
    pub fn patch_pod_status(namespace: &str, pod: &str, patch: &str) -> Self {
        let key = ObjectKey::namespaced(ObjectKind::PodPatch, namespace, pod);
        Self::from_edged(Operation::Patch, key, Body::text(patch))
    }

    /// Patches the status of a node. `patch` is the JSON of a strategic merge patch and travels as a string.
    pub fn patch_node_status(node: &crate::NodeName, patch: &str) -> Self {
        let key = ObjectKey::cluster(ObjectKind::NodePatch, node.as_str());
        Self::from_edged(Operation::Patch, key, Body::text(patch))
    }
}

impl ToCloud {
    /// Types an envelope. Total: an unknown route becomes `Other`.
    ///
    /// The order is the official cloud's: what a message is for is asked before who speaks.
    pub fn open(envelope: Envelope) -> Letter<ToCloud> {
        let Envelope {
            header,
            route,
            content: body,
        } = envelope;
        let route = Route::parse(&route);
        let message = if route == keepalive_route() && body == ping() {
            Self::KeepAlive
        } else if is_volume(&route.resource) {
            Self::Volume { route, body }
        } else {
            match &route.operation {
                Operation::Response => match header.parent.clone() {
                    Some(parent) => Self::Ack(Ack { parent, route, body }),
                    None => Self::Other { route, body },
                },
                Operation::Error => Self::Refusal(Refusal {
                    parent: header.parent.clone(),
                    route,
                    body,
                }),
                Operation::Upload if route.group == Group::User => Self::Upload { route, body },
                Operation::UpdateNodeActionStatus | Operation::Upgrade | Operation::PrePull => {
                    Self::Task { route, body }
                }
                Operation::Resume if route == resume_route() => Self::Resume { body },
                _by_speaker => by_source(route, body),
            }
        };
        Letter { header, message }
    }

    /// The route of the message.
    pub fn route(&self) -> Route {
        match self {
            Self::KeepAlive => keepalive_route(),
            Self::Resume { .. } => resume_route(),
            Self::Ack(Ack { route, .. })
            | Self::Refusal(Refusal { route, .. })
            | Self::Request(Request { route, .. })
            | Self::KubernetesCa { route }
            | Self::Twin { route, .. }
            | Self::Application { route, .. }
            | Self::Upload { route, .. }
            | Self::Task { route, .. }
            | Self::Volume { route, .. }
            | Self::Other { route, .. } => route.clone(),
        }
    }
}

fn by_source(route: Route, body: Body) -> ToCloud {
    if route.resource == Resource::KubernetesCa && body == Body::null() {
        return ToCloud::KubernetesCa { route };
    }
    match &route.source {
        Source::Twin => ToCloud::Twin { route, body },
        Source::MetaServer => ToCloud::Application { route, body },
        // An edge that speaks as one of the cloud's own modules is not served, as in the official cloud.
        Source::CloudHub
        | Source::CloudStream
        | Source::DeviceController
        | Source::EdgeController
        | Source::SyncController => ToCloud::Other { route, body },
        _edge_module => match (&route.operation, &route.resource) {
            (
                Operation::Insert
                | Operation::Update
                | Operation::Patch
                | Operation::Delete
                | Operation::Query,
                Resource::Object(key),
            ) => ToCloud::Request(Request {
                key: key.clone(),
                route,
                body,
            }),
            _no_request => ToCloud::Other { route, body },
        },
    }
}

fn is_volume(resource: &Resource) -> bool {
    resource
        .object()
        .is_some_and(|key| key.kind == ObjectKind::Volume)
}

fn ping() -> Body {
    Body::text("ping")
}

fn keepalive_route() -> Route {
    Route::new(
        Source::WebSocket,
        Group::Resource,
        Operation::KeepAlive,
        Resource::Keepalive,
    )
}

/// The route by which our own ends begin and end a resumption.
pub(crate) fn resume_route() -> Route {
    Route::new(
        Source::Kedge,
        Group::Hub,
        Operation::Resume,
        Resource::Other(String::new()),
    )
}

impl Letter<ToCloud> {
    /// The envelope that carries this letter. What the message itself holds (parent) wins over the header.
    pub fn seal(self) -> Envelope {
        let Self { mut header, message } = self;
        let route = message.route().print();
        let content = match message {
            ToCloud::KeepAlive => ping(),
            ToCloud::KubernetesCa { .. } => Body::null(),
            ToCloud::Ack(Ack { parent, body, .. }) => {
                header.parent = Some(parent);
                body
            }
            ToCloud::Refusal(Refusal { parent, body, .. }) => {
                header.parent = parent;
                body
            }
            ToCloud::Request(Request { body, .. })
            | ToCloud::Resume { body }
            | ToCloud::Twin { body, .. }
            | ToCloud::Application { body, .. }
            | ToCloud::Upload { body, .. }
            | ToCloud::Task { body, .. }
            | ToCloud::Volume { body, .. }
            | ToCloud::Other { body, .. } => body,
        };
        Envelope {
            header,
            route,
            content,
        }
    }
}
