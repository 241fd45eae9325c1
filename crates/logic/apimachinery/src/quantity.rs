//! Resource quantities such as `100m`, `1.5Gi`, `2e3`.

use serde_json::Value;

/// A quantity in thousandths, wide enough for exbibytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    milli: i128,
}

/// The sentence for text that is no quantity.
pub const FORM: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const DIGITS_MAX: usize = 24;

impl Quantity {
    pub const ZERO: Self = Self { milli: 0 };

    pub fn units(units: i64) -> Self {
        Self {
            milli: i128::from(units) * 1000,
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let digits_end = text
            .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let (negative, number) = match number.as_bytes().first()? {
            b'-' => (true, &number[1..]),
            b'+' => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || whole.len() + fraction.len() > DIGITS_MAX {
            return None;
        }
        if !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        let (multiplier, exponent) = scale(suffix)?;
        // value = mantissa * multiplier * 10^(exponent - fraction digits), kept in thousandths, rounded up.
        let power = exponent + 3 - i32::try_from(fraction.len()).ok()?;
        let scaled = mantissa.checked_mul(multiplier)?;
        let milli = if power >= 0 {
            scaled.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
        } else {
            let divisor = 10_i128.checked_pow(power.unsigned_abs())?;
            scaled / divisor + i128::from(scaled % divisor != 0)
        };
        Some(Self {
            milli: if negative { -milli } else { milli },
        })
    }

    /// A quantity as it stands in an object: text or a number.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    pub fn is_negative(self) -> bool {
        self.milli < 0
    }

    /// The share of `whole` that this is, 0 to 1 (1 when there is no whole).
    pub fn share_of(self, whole: Self) -> f64 {
        if whole.milli <= 0 {
            1.0
        } else {
            self.milli as f64 / whole.milli as f64
        }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            milli: self.milli.saturating_add(other.milli),
        }
    }
}

/// Multiplier and power of ten of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (1, (-18..=18).contains(&power).then_some(power)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let q = |text: &str| Quantity::parse(text).unwrap_or_else(|| panic!("{text}")).milli;
        assert_eq!(q("100m"), 100);
        assert_eq!(q("1"), 1000);
        assert_eq!(q("0.5"), 500);
        assert_eq!(q("1.5Gi"), 3 * (1 << 29) * 1000);
        assert_eq!(q("2e3"), 2_000_000);
        assert_eq!(q("-1k"), -1_000_000);
        assert_eq!(q("1u"), 1, "less than a thousandth is rounded up");
        for bad in [
            "",
            "a",
            "1.2.3",
            "1Zi",
            "--1",
            "1e99",
            "9999999999999999999999999",
        ] {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
    }
}
