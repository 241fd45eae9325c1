//! An edge's store: orders are worked off one after the other, and only finished ones survive a crash.

use crate::network::ConnId;
use kedge_link::Held;
use kedge_link::edge::DeliveryId;
use kedge_wire::{ChangeVerb, Envelope, ObjectChange, ObjectKey, ObjectKind};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) uid: String,
    pub(crate) version: u64,
}

// A handful of orders exists at a time.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(crate) enum Order {
    Commit {
        id: DeliveryId,
        change: ObjectChange,
    },
    /// The official model commits what an envelope says and answers it.
    Write {
        envelope: Envelope,
        change: ObjectChange,
    },
    /// What is held, for the hello on this connection.
    Held(ConnId),
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) durable: BTreeMap<ObjectKey, Stored>,
    pub(crate) orders: VecDeque<Order>,
    pub(crate) busy: bool,
    /// The highest version of every uid that was ever durable here.
    pub(crate) ever: BTreeMap<String, u64>,
}

/// What a write did, for the checks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    Put {
        key: ObjectKey,
        before: Option<Stored>,
        after: Stored,
    },
    Deleted {
        key: ObjectKey,
        gone: Stored,
    },
    Nothing,
}

impl Store {
    pub(crate) fn write(&mut self, change: &ObjectChange) -> Wrote {
        let meta = change.body.object_meta().expect("the cloud sends objects");
        let uid = meta.uid.expect("the cloud sends uids").as_str().to_owned();
        let key = change.key.clone();
        match change.verb {
            ChangeVerb::Insert | ChangeVerb::Update => {
                let version = change.version.as_ref().expect("a put has a version").as_str();
                let after = Stored {
                    uid,
                    version: version.parse().expect("versions are numbers here"),
                };
                let ever = self.ever.entry(after.uid.clone()).or_insert(0);
                *ever = (*ever).max(after.version);
                let before = self.durable.insert(key.clone(), after.clone());
                Wrote::Put { key, before, after }
            }
            ChangeVerb::Delete => {
                let matches = self.durable.get(&key).is_some_and(|held| held.uid == uid);
                // Like the official edge: only pods are compared by uid.
                if !matches && key.kind == ObjectKind::Pod {
                    return Wrote::Nothing;
                }
                match self.durable.remove(&key) {
                    Some(gone) => Wrote::Deleted { key, gone },
                    None => Wrote::Nothing,
                }
            }
        }
    }

    pub(crate) fn held(&self) -> Vec<Held> {
        let held = |(key, stored): (&ObjectKey, &Stored)| Held {
            key: key.to_string(),
            uid: stored.uid.clone(),
            version: stored.version.to_string(),
        };
        self.durable.iter().map(held).collect()
    }
}
