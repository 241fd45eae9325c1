//! Quantities: `100m`, `64Mi`, `1e3`, `1.5Gi`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The text is kept, so that printing gives back what was read; the number is kept in thousandths.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quantity {
    text: String,
    milli: i128,
}

/// Text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity such as 100m, 64Mi or 1e3")]
pub struct InvalidQuantity(pub String);

/// Digits before and after the point. Kubernetes keeps 2^63 at most; more digits cannot be meant.
const DIGITS_MAX: usize = 24;

impl Quantity {
    /// A whole number.
    pub fn from_units(units: u64) -> Self {
        Self {
            text: units.to_string(),
            milli: i128::from(units) * 1000,
        }
    }

    /// Bytes, printed in `Ki` as a kubelet does.
    pub fn from_bytes_ki(bytes: u64) -> Self {
        let ki = bytes / 1024;
        Self {
            text: format!("{ki}Ki"),
            milli: i128::from(ki) * 1024 * 1000,
        }
    }

    /// Thousandths, printed with `m` unless whole.
    pub fn from_milli(milli: u64) -> Self {
        let text = if milli.is_multiple_of(1000) {
            (milli / 1000).to_string()
        } else {
            format!("{milli}m")
        };
        Self {
            text,
            milli: i128::from(milli),
        }
    }

    /// Reads a quantity. A fraction finer than a thousandth is rounded up, as Kubernetes does.
    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        let milli = parse_milli(text).ok_or_else(|| InvalidQuantity(text.chars().take(64).collect()))?;
        Ok(Self {
            text: text.to_owned(),
            milli,
        })
    }

    /// Thousandths: for CPU, millicores.
    pub fn milli(&self) -> i64 {
        clamp(self.milli)
    }

    /// Units rounded up: for memory, bytes.
    pub fn units(&self) -> i64 {
        clamp(self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0))
    }

    /// The value divided by `divisor`, rounded up: how the downward API prints resources.
    pub fn divided_by(&self, divisor: &Quantity) -> i64 {
        if divisor.milli <= 0 {
            return self.units();
        }
        clamp(self.milli.div_euclid(divisor.milli) + i128::from(self.milli.rem_euclid(divisor.milli) != 0))
    }

    /// The text as it was read.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn parse_milli(text: &str) -> Option<i128> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty()
        || whole.len() + fraction.len() > DIGITS_MAX
        || fraction.contains('.')
    {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let (numerator, denominator) = suffix_factor(suffix)?;
    let scaled = digits.checked_mul(numerator)?.checked_mul(1000)?;
    let divisor = scale.checked_mul(denominator)?;
    let milli = scaled / divisor + i128::from(scaled % divisor != 0);
    Some(if negative { -milli } else { milli })
}

/// The suffix as a fraction.
fn suffix_factor(suffix: &str) -> Option<(i128, i128)> {
    let factor = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => return exponent_factor(exponent),
    };
    Some(factor)
}

fn exponent_factor(text: &str) -> Option<(i128, i128)> {
    let exponent: i32 = text.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Whole(i64),
            Fraction(f64),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Text(text) => text,
            Raw::Whole(number) => number.to_string(),
            Raw::Fraction(number) => number.to_string(),
        };
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let table = [
            ("100m", 100, 1),
            ("0.5", 500, 1),
            ("2", 2000, 2),
            ("1e3", 1_000_000, 1000),
            ("1E-2", 10, 1),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("1n", 1, 1),
            ("-5", -5000, -5),
            ("+1k", 1_000_000, 1000),
            (".5", 500, 1),
            ("128974848", 128_974_848_000, 128_974_848),
        ];
        for (text, milli, units) in table {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.milli(), quantity.units()), (milli, units), "{text}");
            assert_eq!(quantity.to_string(), text);
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "m",
            "1.2.3",
            "1kb",
            "0x10",
            "1e",
            "1 Mi",
            "9999999999999999999999999",
            "1e99",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn divided() {
        let mi = Quantity::parse("1Mi").unwrap();
        assert_eq!(Quantity::parse("64Mi").unwrap().divided_by(&mi), 64);
        assert_eq!(
            Quantity::parse("100m")
                .unwrap()
                .divided_by(&Quantity::from_units(1)),
            1
        );
        assert_eq!(
            Quantity::parse("100m")
                .unwrap()
                .divided_by(&Quantity::parse("1m").unwrap()),
            100
        );
    }
}
