//! The route grammar: four strings parsed once into enums, each with `Other`.

use crate::RawRoute;
use std::fmt;

/// Declares a closed vocabulary with its spelling on the wire: one table, from which both the parser and the printer
/// are made, so that they cannot disagree.
macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A word that this version does not know; it survives.
            Other(String),
        }

        impl $name {
            /// Every word that is known.
            pub const KNOWN: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Other(word) => word,
                }
            }

            /// Reads a word; never fails.
            pub fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)+
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

vocabulary!(
    /// `route.source`.
    Source {
        /// Absent.
        None = "",
        WebSocket = "websocket",
        Edged = "edged",
        EdgeController = "edgecontroller",
        DeviceController = "devicecontroller",
        DynamicController = "dynamiccontroller",
        PolicyController = "policycontroller",
        SyncController = "synccontroller",
        CloudHub = "cloudhub",
        CloudStream = "cloudStream",
        MetaManager = "metamanager",
        Meta = "meta",
        MetaServer = "metaserver",
        Twin = "twin",
        Bus = "bus",
        ServiceBus = "servicebus",
        RouterEventBus = "router_eventbus",
        RouterServiceBus = "router_servicebus",
        TaskManager = "taskmanager",
        NodeUpgradeJobController = "nodeupgradejobcontroller",
        /// Our own additions, used only after both ends agreed.
        Kedge = "kedge",
    }
);

vocabulary!(
    /// `route.group`.
    Group {
        /// Absent.
        None = "",
        Resource = "resource",
        Meta = "meta",
        Func = "func",
        Twin = "twin",
        User = "user",
        Hub = "hub",
        TaskManager = "taskmanager",
        DynamicController = "dynamiccontroller",
    }
);

vocabulary!(
    /// `route.operation`.
    Operation {
        /// Absent.
        None = "",
        Insert = "insert",
        Update = "update",
        Delete = "delete",
        Patch = "patch",
        Query = "query",
        Get = "get",
        Response = "response",
        Error = "error",
        KeepAlive = "keepalive",
        Upload = "upload",
        Publish = "publish",
        Subscribe = "subscribe",
        Unsubscribe = "unsubscribe",
        ApplicationResponse = "applicationResponse",
        CreateVolume = "createvolume",
        DeleteVolume = "deletevolume",
        ControllerPublishVolume = "controllerpublishvolume",
        ControllerUnpublishVolume = "controllerunpublishvolume",
        /// The report of one action of a node job.
        UpdateNodeActionStatus = "UpdateNodeActionStatus",
        /// The report of an old-style upgrade job.
        Upgrade = "upgrade",
        /// The report of an old-style image pull job.
        PrePull = "prepull",
        /// The four letters `null`, which MetaServer traffic uses.
        Null = "null",
        /// Our own: the digest that opens a session between two of our own ends, and the word that its end is reached.
        Resume = "resume",
    }
);

vocabulary!(
    /// The kind token of `<ns>/<kind>/<name>`.
    ObjectKind {
        Pod = "pod",
        PodPatch = "podpatch",
        PodStatus = "podstatus",
        ConfigMap = "configmap",
        Secret = "secret",
        ServiceAccountToken = "serviceaccounttoken",
        Node = "node",
        NodePatch = "nodepatch",
        NodeStatus = "nodestatus",
        Lease = "lease",
        Event = "event",
        PersistentVolume = "persistentvolume",
        PersistentVolumeClaim = "persistentvolumeclaim",
        VolumeAttachment = "volumeattachment",
        CertificateSigningRequest = "certificatesigningrequest",
        ServiceAccountAccess = "serviceaccountaccess",
        Device = "device",
        DeviceModel = "devicemodel",
        /// A CSI volume; never an object of the API.
        Volume = "volume",
    }
);

/// The namespace token of an object that has no namespace.
const NO_NAMESPACE: &str = "null";

/// `<ns>/<kind>/<name>`; a cluster-scoped object has the literal namespace `null` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `None` prints as `null`. A namespace that is really named `null` cannot be told from none on the wire.
    pub namespace: Option<String>,
    pub kind: ObjectKind,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            namespace_token(self.namespace.as_deref()),
            self.kind.as_str(),
            self.name
        )
    }
}

impl ObjectKey {
    /// A namespaced key.
    pub fn namespaced(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            kind,
            name: name.to_owned(),
        }
    }

    /// A cluster-scoped key.
    pub fn cluster(kind: ObjectKind, name: &str) -> Self {
        Self {
            namespace: None,
            kind,
            name: name.to_owned(),
        }
    }

    /// The key of a node's lease, the one object that every official edge reads before it does anything else.
    pub fn lease(node: &crate::NodeName) -> Self {
        Self::namespaced(ObjectKind::Lease, "kube-node-lease", node.as_str())
    }

    /// Parses `<ns>/<kind>/<name>`; `None` when the text has another shape.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, rest) = text.split_once('/')?;
        let (kind, name) = rest.split_once('/')?;
        if namespace.is_empty() || kind.is_empty() || name.is_empty() || name.contains('/') {
            return None;
        }
        let namespace = (namespace != NO_NAMESPACE).then(|| namespace.to_owned());
        Some(Self {
            namespace,
            kind: ObjectKind::parse(kind),
            name: name.to_owned(),
        })
    }

    /// The same object under another kind token, as `pod` and `podpatch` name the same pod.
    pub fn with_kind(&self, kind: ObjectKind) -> Self {
        Self {
            namespace: self.namespace.clone(),
            kind,
            name: self.name.clone(),
        }
    }
}

