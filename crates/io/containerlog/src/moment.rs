use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: u64 = 86_400;
/// The calendar repeats itself after as many years and days.
const YEARS_AN_ERA: u64 = 400;
const DAYS_AN_ERA: u64 = 146_097;
const DAYS_A_CENTURY: u64 = 36_524;
const DAYS_FOUR_YEARS: u64 = 1_461;
/// From the first of March of the year 0 to the first of January 1970. Years that begin in March have their leap day at
/// the end, where it disturbs nobody.
const DAYS_BEFORE_1970: u64 = 719_468;

/// A point in time, after 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub seconds: u64,
    pub nanoseconds: u32,
}

impl Moment {
    pub fn now() -> Self {
        // A clock before 1970 has not been set; logs then say 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            nanoseconds: since.subsec_nanos(),
        }
    }

    pub fn milliseconds(self) -> u64 {
        self.seconds * 1_000 + u64::from(self.nanoseconds / 1_000_000)
    }

    /// In UTC, as RFC 3339 has it, always with nine digits behind the point: `2016-10-06T00:17:09.669794202Z`. Without
    /// an allocation, because it is made for every line. Years have four digits.
    pub fn text(self) -> [u8; 30] {
        let (year, month, day) = date(self.seconds / SECONDS_A_DAY);
        let second = self.seconds % SECONDS_A_DAY;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        for (at, digits, value) in [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, second / 3_600),
            (14, 2, second / 60 % 60),
            (17, 2, second % 60),
            (20, 9, u64::from(self.nanoseconds)),
        ] {
            write(&mut text[at..at + digits], value);
        }
        text
    }
}

fn write(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
    }
}

/// Year, month and day of the Gregorian calendar, from the days since the first of January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_BEFORE_1970;
    let (era, day) = (days / DAYS_AN_ERA, days % DAYS_AN_ERA);
    // The last century of an era and the last year of four have a day more, which must not begin another.
    let century = (day / DAYS_A_CENTURY).min(3);
    let day = day - century * DAYS_A_CENTURY;
    let (four, day) = (day / DAYS_FOUR_YEARS, day % DAYS_FOUR_YEARS);
    let one = (day / 365).min(3);
    let day = day - one * 365;
    // From March on, five months have 153 days, again and again.
    let from_march = (5 * day + 2) / 153;
    let of_month = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * YEARS_AN_ERA + century * 100 + four * 4 + one + u64::from(month <= 2);
    (year, month, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, want: &str) {
        let text = Moment {
            seconds,
            nanoseconds: 7,
        }
        .text();
        assert_eq!(String::from_utf8_lossy(&text), format!("{want}.000000007Z"));
    }

    #[test]
    fn days_are_told_as_calendars_have_them() {
        check(0, "1970-01-01T00:00:00");
        check(951_782_399, "2000-02-28T23:59:59");
        check(951_782_400, "2000-02-29T00:00:00");
        check(951_868_800, "2000-03-01T00:00:00");
        check(1_709_164_800, "2024-02-29T00:00:00");
        check(1_735_689_599, "2024-12-31T23:59:59");
        check(4_107_542_400, "2100-03-01T00:00:00");
        check(4_107_456_000, "2100-02-28T00:00:00");
        check(253_402_300_799, "9999-12-31T23:59:59");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = date(0);
        for day in 1..DAYS_AN_ERA {
            let (year, month, of_month) = date(day);
            let next = of_month == last.2 + 1 && (year, month) == (last.0, last.1);
            let first = of_month == 1
                && (28..=31).contains(&last.2)
                && ((year, month) == (last.0, last.1 + 1) || (year, month, last.1) == (last.0 + 1, 1, 12));
            assert!(next || first, "{last:?} {:?}", (year, month, of_month));
            last = (year, month, of_month);
        }
    }
}
