//! The index.
//!
//! ```text
//!   watch of pods ----------+                    by pod: node, uid, references
//!   watch of config maps ---+--> Placement --->  by node: its pods, and how many of them need each object
//!   watch of secrets -------+        |           by config map and secret: the nodes that need it
//!   watch of nodes ---------+        +-------->  changes, each for one node
//! ```
//!
//! A change is told once for each time something an edge acts upon differs: metadata (but not its bookkeeping), anything
//! besides `status`, and conditions in `status` that say something else than the edge does. Otherwise the version that was
//! told stays: it is the one that sessions hold too, so that a body is in memory once, and an edge that comes back with
//! it is in sync.
//!
//! **Cost.** What one event costs depends on the object and on the nodes that hold it, never on how many nodes, pods
//! or config maps there are. Keys are shared between all who name them; what an object costs besides its body is
//! written down in the tests.

use crate::conditions::Conditions;
use crate::object::{Prepared, gone, prepare};
use crate::references::PodSpec;
use kedge_wire::{Body, NodeName, Object, ObjectKey, ObjectKind, Uid};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

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

/// What must be known about a request before it can be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// What the node has to do with this key.
    Key(ObjectKey),
    /// As `Key`, of a report: the node says these conditions itself, so they are no news to it.
    Report { key: ObjectKey, conditions: Conditions },
    /// Whether a pod of this uid that runs as this service account is placed on the node.
    Token {
        account: String,
        pod: ObjectKey,
        uid: Uid,
    },
}

/// What the index knows about a node and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Node authorization: see [`Placement::standing`].
    pub allowed: bool,
    /// Of the pod or node that the question names, when it is this node's.
    pub uid: Option<Uid>,
    /// The Node object of the asking node, for those who compare names and addresses with it.
    pub node: Option<Body>,
}

/// How much the index holds, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    pub pods: usize,
    /// Config maps and secrets.
    pub shared: usize,
    /// Nodes with the edge label, or with pods.
    pub nodes: usize,
}

/// A key, shared by all who name the object.
type Key = Arc<ObjectKey>;

/// The index of everything that edges may hold.
#[derive(Debug, Default)]
pub struct Placement {
    pods: HashMap<Key, Pod>,
    /// Config maps and secrets.
    shared: HashMap<Key, Stored>,
    /// The nodes whose pods need a config map or secret, whether it exists or not.
    users: HashMap<Key, BTreeSet<NodeName>>,
    nodes: HashMap<NodeName, Node>,
}

#[derive(Debug)]
struct Pod {
    stored: Stored,
    /// As its node knows them.
    conditions: Conditions,
    node: Option<NodeName>,
    /// The service account that it runs as.
    account: Box<str>,
    /// Config maps and secrets, which go to its node.
    needs: Box<[Key]>,
    /// Claims, which its node may ask about.
    claims: Box<[Key]>,
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
    /// Of the node object, as the node knows them.
    conditions: Conditions,
    pods: BTreeSet<Key>,
    /// How many of the node's pods need each config map or secret.
    needs: BTreeMap<Key, u32>,
    claims: BTreeMap<Key, u32>,
}

/// Needs whose last pod has gone, until it is clear that no pod of the same event needs them again.
type Unneeded = Vec<(NodeName, Key)>;

impl Node {
    fn is_empty(&self) -> bool {
        self.itself.is_none() && self.pods.is_empty()
    }

    /// The references of a pod count no more.
    fn drop_references(&mut self, node: &NodeName, pod: &Pod, unneeded: &mut Unneeded) {
        for key in &pod.claims {
            if let Some(count) = self.claims.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.claims.remove(key);
                }
            }
        }
        for key in &pod.needs {
            if let Some(count) = self.needs.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    unneeded.push((node.clone(), Key::clone(key)));
                }
            }
        }
    }
}

impl Placement {
    pub fn new() -> Self {
        Self::default()
    }

