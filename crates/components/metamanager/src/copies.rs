//! What edged runs, a second time in memory: a store that is damaged while the node lives is filled from here.
//!
//! The bodies are those that edged holds, so they cost little. A store in memory cannot be damaged and has none.

use crate::plan;
use kedge_store::meta::MetaStore;
use kedge_wire::{Body, ObjectKey};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// As many as edged follows.
#[derive(Debug)]
pub(crate) struct Copies {
    mended: Option<watch::Receiver<u64>>,
    bodies: BTreeMap<ObjectKey, Body>,
}

impl Copies {
    pub(crate) fn of(store: &MetaStore, held: &[(ObjectKey, Body)]) -> Self {
        let mut copies = Self {
            mended: store.mended(),
            bodies: BTreeMap::new(),
        };
        for (key, body) in held {
            copies.set(key, Some(body));
        }
        copies
    }

    /// What is held under a key now, or nothing.
    pub(crate) fn set(&mut self, key: &ObjectKey, body: Option<&Body>) {
        if self.mended.is_none() || !plan::is_for_edged(key) {
            return;
        }
        match body {
            Some(body) => self.bodies.insert(key.clone(), body.clone()),
            None => self.bodies.remove(key),
        };
    }

    /// Completes each time the store was damaged and mended. Cancel safe.
    pub(crate) async fn needed(&mut self) {
        let changed = match &mut self.mended {
            Some(mended) => mended.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending().await
        }
    }

    pub(crate) fn contains(&self, key: &ObjectKey) -> bool {
        self.bodies.contains_key(key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&ObjectKey, &Body)> {
        self.bodies.iter()
    }
}
