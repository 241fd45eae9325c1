//! A bucket of permits that fills at a steady rate.

use std::time::Duration;
use tokio::time::Instant;

/// At most `burst` at once, and so many a second in the long run.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    per_second: f64,
    burst: f64,
    permits: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket. A rate of zero means no limit, as everywhere in the configuration of a kubelet.
    pub(crate) fn new(per_second: f64, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            per_second,
            burst,
            permits: burst,
            filled_at: now,
        }
    }

    /// Takes a permit, or says how long there will be none.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        if self.per_second <= 0.0 {
            return Ok(());
        }
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.permits = (self.permits + passed * self.per_second).min(self.burst);
        self.filled_at = now;
        if self.permits >= 1.0 {
            self.permits -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.permits) / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2.0, 3, start);
        assert!((0..3).all(|_| bucket.take(start).is_ok()));
        assert_eq!(bucket.take(start), Err(Duration::from_millis(500)));
        assert!(bucket.take(start + Duration::from_millis(600)).is_ok());
        assert!(bucket.take(start + Duration::from_millis(600)).is_err());
        assert!(Bucket::new(0.0, 1, start).take(start).is_ok());
    }
}
