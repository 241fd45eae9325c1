//! All objects as JSON text in memory, in front of the durable log.
//!
//! Reads and watches are served from here; writes go to `kedge_store::revisions`, whose commits come back in order and
//! are applied before the writer is answered. So whoever was answered reads what it wrote.

mod draft;
mod table;
mod watch;

#[cfg(test)]
mod tests;

pub(crate) use draft::draft;
pub(crate) use table::{Found, Page};
pub(crate) use watch::{Change, ChangeKind, Follow, WatchGap, event_line};

use crate::config::{OpenError, StorageAt};
use kedge_apimachinery::kinds::Kind;
use kedge_store::revisions::{
    Action, Commit, Content, Expect, Keep, Options, Revision, Revisions, Write, WriteError,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use table::Table;
use tokio::sync::watch as latest;

/// Which collection: group and plural, for example `apps/deployments` or `/pods`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Collection {
    pub(crate) group: String,
    pub(crate) plural: String,
}

impl Collection {
    pub(crate) fn new(group: &str, plural: &str) -> Self {
        Self {
            group: group.to_owned(),
            plural: plural.to_owned(),
        }
    }

    pub(crate) fn of(kind: &Kind) -> Self {
        Self::new(&kind.group, &kind.plural)
    }

    /// From `pods` or `deployments.apps`.
    pub(crate) fn named(group_resource: &str) -> Self {
        let (plural, group) = group_resource.split_once('.').unwrap_or((group_resource, ""));
        Self::new(group, plural)
    }
}

/// Where an object lies in its collection; the namespace is empty for kinds of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Place {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// The changes of one collection, in order.
pub(crate) type Changed = (Collection, Vec<Arc<Change>>);

/// The current state, changed only by commits.
struct Index {
    tables: BTreeMap<Collection, Table>,
    revision: Revision,
}

/// Collections whose changes may be kept lazily, so that their history over a restart is not complete.
const LAZY: [(&str, &str); 2] = [("", "events"), ("coordination.k8s.io", "leases")];

struct Shared {
    /// Changes kept for watchers of a small collection.
    window_changes: usize,
    index: RwLock<Index>,
    /// The newest revision, for whoever must look again after any change.
    newest: latest::Sender<Revision>,
}

/// The handle to all objects. Clones share them.
#[derive(Clone)]
pub(crate) struct Storage {
    shared: Arc<Shared>,
    store: Revisions,
}

