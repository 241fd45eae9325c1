//! Changes that need no transaction of their own: a decision without I/O.
//!
//! A node says every few minutes that it still is as it was, and official clouds send it its own words back: the Node
//! with other heartbeats and another version. None of that is read after a restart, and a disk that is written every
//! five minutes for nothing wears out. So such a change is taken, handed on and acknowledged like any other, behind the
//! writes before it, and its row waits for the next transaction that has another reason.
//!
//! What a power cut can take is the number of a version whose content the store holds.

use kedge_store::meta::Row;
use kedge_wire::{Body, ObjectKey, ObjectKind};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Metadata that changes although nothing has.
const BOOKKEEPING: [&str; 3] = ["resourceVersion", "generation", "managedFields"];
/// When a condition was looked at last.
const HEARTBEAT: &str = "lastHeartbeatTime";

/// What the store holds of objects that repeat themselves: of the Nodes among those that are held.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    /// Fingerprints of what is held once every submitted write is committed.
    known: HashMap<ObjectKey, u64>,
    waiting: BTreeMap<ObjectKey, Row>,
    now: Moment,
}

/// What has happened to such objects so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Moment {
    changes: u64,
    losses: u64,
}

impl Quiet {
    /// The present moment, if the object says nothing but what the store will hold when the writes before it are done.
    pub(crate) fn repetition(&self, key: &ObjectKey, body: &Body) -> Option<Moment> {
        let known = self.known.get(key)?;
        (fingerprint(key, body).as_ref() == Some(known)).then_some(self.now)
    }

    /// The writes before a repetition are done. A row that nothing newer has followed is carried by the next transaction.
    /// False when a write failed: the store may lack what was repeated.
    #[must_use]
    pub(crate) fn took(&mut self, since: Moment, key: &ObjectKey, row: impl FnOnce() -> Row) -> bool {
        if since == self.now {
            self.waiting.insert(key.clone(), row());
        }
        since.losses == self.now.losses
    }

    /// The object is being written, or lies there.
    pub(crate) fn writes(&mut self, key: &ObjectKey, body: &Body) {
        self.forget(key);
        if let Some(fingerprint) = fingerprint(key, body) {
            self.now.changes += 1;
            self.known.insert(key.clone(), fingerprint);
        }
    }

    /// The object goes, or something else is being written.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        self.waiting.remove(key);
        if self.known.remove(key).is_some() {
            self.now.changes += 1;
        }
    }

    /// A write of this key failed: nobody knows what the store holds.
    pub(crate) fn lost(&mut self, key: &ObjectKey) {
        self.forget(key);
        if key.kind == ObjectKind::Node {
            self.now.losses += 1;
        }
    }

    /// The store was damaged.
    pub(crate) fn lost_all(&mut self) {
        self.known.clear();
        self.waiting.clear();
        self.now.losses += 1;
    }

    /// What waits for a transaction, each row once.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Row> + use<> {
        std::mem::take(&mut self.waiting).into_values()
    }
}

/// Of everything but bookkeeping and heartbeats; nothing for objects that do not repeat themselves.
fn fingerprint(key: &ObjectKey, body: &Body) -> Option<u64> {
    if key.kind != ObjectKind::Node {
        return None;
    }
    let mut node: Value = body.parse().ok()?;
    let metadata = node.get_mut("metadata")?.as_object_mut()?;
    for name in BOOKKEEPING {
        metadata.remove(name);
    }
    let conditions = node
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        condition.remove(HEARTBEAT);
    }
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &str) -> Body {
        Body::from_json(json.to_owned()).unwrap()
    }

    #[test]
    fn what_a_node_repeats() {
        let key = ObjectKey::parse("null/node/edge-1").unwrap();
        let mut quiet = Quiet::default();
        let held = r#"{"metadata":{"name":"edge-1","resourceVersion":"1"},"spec":{},
            "status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":"a"}]}}"#;
        quiet.writes(&key, &body(held));
        let table = [
            ("the same", held.to_owned(), true),
            (
                "a heartbeat",
                held.replace(r#""a""#, r#""b""#).replace(r#""1""#, r#""2""#),
                true,
            ),
            ("other words", held.replace("True", "Unknown"), false),
            (
                "a taint",
                held.replace("\"spec\":{}", r#""spec":{"taints":[{}]}"#),
                false,
            ),
            (
                "a label",
                held.replace("\"name\"", r#""labels":{"a":"b"},"name""#),
                false,
            ),
            ("no object", "[]".to_owned(), false),
        ];
        for (what, json, repeats) in table {
            assert_eq!(quiet.repetition(&key, &body(&json)).is_some(), repeats, "{what}");
        }
        let pod = ObjectKey::parse("default/pod/web").unwrap();
        quiet.writes(&pod, &body(held));
        assert!(
            quiet.repetition(&pod, &body(held)).is_none(),
            "only nodes repeat themselves"
        );
    }

    #[test]
    fn what_is_carried_later() {
        let key = ObjectKey::parse("null/node/edge-1").unwrap();
        let node = |version: u32, label: &str| {
            let label = format!(r#""labels":{{"a":"{label}"}}"#);
            body(&format!(
                r#"{{"metadata":{{"resourceVersion":"{version}",{label}}}}}"#
            ))
        };
        let carried = |quiet: &mut Quiet| quiet.take().map(|row| row.value).collect::<String>();
        let row = |body: &Body| crate::objects::row(&key, body);
        let mut quiet = Quiet::default();
        quiet.writes(&key, &node(1, "x"));
        let moment = quiet.repetition(&key, &node(2, "x")).unwrap();
        assert!(quiet.took(moment, &key, || row(&node(2, "x"))));
        assert_eq!(carried(&mut quiet), node(2, "x").json());
        // Something newer is on its way: what was repeated before must not be written behind it.
        for newer in ["y", "x"] {
            quiet.writes(&key, &node(3, "x"));
            let moment = quiet.repetition(&key, &node(4, "x")).unwrap();
            quiet.writes(&key, &node(5, newer));
            assert!(quiet.took(moment, &key, || row(&node(4, "x"))));
            assert_eq!(carried(&mut quiet), "");
        }
        // What was to be repeated was never stored.
        for damage in [false, true] {
            quiet.writes(&key, &node(6, "x"));
            let moment = quiet.repetition(&key, &node(7, "x")).unwrap();
            if damage {
                quiet.lost_all();
            } else {
                quiet.lost(&key);
            }
            assert!(!quiet.took(moment, &key, || row(&node(7, "x"))));
            assert!(quiet.repetition(&key, &node(8, "x")).is_none());
            assert_eq!(carried(&mut quiet), "");
        }
    }
}
