//! A clock that somebody sets.

use kedge_wire::Time;

/// So far from zero that no leap gets there.
const BASE_MS: i64 = 1_000_000_000_000;
/// How far a clock is set in one go.
const LEAP_MS_MAX: u64 = 4 * 3_600_000;

/// What one machine takes for the time, against the time of the world.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    ahead_ms: i64,
}

impl Clock {
    pub(crate) fn show(self, now: u64) -> Time {
        let now = i64::try_from(now).expect("a world lives some minutes");
        Time::from_ms(u64::try_from(BASE_MS + now + self.ahead_ms).expect("leaps are small against the base"))
    }

    /// When it will show this; moments of before the last leap may lie anywhere.
    pub(crate) fn moment(self, time: Time) -> u64 {
        let shown = i64::try_from(time.as_ms()).expect("times begin at the base");
        u64::try_from(shown - BASE_MS - self.ahead_ms).unwrap_or(0)
    }

    pub(crate) fn leap(&mut self, chance: &mut crate::chance::Chance) {
        let far = i64::try_from(chance.below(LEAP_MS_MAX)).expect("hours");
        // Around the true time, so that leaps do not add up.
        self.ahead_ms = if chance.percent(50) { far } else { -far };
    }
}
