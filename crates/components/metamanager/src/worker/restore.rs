//! After damage: the store gets back what edged runs, and loses what came back to life.

use super::{After, Beside, Worker};
use crate::objects::{self, Version};
use kedge_store::meta::{DigestRow, Error as StoreError, Write, Written};
use kedge_wire::{Body, ObjectKey};

impl Worker {
    /// The store was damaged and holds what could be read of it. Bytes that are there already are not written.
    pub(super) async fn restore(&mut self) {
        self.quiet.lost_all();
        // A copy of another version is about to be replaced by a write that is under way.
        let is_newest = |(key, body): &(&ObjectKey, &Body)| self.held.get(*key) == Some(&Version::of(body));
        let newest = self.copies.all().filter(is_newest);
        let rows: Vec<_> = newest.map(|(key, body)| objects::row(key, body)).collect();
        tracing::warn!(
            objects = rows.len(),
            "the store was damaged; it is filled again from memory"
        );
        for row in rows {
            let what = row.key.clone();
            self.submit(Write::Put(row), After::Restored { what }).await;
        }
        let store = self.store.clone();
        self.beside
            .push(Box::pin(async move { Beside::Restored(store.digest().await) }));
    }

    /// Removes what is held no longer, but was, at the time of what could be read.
    pub(super) async fn restored(&mut self, digest: Result<Vec<DigestRow>, StoreError>) {
        let rows = digest.unwrap_or_else(|error| {
            tracing::error!(%error, "the mended store is not readable");
            Vec::new()
        });
        for row in rows {
            let Some(key) = ObjectKey::parse(&row.key) else {
                continue;
            };
            if self.copies.contains(&key) || self.held.contains_key(&key) {
                continue;
            }
            let what = row.key.clone();
            let write = Write::Delete {
                key: row.key,
                uid: Some(row.uid),
            };
            self.submit(write, After::Restored { what }).await;
        }
    }

    pub(super) fn restored_one(what: &str, result: Result<Written, StoreError>) {
        if let Err(error) = result {
            tracing::error!(what, %error, "object not restored; the cloud sends it when it is connected anew");
        }
    }
}
