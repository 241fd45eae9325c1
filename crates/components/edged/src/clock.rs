//! The time that is told to logic. It follows tokio's clock, so that a test may pause it.

use kedge_wire::Time;
use tokio::time::Instant;

/// Wall time at the start plus what has passed since: it never runs backwards.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            start_ms: kedge_telemetry::clock::now_ms(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_ms(self.start_ms) + self.start.elapsed()
    }

    /// The moment as tokio knows it, for sleeping.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.start + time.since(Time::from_ms(self.start_ms))
    }
}
