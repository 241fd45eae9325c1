//! What the cloud wants here: orders of edgehub, from their arrival to their answer.

use super::{After, Beside, Worker};
use crate::objects::{self, Verdict, Version};
use crate::quiet::Moment;
use crate::{plan, tokens};
use kedge_link::Held;
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_store::meta::{DigestRow, Error as StoreError, MetaStore, Write, Written};
use kedge_telemetry::channel::ask::{Question, Reply as Way};
use kedge_wire::{Body, ChangeVerb, ObjectChange, ObjectKind, ToEdge};
use tokio::time::Instant;

impl Worker {
    pub(super) async fn order(&mut self, Question { question, reply }: Question<StoreOrder, StoreDone>) {
        match question {
            StoreOrder::Held => {
                self.catch_up().await;
                let done = Ok(Written::default());
                self.commits
                    .push_back(Box::pin(async { (After::Digest { done: reply }, done) }));
            }
            StoreOrder::Commit(ToEdge::Object(change)) => self.commit(change, reply).await,
            StoreOrder::Complete => {
                self.submit(Write::Complete, After::Complete { done: reply })
                    .await
            }
            StoreOrder::Commit(other) => {
                let why = format!("{} is not a change of an object", other.route());
                reply.send(StoreDone::Committed(Err(why)));
            }
        }
    }

    async fn commit(&mut self, change: ObjectChange, done: Way<StoreDone>) {
        if let Some(asked) = self.asked.get_mut(&change.key) {
            asked.changed = true;
        }
        match objects::judge(&change, self.held.get(&change.key)) {
            Verdict::Refuse(why) => {
                tracing::warn!(key = %change.key, why, "object refused");
                done.send(StoreDone::Committed(Err(why)));
            }
            Verdict::Stale => {
                tracing::debug!(key = %change.key, "a newer state of this object is held");
                done.send(StoreDone::Committed(Ok(())));
            }
            Verdict::Write(write) => match self.repetition(&change, &write) {
                Some(since) => {
                    self.held.insert(change.key.clone(), Version::of(&change.body));
                    let after = After::Repetition { change, since, done };
                    let nothing = Ok(Written::default());
                    self.commits.push_back(Box::pin(async { (after, nothing) }));
                }
                None => {
                    self.foresee(&change, &write);
                    self.submit(write, After::Object { change, done }).await;
                }
            },
        }
    }

    /// Whether nothing of it needs a transaction of its own.
    fn repetition(&self, change: &ObjectChange, write: &Write) -> Option<Moment> {
        match write {
            Write::Put(_) => self.quiet.repetition(&change.key, &change.body),
            Write::Delete { .. } | Write::Push(_) | Write::Forget { .. } | Write::Complete => None,
        }
    }

    /// The writes before a repetition have ended; if one of them failed, the store lacks what was repeated.
    pub(super) fn repetition_reached(&mut self, change: ObjectChange, since: Moment, done: Way<StoreDone>) {
        let row = || objects::row(&change.key, &change.body);
        if self.quiet.took(since, &change.key, row) {
            self.object_committed(change, done, Ok(Written::default()));
            return;
        }
        self.held.remove(&change.key);
        let why = format!("store {}: what it repeats was not stored", change.key);
        done.send(StoreDone::Committed(Err(why)));
    }

    /// Notes what a submitted change will lead to.
    fn foresee(&mut self, change: &ObjectChange, write: &Write) {
        match write {
            Write::Put(_) => {
                self.sweeper.came(&change.key);
                self.held.insert(change.key.clone(), Version::of(&change.body));
                self.quiet.writes(&change.key, &change.body);
            }
            Write::Delete { uid, .. } => {
                let other = |held: &Version| uid.is_some() && held.uid != *uid;
                if !self.held.get(&change.key).is_some_and(other) {
                    self.held.remove(&change.key);
                }
                self.quiet.forget(&change.key);
            }
            Write::Push(_) | Write::Forget { .. } | Write::Complete => {}
        }
    }

    /// Every object before it has been handed to edged, whose queue keeps the order.
    pub(super) fn completed(&self, done: Way<StoreDone>, result: Result<Written, StoreError>) {
        if let Err(error) = result {
            // True all the same; a later life waits for the cloud once more.
            tracing::warn!(%error, "not kept: that this node holds everything");
        }
        self.complete
            .send_if_modified(|complete| !std::mem::replace(complete, true));
        done.send(StoreDone::Noted);
    }

    pub(super) fn object_committed(
        &mut self,
        change: ObjectChange,
        done: Way<StoreDone>,
        result: Result<Written, StoreError>,
    ) {
        let ObjectChange { key, body, verb, .. } = change;
        let written = match result {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(%error, "object not stored; the cloud is told");
                self.held.remove(&key);
                self.quiet.lost(&key);
                done.send(StoreDone::Committed(Err(error.to_string())));
                return;
            }
        };
        let gone = verb == ChangeVerb::Delete;
        // A delete that found another pod of this name must not end that one.
        let concerns_another = gone && !written.changed && self.held.contains_key(&key);
        if gone && written.changed && key.kind == ObjectKind::Pod {
            self.sweep_tokens(&body);
            self.reports.pod_gone(&key);
            self.sweeper.something_went(Instant::now());
        }
        if !concerns_another {
            self.copies.set(&key, (!gone).then_some(&body));
        }
        if plan::is_for_edged(&key) && !concerns_another {
            let value = (!gone).then_some(body);
            if self.objects.set(key, value).is_err() {
                tracing::debug!("edged has ended; it will find the object in the store");
            }
        }
        done.send(StoreDone::Committed(Ok(())));
    }

    /// Removes the tokens of a pod that is gone.
    fn sweep_tokens(&mut self, pod: &Body) {
        let Some(uid) = Version::of(pod).uid else { return };
        let store = self.store.clone();
        self.beside.push(Box::pin(async move {
            if let Err(error) = sweep(&store, &uid).await {
                tracing::warn!(%error, "tokens of a deleted pod not removed");
            }
            Beside::Swept
        }));
    }

    pub(super) fn held_of(&self, digest: Result<Vec<DigestRow>, StoreError>) -> StoreDone {
        let rows = digest.unwrap_or_else(|error| {
            // An empty digest makes the cloud send everything: slower, and right.
            tracing::error!(%error, "digest not readable; asking the cloud for everything");
            Vec::new()
        });
        let placed = rows
            .into_iter()
            .filter(|row| plan::is_placed(&ObjectKind::parse(&row.kind)));
        let held = placed.map(|row| Held {
            key: row.key,
            uid: row.uid,
            version: row.version,
        });
        StoreDone::Held(held.collect())
    }
}

async fn sweep(store: &MetaStore, uid: &str) -> Result<(), StoreError> {
    for row in store.list(tokens::KIND).await? {
        if tokens::bound_uid(&row.value).as_deref() == Some(uid) {
            store.delete(&row.key, None).await?;
        }
    }
    Ok(())
}
