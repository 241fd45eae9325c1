//! The last changes of a collection, shared by all who follow it.
//!
//! A follower has no queue of its own: it holds a position in the window. One that is too slow finds that the window
//! has moved past its position and is told so ([`WatchGap`]); nobody else notices.

use super::{Collection, Place, Revision, Storage};
use bytes::Bytes;
use kedge_store::revisions::{self, Commit};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch as latest;

/// Text kept in the window of a small collection, because objects may be large; of a larger one as much as the text of
/// all its objects. The oldest goes first.
pub(super) const WINDOW_BYTES_MAX: usize = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) place: Place,
    pub(crate) revision: Revision,
    pub(crate) kind: ChangeKind,
    pub(crate) text: Bytes,
    /// The object before, for selectors; `None` at a creation, and when it was not kept over a restart.
    pub(crate) previous: Option<Bytes>,
    line: OnceLock<Bytes>,
}

impl Change {
    pub(super) fn of(commit: &Commit, place: Place, previous: Option<Bytes>) -> Self {
        let kind = match commit.kind {
            revisions::ChangeKind::Created => ChangeKind::Added,
            revisions::ChangeKind::Updated => ChangeKind::Modified,
            revisions::ChangeKind::Deleted => ChangeKind::Deleted,
        };
        let previous = previous.filter(|_| kind != ChangeKind::Added);
        let (revision, text) = (commit.revision, commit.value.clone());
        Self {
            place,
            revision,
            kind,
            text,
            previous,
            line: OnceLock::new(),
        }
    }

    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.text).unwrap_or_default()
    }

    pub(crate) fn previous_value(&self) -> Option<Value> {
        self.previous
            .as_ref()
            .and_then(|text| serde_json::from_slice(text).ok())
    }

    /// The line that a plain watcher gets. Printed once for all of them.
    pub(crate) fn line(&self) -> Bytes {
        self.line
            .get_or_init(|| event_line(self.kind.as_str(), &self.text))
            .clone()
    }
}

/// One watch event as a line of JSON.
pub(crate) fn event_line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + kind.len() + 24);
    line.extend_from_slice(br#"{"type":""#);
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(br#"","object":"#);
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

/// The position is no longer in the window, or not yet in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchGap {
    pub(crate) asked: Revision,
    pub(crate) oldest: Revision,
}

#[derive(Default)]
pub(super) struct Window {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Changes up to this revision are gone.
    gone: Revision,
}

impl Window {
    /// Says that changes up to `revision` were never in this window.
    pub(super) fn begin(&mut self, revision: Revision) {
        self.gone = self.gone.max(revision);
    }

    pub(super) fn push(&mut self, change: Change, changes_max: usize, bytes_max: usize) {
        self.bytes += change.text.len();
        self.changes.push_back(Arc::new(change));
        while self.changes.len() > changes_max.max(1) || (self.bytes > bytes_max && self.changes.len() > 1) {
            if let Some(oldest) = self.changes.pop_front() {
                self.bytes -= oldest.text.len();
                self.gone = oldest.revision;
            }
        }
    }

    pub(super) fn check(&self, after: Revision) -> Result<(), WatchGap> {
        if after < self.gone {
            Err(WatchGap {
                asked: after,
                oldest: self.gone,
            })
        } else {
            Ok(())
        }
    }

    pub(super) fn after(&self, after: Revision) -> Result<Vec<Arc<Change>>, WatchGap> {
        self.check(after)?;
        let from = self.changes.partition_point(|change| change.revision <= after);
        Ok(self.changes.range(from..).cloned().collect())
    }
}

/// A reader of the changes of one collection.
pub(crate) struct Follow {
    storage: Storage,
    collection: Collection,
    /// All changes up to here were given out.
    seen: Revision,
    woken: latest::Receiver<Revision>,
}

impl Follow {
    pub(super) fn new(
        storage: Storage,
        collection: Collection,
        seen: Revision,
        woken: latest::Receiver<Revision>,
    ) -> Self {
        Self {
            storage,
            collection,
            seen,
            woken,
        }
    }

    /// Waits until there are changes and gives all of them. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Change>>, WatchGap> {
        loop {
            self.woken.mark_unchanged();
            let changes = self.ready()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            if self.woken.changed().await.is_err() {
                // The table lives as long as the storage that we hold.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The changes that are there now.
    pub(crate) fn ready(&mut self) -> Result<Vec<Arc<Change>>, WatchGap> {
        let (changes, complete) = self.storage.changes(&self.collection, self.seen)?;
        self.seen = complete;
        Ok(changes)
    }

    /// The revision up to which everything was given out.
    pub(crate) fn seen(&self) -> Revision {
        self.seen
    }
}
