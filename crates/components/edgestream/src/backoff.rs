//! How long to wait before the next attempt.

use std::time::Duration;

/// First wait; the official edge tries every 2 s.
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(30);
/// A session that lasted this long was a good one: the next wait starts from the beginning.
pub(crate) const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Doubling delays in the upper half of which each node has its own place.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    place: f64,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        // The golden ratio spreads neighbouring seeds over the whole range.
        let spread = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Self {
            failures: 0,
            place: spread as f64 / f64::from(u32::MAX),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let full = DELAY_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + self.place / 2.0)
    }
}