fn namespace_token(namespace: Option<&str>) -> &str {
    namespace.unwrap_or(NO_NAMESPACE)
}

/// `route.resource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Exactly `node`, the resource of a keepalive.
    Keepalive,
    Object(ObjectKey),
    /// `<ns>/<kind>` of a known kind, without a name (legacy lists).
    Collection {
        namespace: Option<String>,
        kind: ObjectKind,
    },
    /// `k8s/ca.crt`.
    KubernetesCa,
    /// `membership`, `membership/detail`, `twin`, `device/<ns>/<name>/…`: kept as text until the device issue.
    Device(String),
    /// `ignore/Application/ignore`, `watchapp/sync`, `null`.
    Application(String),
    /// `operations.kubeedge.io/…` and `<type>/<id>/node/<node>` of jobs.
    Task(String),
    /// Absent, a topic, a URL, or something this version does not know.
    Other(String),
}

impl Resource {
    /// Reads a resource; never fails, and [`Resource::to_string`] gives the same text back.
    ///
    /// A topic or a URL of user traffic may look like an object: the group says what it is, so look there first.
    pub fn parse(text: &str) -> Self {
        match text {
            "node" => return Self::Keepalive,
            "k8s/ca.crt" => return Self::KubernetesCa,
            "membership" | "membership/detail" | "twin" => return Self::Device(text.to_owned()),
            "null" | "watchapp/sync" | "ignore/Application/ignore" => {
                return Self::Application(text.to_owned());
            }
            _other_text => {}
        }
        if text.starts_with("operations.kubeedge.io/") {
            return Self::Task(text.to_owned());
        }
        if let Some(key) = ObjectKey::parse(text) {
            return Self::Object(key);
        }
        let tokens: Vec<&str> = text.splitn(5, '/').collect();
        match tokens.as_slice() {
            ["device", _namespace, _name, _what, ..] => Self::Device(text.to_owned()),
            [_kind, _id, "node", node] if !node.is_empty() => Self::Task(text.to_owned()),
            [namespace, kind] if !namespace.is_empty() => match ObjectKind::parse(kind) {
                ObjectKind::Other(_) => Self::Other(text.to_owned()),
                kind => Self::Collection {
                    namespace: (*namespace != NO_NAMESPACE).then(|| (*namespace).into()),
                    kind,
                },
            },
            _other_shape => Self::Other(text.to_owned()),
        }
    }

    /// The key, when the resource names one object.
    pub fn object(&self) -> Option<&ObjectKey> {
        if let Self::Object(key) = self {
            Some(key)
        } else {
            None
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keepalive => f.write_str("node"),
            Self::Object(key) => key.fmt(f),
            Self::Collection { namespace, kind } => {
                write!(f, "{}/{kind}", namespace_token(namespace.as_deref()))
            }
            Self::KubernetesCa => f.write_str("k8s/ca.crt"),
            Self::Device(text) | Self::Application(text) | Self::Task(text) | Self::Other(text) => {
                f.write_str(text)
            }
        }
    }
}

/// The parsed route. `Route::parse(&raw).print() == raw` always holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub source: Source,
    pub group: Group,
    pub operation: Operation,
    pub resource: Resource,
    /// Unused on the wire; kept.
    pub destination: String,
}

impl Route {
    /// A route without a destination, as every official peer writes it.
    pub fn new(source: Source, group: Group, operation: Operation, resource: Resource) -> Self {
        Self {
            source,
            group,
            operation,
            resource,
            destination: String::new(),
        }
    }

    /// How an edge asks about one object: source `edged`, group `meta`.
    pub fn from_edged(operation: Operation, key: ObjectKey) -> Self {
        Self::new(Source::Edged, Group::Meta, operation, Resource::Object(key))
    }

    /// How the cloud speaks about objects, both in changes and in answers: source `edgecontroller`, group `resource`.
    pub fn from_edge_controller(operation: Operation, resource: Resource) -> Self {
        Self::new(Source::EdgeController, Group::Resource, operation, resource)
    }

    /// The route of an acknowledgement: everything copied, operation `response`.
    pub fn acknowledged(mut self) -> Self {
        self.operation = Operation::Response;
        self
    }

    /// Reads a route; never fails.
    pub fn parse(raw: &RawRoute) -> Self {
        Self {
            source: Source::parse(&raw.source),
            group: Group::parse(&raw.group),
            operation: Operation::parse(&raw.operation),
            resource: Resource::parse(&raw.resource),
            destination: raw.destination.clone(),
        }
    }

