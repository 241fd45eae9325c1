//! Times that many processes observe and one adds up: counts in buckets, so that merging loses nothing.
//!
//! Buckets are 1/64 of a power of two wide, so a percentile is at most 1.6 % above the truth, and never below it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Buckets of each power of two.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// Counted durations, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histogram {
    #[serde(rename = "n")]
    count: u64,
    #[serde(rename = "max")]
    max_us: u64,
    #[serde(rename = "b")]
    buckets: BTreeMap<u16, u64>,
}

/// The figures of a histogram that people compare.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Histogram {
    pub fn observe(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.max_us = self.max_us.max(us);
        *self.buckets.entry(bucket_of(us)).or_default() += 1;
    }

    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The time that `part` of a hundred of what was observed did not exceed.
    pub fn percentile(&self, part: f64) -> Duration {
        // The smallest rank that covers the part: of 100 values the 99th percentile is the 99th value.
        let rank = ((part / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(end_of(*bucket).min(self.max_us));
            }
        }
        Duration::ZERO
    }

    /// In milliseconds; `None` when nothing was observed.
    pub fn percentiles(&self) -> Option<Percentiles> {
        if self.is_empty() {
            return None;
        }
        let ms = |part| millis(self.percentile(part));
        Some(Percentiles {
            count: self.count,
            p50: ms(50.0),
            p90: ms(90.0),
            p99: ms(99.0),
            max: millis(Duration::from_micros(self.max_us)),
        })
    }
}

/// Milliseconds with two digits behind the point: more would claim a precision that is not there.
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

fn bucket_of(us: u64) -> u16 {
    if us < STEPS {
        return u16::try_from(us).expect("below 64");
    }
    let power = us.ilog2() - STEP_BITS;
    let index = u64::from(power) * STEPS + (us >> power);
    u16::try_from(index).expect("58 powers of 64 buckets and 64 more")
}

/// The largest value of a bucket.
fn end_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < STEPS {
        return bucket;
    }
    let power = bucket / STEPS - 1;
    let step = u128::from(bucket - power * STEPS) + 1;
    u64::try_from((step << power) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for us in values {
            histogram.observe(Duration::from_micros(*us));
        }
        histogram
    }

    #[test]
    fn percentiles_of_known_values() {
        let values: Vec<u64> = (1..=100).map(|ms| ms * 1000).collect();
        let p = of(&values).percentiles().expect("it is not empty");
        assert_eq!((p.count, p.max), (100, 100.0));
        for (seen, truth) in [(p.p50, 50.0), (p.p90, 90.0), (p.p99, 99.0)] {
            assert!(seen >= truth && seen <= truth * 1.016, "{seen} for {truth}");
        }
        assert_eq!(of(&[7]).percentile(50.0), Duration::from_micros(7));
        assert_eq!(of(&[]).percentiles(), None);
        assert_eq!(
            of(&[0, u64::MAX]).percentile(100.0),
            Duration::from_micros(u64::MAX)
        );
    }

    #[test]
    fn every_boundary_belongs_to_its_own_bucket() {
        for power in 0..64 {
            for us in [(1_u64 << power) - 1, 1 << power, (1 << power) + 1] {
                let end = end_of(bucket_of(us));
                assert!(
                    end >= us && (end - us) as f64 <= us as f64 / 63.0 + 1.0,
                    "{us} ends at {end}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_merged_is_as_if_observed_by_one(a in proptest::collection::vec(any::<u64>(), 0..50),
                                                   b in proptest::collection::vec(0_u64..10_000_000, 0..50)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let all: Vec<u64> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(&merged, &of(&all));
            let text = serde_json::to_string(&merged).expect("it is plain data");
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).expect("as it was written"), merged);
        }

        #[test]
        fn a_percentile_is_never_too_good(mut values in proptest::collection::vec(0_u64..1_000_000_000, 1..200),
                                          part in 1.0_f64..100.0) {
            let seen = of(&values).percentile(part);
            values.sort_unstable();
            let rank = ((part / 100.0 * values.len() as f64).ceil() as usize).max(1);
            let truth = values[rank - 1];
            prop_assert!(seen >= Duration::from_micros(truth));
            prop_assert!(seen <= Duration::from_micros(truth + truth / 63 + 1));
        }
    }
}
