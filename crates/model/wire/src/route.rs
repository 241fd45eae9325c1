//! The route grammar: four strings parsed once into enums, each with `Other`.

use std::fmt;

/// `route.source`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// Absent.
    None,
    WebSocket,
    Edged,
    EdgeController,
    DeviceController,
    DynamicController,
    PolicyController,
    SyncController,
    CloudHub,
    MetaManager,
    Meta,
    MetaServer,
    Twin,
    Bus,
    ServiceBus,
    RouterEventBus,
    RouterServiceBus,
    TaskManager,
    /// Our own additions, used only after both ends agreed.
    Kedge,
    Other(String),
}

/// `route.group`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Group {
    None,
    Resource,
    Meta,
    Func,
    Twin,
    User,
    Hub,
    TaskManager,
    DynamicController,
    Other(String),
}

/// `route.operation`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operation {
    None,
    Insert,
    Update,
    Delete,
    Patch,
    Query,
    Get,
    Response,
    Error,
    KeepAlive,
    Upload,
    Publish,
    Subscribe,
    Unsubscribe,
    ApplicationResponse,
    /// The four letters `null`, which MetaServer traffic uses.
    Null,
    /// Our own: the digest that opens a session between two of our own ends.
    Resume,
    Other(String),
}

/// The kind token of `<ns>/<kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Pod,
    PodPatch,
    PodStatus,
    ConfigMap,
    Secret,
    ServiceAccountToken,
    Node,
    NodePatch,
    NodeStatus,
    Lease,
    Event,
    PersistentVolume,
    PersistentVolumeClaim,
    VolumeAttachment,
    CertificateSigningRequest,
    ServiceAccountAccess,
    Device,
    DeviceModel,
    Volume,
    Other(String),
}

/// `<ns>/<kind>/<name>`; a cluster-scoped object has the literal namespace `null` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `None` prints as `null`.
    pub namespace: Option<String>,
    pub kind: ObjectKind,
    pub name: String,
}

/// `route.resource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Exactly `node`, the resource of a keepalive.
    Keepalive,
    Object(ObjectKey),
    /// `<ns>/<kind>` without a name (legacy lists).
    Collection { namespace: Option<String>, kind: ObjectKind },
    /// `k8s/ca.crt`.
    KubernetesCa,
    /// `membership`, `membership/detail`, `twin`, `device/<ns>/<name>/…`: kept as text until the device issue.
    Device(String),
    /// `ignore/Application/ignore`, `watchapp/sync`, `null`.
    Application(String),
    /// `operations.kubeedge.io/…` and `…/node/…` of jobs.
    Task(String),
    Other(String),
}

/// The parsed route. `Route::parse(raw).print() == raw` always holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub source: Source,
    pub group: Group,
    pub operation: Operation,
    pub resource: Resource,
    /// Unused on the wire; kept.
    pub destination: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace.as_deref().unwrap_or("null"), self.kind.as_str(), self.name)
    }
}

impl ObjectKey {
    /// A namespaced key.
    pub fn namespaced(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), kind, name: name.to_owned() }
    }

    /// A cluster-scoped key.
    pub fn cluster(kind: ObjectKind, name: &str) -> Self {
        Self { namespace: None, kind, name: name.to_owned() }
    }

    /// Parses `<ns>/<kind>/<name>`; `None` when the text has another shape.
    pub fn parse(_text: &str) -> Option<Self> {
        todo!()
    }
}

impl ObjectKind {
    /// The token on the wire.
    pub fn as_str(&self) -> &str {
        todo!()
    }
    /// Reads a token.
    pub fn parse(_token: &str) -> Self {
        todo!()
    }
}
