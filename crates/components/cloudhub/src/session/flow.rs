//! How much one node may send: two leaky buckets, one of messages and one of bytes.
//!
//! Nothing is dropped. A node above its rate is read more slowly, which fills its own socket and stops its own sender. A
//! node that stays above it for long is not busy but broken, and its session ends.

use kedge_link::{Bucket, Rate};
use kedge_wire::Time;
use std::time::Duration;

/// What one session may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowLimits {
    /// A node with the usual 110 pods sends a few messages a second; one that returns after an outage empties its outbox
    /// at this rate. A hundred nodes that all flood still cost less than one core.
    pub messages_per_second: u32,
    /// A node of a few thousand pods may tell all their states at once when it joins.
    pub messages_burst: u32,
    pub bytes_per_second: u32,
    /// As much as the largest message, so that one such message is never a flood.
    pub bytes_burst: u32,
    /// How long a node may stay above its rate before its session ends. Ten thousand pods that all report are read in
    /// less.
    pub patience: Duration,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self {
            messages_per_second: 200,
            messages_burst: 2000,
            bytes_per_second: 4 * 1024 * 1024,
            bytes_burst: 16 * 1024 * 1024,
            patience: Duration::from_secs(120),
        }
    }
}

/// What one node has sent lately.
#[derive(Debug, Default)]
pub(super) struct Flow {
    messages: Bucket,
    bytes: Bucket,
    /// Since when the node has been above its rate without a rest.
    above_since: Option<Time>,
}

impl FlowLimits {
    fn messages(&self) -> Rate {
        Rate {
            per_second: self.messages_per_second,
            burst: self.messages_burst,
        }
    }

    fn bytes(&self) -> Rate {
        Rate {
            per_second: self.bytes_per_second,
            burst: self.bytes_burst,
        }
    }
}

impl Flow {
    /// Counts one message that was read.
    pub(super) fn read(&mut self, bytes: usize, limits: &FlowLimits, now: Time) {
        if self.has_rested(limits, now) {
            self.above_since = None;
        }
        self.messages.pour(1, limits.messages(), now);
        self.bytes.pour(bytes as u64, limits.bytes(), now);
        if !self.above(limits, now).is_zero() {
            self.above_since.get_or_insert(now);
        }
    }

    /// The moment at which reading may go on; `None` when that is now.
    pub(super) fn paused_until(&self, limits: &FlowLimits, now: Time) -> Option<Time> {
        let above = self.above(limits, now);
        // Reading a part of a millisecond too early would be a pause of none.
        let whole_ms = above.as_micros().div_ceil(1000);
        let pause = Duration::from_millis(u64::try_from(whole_ms).unwrap_or(u64::MAX));
        (!above.is_zero()).then(|| now + pause)
    }

    /// Whether the node has been above its rate for longer than anything sensible takes.
    pub(super) fn is_flood(&self, limits: &FlowLimits, now: Time) -> bool {
        self.above_since
            .is_some_and(|since| now.since(since) >= limits.patience)
    }

    fn above(&self, limits: &FlowLimits, now: Time) -> Duration {
        let above = self.messages.above(limits.messages(), now);
        above.max(self.bytes.above(limits.bytes(), now))
    }

    /// Both buckets are half empty: a node that only ever stays at the brim never gets here.
    fn has_rested(&self, limits: &FlowLimits, now: Time) -> bool {
        self.messages.is_half_empty(limits.messages(), now) && self.bytes.is_half_empty(limits.bytes(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const LIMITS: FlowLimits = FlowLimits {
        messages_per_second: 10,
        messages_burst: 20,
        bytes_per_second: 1000,
        bytes_burst: 5000,
        patience: Duration::from_secs(30),
    };

    /// A sender that always has more to say is read whenever reading is allowed, for so many seconds.
    fn check(bytes: usize, rest_ms: u64, seconds: u64, expected: Expect) {
        let mut flow = Flow::default();
        let (mut now, end) = (
            Time::from_ms(1_000_000),
            Time::from_ms(1_000_000 + seconds * 1000),
        );
        let mut read = 0;
        while now < end {
            if flow.is_flood(&LIMITS, now) {
                let after = now.since(Time::from_ms(1_000_000)).as_secs();
                return expected.assert_eq(&format!("{read} read, a flood after {after} s"));
            }
            match flow.paused_until(&LIMITS, now) {
                Some(until) => now = until,
                None => {
                    flow.read(bytes, &LIMITS, now);
                    read += 1;
                    now = now + Duration::from_millis(rest_ms);
                }
            }
        }
        expected.assert_eq(&format!("{read} read"));
    }

    #[test]
    fn a_burst_is_taken_at_once_and_the_rest_at_the_rate() {
        check(10, 0, 10, expect!["120 read"]);
        // The bytes are the narrower limit here.
        check(1000, 0, 10, expect!["15 read"]);
        // One message above the whole burst is read, and paid for afterwards.
        check(9000, 0, 10, expect!["2 read"]);
    }

    #[test]
    fn who_never_rests_is_a_flood_and_who_stays_below_the_rate_is_none() {
        check(10, 0, 100, expect!["320 read, a flood after 30 s"]);
        check(10, 100, 100, expect!["1000 read"]);
        check(900, 1000, 100, expect!["100 read"]);
    }
}
