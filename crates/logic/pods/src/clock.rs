//! Our clock and that of the others.

use kedge_api::Timestamp;
use kedge_wire::Time;

/// The clock of this process, which never jumps, and what the others read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) now: Time,
    /// What the wall clock is ahead of ours.
    pub(crate) ahead_ms: i64,
}

impl Clock {
    /// The present moment for others to read.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp::from_ms(shifted(self.now.as_ms(), self.ahead_ms))
    }

    /// A moment that others wrote down, by our clock.
    pub(crate) fn own(&self, at: Timestamp) -> Time {
        Time::from_ms(shifted(at.as_ms(), self.ahead_ms.saturating_neg()))
    }
}

fn shifted(ms: u64, by: i64) -> u64 {
    ms.saturating_add_signed(by)
}
