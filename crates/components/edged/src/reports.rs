//! The newest report of each pod on its way to the cloud: one at a time, never an older one after a newer one.

use kedge_pods::PodKey;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde_json::json;
use std::collections::BTreeMap;

/// What waits and what is under way, by pod UID.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    slots: BTreeMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    key: PodKey,
    status: Option<String>,
    deleted: bool,
    in_flight: bool,
}

/// One message to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) uid: String,
    pub(crate) operation: Operation,
    pub(crate) key: ObjectKey,
    pub(crate) body: Body,
}

impl Reports {
    /// A newer status replaces one that was not sent yet.
    pub(crate) fn status(&mut self, key: PodKey, uid: String, patch: String) {
        self.slot(key, uid).status = Some(patch);
    }

    /// The pod's object may go, after its last status.
    pub(crate) fn deleted(&mut self, key: PodKey, uid: String) {
        self.slot(key, uid).deleted = true;
    }

    fn slot(&mut self, key: PodKey, uid: String) -> &mut Slot {
        self.slots.entry(uid).or_insert(Slot {
            key,
            status: None,
            deleted: false,
            in_flight: false,
        })
    }

    /// The next letter of a pod that has none under way.
    pub(crate) fn next(&mut self) -> Option<Letter> {
        let (uid, slot) = self
            .slots
            .iter_mut()
            .find(|(_, slot)| !slot.in_flight && (slot.status.is_some() || slot.deleted))?;
        slot.in_flight = true;
        let (namespace, name) = (&slot.key.namespace, &slot.key.name);
        let uid = uid.clone();
        if let Some(patch) = slot.status.take() {
            let key = ObjectKey::namespaced(ObjectKind::PodPatch, namespace, name);
            return Some(Letter {
                uid,
                operation: Operation::Patch,
                key,
                body: Body::text(&patch),
            });
        }
        slot.deleted = false;
        let key = ObjectKey::namespaced(ObjectKind::Pod, namespace, name);
        let body = deletion(&uid);
        Some(Letter {
            uid,
            operation: Operation::Delete,
            key,
            body,
        })
    }

    /// Nothing waits, and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// A letter was answered, or will not be.
    pub(crate) fn done(&mut self, uid: &str) {
        if let Some(slot) = self.slots.get_mut(uid) {
            slot.in_flight = false;
            if slot.status.is_none() && !slot.deleted {
                self.slots.remove(uid);
            }
        }
    }
}

/// The options of a deletion at once, of this object and no other of its name. As official edges write them, which leave
/// out what kind of object this is.
pub(crate) fn deletion(uid: &str) -> Body {
    let options = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } });
    Body::from_value(&options).expect("a JSON value is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_status_then_the_deletion() {
        let mut reports = Reports::default();
        let key = PodKey::new("default", "web");
        reports.status(key.clone(), "u1".into(), "1".into());
        assert_eq!(reports.next().unwrap().body.json(), "\"1\"");
        reports.status(key.clone(), "u1".into(), "2".into());
        reports.status(key.clone(), "u1".into(), "3".into());
        reports.deleted(key, "u1".into());
        assert_eq!(reports.next(), None);
        reports.done("u1");
        assert_eq!(reports.next().unwrap().body.json(), "\"3\"");
        reports.done("u1");
        let delete = reports.next().unwrap();
        assert_eq!(delete.operation, Operation::Delete);
        let official = r#"{"gracePeriodSeconds":0,"preconditions":{"uid":"u1"}}"#;
        assert_eq!(delete.body.json(), official);
        reports.done("u1");
        assert_eq!(reports.next(), None);
        assert!(reports.slots.is_empty());
    }
}
