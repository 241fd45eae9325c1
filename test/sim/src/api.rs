//! The Kubernetes API of the simulated world: objects with uids and one growing version.

use crate::chance::Chance;
use kedge_placement::index::Seen;
use kedge_wire::{Body, ObjectKey, ObjectKind};
use std::collections::{BTreeMap, BTreeSet};

const POD_NAMES: usize = 8;
const SHARED_NAMES: usize = 4;

#[derive(Debug, Clone)]
pub(crate) struct ApiObject {
    pub(crate) uid: String,
    pub(crate) version: u64,
    /// The version at which something changed that an edge acts upon.
    pub(crate) significant: u64,
    rev: u64,
    /// For a pod: its node and the indexes of the config maps it mounts.
    node: usize,
    mounts: BTreeSet<usize>,
    deleting: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Api {
    pub(crate) objects: BTreeMap<ObjectKey, ApiObject>,
    version: u64,
    /// Which object a version belonged to.
    pub(crate) versions: BTreeMap<u64, (ObjectKey, String)>,
    /// Uids that were deleted and never come back, and when that was.
    pub(crate) dead: BTreeMap<String, u64>,
    now: u64,
}

impl Api {
    /// One random change; what the watch sees of it.
    pub(crate) fn mutate(&mut self, chance: &mut Chance, nodes: usize, now: u64) -> Vec<(ObjectKey, Seen)> {
        self.now = now;
        if chance.percent(60) {
            let name = format!("pod-{}", chance.index(POD_NAMES));
            self.mutate_pod(
                &ObjectKey::namespaced(ObjectKind::Pod, "default", &name),
                chance,
                nodes,
            )
        } else {
            let kind = if chance.percent(70) {
                ObjectKind::ConfigMap
            } else {
                ObjectKind::Secret
            };
            let name = format!("shared-{}", chance.index(SHARED_NAMES));
            self.mutate_shared(&ObjectKey::namespaced(kind, "default", &name), chance)
        }
    }

    fn mutate_pod(&mut self, key: &ObjectKey, chance: &mut Chance, nodes: usize) -> Vec<(ObjectKey, Seen)> {
        if !self.objects.contains_key(key) {
            return vec![self.create(key, chance, nodes)];
        }
        match chance.below(10) {
            0..=2 => vec![self.touch(key, true)],
            3..=5 => vec![self.touch(key, false)],
            6 => {
                if let Some(object) = self.objects.get_mut(key) {
                    object.deleting = true;
                }
                vec![self.touch(key, true)]
            }
            7 => self.delete(key).into_iter().collect(),
            // The same name again at once, perhaps on another node.
            _ => self
                .delete(key)
                .into_iter()
                .chain([self.create(key, chance, nodes)])
                .collect(),
        }
    }

    fn mutate_shared(&mut self, key: &ObjectKey, chance: &mut Chance) -> Vec<(ObjectKey, Seen)> {
        if !self.objects.contains_key(key) {
            return vec![self.create(key, chance, 1)];
        }
        match chance.below(10) {
            0..=6 => vec![self.touch(key, true)],
            7..=8 => self.delete(key).into_iter().collect(),
            _ => self
                .delete(key)
                .into_iter()
                .chain([self.create(key, chance, 1)])
                .collect(),
        }
    }

    fn create(&mut self, key: &ObjectKey, chance: &mut Chance, nodes: usize) -> (ObjectKey, Seen) {
        self.version += 1;
        let mounts = (0..SHARED_NAMES).filter(|_| chance.percent(40)).collect();
        let object = ApiObject {
            uid: format!("uid-{}", self.version),
            version: self.version,
            significant: self.version,
            rev: 0,
            node: chance.index(nodes),
            mounts,
            deleting: false,
        };
        self.versions
            .insert(self.version, (key.clone(), object.uid.clone()));
        let seen = Seen::Applied(print(key, &object));
        self.objects.insert(key.clone(), object);
        (key.clone(), seen)
    }

    fn touch(&mut self, key: &ObjectKey, significant: bool) -> (ObjectKey, Seen) {
        self.version += 1;
        let object = self.objects.get_mut(key).expect("the caller has looked");
        object.version = self.version;
        if significant {
            object.significant = self.version;
            object.rev += 1;
        }
        self.versions
            .insert(self.version, (key.clone(), object.uid.clone()));
        (key.clone(), Seen::Applied(print(key, object)))
    }

    fn delete(&mut self, key: &ObjectKey) -> Option<(ObjectKey, Seen)> {
        let object = self.objects.remove(key)?;
        self.dead.insert(object.uid.clone(), self.now);
        Some((key.clone(), Seen::Deleted(print(key, &object))))
    }

    /// What a new watch starts with.
    pub(crate) fn list(&self) -> Vec<(ObjectKey, Seen)> {
        self.objects
            .iter()
            .map(|(key, object)| (key.clone(), Seen::Applied(print(key, object))))
            .collect()
    }
}

/// The object as a watch of a list gives it: without kind and apiVersion.
fn print(key: &ObjectKey, object: &ApiObject) -> Body {
    let ApiObject {
        uid,
        version,
        rev,
        node,
        ..
    } = object;
    let deleting = if object.deleting {
        r#","deletionTimestamp":"2026-01-01T00:00:00Z""#
    } else {
        ""
    };
    let name = &key.name;
    let metadata = format!(
        r#""metadata":{{"name":"{name}","namespace":"default","uid":"{uid}","resourceVersion":"{version}","labels":{{"rev":"{rev}"}}{deleting}}}"#
    );
    let json = if key.kind == ObjectKind::Pod {
        let volumes: Vec<String> = object
            .mounts
            .iter()
            .map(|mount| format!(r#"{{"name":"v{mount}","configMap":{{"name":"shared-{mount}"}}}}"#))
            .collect();
        let secret = r#"[{"name":"shared-0"}]"#;
        format!(
            r#"{{{metadata},"spec":{{"nodeName":"edge-{node}","volumes":[{}],"imagePullSecrets":{secret}}},"status":{{"v":{version}}}}}"#,
            volumes.join(",")
        )
    } else {
        format!(r#"{{{metadata},"data":{{"rev":"{rev}"}}}}"#)
    };
    Body::from_json(json).expect("written as JSON")
}
