//! Moments as Kubernetes prints them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `metav1.Time`: RFC 3339 with whole seconds, for example `2026-01-01T00:00:11Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    seconds: i64,
}

/// `metav1.MicroTime`: RFC 3339 with six digits after the point, for example `2026-01-01T00:00:11.000000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MicroTime {
    micros: i64,
}

impl Timestamp {
    /// The second in which this millisecond of the Unix epoch lies.
    pub fn from_ms(ms: u64) -> Self {
        Self {
            seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        }
    }

    /// Milliseconds since the Unix epoch; moments before it are 0.
    pub fn as_ms(self) -> u64 {
        u64::try_from(self.seconds).unwrap_or(0).saturating_mul(1000)
    }

    /// Reads RFC 3339 text; fractions of a second are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let moment: jiff::Timestamp = text.parse().ok()?;
        Some(Self {
            seconds: moment.as_second(),
        })
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moment = jiff::Timestamp::from_second(self.seconds).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{moment:.0}")
    }
}

impl MicroTime {
    /// From milliseconds since the Unix epoch.
    pub fn from_ms(ms: u64) -> Self {
        Self {
            micros: i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_ms(self) -> u64 {
        u64::try_from(self.micros / 1000).unwrap_or(0)
    }

    /// Reads RFC 3339 text.
    pub fn parse(text: &str) -> Option<Self> {
        let moment: jiff::Timestamp = text.parse().ok()?;
        Some(Self {
            micros: moment.as_microsecond(),
        })
    }
}

impl std::fmt::Display for MicroTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moment = jiff::Timestamp::from_microsecond(self.micros).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{moment:.6}")
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text)
                    .ok_or_else(|| de::Error::custom(format!("{text:?} is not an RFC 3339 time")))
            }
        }
    };
}

as_text!(Timestamp);
as_text!(MicroTime);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_kubernetes_does() {
        assert_eq!(
            Timestamp::from_ms(1_767_225_611_999).to_string(),
            "2026-01-01T00:00:11Z"
        );
        assert_eq!(
            MicroTime::from_ms(1_767_225_611_000).to_string(),
            "2026-01-01T00:00:11.000000Z"
        );
        assert_eq!(
            MicroTime::parse("2026-11-21T01:18:05.963261Z")
                .unwrap()
                .to_string(),
            "2026-11-21T01:18:05.963261Z"
        );
        assert_eq!(
            Timestamp::parse("2026-01-01T01:00:11+01:00").unwrap(),
            Timestamp::from_ms(1_767_225_611_000)
        );
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
