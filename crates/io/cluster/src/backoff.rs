//! How long to wait before the next try.

use std::time::Duration;

/// Waits that double up to a limit, each shortened at random by up to half, so that a thousand who failed in the same
/// instant do not come back in the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
    chance: u64,
}

impl Backoff {
    /// `seed` should differ from one waiter to another.
    pub fn new(first: Duration, max: Duration, seed: u64) -> Self {
        Self {
            first,
            max,
            failures: 0,
            // Zero would stay zero for ever.
            chance: seed | 1,
        }
    }

    /// The wait after one more failure. `at_least` is what the server asked for; it is kept up to the own limit, so that
    /// a wrong word of a proxy does not silence a watch for a day.
    pub fn next(&mut self, at_least: Option<Duration>) -> Duration {
        let whole = self
            .first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        let jittered = whole.mul_f64(0.5 + self.part() / 2.0);
        jittered.max(at_least.unwrap_or_default().min(self.max))
    }

    /// Something worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// From 0 to 1; xorshift, which is enough to spread waits.
    fn part(&mut self) -> f64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        // The upper bits are the better ones, and 32 of them are exact in an f64.
        f64::from(u32::try_from(self.chance >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(15);

    #[test]
    fn waits_double_up_to_the_limit_within_their_jitter() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(FIRST, MAX, seed);
            for whole in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000] {
                let wait = backoff.next(None);
                let whole = Duration::from_millis(whole);
                assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
            }
            backoff.reset();
            assert!(backoff.next(None) <= FIRST);
        }
    }

    #[test]
    fn the_servers_wish_is_kept_within_reason() {
        let mut backoff = Backoff::new(FIRST, MAX, 1);
        assert_eq!(backoff.next(Some(Duration::from_secs(3))), Duration::from_secs(3));
        assert_eq!(backoff.next(Some(Duration::from_secs(86_400))), MAX);
    }

    #[test]
    fn different_seeds_spread() {
        let waits: std::collections::HashSet<Duration> = (1..=100)
            .map(|seed: u64| Backoff::new(FIRST, MAX, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next(None))
            .collect();
        assert!(waits.len() > 90, "{}", waits.len());
    }
}
