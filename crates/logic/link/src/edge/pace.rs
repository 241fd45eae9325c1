//! How fast this edge may speak of its own accord.

use kedge_wire::Time;
use std::time::Duration;

/// What an edge sends at most. Acknowledgements and heartbeats are not counted: the cloud's window and the interval bound
/// them, and an edge that held them back would only make the cloud repeat itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    /// `modules.edgeHub.messageQPS`, official default 30. At least 1.
    pub messages_per_second: u32,
    /// `modules.edgeHub.messageBurst`, official default 60.
    pub messages_burst: u32,
    /// Less than a hub takes from one node, so that a busy edge is slow by itself and not held back there.
    pub bytes_per_second: u32,
    pub bytes_burst: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            messages_per_second: 30,
            messages_burst: 60,
            bytes_per_second: 2 * 1024 * 1024,
            bytes_burst: 8 * 1024 * 1024,
        }
    }
}

/// Two leaky buckets. Each is kept as the moment, in microseconds, at which it will have leaked empty.
#[derive(Debug)]
pub(super) struct Pace {
    messages: Bucket,
    bytes: Bucket,
}

#[derive(Debug)]
struct Bucket {
    per_second: u64,
    burst: u64,
    empty_at_us: u64,
}

impl Pace {
    pub(super) fn new(rates: &Rates) -> Self {
        Self {
            messages: Bucket::new(rates.messages_per_second, rates.messages_burst),
            bytes: Bucket::new(rates.bytes_per_second, rates.bytes_burst),
        }
    }

    /// When the next message may leave; it has passed when one may leave now. A message that is larger than the whole
    /// bucket may leave, too, and is paid for afterwards.
    pub(super) fn ready_at(&self) -> Time {
        let us = self.messages.ready_at_us().max(self.bytes.ready_at_us());
        Time::from_ms(us.div_ceil(1000))
    }

    /// Counts a message that leaves.
    pub(super) fn count(&mut self, bytes: usize, now: Time) {
        self.messages.pour(1, now);
        self.bytes.pour(bytes as u64, now);
    }
}

impl Bucket {
    fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: u64::from(per_second.max(1)),
            burst: u64::from(burst.max(1)),
            empty_at_us: 0,
        }
    }

    fn time_us(&self, amount: u64) -> u64 {
        amount.saturating_mul(Duration::from_secs(1).as_micros() as u64) / self.per_second
    }

    /// When there is room for something: one drop less than the burst is in it.
    fn ready_at_us(&self) -> u64 {
        self.empty_at_us.saturating_sub(self.time_us(self.burst - 1))
    }

    fn pour(&mut self, amount: u64, now: Time) {
        let now_us = now.as_ms().saturating_mul(1000);
        self.empty_at_us = self.empty_at_us.max(now_us).saturating_add(self.time_us(amount));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender that always has more to say: messages in each second.
    fn messages_by_second(rates: &Rates, bytes: usize, seconds: u64) -> Vec<u32> {
        let mut pace = Pace::new(rates);
        let start = 1_000_000;
        let mut counts = vec![0; usize::try_from(seconds).unwrap()];
        for ms in 0..seconds * 1000 {
            let now = Time::from_ms(start + ms);
            while pace.ready_at() <= now {
                pace.count(bytes, now);
                counts[usize::try_from(ms / 1000).unwrap()] += 1;
            }
        }
        counts
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let rates = Rates::default();
        assert_eq!(messages_by_second(&rates, 100, 4), [89, 30, 30, 30]);
        // 64 KiB each: 8 MiB at once, then 2 MiB a second.
        let many = Rates {
            messages_per_second: 10_000,
            messages_burst: 10_000,
            ..rates
        };
        assert_eq!(messages_by_second(&many, 64 * 1024, 3), [160, 32, 32]);
        // One message larger than the bucket passes, and is paid for.
        assert_eq!(
            messages_by_second(&many, 16 * 1024 * 1024, 10),
            [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_rate_of_nothing_is_one_a_second() {
        let rates = Rates {
            messages_per_second: 0,
            messages_burst: 0,
            ..Rates::default()
        };
        assert_eq!(messages_by_second(&rates, 1, 3), [1, 1, 1]);
    }
}
