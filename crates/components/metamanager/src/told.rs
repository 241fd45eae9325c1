//! What the cloud was told last of each pod, so that telling it again does not go through the disk.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is known of a status that is about to be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Another one, or none, was told last.
    New,
    /// It lies in the outbox under this number.
    Waits(u64),
    /// The cloud took it. It is told again all the same: somebody else may have changed it there.
    Delivered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Committing,
    Waits(u64),
    Delivered,
}

/// The newest status of each pod, by its fingerprint. No more than there are pods.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<String, (u64, State)>);

impl Told {
    pub(crate) fn is_known(&self, key: &str, status: &str) -> Known {
        match self.0.get(key) {
            Some((held, State::Waits(id))) if *held == fingerprint(status) => Known::Waits(*id),
            Some((held, State::Delivered)) if *held == fingerprint(status) => Known::Delivered,
            Some(_) | None => Known::New,
        }
    }

    /// A status is being written into the outbox.
    pub(crate) fn committing(&mut self, key: String, status: &str) {
        self.0.insert(key, (fingerprint(status), State::Committing));
    }

    /// It is in the outbox; `delivered` if the cloud took it before this was told.
    pub(crate) fn stored(&mut self, key: &str, status: &str, id: u64, delivered: bool) {
        if let Some((held, state)) = self.0.get_mut(key)
            && *held == fingerprint(status)
            && *state == State::Committing
        {
            *state = if delivered {
                State::Delivered
            } else {
                State::Waits(id)
            };
        }
    }

    /// The report left the outbox: taken by the cloud or not.
    pub(crate) fn left(&mut self, id: u64, taken: bool) {
        let of_id = |(_, (_, state)): &(&String, &(u64, State))| *state == State::Waits(id);
        let Some(key) = self.0.iter().find(of_id).map(|(key, _)| key.clone()) else {
            return;
        };
        if !taken {
            self.0.remove(&key);
        } else if let Some((_, state)) = self.0.get_mut(&key) {
            *state = State::Delivered;
        }
    }

    pub(crate) fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }
}

/// 64 bits of a few thousand statuses: two of one pod never meet.
fn fingerprint(status: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    status.hash(&mut hasher);
    hasher.finish()
}
