//! A moment, as logic sees it.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Milliseconds since the Unix epoch. Logic never reads a clock: every `handle_*` and `poll_*` is told the time,
/// so a test may write any moment down. The clock behind it never runs backwards within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    ms: u64,
}

impl Time {
    /// The moment `ms` milliseconds after the epoch.
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// Milliseconds since the epoch.
    pub const fn as_ms(self) -> u64 {
        self.ms
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.ms.saturating_sub(earlier.ms))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let ms = u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX);
        Self {
            ms: self.ms.saturating_add(ms),
        }
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        let ms = u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX);
        Self {
            ms: self.ms.saturating_sub(ms),
        }
    }
}