    /// A pod was applied or deleted. Returns the changes for nodes, in the order they must be told.
    pub fn handle_pod(&mut self, seen: Seen) -> Result<Vec<Change>, BadObject> {
        let mut changes = Vec::new();
        match seen {
            Seen::Deleted(body) => {
                let gone = gone("Pod", &body)?;
                let key = namespaced(ObjectKind::Pod, "Pod", gone.namespace.as_deref(), &gone.name)?;
                // The end of an earlier pod of this name says nothing about the present one.
                if self
                    .pods
                    .get(&key)
                    .is_some_and(|pod| pod.stored.object.uid == gone.uid)
                {
                    let mut unneeded = Unneeded::new();
                    let left = self.withdraw(&key, &mut changes, &mut unneeded);
                    self.release(unneeded, &mut changes);
                    self.forget_if_empty(left);
                }
            }
            Seen::Applied(body) => {
                let prepared = prepare("Pod", &body)?;
                let namespace = prepared.namespace.as_deref();
                let key = namespaced(ObjectKind::Pod, "Pod", namespace, &prepared.name)?;
                let pod = self.read_pod(&key, prepared)?;
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
        let (node, stored, conditions) = match &seen {
            Seen::Deleted(body) => {
                let gone = gone("Node", body)?;
                let node = node_name("Node", &gone.name)?;
                // The end of an earlier node of this name says nothing about the present one.
                if self.node(&node).is_none_or(|present| present.uid != gone.uid) {
                    return Ok(Vec::new());
                }
                (node, None, Conditions::default())
            }
            Seen::Applied(body) => {
                let prepared = prepare("Node", body)?;
                let stored = has_edge_label(&prepared).then_some(Stored {
                    object: prepared.object,
                    fingerprint: prepared.fingerprint,
                });
                (node_name("Node", &prepared.name)?, stored, prepared.conditions)
            }
        };
        let key = ObjectKey::cluster(ObjectKind::Node, node.as_str());
        let entry = self.nodes.entry(node.clone()).or_default();
        let same = match (&entry.itself, &stored) {
            (None, None) => true,
            (Some(before), Some(after)) => before.same_for_edges(after) && entry.conditions == conditions,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let mut changes = Vec::new();
        if !same {
            let object = stored.as_ref().map(|stored| stored.object.clone());
            (entry.itself, entry.conditions) = (stored, conditions);
            changes.push(Change {
                node: node.clone(),
                key,
                object,
            });
        }
        self.forget_if_empty(Some(node));
        Ok(changes)
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
        let named = |key: &Key, stored: &Stored| (ObjectKey::clone(key), stored.object.clone());
        let shared = entry
            .needs
            .keys()
            .filter_map(|key| Some(named(key, self.shared.get(key)?)));
        let pods = entry
            .pods
            .iter()
            .filter_map(|key| Some(named(key, &self.pods.get(key)?.stored)));
        itself.chain(shared).chain(pods).collect()
    }

    /// What `node` says about itself or about a pod of its own: it need not be told the same by the next watch event.
    pub fn handle_report(&mut self, node: &NodeName, key: &ObjectKey, conditions: &Conditions) {
        if conditions.is_empty() {
            return;
        }
        let known = if key.kind == ObjectKind::NodePatch {
            self.nodes
                .get_mut(node)
                .filter(|_| key.name == node.as_str())
                .map(|entry| &mut entry.conditions)
        } else {
            self.pods
                .get_mut(&key.with_kind(ObjectKind::Pod))
                .filter(|pod| pod.node.as_ref() == Some(node))
                .map(|pod| &mut pod.conditions)
        };
        if let Some(known) = known {
            known.merge(conditions);
        }
    }

    /// What `node` has to do with what it asks for. It is allowed: its own node object and lease; pods placed on it
    /// (also under the tokens `podpatch` and `podstatus`); config maps, secrets and claims that its pods use; tokens for
    /// a pod on it. Volumes and attachments say themselves whose they are, so they are judged after they are read.
    pub fn standing(&self, node: &NodeName, question: &Question) -> Standing {
        match question {
            Question::Key(key) | Question::Report { key, .. } => self.standing_of_key(node, key),
            Question::Token { account, pod, uid } => {
                let pod = self.pods.get(pod).filter(|pod| pod.node.as_ref() == Some(node));
                let uid_placed = pod.map(|pod| pod.stored.object.uid.clone());
                let allowed =
                    pod.is_some_and(|pod| pod.stored.object.uid == *uid && *pod.account == **account);
                Standing {
                    allowed,
                    uid: uid_placed,
                    node: None,
                }
            }
        }
    }

    fn standing_of_key(&self, node: &NodeName, key: &ObjectKey) -> Standing {
        let entry = self.nodes.get(node);
        let itself = entry.and_then(|entry| entry.itself.as_ref());
        let own_name = key.name == node.as_str();
        let allowed = |allowed: bool| Standing {
            allowed,
            ..Standing::default()
        };
        match key.kind {
            ObjectKind::Node | ObjectKind::NodePatch | ObjectKind::NodeStatus => Standing {
                allowed: own_name && key.namespace.is_none(),
                uid: itself
                    .filter(|_| own_name)
                    .map(|stored| stored.object.uid.clone()),
                node: None,
            },
            ObjectKind::Lease => Standing {
                allowed: *key == ObjectKey::lease(node),
                uid: itself.map(|stored| stored.object.uid.clone()),
                node: None,
            },
            ObjectKind::Pod | ObjectKind::PodPatch | ObjectKind::PodStatus => {
                let pod = self.pods.get(&key.with_kind(ObjectKind::Pod));
                let pod = pod.filter(|pod| pod.node.as_ref() == Some(node));
                Standing {
                    allowed: pod.is_some(),
                    uid: pod.map(|pod| pod.stored.object.uid.clone()),
                    node: None,
                }
            }
            ObjectKind::ConfigMap | ObjectKind::Secret => {
                allowed(entry.is_some_and(|entry| entry.needs.contains_key(key)))
            }
            ObjectKind::PersistentVolumeClaim => {
                allowed(entry.is_some_and(|entry| entry.claims.contains_key(key)))
            }
            ObjectKind::CertificateSigningRequest => Standing {
                node: itself.map(|stored| stored.object.body.clone()),
                ..Standing::default()
            },
            ObjectKind::ServiceAccountToken
            | ObjectKind::PersistentVolume
            | ObjectKind::VolumeAttachment
            | ObjectKind::Event
            | ObjectKind::ServiceAccountAccess
            | ObjectKind::Device
            | ObjectKind::DeviceModel
            | ObjectKind::Volume
            | ObjectKind::Other(_) => Standing::default(),
        }
    }

    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            pods: self.pods.len(),
            shared: self.shared.len(),
            nodes: self.nodes.len(),
        }
    }

    /// The Node object of an edge node.
    pub fn node(&self, node: &NodeName) -> Option<&Object> {
        Some(&self.nodes.get(node)?.itself.as_ref()?.object)
    }

    fn handle_shared(
        &mut self,
        kind: ObjectKind,
        name: &'static str,
        seen: &Seen,
    ) -> Result<Vec<Change>, BadObject> {
        let (key, object) = match seen {
            Seen::Deleted(body) => {
                let gone = gone(name, body)?;
                let key = namespaced(kind, name, gone.namespace.as_deref(), &gone.name)?;
                if self
                    .shared
                    .get(&key)
                    .is_none_or(|before| before.object.uid != gone.uid)
                {
                    return Ok(Vec::new());
                }
                self.shared.remove(&key);
                (key, None)
            }
            Seen::Applied(body) => {
                let prepared = prepare(name, body)?;
                let key = namespaced(kind, name, prepared.namespace.as_deref(), &prepared.name)?;
                let stored = Stored {
                    object: prepared.object,
                    fingerprint: prepared.fingerprint,
                };
                let before = self.shared.get(&key);
                if before.is_some_and(|before| before.same_for_edges(&stored)) {
                    return Ok(Vec::new());
                }
                let object = stored.object.clone();
                self.shared.insert(self.share(key.clone()), stored);
                (key, Some(object))
            }
        };
        let change = |node: &NodeName| Change {
            node: node.clone(),
            key: key.clone(),
            object: object.clone(),
        };
        let users = self.users.get(&key);
        Ok(users.into_iter().flatten().map(change).collect())
    }

    fn apply_pod(&mut self, key: ObjectKey, pod: Pod, changes: &mut Vec<Change>) {
        let mut unneeded = Unneeded::new();
        let mut left = None;
        if let Some(before) = self.pods.get_mut(&key) {
            let same = before.node == pod.node
                && before.stored.same_for_edges(&pod.stored)
                && before.conditions == pod.conditions;
            if same {
                return;
            }
            if before.node != pod.node || before.stored.object.uid != pod.stored.object.uid {
                left = self.withdraw(&key, changes, &mut unneeded);
            }
        }
        self.place(Arc::new(key), pod, changes, &mut unneeded);
        self.release(unneeded, changes);
        self.forget_if_empty(left);
    }

    /// Takes a pod from its node, which is returned. What it needed stays until [`Placement::release`], because the pod
    /// that comes next may need it too.
    fn withdraw(
        &mut self,
        key: &ObjectKey,
        changes: &mut Vec<Change>,
        unneeded: &mut Unneeded,
    ) -> Option<NodeName> {
        let pod = self.pods.remove(key)?;
        let node = pod.node.clone()?;
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.pods.remove(key);
            entry.drop_references(&node, &pod, unneeded);
        }
        changes.push(Change {
            node: node.clone(),
            key: key.clone(),
            object: None,
        });
        Some(node)
    }

