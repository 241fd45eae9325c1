//! How much may pass in a time: a bucket that leaks.

use kedge_wire::Time;
use std::time::Duration;

/// So many a second in the long run, and so many at once. Zero counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

impl Rate {
    /// How long so much takes to leak away.
    fn time_us(self, amount: u64) -> u64 {
        amount.saturating_mul(1_000_000) / u64::from(self.per_second.max(1))
    }

    fn burst_us(self) -> u64 {
        self.time_us(u64::from(self.burst.max(1)))
    }
}

/// What has passed lately, kept as the moment, in microseconds, at which the bucket will have leaked empty. The rate is
/// told with each question: ten thousand buckets may have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    empty_at_us: u64,
}

impl Bucket {
    /// So much passes. It may be more than the whole bucket holds, and is paid for afterwards.
    pub fn pour(&mut self, amount: u64, rate: Rate, now: Time) {
        self.empty_at_us = self.empty_at_us.max(us(now)).saturating_add(rate.time_us(amount));
    }

    /// When something may pass again: one less than the burst is in the bucket. It has come when something may pass now.
    pub fn ready_at(&self, rate: Rate) -> Time {
        let ready_us = self.empty_at_us.saturating_sub(rate.burst_us() - rate.time_us(1));
        Time::from_ms(ready_us.div_ceil(1000))
    }

    /// Lets one pass, or says how long none may.
    pub fn take(&mut self, rate: Rate, now: Time) -> Result<(), Duration> {
        let ready_at = self.ready_at(rate);
        if ready_at > now {
            return Err(ready_at.since(now));
        }
        self.pour(1, rate, now);
        Ok(())
    }

    /// How long it leaks until it holds no more than a burst.
    pub fn above(&self, rate: Rate, now: Time) -> Duration {
        Duration::from_micros(self.level_us(now).saturating_sub(rate.burst_us()))
    }

    /// Half a burst might pass at once.
    pub fn is_half_empty(&self, rate: Rate, now: Time) -> bool {
        self.level_us(now) <= rate.burst_us() / 2
    }

    fn level_us(&self, now: Time) -> u64 {
        self.empty_at_us.saturating_sub(us(now))
    }
}

fn us(time: Time) -> u64 {
    time.as_ms().saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate {
            per_second: 2,
            burst: 3,
        };
        let at = |ms: u64| Time::from_ms(1_000_000 + ms);
        let mut bucket = Bucket::default();
        assert!((0..3).all(|_| bucket.take(rate, at(0)).is_ok()));
        assert_eq!(bucket.take(rate, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(rate, at(600)), Ok(()));
        assert_eq!(bucket.take(rate, at(600)), Err(Duration::from_millis(400)));
        assert_eq!(bucket.above(rate, at(600)), Duration::ZERO);
        bucket.pour(4, rate, at(600));
        assert_eq!(bucket.above(rate, at(600)), Duration::from_millis(1900));
        assert!(!bucket.is_half_empty(rate, at(3200)) && bucket.is_half_empty(rate, at(3300)));
    }

    #[test]
    fn a_rate_of_nothing_is_one_a_second() {
        let rate = Rate {
            per_second: 0,
            burst: 0,
        };
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(rate, Time::from_ms(5)), Ok(()));
        assert_eq!(bucket.take(rate, Time::from_ms(5)), Err(Duration::from_secs(1)));
    }
}
