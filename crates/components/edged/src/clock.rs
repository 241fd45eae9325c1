//! The time that is told to logic. It follows tokio's clock, so that a test may pause it.

use kedge_wire::Time;
use tokio::time::Instant;

/// A difference below this is the jitter of two readings, not a clock that was set.
const JITTER_MS: i128 = 100;

/// Wall time at the start plus what has passed since: it never runs backwards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    start_ms: u64,
    /// The machine's own steady clock at the same moment: a test does not pause it.
    machine_start: std::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            start_ms: kedge_telemetry::clock::now_ms(),
            machine_start: std::time::Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_ms(self.start_ms) + self.start.elapsed()
    }

    /// The time to write on what others read. Unlike [`Clock::now`] it follows a clock that was set after the start,
    /// which is the rule on a machine that keeps no time while it is off.
    pub(crate) fn wall(&self) -> Time {
        let expected = i128::from(self.start_ms) + as_ms(self.machine_start.elapsed().as_millis());
        let set_by = i128::from(kedge_telemetry::clock::now_ms()) - expected;
        let now = i128::from(self.now().as_ms());
        let wall = if set_by.abs() < JITTER_MS {
            now
        } else {
            now + set_by
        };
        Time::from_ms(u64::try_from(wall).unwrap_or(0))
    }

    /// The moment as tokio knows it, for sleeping.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.start + time.since(Time::from_ms(self.start_ms))
    }
}

fn as_ms(ms: u128) -> i128 {
    i128::try_from(ms).unwrap_or(i128::MAX / 2)
}