    /// Puts a pod, new or changed, onto its node: first what it needs, then the pod.
    fn place(&mut self, key: Key, pod: Pod, changes: &mut Vec<Change>, unneeded: &mut Unneeded) {
        if let Some(node) = &pod.node {
            let entry = self.nodes.entry(node.clone()).or_default();
            let change = |key: &Key, object: &Object| Change {
                node: node.clone(),
                key: ObjectKey::clone(key),
                object: Some(object.clone()),
            };
            for need in &pod.needs {
                // An entry with count 0 is one that the node still holds from the pod before.
                let fresh = !entry.needs.contains_key(need);
                *entry.needs.entry(Key::clone(need)).or_insert(0) += 1;
                if fresh {
                    let users = self.users.entry(Key::clone(need)).or_default();
                    users.insert(node.clone());
                    changes.extend(self.shared.get(need).map(|stored| change(need, &stored.object)));
                }
            }
            for claim in &pod.claims {
                *entry.claims.entry(Key::clone(claim)).or_insert(0) += 1;
            }
            entry.pods.insert(Key::clone(&key));
            changes.push(change(&key, &pod.stored.object));
        }
        if let Some(before) = self.pods.insert(key, pod)
            && let Some(node) = &before.node
            && let Some(entry) = self.nodes.get_mut(node)
        {
            entry.drop_references(node, &before, unneeded);
        }
    }

