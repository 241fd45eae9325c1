//! ObjectSync and ClusterObjectSync: the records by which official clouds remember what a node holds.
//!
//! An object of this kind is named `<node>.<uid>` and stands in the namespace of what it records; its status is the
//! version that the node acknowledged last. Read when an official edge comes to us, so that what was deleted meanwhile is
//! deleted there too; written when an official cloud may take over again.

use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind, PlacedKind, ResourceVersion, Uid};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

const GROUP: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1";
const API_VERSION: &str = "reliablesyncs.kubeedge.io/v1alpha1";
/// What a record says before the first acknowledgement.
const NEVER: &str = "0";

/// The two kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Records {
    Namespaced,
    Cluster,
}

impl Records {
    pub const ALL: [Self; 2] = [Self::Namespaced, Self::Cluster];

    /// The collection over all namespaces.
    pub fn path(self) -> String {
        format!("{GROUP}/{}", self.plural())
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Namespaced => "objectsyncs",
            Self::Cluster => "clusterobjectsyncs",
        }
    }

    pub fn kind(self) -> &'static str {
        match self {
            Self::Namespaced => "ObjectSync",
            Self::Cluster => "ClusterObjectSync",
        }
    }

    pub fn api_version(self) -> &'static str {
        API_VERSION
    }
}

/// One record, addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    node: NodeName,
    key: ObjectKey,
    uid: Uid,
}

impl Record {
    /// `None` for kinds that official clouds do not record.
    pub fn new(node: &NodeName, key: &ObjectKey, uid: &Uid) -> Option<Self> {
        key.kind.placed()?;
        Some(Self {
            node: node.clone(),
            key: key.clone(),
            uid: uid.clone(),
        })
    }

    /// The collection in which it is created.
    pub fn collection(&self) -> String {
        match &self.key.namespace {
            Some(namespace) => format!("{GROUP}/namespaces/{namespace}/objectsyncs"),
            None => format!("{GROUP}/clusterobjectsyncs"),
        }
    }

    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name())
    }

    pub fn status_path(&self) -> String {
        format!("{}/status", self.path())
    }

    fn name(&self) -> String {
        format!("{}.{}", self.node, self.uid).to_lowercase()
    }

    /// The object as it is created; its status is written after.
    pub fn to_create(&self) -> Body {
        let kind = match &self.key.namespace {
            Some(_) => Records::Namespaced.kind(),
            None => Records::Cluster.kind(),
        };
        let mut metadata = json!({"name": self.name()});
        if let Some(namespace) = &self.key.namespace {
            metadata["namespace"] = namespace.as_str().into();
        }
        let object = json!({
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": metadata,
            "spec": {
                "objectAPIVersion": "v1",
                "objectKind": self.key.kind.placed().map(PlacedKind::kubernetes),
                "objectName": self.key.name,
            },
        });
        Body::from_value(&object).expect("maps with text keys are JSON")
    }

    /// A merge patch of the status.
    pub fn status_patch(version: &ResourceVersion) -> String {
        json!({"status": {"objectResourceVersion": version.as_str()}}).to_string()
    }
}

/// What must be done for the record of one acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The record says so already.
    Nothing,
    /// The record is there, as far as is known.
    Patch,
    /// There is none, as far as is known.
    Create,
    Delete,
}

/// Every record that the API has, by node. An entry costs about the length of its names and 100 bytes: there is one for
/// each object of each official edge.
#[derive(Debug, Default)]
pub struct Held {
    nodes: HashMap<NodeName, BTreeMap<Box<str>, Entry>>,
    entries: usize,
}

#[derive(Debug)]
struct Entry {
    /// `<namespace>/<kind>/<name>`, as keys are printed.
    key: Box<str>,
    version: Box<str>,
}

impl Held {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// A record exists. Records of other kinds than those that we place (devices and the like) are left out.
    pub fn handle_applied(&mut self, record: &Body) -> Result<(), serde_json::Error> {
        let record: RecordView = record.parse()?;
        let Some((node, uid, key)) = record.read() else {
            return Ok(());
        };
        let entry = Entry {
            key: key.to_string().into(),
            version: record.status.object_resource_version.as_str().into(),
        };
        let entries = self.nodes.entry(node).or_default();
        if entries.insert(uid.into(), entry).is_none() {
            self.entries += 1;
        }
        Ok(())
    }

