//! The Kubernetes API of the simulated world: objects with uids, one growing version, and a history that watches follow.
//! It survives everything, and refuses writes while it is out of order.

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
    pub(crate) node: usize,
    mounts: BTreeSet<usize>,
    deleting: bool,
}

/// One change, as every watch will see it sooner or later.
#[derive(Debug, Clone)]
pub(crate) struct Happened {
    pub(crate) key: ObjectKey,
    pub(crate) seen: Seen,
    pub(crate) version: u64,
}

/// What an ObjectSync says: the node holds this version of a uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sync {
    pub(crate) key: ObjectKey,
    pub(crate) version: u64,
    /// Who wrote it last, and when.
    pub(crate) replica: usize,
    pub(crate) at: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Api {
    pub(crate) objects: BTreeMap<ObjectKey, ApiObject>,
    version: u64,
    /// Which object a version belonged to.
    pub(crate) versions: BTreeMap<u64, (ObjectKey, String)>,
    /// Uids that were deleted and never come back.
    pub(crate) dead: BTreeMap<String, Death>,
    pub(crate) history: Vec<Happened>,
    /// The versions of each uid at which something changed that an edge acts upon.
    significant: BTreeMap<String, Vec<u64>>,
    /// By node and uid.
    pub(crate) syncs: BTreeMap<(usize, String), Sync>,
    /// The status of each node, as it was last written.
    pub(crate) statuses: BTreeMap<usize, u64>,
    /// Writes are refused until then.
    pub(crate) down_until: u64,
    now: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    pub(crate) at: u64,
    /// Its place in the history.
    pub(crate) index: usize,
}

impl Api {
    /// One random change or two.
    pub(crate) fn mutate(&mut self, chance: &mut Chance, nodes: usize, now: u64) {
        self.now = now;
        if chance.percent(60) {
            let name = format!("pod-{}", chance.index(POD_NAMES));
            let key = ObjectKey::namespaced(ObjectKind::Pod, "default", &name);
            self.mutate_pod(&key, chance, nodes);
        } else {
            let kind = if chance.percent(70) {
                ObjectKind::ConfigMap
            } else {
                ObjectKind::Secret
            };
            let name = format!("shared-{}", chance.index(SHARED_NAMES));
            self.mutate_shared(&ObjectKey::namespaced(kind, "default", &name), chance);
        }
    }

    /// Writes what a node reports of itself.
    pub(crate) fn write_status(&mut self, node: usize, status: u64, now: u64) -> bool {
        if self.is_down(now) {
            return false;
        }
        self.statuses.insert(node, status);
        true
    }

    /// Records what a node holds. A newer record stays.
    pub(crate) fn write_sync(&mut self, node: usize, uid: &str, sync: Sync) {
        let record = self.syncs.entry((node, uid.to_owned())).or_insert(sync.clone());
        let version = sync.version.max(record.version);
        *record = Sync { version, ..sync };
    }

    /// Records that a node holds a uid no more.
    pub(crate) fn remove_sync(&mut self, node: usize, uid: &str) {
        self.syncs.remove(&(node, uid.to_owned()));
    }

    /// Whether an edge acts the same upon either version of this uid.
    pub(crate) fn mean_the_same(&self, uid: &str, older: u64, newer: u64) -> bool {
        let between = |version: &u64| older < *version && *version <= newer;
        !self.significant.get(uid).into_iter().flatten().any(between)
    }

    pub(crate) fn is_down(&self, now: u64) -> bool {
        now < self.down_until
    }

    fn mutate_pod(&mut self, key: &ObjectKey, chance: &mut Chance, nodes: usize) {
        if !self.objects.contains_key(key) {
            return self.create(key, chance, nodes);
        }
        match chance.below(10) {
            0..=2 => self.touch(key, true),
            3..=5 => self.touch(key, false),
            6 => {
                if let Some(object) = self.objects.get_mut(key) {
                    object.deleting = true;
                }
                self.touch(key, true);
            }
            7 => self.delete(key),
            // The same name again at once, perhaps on another node.
            _ => {
                self.delete(key);
                self.create(key, chance, nodes);
            }
        }
    }

    fn mutate_shared(&mut self, key: &ObjectKey, chance: &mut Chance) {
        if !self.objects.contains_key(key) {
            return self.create(key, chance, 1);
        }
        match chance.below(10) {
            0..=6 => self.touch(key, true),
            7..=8 => self.delete(key),
            _ => {
                self.delete(key);
                self.create(key, chance, 1);
            }
        }
    }

    fn create(&mut self, key: &ObjectKey, chance: &mut Chance, nodes: usize) {
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
        self.tell(key, Seen::Applied(print(key, &object)));
        self.objects.insert(key.clone(), object);
    }

    fn touch(&mut self, key: &ObjectKey, significant: bool) {
        self.version += 1;
        let object = self.objects.get_mut(key).expect("the caller has looked");
        object.version = self.version;
        if significant {
            object.significant = self.version;
            object.rev += 1;
            let versions = self.significant.entry(object.uid.clone()).or_default();
            versions.push(self.version);
        }
        self.versions
            .insert(self.version, (key.clone(), object.uid.clone()));
        let seen = Seen::Applied(print(key, object));
        self.tell(key, seen);
    }

    fn delete(&mut self, key: &ObjectKey) {
        let mut object = self.objects.remove(key).expect("the caller has looked");
        // The end of an object has a version, too.
        self.version += 1;
        object.version = self.version;
        let death = Death {
            at: self.now,
            index: self.history.len(),
        };
        self.dead.insert(object.uid.clone(), death);
        self.tell(key, Seen::Deleted(print(key, &object)));
    }

    fn tell(&mut self, key: &ObjectKey, seen: Seen) {
        self.history.push(Happened {
            key: key.clone(),
            seen,
            version: self.version,
        });
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
