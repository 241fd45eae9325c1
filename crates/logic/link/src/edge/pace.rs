//! How fast this edge may speak of its own accord.

use crate::{Bucket, Rate};
use kedge_wire::Time;

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

/// What has left lately: messages, and their bytes.
#[derive(Debug)]
pub(super) struct Pace {
    messages_max: Rate,
    bytes_max: Rate,
    messages: Bucket,
    bytes: Bucket,
}

impl Pace {
    pub(super) fn new(rates: &Rates) -> Self {
        Self {
            messages_max: Rate {
                per_second: rates.messages_per_second,
                burst: rates.messages_burst,
            },
            bytes_max: Rate {
                per_second: rates.bytes_per_second,
                burst: rates.bytes_burst,
            },
            messages: Bucket::default(),
            bytes: Bucket::default(),
        }
    }

    /// When the next message may leave; it has passed when one may leave now. A message that is larger than the whole
    /// bucket may leave, too, and is paid for afterwards.
    pub(super) fn ready_at(&self) -> Time {
        let messages = self.messages.ready_at(self.messages_max);
        messages.max(self.bytes.ready_at(self.bytes_max))
    }

    /// Counts a message that leaves.
    pub(super) fn count(&mut self, bytes: usize, now: Time) {
        self.messages.pour(1, self.messages_max, now);
        self.bytes.pour(bytes as u64, self.bytes_max, now);
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
}
