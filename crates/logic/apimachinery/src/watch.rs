//! What happened lately: a bounded window of changes from which watchers are served.

use crate::selector::Selector;
use crate::{kinds::Kind, status::Status};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// Default number of changes kept per kind; a watcher that falls further behind must list again.
pub const WINDOW_DEFAULT: usize = 4096;

/// What a watcher is told about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}

/// One change as it was stored.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of the write; for a removal that of the removal.
    pub version: u64,
    /// Before; none for a creation.
    pub before: Option<Arc<Value>>,
    /// After; none for a removal.
    pub after: Option<Arc<Value>>,
}

impl Change {
    /// What a watcher with this selector (and namespace; empty for all) must be told, if anything.
    pub fn event(&self, namespace: &str, selector: &Selector) -> Option<(EventType, Arc<Value>)> {
        let sees = |o: &&Arc<Value>| {
            (namespace.is_empty() || crate::meta::namespace(o) == namespace) && selector.matches(o)
        };
        match (
            self.before.as_ref().filter(sees),
            self.after.as_ref().filter(sees),
        ) {
            (None, None) => None,
            (None, Some(after)) => Some((EventType::Added, after.clone())),
            (Some(_), Some(after)) => Some((EventType::Modified, after.clone())),
            (Some(before), None) => {
                // Clients take the version of the last event they saw as their place in the stream.
                let mut last = (**before).clone();
                crate::meta::set(
                    &mut last,
                    &["metadata", "resourceVersion"],
                    self.version.to_string().into(),
                );
                Some((EventType::Deleted, Arc::new(last)))
            }
        }
    }
}

/// The asked start of a watch lies before the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    pub asked: u64,
    pub oldest: u64,
}

impl From<Expired> for Status {
    fn from(expired: Expired) -> Self {
        Status::too_old_resource_version(expired.asked, expired.oldest)
    }
}

/// The last changes of one kind, in the order of their versions.
#[derive(Clone, Debug)]
pub struct Window {
    changes: VecDeque<Change>,
    size: usize,
    /// A watch may start at this version or later.
    oldest: u64,
    newest: u64,
}

impl Window {
    /// An empty window; `version` is the store's version at this moment.
    pub fn new(size: usize, version: u64) -> Self {
        Self {
            changes: VecDeque::new(),
            size: size.max(1),
            oldest: version,
            newest: version,
        }
    }

    /// Appends a change. Versions must rise; a change that is not newer is ignored and false is returned.
    pub fn push(&mut self, change: Change) -> bool {
        if change.version <= self.newest {
            return false;
        }
        self.newest = change.version;
        self.changes.push_back(change);
        if self.changes.len() > self.size
            && let Some(dropped) = self.changes.pop_front()
        {
            self.oldest = dropped.version;
        }
        true
    }

    /// All changes after `version`, oldest first.
    pub fn since(&self, version: u64) -> Result<impl Iterator<Item = &Change>, Expired> {
        if version < self.oldest {
            return Err(Expired {
                asked: version,
                oldest: self.oldest,
            });
        }
        let start = self.changes.partition_point(|c| c.version <= version);
        Ok(self.changes.range(start..))
    }

    /// The version of the last change (or the starting version).
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The first version a watch may start at.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }
}

/// One line of a watch answer.
pub fn frame(kind: EventType, object: &Value) -> Value {
    json!({"type": kind.as_str(), "object": object})
}

/// The bookmark object of a kind at a version. `initial_events_end` marks the end of the initial list of a streaming
/// list (`sendInitialEvents=true`).
pub fn bookmark(kind: &Kind, version: u64, initial_events_end: bool) -> Value {
    let mut object = json!({
        "kind": kind.kind,
        "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
    });
    if initial_events_end {
        crate::meta::set(
            &mut object,
            &["metadata", "annotations"],
            json!({"k8s.io/initial-events-end": "true"}),
        );
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;
    use expect_test::{Expect, expect};

    fn object(labels: &[(&str, &str)]) -> Option<Arc<Value>> {
        let labels: serde_json::Map<_, _> = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).into()))
            .collect();
        Some(Arc::new(
            json!({"metadata": {"name": "a", "namespace": "n", "labels": labels}}),
        ))
    }

    type Step = (u64, Option<Arc<Value>>, Option<Arc<Value>>);

    fn check(changes: &[Step], label: &str, expected: Expect) {
        let pods = Registry::builtin().lookup("", "v1", "pods").unwrap();
        let selector = Selector::parse(&pods, label, "").unwrap();
        let mut window = Window::new(10, 0);
        for (version, before, after) in changes {
            assert!(window.push(Change {
                version: *version,
                before: before.clone(),
                after: after.clone()
            }));
        }
        let events: Vec<String> = window
            .since(0)
            .unwrap()
            .map(|c| match c.event("n", &selector) {
                None => format!("{} nothing", c.version),
                Some((kind, object)) => {
                    format!("{} {} {}", c.version, kind.as_str(), object["metadata"]["labels"])
                }
            })
            .collect();
        expected.assert_eq(&events.join("\n"));
    }

    #[test]
    fn entering_and_leaving_a_selector() {
        let (in_, out) = (object(&[("app", "web")]), object(&[("app", "db")]));
        check(
            &[
                (1, None, out.clone()),
                (2, out.clone(), in_.clone()),
                (3, in_.clone(), in_.clone()),
                (4, in_.clone(), out.clone()),
                (5, out, None),
            ],
            "app=web",
            expect![[r#"
                1 nothing
                2 ADDED {"app":"web"}
                3 MODIFIED {"app":"web"}
                4 DELETED {"app":"web"}
                5 nothing"#]],
        );
    }

    #[test]
    fn a_removal_carries_its_own_version() {
        let selector = Selector::everything();
        let change = Change {
            version: 9,
            before: object(&[]),
            after: None,
        };
        let (kind, last) = change.event("", &selector).unwrap();
        assert_eq!(
            (kind, crate::meta::resource_version(&last)),
            (EventType::Deleted, "9")
        );
    }

    #[test]
    fn the_window_is_bounded() {
        let mut window = Window::new(2, 5);
        for version in 6..=9 {
            window.push(Change {
                version,
                before: None,
                after: object(&[]),
            });
        }
        assert!(
            !window.push(Change {
                version: 9,
                before: None,
                after: None
            }),
            "versions must rise"
        );
        assert_eq!(window.since(6).err(), Some(Expired { asked: 6, oldest: 7 }));
        assert_eq!(
            window.since(7).unwrap().map(|c| c.version).collect::<Vec<_>>(),
            [8, 9]
        );
        assert_eq!(window.since(9).unwrap().count(), 0);
    }
}
