//! A right that the API refuses, asked for again from time to time.
//!
//! An API server that has just started refuses with 403 what its roles allow, until it has read them; so no refusal is
//! taken for ever.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After that the right is tried again: one needless call a minute where it is never given.
const BELIEVED: Duration = Duration::from_secs(60);

/// Whether the API lets this process do something.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    last: Mutex<Option<Instant>>,
}

impl Refusal {
    /// Whether the call may be made now.
    pub(super) fn may_try(&self, now: Instant) -> bool {
        !is_believed(*self.lock(), now)
    }

    /// The API has refused. True for the first of many that were under way together.
    pub(super) fn refused(&self, now: Instant) -> bool {
        let mut last = self.lock();
        let first = !is_believed(*last, now);
        if first {
            *last = Some(now);
        }
        first
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // One word, written at once: a panic elsewhere cannot have left half of it.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_believed(last: Option<Instant>, now: Instant) -> bool {
    last.is_some_and(|last| now.saturating_duration_since(last) < BELIEVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_believed_for_a_while() {
        let refusal = Refusal::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(refusal.may_try(at(0)));
        assert!(refusal.refused(at(0)), "this one is told");
        assert!(!refusal.refused(at(1)), "that one was under way");
        assert!(!refusal.may_try(at(59)));
        assert!(refusal.may_try(at(60)), "the API may have read its roles by now");
        assert!(refusal.refused(at(61)));
        assert!(!refusal.may_try(at(120)));
    }
}