impl Storage {
    pub(crate) fn open(at: &StorageAt, window_changes: usize) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared {
            window_changes,
            index: RwLock::new(Index {
                tables: BTreeMap::new(),
                revision: 0,
            }),
            newest: latest::Sender::new(0),
        });
        let listener = |content: Content| -> Box<dyn FnMut(Vec<Commit>) + Send> {
            shared.load(content);
            let shared = Arc::clone(&shared);
            Box::new(move |commits| shared.apply(commits))
        };
        let store = match at {
            StorageAt::Directory(path) => {
                Revisions::open(&path.join("api.db"), Options::default(), listener)?
            }
            StorageAt::Memory => Revisions::memory(listener)?,
        };
        Ok(Self { shared, store })
    }

    /// The object at a place.
    pub(crate) fn get(&self, collection: &Collection, place: &Place) -> Option<Found> {
        self.index().tables.get(collection)?.get(place)
    }

    /// Objects of one namespace, or of all with an empty one, after `after`, in order, as far as `admit` lets them;
    /// at most `limit` (0 is no limit).
    pub(crate) fn page(
        &self,
        collection: &Collection,
        namespace: &str,
        after: Option<&Place>,
        limit: usize,
        admit: impl FnMut(&Found) -> bool,
    ) -> Page {
        let index = self.index();
        let revision = index.revision;
        match index.tables.get(collection) {
            Some(table) => table.page(revision, namespace, after, limit, admit),
            None => Page {
                revision,
                found: Vec::new(),
                remaining: 0,
            },
        }
    }

    /// Everything in a collection.
    pub(crate) fn all(&self, collection: &Collection) -> Vec<Found> {
        self.page(collection, "", None, 0, |_| true).found
    }

    /// Everything, at one moment.
    pub(crate) fn snapshot(&self) -> (Vec<(Collection, Vec<Found>)>, Revision) {
        let index = self.index();
        let revision = index.revision;
        let all = index.tables.iter().map(|(collection, table)| {
            let found = table.page(revision, "", None, 0, |_| true).found;
            (collection.clone(), found)
        });
        (all.collect(), revision)
    }

    /// What changed anywhere after `after`, up to one moment. Within a collection in order.
    pub(crate) fn all_changes(&self, after: Revision) -> Result<(Vec<Changed>, Revision), WatchGap> {
        let index = self.index();
        let mut all = Vec::new();
        for (collection, table) in &index.tables {
            let changes = table.window.after(after)?;
            if !changes.is_empty() {
                all.push((collection.clone(), changes));
            }
        }
        Ok((all, index.revision))
    }

    /// The newest revision that readers see.
    pub(crate) fn revision(&self) -> Revision {
        self.index().revision
    }

    /// Follows a collection from the changes after `after` on.
    pub(crate) fn follow(&self, collection: &Collection, after: Revision) -> Result<Follow, WatchGap> {
        let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
        if after > index.revision {
            return Err(WatchGap {
                asked: after,
                oldest: index.revision,
            });
        }
        let table = index.tables.entry(collection.clone()).or_default();
        table.window.check(after)?;
        let woken = table.changed.subscribe();
        drop(index);
        Ok(Follow::new(self.clone(), collection.clone(), after, woken))
    }

    /// The changes after `after`, and the revision up to which they are complete.
    pub(crate) fn changes(
        &self,
        collection: &Collection,
        after: Revision,
    ) -> Result<(Vec<Arc<Change>>, Revision), WatchGap> {
        let index = self.index();
        let changes = match index.tables.get(collection) {
            Some(table) => table.window.after(after)?,
            None => Vec::new(),
        };
        Ok((changes, index.revision))
    }

    /// Wakes after every change of any collection.
    pub(crate) fn newest(&self) -> latest::Receiver<Revision> {
        self.shared.newest.subscribe()
    }

    /// Stores a new object.
    pub(crate) async fn create(
        &self,
        collection: &Collection,
        place: &Place,
        object: &Value,
        keep: Keep,
    ) -> Result<Revision, WriteError> {
        self.write(
            collection,
            place,
            Expect::Absent,
            Action::Put(draft(object)),
            keep,
        )
        .await
    }

    /// Replaces an object that was last changed at `at`.
    pub(crate) async fn update(
        &self,
        collection: &Collection,
        place: &Place,
        at: Revision,
        object: &Value,
        keep: Keep,
    ) -> Result<Revision, WriteError> {
        self.write(
            collection,
            place,
            Expect::At(at),
            Action::Put(draft(object)),
            keep,
        )
        .await
    }

    /// Removes an object that was last changed at `at`; watchers see `object` as its last state.
    pub(crate) async fn delete(
        &self,
        collection: &Collection,
        place: &Place,
        at: Revision,
        object: &Value,
        keep: Keep,
    ) -> Result<Revision, WriteError> {
        self.write(
            collection,
            place,
            Expect::At(at),
            Action::Delete(draft(object)),
            keep,
        )
        .await
    }

    async fn write(
        &self,
        collection: &Collection,
        place: &Place,
        expect: Expect,
        action: Action,
        keep: Keep,
    ) -> Result<Revision, WriteError> {
        self.store
            .write(Write {
                key: key(collection, place),
                expect,
                action,
                keep,
            })
            .await
    }

    /// Closes the file after the writes that wait.
    pub(crate) async fn close(self) {
        self.store.close().await;
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Takes what was stored before: objects, and the last changes for watchers that come back.
    fn load(&self, content: Content) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let (before_log, revision) = (content.log_after, content.revision);
        let begin = |collection: &Collection| match LAZY
            .contains(&(collection.group.as_str(), collection.plural.as_str()))
        {
            true => revision,
            false => before_log,
        };
        for entry in content.entries {
            let Some((collection, place)) = parse_key(&entry.key) else {
                continue;
            };
            let table = index.tables.entry(collection).or_default();
            table.put(place, entry.revision, entry.value);
        }
        for (collection, table) in &mut index.tables {
            table.window.begin(begin(collection));
        }
        let mut before: BTreeMap<String, bytes::Bytes> = BTreeMap::new();
        for commit in content.log {
            let Some((collection, place)) = parse_key(&commit.key) else {
                continue;
            };
            let previous = before.insert(commit.key.clone(), commit.value.clone());
            let from = begin(&collection);
            let table = index.tables.entry(collection).or_insert_with(|| {
                let mut table = Table::default();
                table.window.begin(from);
                table
            });
            if commit.revision > from {
                table.push(Change::of(&commit, place, previous), self.window_changes);
            }
        }
        index.revision = content.revision;
        self.newest.send_replace(content.revision);
    }

    fn apply(&self, commits: Vec<Commit>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut touched = Vec::new();
        for commit in commits {
            index.revision = commit.revision;
            let Some((collection, place)) = parse_key(&commit.key) else {
                continue;
            };
            let table = index.tables.entry(collection.clone()).or_default();
            let previous = match commit.kind {
                kedge_store::revisions::ChangeKind::Created | kedge_store::revisions::ChangeKind::Updated => {
                    table.put(place.clone(), commit.revision, commit.value.clone())
                }
                kedge_store::revisions::ChangeKind::Deleted => table.remove(&place),
            };
            table.push(Change::of(&commit, place, previous), self.window_changes);
            if !touched.contains(&collection) {
                touched.push(collection);
            }
        }
        let revision = index.revision;
        for collection in touched {
            if let Some(table) = index.tables.get(&collection) {
                table.changed.send_replace(revision);
            }
        }
        drop(index);
        self.newest.send_replace(revision);
    }
}

fn key(collection: &Collection, place: &Place) -> String {
    format!(
        "{}/{}/{}/{}",
        collection.group, collection.plural, place.namespace, place.name
    )
}

fn parse_key(key: &str) -> Option<(Collection, Place)> {
    let mut parts = key.splitn(4, '/');
    let (group, plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((Collection::new(group, plural), Place::new(namespace, name)))
}
