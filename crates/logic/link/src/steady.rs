//! Time as a link counts it: it never runs backwards and never leaps.
//!
//! The clock of the owner should do neither, but a link must not end every session of a cloud because a machine was
//! asleep, and must not stop all retries because a clock was set back. So a link counts what passes between two calls:
//! nothing when the clock went backwards, and little when it is far beyond the moment at which the link had asked to be
//! woken, because then the process stood still and nobody had a chance to be heard.

use kedge_wire::Time;
use std::time::Duration;

/// How late a wake may be before it is taken for a leap, and how much a leap counts. A busy process is late by some
/// seconds at worst; counting this much each time keeps timers moving even in one that is always late.
pub(crate) const LATE_MAX: Duration = Duration::from_secs(5);

/// Steady time, and the outside moment that corresponds to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steady {
    outside: Time,
    inside: Time,
}

impl Steady {
    pub(crate) const fn new(now: Time) -> Self {
        Self {
            outside: now,
            inside: now,
        }
    }

    /// The owner says that it is `outside`; `due` is the steady moment at which it had to wake, if there was one.
    /// Returns the steady moment.
    pub(crate) fn advance(&mut self, outside: Time, due: Option<Time>) -> Time {
        let passed = outside.since(self.outside);
        let leapt = due.is_some_and(|due| passed > due.since(self.inside) + LATE_MAX);
        self.outside = outside;
        self.inside = self.inside + if leapt { LATE_MAX } else { passed };
        self.inside
    }

    /// The steady moment of the last call.
    pub(crate) const fn now(&self) -> Time {
        self.inside
    }

    /// When the owner's clock will show the steady moment `due`.
    pub(crate) fn outside(&self, due: Time) -> Time {
        self.outside + due.since(self.inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Time {
        Time::from_ms(seconds * 1000)
    }

    #[test]
    fn a_clock_set_back_or_forth_changes_little() {
        let mut steady = Steady::new(at(1000));
        for (outside, due, inside) in [
            (1010, Some(1010), 1010),
            // A little late.
            (1024, Some(1020), 1024),
            // Set back by an hour: nothing has passed, and what follows counts.
            (0, Some(1030), 1024),
            (6, Some(1030), 1030),
            // A leap counts as much as being late does.
            (100_000, Some(1040), 1035),
            (u64::MAX / 1000, Some(1040), 1040),
            // Nobody had to wake, so any pause is right.
            (u64::MAX / 1000, None, 1040),
        ] {
            assert_eq!(
                steady.advance(at(outside), due.map(at)),
                at(inside),
                "outside {outside}"
            );
        }
        assert_eq!(
            steady.outside(at(1041)),
            at(u64::MAX / 1000) + Duration::from_secs(1)
        );
        assert_eq!(
            steady.outside(at(0)),
            at(u64::MAX / 1000),
            "what is past is due now"
        );
    }
}
