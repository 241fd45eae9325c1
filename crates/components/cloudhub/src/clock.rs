//! The hub's clock: wall time at its start plus tokio's monotonic time, so that a paused clock of a test moves sessions
//! too.

use kedge_telemetry::clock;
use kedge_wire::Time;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    wall_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            wall_ms: clock::now_ms(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Time::from_ms(self.wall_ms.saturating_add(passed))
    }
}
