//! The index.
//!
//! ```text
//!   watch of pods ----------+                    by pod: node, uid, references
//!   watch of config maps ---+--> Placement --->  by node: its pods, and how many of them need each object
//!   watch of secrets -------+        |
//!   watch of nodes ---------+        +-------->  changes, each for one node
//! ```
//!
//! A change is told once for each time something an edge acts upon differs: metadata (but not its bookkeeping) or
//! anything besides `status`. The newest body is kept all the same, so that [`Placement::desired`] is current.

use crate::object::{Prepared, prepare};
use crate::references::{PodSpec, References};
use kedge_wire::{Body, NodeName, Object, ObjectKey, ObjectKind};
use std::collections::{BTreeMap, BTreeSet};

/// The label that makes a node an edge node.
pub const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

/// One change of one node's desired set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub node: NodeName,
    pub key: ObjectKey,
    /// `None`: the node must not hold the key any more.
    pub object: Option<Object>,
}

/// What a watch saw, as original JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Applied(Body),
    Deleted(Body),
}

impl Seen {
    fn body(&self) -> &Body {
        match self {
            Self::Applied(body) | Self::Deleted(body) => body,
        }
    }
}

/// The index of everything that edges may hold.
#[derive(Debug, Default)]
pub struct Placement {
    pods: BTreeMap<ObjectKey, Pod>,
    /// Config maps and secrets.
    shared: BTreeMap<ObjectKey, Stored>,
    nodes: BTreeMap<NodeName, Node>,
}

#[derive(Debug)]
struct Pod {
    stored: Stored,
    node: Option<NodeName>,
    references: References,
}

#[derive(Debug)]
struct Stored {
    object: Object,
    fingerprint: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// The node object, when it carries the edge label.
    itself: Option<Stored>,
    pods: BTreeSet<ObjectKey>,
    /// How many of the node's pods need each config map or secret.
    needs: BTreeMap<ObjectKey, usize>,
    reads: BTreeMap<ObjectKey, usize>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.itself.is_none() && self.pods.is_empty()
    }

    fn drop_reads(&mut self, references: &References) {
        for key in &references.reads {
            release(&mut self.reads, key);
        }
    }
}

impl Placement {
    pub fn new() -> Self {
        Self::default()
    }

    /// A pod was applied or deleted. Returns the changes for nodes, in the order they must be told.
    pub fn handle_pod(&mut self, seen: Seen) -> Result<Vec<Change>, BadObject> {
        let prepared = prepare("Pod", seen.body())?;
        let key = namespaced(ObjectKind::Pod, "Pod", &prepared)?;
        let mut changes = Vec::new();
        match seen {
            Seen::Deleted(_) => {
                // The end of an earlier pod of this name says nothing about the present one.
                if self
                    .pods
                    .get(&key)
                    .is_some_and(|pod| pod.stored.object.uid == prepared.object.uid)
                {
                    self.withdraw(&key, &mut changes);
                    self.release_unneeded(&mut changes);
                }
            }
            Seen::Applied(_) => {
                let pod = read_pod(&key, prepared)?;
                self.apply_pod(key, pod, &mut changes);
            }
        }
        Ok(changes)
    }

    pub fn handle_config_map(&mut self, seen: Seen) -> Result<Vec<Change>, BadObject> {
        self.handle_shared(ObjectKind::ConfigMap, "ConfigMap", &seen)
    }

    pub fn handle_secret(&mut self, seen: Seen) -> Result<Vec<Change>, BadObject> {
        self.handle_shared(ObjectKind::Secret, "Secret", &seen)
    }

    /// Only nodes with the label [`EDGE_LABEL`] are sent to themselves.
    pub fn handle_node(&mut self, seen: Seen) -> Result<Vec<Change>, BadObject> {
        let prepared = prepare("Node", seen.body())?;
        let node = node_name("Node", &prepared.name)?;
        let key = ObjectKey::cluster(ObjectKind::Node, node.as_str());
        let applied = matches!(seen, Seen::Applied(_)) && has_edge_label(&prepared);
        let stored = applied.then_some(Stored {
            object: prepared.object,
            fingerprint: prepared.fingerprint,
        });
        let entry = self.nodes.entry(node.clone()).or_default();
        let before = std::mem::replace(&mut entry.itself, stored);
        let told = match (&before, &entry.itself) {
            (None, None) => false,
            (Some(before), Some(after)) => !before.same_for_edges(after),
            (Some(_), None) | (None, Some(_)) => true,
        };
        let object = entry.itself.as_ref().map(|stored| stored.object.clone());
        self.forget_node_if_empty(&node);
        Ok(if told {
            vec![Change { node, key, object }]
        } else {
            Vec::new()
        })
    }