    /// Tells nodes to drop what no pod of theirs needs any more.
    fn release(&mut self, unneeded: Unneeded, changes: &mut Vec<Change>) {
        for (node, key) in unneeded {
            if let Some(entry) = self.nodes.get_mut(&node) {
                if entry.needs.get(&key) != Some(&0) {
                    // The pod that came next needs it again.
                    continue;
                }
                entry.needs.remove(&key);
            }
            if let Some(users) = self.users.get_mut(&key) {
                users.remove(&node);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
            if self.shared.contains_key(&key) {
                changes.push(Change {
                    node,
                    key: ObjectKey::clone(&key),
                    object: None,
                });
            }
        }
    }

    fn forget_if_empty(&mut self, node: Option<NodeName>) {
        if let Some(node) = node
            && self.nodes.get(&node).is_some_and(Node::is_empty)
        {
            self.nodes.remove(&node);
        }
    }

    /// The one copy of a key that config maps, secrets and their users share.
    fn share(&self, key: ObjectKey) -> Key {
        let used = self.users.get_key_value(&key).map(|(key, _)| key);
        let known = used.or_else(|| self.shared.get_key_value(&key).map(|(key, _)| key));
        known.map_or_else(|| Arc::new(key), Arc::clone)
    }

    fn read_pod(&self, key: &ObjectKey, prepared: Prepared<'_>) -> Result<Pod, BadObject> {
        let bad = |reason: String| BadObject { kind: "Pod", reason };
        let spec = prepared.spec.map_or("{}", |spec| spec.get());
        let spec: PodSpec =
            serde_json::from_str(spec).map_err(|problem| bad(format!("{key}: spec: {problem}")))?;
        let node = spec.node_name.as_deref().filter(|name| !name.is_empty());
        let references = spec.references(key.namespace.as_deref().unwrap_or_default());
        let shared = |keys: BTreeSet<ObjectKey>| keys.into_iter().map(|key| self.share(key)).collect();
        Ok(Pod {
            node: node.map(|name| node_name("Pod", name)).transpose()?,
            account: references.account.into(),
            needs: shared(references.needs),
            claims: references.claims.into_iter().map(Arc::new).collect(),
            conditions: prepared.conditions,
            stored: Stored {
                object: prepared.object,
                fingerprint: prepared.fingerprint,
            },
        })
    }
}

impl Stored {
    fn same_for_edges(&self, other: &Self) -> bool {
        self.object.uid == other.object.uid && self.fingerprint == other.fingerprint
    }
}

fn namespaced(
    kind: ObjectKind,
    word: &'static str,
    namespace: Option<&str>,
    name: &str,
) -> Result<ObjectKey, BadObject> {
    match namespace {
        Some(namespace) => Ok(ObjectKey::namespaced(kind, namespace, name)),
        None => Err(BadObject {
            kind: word,
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

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// What an object costs besides its body and the letters of its name. Changing a number here is a decision about the
    /// memory of a cloud with a million objects.
    #[test]
    fn the_memory_of_an_entry() {
        let sizes = format!(
            "pod {} (and 8 for each reference), config map or secret {}, key {}, node {}",
            size_of::<(Key, Pod)>(),
            size_of::<(Key, Stored)>(),
            size_of::<ObjectKey>(),
            size_of::<(NodeName, Node)>()
        );
        expect!["pod 160 (and 8 for each reference), config map or secret 72, key 72, node 176"]
            .assert_eq(&sizes);
    }
}
