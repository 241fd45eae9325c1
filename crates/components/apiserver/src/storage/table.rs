//! One collection: its objects and its last changes.

use super::watch::{Change, WINDOW_BYTES_MAX, Window};
use super::{Place, Revision};
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Bound;
use tokio::sync::watch as latest;

/// An object as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) revision: Revision,
    pub(crate) text: Bytes,
}

impl Found {
    /// The object. What we stored was printed by us; a text that is no JSON is null.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.text).unwrap_or_default()
    }
}

/// A part of a collection.
#[derive(Debug)]
pub(crate) struct Page {
    /// The revision at which the page was read.
    pub(crate) revision: Revision,
    pub(crate) found: Vec<Found>,
    /// How many more there are (before selectors); 0 when this is the last page.
    pub(crate) remaining: usize,
}

pub(crate) struct Table {
    objects: BTreeMap<Place, (Revision, Bytes)>,
    /// Text of all objects.
    bytes: usize,
    pub(super) window: Window,
    pub(super) changed: latest::Sender<Revision>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            bytes: 0,
            window: Window::default(),
            changed: latest::Sender::new(0),
        }
    }
}

impl Table {
    /// Stores and gives back what was there.
    pub(super) fn put(&mut self, place: Place, revision: Revision, text: Bytes) -> Option<Bytes> {
        self.bytes += text.len();
        let (_, before) = self.objects.insert(place, (revision, text))?;
        self.bytes -= before.len();
        Some(before)
    }

    pub(super) fn remove(&mut self, place: &Place) -> Option<Bytes> {
        let (_, before) = self.objects.remove(place)?;
        self.bytes -= before.len();
        Some(before)
    }

    /// Shows a change to watchers. Each object of a large collection may change once before a watcher that is busy
    /// with the first of these changes has to read everything again, which would cost more than remembering them.
    pub(super) fn push(&mut self, change: Change, window_changes: usize) {
        let changes = window_changes.max(self.objects.len());
        let bytes = WINDOW_BYTES_MAX.max(self.bytes);
        self.window.push(change, changes, bytes);
    }

    pub(super) fn get(&self, place: &Place) -> Option<Found> {
        self.objects.get(place).map(|entry| found(place, entry))
    }

    pub(super) fn page(
        &self,
        revision: Revision,
        namespace: &str,
        after: Option<&Place>,
        limit: usize,
        mut admit: impl FnMut(&Found) -> bool,
    ) -> Page {
        let first = Place::new(namespace, "");
        let from = match after {
            Some(place) if *place > first => Bound::Excluded(place),
            Some(_) | None => Bound::Included(&first),
        };
        let mut rest = self
            .objects
            .range((from, Bound::Unbounded))
            .take_while(|(place, _)| namespace.is_empty() || place.namespace == namespace);
        let mut page = Page {
            revision,
            found: Vec::new(),
            remaining: 0,
        };
        for (place, entry) in rest.by_ref() {
            let found = found(place, entry);
            if !admit(&found) {
                continue;
            }
            page.found.push(found);
            if page.found.len() == limit {
                break;
            }
        }
        page.remaining = rest.count();
        page
    }
}

fn found(place: &Place, (revision, text): &(Revision, Bytes)) -> Found {
    Found {
        place: place.clone(),
        revision: *revision,
        text: text.clone(),
    }
}
