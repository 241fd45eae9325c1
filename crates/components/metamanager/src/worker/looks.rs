//! Removing what no pod needs any more.

use super::{After, Beside, Worker};
use crate::sweep::{self, Rows, SWEEP_MAX};
use crate::tokens;
use kedge_store::meta::{Error as StoreError, MetaStore, Write, Written};
use kedge_telemetry::clock;
use kedge_wire::{ObjectKey, ObjectKind};
use tokio::time::Instant;

/// What a look found.
#[derive(Debug)]
pub(super) struct Found {
    unused: Vec<ObjectKey>,
    spent_tokens: Vec<String>,
}

impl Worker {
    /// Begins a look if one is due.
    pub(super) fn look(&mut self) {
        let Some(candidates) = self.sweeper.begin(self.held.keys().cloned(), Instant::now()) else {
            return;
        };
        let store = self.store.clone();
        self.beside.push(Box::pin(
            async move { Beside::Looked(find(&store, candidates).await) },
        ));
    }

    pub(super) async fn looked(&mut self, found: Result<Found, StoreError>) {
        let now = Instant::now();
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the node holds could not be looked over");
            self.sweeper.something_went(now);
            Found {
                unused: Vec::new(),
                spent_tokens: Vec::new(),
            }
        });
        if !self.sweeper.end(found.unused.len(), now) {
            return;
        }
        for key in found.unused.into_iter().take(SWEEP_MAX) {
            // Who asks for it now wants it.
            if self.asked.contains_key(&key) || self.held.remove(&key).is_none() {
                continue;
            }
            let write = Write::Delete {
                key: key.to_string(),
                uid: None,
            };
            self.submit(write, After::Unused { key }).await;
        }
        let store = self.store.clone();
        self.beside.push(Box::pin(async move {
            for key in found.spent_tokens {
                if let Err(error) = store.delete(&key, None).await {
                    tracing::warn!(%error, "token of a pod that is gone not removed");
                }
            }
            Beside::Swept
        }));
    }

    pub(super) fn unused_removed(&mut self, key: ObjectKey, result: Result<Written, StoreError>) {
        match result {
            // It may have come anew while it was being removed.
            Ok(_) if !self.held.contains_key(&key) => {
                self.copies.set(&key, None);
                tracing::debug!(%key, "removed: no pod of this node uses it");
                if crate::plan::is_for_edged(&key) && self.objects.set(key, None).is_err() {
                    tracing::debug!("edged has ended");
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "what no pod uses could not be removed");
                self.sweeper.something_went(Instant::now());
            }
        }
    }
}

async fn find(store: &MetaStore, candidates: Vec<ObjectKey>) -> Result<Found, StoreError> {
    let list = async |kind: ObjectKind| store.list(kind.as_str()).await;
    let rows = Rows {
        pods: list(ObjectKind::Pod).await?,
        claims: list(ObjectKind::PersistentVolumeClaim).await?,
        volumes: list(ObjectKind::PersistentVolume).await?,
        attachments: list(ObjectKind::VolumeAttachment).await?,
        tokens: store.list(tokens::KIND).await?,
    };
    Ok(Found {
        unused: sweep::unused(&rows, candidates),
        spent_tokens: sweep::spent_tokens(&rows, clock::wall_ms()),
    })
}