    /// Everything that `node` must hold now: the node itself, config maps and secrets, then pods.
    pub fn desired(&self, node: &NodeName) -> Vec<(ObjectKey, Object)> {
        let Some(entry) = self.nodes.get(node) else {
            return Vec::new();
        };
        let key = ObjectKey::cluster(ObjectKind::Node, node.as_str());
        let itself = entry
            .itself
            .iter()
            .map(|stored| (key.clone(), stored.object.clone()));
        let shared = entry
            .needs
            .keys()
            .filter_map(|key| Some((key.clone(), self.shared.get(key)?.object.clone())));
        let pods = entry
            .pods
            .iter()
            .filter_map(|key| Some((key.clone(), self.pods.get(key)?.stored.object.clone())));
        itself.chain(shared).chain(pods).collect()
    }

    /// Whether `node` may act on this key: node authorization. Its own node object and lease; pods placed on it (also
    /// under the tokens `podpatch` and `podstatus`); config maps, secrets, claims and service account tokens that its
    /// pods use; volumes and attachments when one of its pods uses a claim.
    pub fn may_read(&self, node: &NodeName, key: &ObjectKey) -> bool {
        let entry = self.nodes.get(node);
        let has_pod = |key: &ObjectKey| entry.is_some_and(|entry| entry.pods.contains(key));
        match key.kind {
            ObjectKind::Node | ObjectKind::NodePatch | ObjectKind::NodeStatus => {
                key.namespace.is_none() && key.name == node.as_str()
            }
            ObjectKind::Lease => *key == ObjectKey::lease(node),
            ObjectKind::Pod | ObjectKind::PodPatch | ObjectKind::PodStatus => {
                has_pod(&key.with_kind(ObjectKind::Pod))
            }
            ObjectKind::ConfigMap | ObjectKind::Secret => {
                entry.is_some_and(|entry| entry.needs.contains_key(key))
            }
            ObjectKind::ServiceAccountToken | ObjectKind::PersistentVolumeClaim => {
                entry.is_some_and(|entry| entry.reads.contains_key(key))
            }
            ObjectKind::PersistentVolume | ObjectKind::VolumeAttachment => entry.is_some_and(|entry| {
                entry
                    .reads
                    .keys()
                    .any(|read| read.kind == ObjectKind::PersistentVolumeClaim)
            }),
            ObjectKind::Event
            | ObjectKind::CertificateSigningRequest
            | ObjectKind::ServiceAccountAccess
            | ObjectKind::Device
            | ObjectKind::DeviceModel
            | ObjectKind::Volume
            | ObjectKind::Other(_) => false,
        }
    }

    fn handle_shared(
        &mut self,
        kind: ObjectKind,
        name: &'static str,
        seen: &Seen,
    ) -> Result<Vec<Change>, BadObject> {
        let prepared = prepare(name, seen.body())?;
        let key = namespaced(kind, name, &prepared)?;
        let stored = Stored {
            object: prepared.object,
            fingerprint: prepared.fingerprint,
        };
        let object = match seen {
            Seen::Deleted(_) => {
                if self
                    .shared
                    .get(&key)
                    .is_none_or(|before| before.object.uid != stored.object.uid)
                {
                    return Ok(Vec::new());
                }
                self.shared.remove(&key);
                None
            }
            Seen::Applied(_) => {
                let object = stored.object.clone();
                let unchanged = self
                    .shared
                    .get(&key)
                    .is_some_and(|before| before.same_for_edges(&stored));
                self.shared.insert(key.clone(), stored);
                if unchanged {
                    return Ok(Vec::new());
                }
                Some(object)
            }
        };
        let needing = self
            .nodes
            .iter()
            .filter(|(_, entry)| entry.needs.contains_key(&key));
        Ok(needing
            .map(|(node, _)| Change {
                node: node.clone(),
                key: key.clone(),
                object: object.clone(),
            })
            .collect())
    }

    fn apply_pod(&mut self, key: ObjectKey, pod: Pod, changes: &mut Vec<Change>) {
        if let Some(before) = self.pods.get_mut(&key) {
            let same = before.node == pod.node && before.stored.same_for_edges(&pod.stored);
            if same {
                before.stored = pod.stored;
                return;
            }
            if before.node != pod.node || before.stored.object.uid != pod.stored.object.uid {
                self.withdraw(&key, changes);
            }
        }
        self.place(key, pod, changes);
        self.release_unneeded(changes);
    }