    /// The four strings and the destination.
    pub fn print(&self) -> RawRoute {
        RawRoute {
            source: self.source.as_str().to_owned(),
            destination: self.destination.clone(),
            group: self.group.as_str().to_owned(),
            operation: self.operation.as_str().to_owned(),
            resource: self.resource.to_string(),
        }
    }
}

impl fmt::Display for Route {
    /// For logs: `edged/meta patch default/podpatch/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} {} {}",
            self.source, self.group, self.operation, self.resource
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(texts: &[&str], expect: Expect) {
        let lines: Vec<String> = texts
            .iter()
            .map(|text| {
                let resource = Resource::parse(text);
                assert_eq!(resource.to_string(), *text);
                let debug = format!("{resource:?}");
                format!("{text:?} is {debug}\n")
            })
            .collect();
        expect.assert_eq(&lines.concat());
    }

    #[test]
    fn resources_are_told_apart_by_shape_and_not_by_substring() {
        check(
            &[
                "node",
                "null/node/edge-1",
                "default/pod/membership-x",
                "membership/pod/twin",
                "device/configmap/x",
                "device/default/thermo/twin/edge_updated",
                "default/podstatus",
                "null/Pod",
                "task/7/node/edge-1",
                "operations.kubeedge.io/v1alpha2/nodeupgradejob/up/node/edge-1",
                "",
                "/",
                "//",
                "a/b/c/d/e",
                "default/pod/",
            ],
            expect![[r#"
                "node" is Keepalive
                "null/node/edge-1" is Object(ObjectKey { namespace: None, kind: Node, name: "edge-1" })
                "default/pod/membership-x" is Object(ObjectKey { namespace: Some("default"), kind: Pod, name: "membership-x" })
                "membership/pod/twin" is Object(ObjectKey { namespace: Some("membership"), kind: Pod, name: "twin" })
                "device/configmap/x" is Object(ObjectKey { namespace: Some("device"), kind: ConfigMap, name: "x" })
                "device/default/thermo/twin/edge_updated" is Device("device/default/thermo/twin/edge_updated")
                "default/podstatus" is Collection { namespace: Some("default"), kind: PodStatus }
                "null/Pod" is Other("null/Pod")
                "task/7/node/edge-1" is Task("task/7/node/edge-1")
                "operations.kubeedge.io/v1alpha2/nodeupgradejob/up/node/edge-1" is Task("operations.kubeedge.io/v1alpha2/nodeupgradejob/up/node/edge-1")
                "" is Other("")
                "/" is Other("/")
                "//" is Other("//")
                "a/b/c/d/e" is Other("a/b/c/d/e")
                "default/pod/" is Other("default/pod/")
            "#]],
        );
    }

    /// Words of the grammar mixed with noise, so that the interesting shapes come up often.
    fn resource_text() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            prop::sample::select(vec![
                "node",
                "null",
                "device",
                "membership",
                "detail",
                "twin",
                "k8s",
                "ca.crt",
                "watchapp",
                "sync",
                "ignore",
                "Application",
                "operations.kubeedge.io",
                "pod",
                "secret",
                "volume",
                "default",
                "",
            ])
            .prop_map(str::to_owned),
            "[a-zA-Z0-9.+-]{0,8}",
            ".{0,4}",
        ];
        prop::collection::vec(token, 0..6).prop_map(|tokens| tokens.join("/"))
    }

    fn raw_route() -> impl Strategy<Value = RawRoute> {
        let source = prop_oneof![
            prop::sample::select(Source::KNOWN).prop_map(|w| w.to_string()),
            ".{0,12}"
        ];
        let group = prop_oneof![
            prop::sample::select(Group::KNOWN).prop_map(|w| w.to_string()),
            ".{0,12}"
        ];
        let operation = prop_oneof![
            prop::sample::select(Operation::KNOWN).prop_map(|w| w.to_string()),
            ".{0,12}"
        ];
        (source, ".{0,3}", group, operation, resource_text()).prop_map(
            |(source, destination, group, operation, resource)| RawRoute {
                source,
                destination,
                group,
                operation,
                resource,
            },
        )
    }

    proptest! {
        #[test]
        fn printing_a_parsed_route_gives_the_same_text(raw in raw_route()) {
            prop_assert_eq!(Route::parse(&raw).print(), raw);
        }

        #[test]
        fn parsing_a_printed_route_gives_the_same_route(raw in raw_route()) {
            let route = Route::parse(&raw);
            prop_assert_eq!(Route::parse(&route.print()), route);
        }
    }

    #[test]
    fn every_known_word_reads_back_as_itself() {
        for word in Source::KNOWN {
            assert_eq!(&Source::parse(word.as_str()), word);
        }
        for word in Group::KNOWN {
            assert_eq!(&Group::parse(word.as_str()), word);
        }
        for word in Operation::KNOWN {
            assert_eq!(&Operation::parse(word.as_str()), word);
        }
        for word in ObjectKind::KNOWN {
            assert_eq!(&ObjectKind::parse(word.as_str()), word);
        }
    }
}