    /// A record is gone.
    pub fn handle_deleted(&mut self, record: &Body) -> Result<(), serde_json::Error> {
        let name = record.object_meta()?.name;
        let Some((node, uid)) = split(&name) else {
            return Ok(());
        };
        if let Some(entries) = self.nodes.get_mut(&node) {
            if entries.remove(uid).is_some() {
                self.entries -= 1;
            }
            if entries.is_empty() {
                self.nodes.remove(&node);
            }
        }
        Ok(())
    }

    /// What the records say that a node holds.
    pub fn of(&self, node: &NodeName) -> Vec<(ObjectKey, Uid, ResourceVersion)> {
        let entries = self.entries_of(node).into_iter().flatten();
        entries
            .filter_map(|(uid, entry)| {
                let version = if entry.version.is_empty() {
                    NEVER
                } else {
                    &entry.version
                };
                Some((
                    ObjectKey::parse(&entry.key)?,
                    Uid::new(&**uid),
                    ResourceVersion::new(version),
                ))
            })
            .collect()
    }

    /// The nodes that have records.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// What an acknowledgement asks for; `version` is `None` when the node holds it no more.
    pub fn plan(&self, node: &NodeName, uid: &Uid, version: Option<&ResourceVersion>) -> Plan {
        let uid = uid.as_str().to_lowercase();
        let entry = self
            .entries_of(node)
            .and_then(|entries| entries.get(uid.as_str()));
        match (entry, version) {
            (Some(entry), Some(version)) if *entry.version == *version.as_str() => Plan::Nothing,
            (Some(_), Some(_)) => Plan::Patch,
            (None, Some(_)) => Plan::Create,
            // Deleted also when it is not known: the watch may not have told of it yet.
            (Some(_) | None, None) => Plan::Delete,
        }
    }

    /// Earlier objects under the key of a new one, whose end the node acknowledged when nobody wrote it down.
    pub fn replaced(&self, node: &NodeName, key: &ObjectKey, uid: &Uid) -> Vec<Uid> {
        let (key, uid) = (key.to_string(), uid.as_str().to_lowercase());
        let entries = self.entries_of(node).into_iter().flatten();
        let replaced = entries.filter(|(recorded, entry)| *entry.key == *key && ***recorded != *uid);
        replaced.map(|(recorded, _)| Uid::new(&**recorded)).collect()
    }

    fn entries_of(&self, node: &NodeName) -> Option<&BTreeMap<Box<str>, Entry>> {
        // Records are named in lower case, as nodes are; an official node's name has no upper case either.
        self.nodes.get(node)
    }
}

/// `<node>.<uid>`; the name of a node may have dots, a uid has none.
fn split(name: &str) -> Option<(NodeName, &str)> {
    let (node, uid) = name.rsplit_once('.')?;
    (!uid.is_empty()).then_some(())?;
    Some((NodeName::new(node).ok()?, uid))
}

#[derive(Deserialize)]
struct RecordView {
    metadata: RecordMetadata,
    #[serde(default)]
    spec: RecordSpec,
    #[serde(default)]
    status: RecordStatus,
}

#[derive(Deserialize)]
struct RecordMetadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RecordSpec {
    object_kind: String,
    object_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RecordStatus {
    object_resource_version: String,
}

impl RecordView {
    fn read(&self) -> Option<(NodeName, &str, ObjectKey)> {
        let (node, uid) = split(&self.metadata.name)?;
        // The kind is written as Go names it; its wire token is the same word in lower case.
        let kind = ObjectKind::parse(&self.spec.object_kind.to_lowercase());
        kind.placed()?;
        let namespace = self.metadata.namespace.as_deref().filter(|name| !name.is_empty());
        let key = match namespace {
            Some(namespace) => ObjectKey::namespaced(kind, namespace, &self.spec.object_name),
            None => ObjectKey::cluster(kind, &self.spec.object_name),
        };
        Some((node, uid, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn record(namespace: Option<&str>, name: &str, kind: &str, object: &str, version: &str) -> Body {
        let json = json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"objectAPIVersion": "v1", "objectKind": kind, "objectName": object},
            "status": {"objectResourceVersion": version},
        });
        Body::from_value(&json).unwrap()
    }