    /// Takes a pod from its node. What it needed stays until [`Placement::release_unneeded`], because the pod that
    /// comes next may need it too.
    fn withdraw(&mut self, key: &ObjectKey, changes: &mut Vec<Change>) {
        let Some(pod) = self.pods.remove(key) else { return };
        let Some(node) = pod.node else { return };
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.pods.remove(key);
            entry.drop_reads(&pod.references);
            for need in &pod.references.needs {
                if let Some(count) = entry.needs.get_mut(need) {
                    *count -= 1;
                }
            }
        }
        changes.push(Change {
            node,
            key: key.clone(),
            object: None,
        });
    }

    /// Puts a pod, new or changed, onto its node: first what it needs, then the pod.
    fn place(&mut self, key: ObjectKey, pod: Pod, changes: &mut Vec<Change>) {
        if let Some(node) = &pod.node {
            let entry = self.nodes.entry(node.clone()).or_default();
            for need in &pod.references.needs {
                // An entry with count 0 is one that the node still holds from the pod before.
                let fresh = !entry.needs.contains_key(need);
                *entry.needs.entry(need.clone()).or_insert(0) += 1;
                if let Some(stored) = self.shared.get(need).filter(|_| fresh) {
                    let object = Some(stored.object.clone());
                    changes.push(Change {
                        node: node.clone(),
                        key: need.clone(),
                        object,
                    });
                }
            }
            for read in &pod.references.reads {
                *entry.reads.entry(read.clone()).or_insert(0) += 1;
            }
            entry.pods.insert(key.clone());
            let object = Some(pod.stored.object.clone());
            changes.push(Change {
                node: node.clone(),
                key: key.clone(),
                object,
            });
        }
        // The references of the version before count no more.
        if let Some(before) = self.pods.insert(key, pod)
            && let Some(entry) = before.node.as_ref().and_then(|node| self.nodes.get_mut(node))
        {
            entry.drop_reads(&before.references);
            for need in &before.references.needs {
                if let Some(count) = entry.needs.get_mut(need) {
                    *count -= 1;
                }
            }
        }
    }

    /// Tells nodes to drop what no pod of theirs needs any more.
    fn release_unneeded(&mut self, changes: &mut Vec<Change>) {
        let touched: BTreeSet<NodeName> = changes.iter().map(|change| change.node.clone()).collect();
        for node in touched {
            let Some(entry) = self.nodes.get_mut(&node) else {
                continue;
            };
            let unneeded = entry.needs.iter().filter(|(_, count)| **count == 0);
            let unneeded: Vec<ObjectKey> = unneeded.map(|(key, _)| key.clone()).collect();
            for key in unneeded {
                entry.needs.remove(&key);
                if self.shared.contains_key(&key) {
                    changes.push(Change {
                        node: node.clone(),
                        key,
                        object: None,
                    });
                }
            }
            self.forget_node_if_empty(&node);
        }
    }

    fn forget_node_if_empty(&mut self, node: &NodeName) {
        if self.nodes.get(node).is_some_and(Node::is_empty) {
            self.nodes.remove(node);
        }
    }
}

impl Stored {
    fn same_for_edges(&self, other: &Self) -> bool {
        self.object.uid == other.object.uid && self.fingerprint == other.fingerprint
    }
}

fn release(counts: &mut BTreeMap<ObjectKey, usize>, key: &ObjectKey) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn read_pod(key: &ObjectKey, prepared: Prepared<'_>) -> Result<Pod, BadObject> {
    let bad = |reason: String| BadObject { kind: "Pod", reason };
    let spec = prepared.spec.map_or("{}", |spec| spec.get());
    let spec: PodSpec =
        serde_json::from_str(spec).map_err(|problem| bad(format!("{key}: spec: {problem}")))?;
    let node = spec.node_name.as_deref().filter(|name| !name.is_empty());
    Ok(Pod {
        node: node.map(|name| node_name("Pod", name)).transpose()?,
        references: spec.references(key.namespace.as_deref().unwrap_or_default()),
        stored: Stored {
            object: prepared.object,
            fingerprint: prepared.fingerprint,
        },
    })
}

fn namespaced(kind: ObjectKind, name: &'static str, prepared: &Prepared<'_>) -> Result<ObjectKey, BadObject> {
    match &prepared.namespace {
        Some(namespace) => Ok(ObjectKey::namespaced(kind, namespace, &prepared.name)),
        None => Err(BadObject {
            kind: name,
            reason: "metadata.namespace is missing".into(),
        }),
    }
}

fn node_name(kind: &'static str, name: &str) -> Result<NodeName, BadObject> {
    NodeName::new(name).map_err(|problem| BadObject {
        kind,
        reason: problem.to_string(),
    })
}

fn has_edge_label(prepared: &Prepared<'_>) -> bool {
    let labels = prepared.metadata.get("labels");
    let labels =
        labels.and_then(|labels| serde_json::from_str::<BTreeMap<String, String>>(labels.get()).ok());
    labels.is_some_and(|labels| labels.contains_key(EDGE_LABEL))
}

/// An object that a watch should never have sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} from the watch cannot be used: {reason}")]
pub struct BadObject {
    pub kind: &'static str,
    pub reason: String,
}
