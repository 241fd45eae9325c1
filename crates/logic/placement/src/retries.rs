//! Whether a call that failed is made again, and when.

use std::time::Duration;

/// First wait; doubles.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait that we choose ourselves.
const MAX: Duration = Duration::from_secs(4);
/// Doublings up to the maximum.
const DOUBLINGS_MAX: u32 = 5;
/// A write that others overtook is made again this often. More means that two sides fight.
const CONFLICTS_MAX: u32 = 3;

/// Why a call has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The API could not be reached, broke off, or answered 5xx.
    Unavailable,
    /// 429, with what it asked us to wait.
    Overloaded { retry_after: Option<Duration> },
    /// 409 on a write that names no version: two writers met.
    Conflict,
    /// It said no, and will say no again: not found, forbidden, invalid, a webhook's refusal.
    Refused,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Again { after: Duration },
    GiveUp,
}

/// Decides about one call. `attempt` counts from zero, `left` is how long the asker still waits, `chance` is any number:
/// it spreads those who failed together.
pub fn next(failure: Failure, attempt: u32, left: Duration, chance: u64) -> Next {
    let backoff = FIRST.saturating_mul(1 << attempt.min(DOUBLINGS_MAX)).min(MAX);
    let wait = match failure {
        Failure::Refused => return Next::GiveUp,
        Failure::Conflict if attempt >= CONFLICTS_MAX => return Next::GiveUp,
        Failure::Conflict | Failure::Unavailable => jittered(backoff, chance),
        // Never sooner than it asked.
        Failure::Overloaded { retry_after } => retry_after.unwrap_or_default().max(jittered(backoff, chance)),
    };
    match wait < left {
        true => Next::Again { after: wait },
        // It would be over when nobody waits any more: the edge hears now, and reports again.
        false => Next::GiveUp,
    }
}

/// Between half of the wait and the whole.
fn jittered(wait: Duration, chance: u64) -> Duration {
    let half = wait / 2;
    let half_ms = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_millis(chance % half_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_table() {
        let asked = |seconds| Failure::Overloaded {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let table = [
            (Failure::Unavailable, 0, 20),
            (Failure::Unavailable, 3, 20),
            (Failure::Unavailable, 30, 20),
            (Failure::Unavailable, 30, 1),
            (Failure::Conflict, 0, 20),
            (Failure::Conflict, 3, 20),
            (asked(7), 0, 20),
            (asked(30), 0, 20),
            (Failure::Overloaded { retry_after: None }, 1, 20),
            (Failure::Refused, 0, 20),
        ];
        let told: String = table
            .map(|(failure, attempt, left)| {
                let next = next(failure, attempt, Duration::from_secs(left), 0);
                format!("{failure:?}, attempt {attempt}, {left} s left: {next:?}\n")
            })
            .concat();
        expect![[r#"
            Unavailable, attempt 0, 20 s left: Again { after: 100ms }
            Unavailable, attempt 3, 20 s left: Again { after: 800ms }
            Unavailable, attempt 30, 20 s left: Again { after: 2s }
            Unavailable, attempt 30, 1 s left: GiveUp
            Conflict, attempt 0, 20 s left: Again { after: 100ms }
            Conflict, attempt 3, 20 s left: GiveUp
            Overloaded { retry_after: Some(7s) }, attempt 0, 20 s left: Again { after: 7s }
            Overloaded { retry_after: Some(30s) }, attempt 0, 20 s left: GiveUp
            Overloaded { retry_after: None }, attempt 1, 20 s left: Again { after: 200ms }
            Refused, attempt 0, 20 s left: GiveUp
        "#]]
        .assert_eq(&told);
        for chance in [1, 99, 100, u64::MAX] {
            let Next::Again { after } = next(Failure::Unavailable, 0, MAX, chance) else {
                panic!("gave up");
            };
            assert!(after >= FIRST / 2 && after < FIRST, "{after:?}");
        }
    }
}
