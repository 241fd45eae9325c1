//! The store without a disk.

use super::{Action, Commit, Revision, Write};
use std::collections::BTreeMap;

/// Current revisions only: values live with the listener, and nobody opens this store again.
#[derive(Debug, Default)]
pub(super) struct Memory {
    current: BTreeMap<String, Revision>,
}

impl Memory {
    pub(super) fn found(&self, key: &str) -> Option<Revision> {
        self.current.get(key).copied()
    }

    pub(super) fn apply(&mut self, write: &Write, commit: &Commit) {
        match write.action {
            Action::Put(_) => {
                self.current.insert(commit.key.clone(), commit.revision);
            }
            Action::Delete(_) => {
                self.current.remove(&commit.key);
            }
        }
    }
}