    #[test]
    fn records_are_read_by_node() {
        let mut held = Held::new();
        for record in [
            record(Some("default"), "edge.local.u-1", "Pod", "web", "48211"),
            record(Some("default"), "edge.local.u-2", "ConfigMap", "app", ""),
            record(None, "edge.local.u-3", "Node", "edge.local", "not a number"),
            record(Some("default"), "edge-2.u-1", "Secret", "s", "7"),
            record(Some("default"), "edge-2.u-9", "Device", "d", "7"),
            record(Some("default"), "nodot", "Pod", "web", "7"),
        ] {
            held.handle_applied(&record).unwrap();
        }
        let node = NodeName::new("edge.local").unwrap();
        let show = |held: &Held| {
            let lines = held.of(&node).into_iter();
            let lines: Vec<String> = lines
                .map(|(key, uid, version)| format!("{key} {uid}@{version}"))
                .collect();
            format!("{} records\n{}", held.len(), lines.join("\n"))
        };
        expect![[r#"
            4 records
            default/pod/web u-1@48211
            default/configmap/app u-2@0
            null/node/edge.local u-3@not a number"#]]
        .assert_eq(&show(&held));
        let gone = record(Some("default"), "edge.local.u-1", "Pod", "web", "48211");
        held.handle_deleted(&gone).unwrap();
        held.handle_deleted(&gone).unwrap();
        expect![[r#"
            3 records
            default/configmap/app u-2@0
            null/node/edge.local u-3@not a number"#]]
        .assert_eq(&show(&held));
    }

    #[test]
    fn an_acknowledgement_is_written_only_when_the_record_says_something_else() {
        let mut held = Held::new();
        held.handle_applied(&record(Some("default"), "edge-1.u-1", "Pod", "web", "5"))
            .unwrap();
        let node = NodeName::new("edge-1").unwrap();
        let plan = |uid: &str, version: Option<&str>| {
            let version = version.map(ResourceVersion::new);
            format!("{:?} ", held.plan(&node, &Uid::new(uid), version.as_ref()))
        };
        let told = [
            plan("u-1", Some("5")),
            plan("U-1", Some("5")),
            plan("u-1", Some("6")),
            plan("u-2", Some("6")),
            plan("u-1", None),
            plan("u-2", None),
        ];
        expect!["Nothing Nothing Patch Create Delete Delete "].assert_eq(&told.concat());
        let web = ObjectKey::namespaced(ObjectKind::Pod, "default", "web");
        assert_eq!(held.replaced(&node, &web, &Uid::new("u-2")), [Uid::new("u-1")]);
        assert!(held.replaced(&node, &web, &Uid::new("U-1")).is_empty());
    }

    #[test]
    fn an_official_cloud_finds_what_it_expects() {
        let node = NodeName::new("edge-1").unwrap();
        let pod = ObjectKey::namespaced(ObjectKind::Pod, "default", "web");
        let pod = Record::new(&node, &pod, &Uid::new("0F0C")).unwrap();
        let itself = Record::new(
            &node,
            &ObjectKey::cluster(ObjectKind::Node, "edge-1"),
            &Uid::new("1a"),
        )
        .unwrap();
        let show = |record: &Record| format!("{}\n{}\n", record.status_path(), record.to_create().json());
        expect![[r#"
            /apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs/edge-1.0f0c/status
            {"apiVersion":"reliablesyncs.kubeedge.io/v1alpha1","kind":"ObjectSync","metadata":{"name":"edge-1.0f0c","namespace":"default"},"spec":{"objectAPIVersion":"v1","objectKind":"Pod","objectName":"web"}}
            /apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs/edge-1.1a/status
            {"apiVersion":"reliablesyncs.kubeedge.io/v1alpha1","kind":"ClusterObjectSync","metadata":{"name":"edge-1.1a"},"spec":{"objectAPIVersion":"v1","objectKind":"Node","objectName":"edge-1"}}
            {"status":{"objectResourceVersion":"7"}}"#]]
        .assert_eq(&format!(
            "{}{}{}",
            show(&pod),
            show(&itself),
            Record::status_patch(&ResourceVersion::new("7"))
        ));
        let token = ObjectKey::namespaced(ObjectKind::ServiceAccountToken, "default", "x");
        assert!(Record::new(&node, &token, &Uid::new("u")).is_none());
    }
}
