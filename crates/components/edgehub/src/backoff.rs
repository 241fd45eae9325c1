//! How long to wait before the next attempt: a decision without a clock.

use std::time::Duration;

/// First wait between two dials: a cloud that restarts is back soon.
const DIAL_DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest wait between two dials, as official edges wait after a failed round (two heartbeats).
const DIAL_DELAY_MAX: Duration = Duration::from_secs(30);
/// A session that lasted this long was a good one: the next wait starts from the beginning. A shorter one was not, for
/// example because two nodes have the same name and replace each other.
pub(crate) const GOOD_SESSION: Duration = Duration::from_secs(10);

/// Doubling delays, spread over the upper half so that ten thousand edges do not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// For dialling.
    pub(crate) fn new(seed: u64) -> Self {
        Self::between(DIAL_DELAY_MIN, DIAL_DELAY_MAX, seed)
    }

    pub(crate) fn between(min: Duration, max: Duration, seed: u64) -> Self {
        Self {
            min,
            max,
            failures: 0,
            random: seed,
        }
    }

    /// Everything was well.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let full = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full / 2 + full.mul_f64(self.unit() / 2.0)
    }

    /// From 0 to 1. SplitMix64: good enough to spread, and a test can repeat it.
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_within_the_upper_half() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed);
            for full_ms in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
                let wait = backoff.next().as_millis();
                assert!(
                    (full_ms / 2..=full_ms).contains(&wait),
                    "{wait} of {full_ms}, seed {seed}"
                );
            }
            backoff.reset();
            assert!(backoff.next() <= DIAL_DELAY_MIN);
        }
    }
}
