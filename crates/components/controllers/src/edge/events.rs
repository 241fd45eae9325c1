//! How many events of one node reach the API.

use std::time::Duration;
use tokio::time::Instant;

/// Events that a node may send at once: the start of a pod makes about six, and a node starts with some dozen pods.
const BURST: u32 = 64;
/// One more each so often. A node that crash-loops says the same again and again.
const INTERVAL: Duration = Duration::from_secs(1);

/// The events that a node may still send.
#[derive(Debug)]
pub(super) struct EventBudget {
    left: u32,
    counted: Instant,
}

impl EventBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            counted: now,
        }
    }

    /// Takes one; false when there is none.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted);
        let earned = u32::try_from(passed.as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            // What is left of the interval counts for the next one.
            self.counted += INTERVAL.saturating_mul(earned).min(passed);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_a_second() {
        let mut budget = EventBudget::new(Instant::now());
        let mut take = |number: u32| (0..number).filter(|_| budget.take(Instant::now())).count();
        assert_eq!(take(1000), BURST as usize);
        tokio::time::advance(Duration::from_millis(2500)).await;
        assert_eq!(take(1000), 2);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(take(1000), 1);
        tokio::time::advance(Duration::from_secs(1_000_000)).await;
        assert_eq!(take(1000), BURST as usize);
    }
}
