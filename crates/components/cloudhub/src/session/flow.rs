//! How much one node may send: two leaky buckets, one of messages and one of bytes.
//!
//! Nothing is dropped. A node above its rate is read more slowly, which fills its own socket and stops its own sender. A
//! node that stays above it for long is not busy but broken, and its session ends.

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

/// A bucket that leaks at the permitted rate, kept as the moment at which it will be empty.
#[derive(Debug, Default)]
struct Bucket {
    empty_at_us: u64,
}

impl Bucket {
    fn add(&mut self, amount: u64, per_second: u32, now_us: u64) {
        let cost_us = amount.saturating_mul(1_000_000) / u64::from(per_second.max(1));
        self.empty_at_us = self.empty_at_us.max(now_us).saturating_add(cost_us);
    }

    /// The level, as the time it takes to leak away.
    fn level_us(&self, now_us: u64) -> u64 {
        self.empty_at_us.saturating_sub(now_us)
    }

    fn above_us(&self, burst_us: u64, now_us: u64) -> u64 {
        self.level_us(now_us).saturating_sub(burst_us)
    }
}

fn burst_us(burst: u32, per_second: u32) -> u64 {
    u64::from(burst) * 1_000_000 / u64::from(per_second.max(1))
}

impl Flow {
    /// Counts one message that was read.
    pub(super) fn read(&mut self, bytes: usize, limits: &FlowLimits, now: Time) {
        let now_us = now.as_ms() * 1000;
        if self.has_rested(limits, now_us) {
            self.above_since = None;
        }
        self.messages.add(1, limits.messages_per_second, now_us);
        self.bytes.add(bytes as u64, limits.bytes_per_second, now_us);
        if self.above_us(limits, now_us) > 0 {
            self.above_since.get_or_insert(now);
        }
    }

    /// The moment at which reading may go on; `None` when that is now.
    pub(super) fn paused_until(&self, limits: &FlowLimits, now: Time) -> Option<Time> {
        let above_us = self.above_us(limits, now.as_ms() * 1000);
        (above_us > 0).then(|| now + Duration::from_millis(above_us.div_ceil(1000)))
    }

    /// Whether the node has been above its rate for longer than anything sensible takes.
    pub(super) fn is_flood(&self, limits: &FlowLimits, now: Time) -> bool {
        self.above_since
            .is_some_and(|since| now.since(since) >= limits.patience)
    }

    fn above_us(&self, limits: &FlowLimits, now_us: u64) -> u64 {
        let messages = burst_us(limits.messages_burst, limits.messages_per_second);
        let bytes = burst_us(limits.bytes_burst, limits.bytes_per_second);
        let above = self.messages.above_us(messages, now_us);
        above.max(self.bytes.above_us(bytes, now_us))
    }

    /// Both buckets are half empty: a node that only ever stays at the brim never gets here.
    fn has_rested(&self, limits: &FlowLimits, now_us: u64) -> bool {
        let messages = burst_us(limits.messages_burst, limits.messages_per_second);
        let bytes = burst_us(limits.bytes_burst, limits.bytes_per_second);
        self.messages.level_us(now_us) <= messages / 2 && self.bytes.level_us(now_us) <= bytes / 2
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
