//! How a connection is ended with a reason, as the close frame of WebSocket says it.

/// A close frame's reason may have 123 bytes.
const REASON_BYTES_MAX: usize = 123;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// 1000: done.
    Normal,
    /// 1001: the process ends.
    Away,
    /// 1002: not WebSocket.
    Protocol,
    /// 1007: text that is not what it should be.
    Invalid,
    /// 1008: against a rule.
    Policy,
    /// 1009: larger than the limit.
    TooLarge,
    /// 1011: the own side failed.
    Error,
    /// 1013: no room at the moment.
    TryAgain,
    /// Anything else a peer may say.
    Other(u16),
}

/// The last words of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    pub reason: String,
}

impl std::fmt::Display for Close {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code.number(), self.reason)
    }
}

impl CloseCode {
    const NAMED: [Self; 8] = [
        Self::Normal,
        Self::Away,
        Self::Protocol,
        Self::Invalid,
        Self::Policy,
        Self::TooLarge,
        Self::Error,
        Self::TryAgain,
    ];

    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Away => 1001,
            Self::Protocol => 1002,
            Self::Invalid => 1007,
            Self::Policy => 1008,
            Self::TooLarge => 1009,
            Self::Error => 1011,
            Self::TryAgain => 1013,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u16) -> Self {
        let known = Self::NAMED.into_iter().find(|code| code.number() == number);
        known.unwrap_or(Self::Other(number))
    }
}

impl Close {
    /// What a close frame without a payload says.
    pub(crate) fn silent() -> Self {
        Self {
            code: CloseCode::Normal,
            reason: "without a reason".into(),
        }
    }

    /// The payload of a close frame; a long reason is cut between two characters.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut end = REASON_BYTES_MAX.min(self.reason.len());
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        let mut payload = self.code.number().to_be_bytes().to_vec();
        payload.extend_from_slice(&self.reason.as_bytes()[..end]);
        payload
    }

    /// Reads the payload of a close frame, or says what is wrong with it.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, &'static str> {
        let (number, reason) = match payload {
            [] => return Ok(Self::silent()),
            [_] => return Err("a close frame with half a code"),
            [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        };
        // What is left out stands for events that never travel, or for nothing at all.
        if !matches!(number, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err("a close frame with a code that must not travel");
        }
        let reason = std::str::from_utf8(reason).map_err(|_| "a close frame whose reason is not text")?;
        Ok(Self {
            code: CloseCode::from_number(number),
            reason: reason.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let close = Close {
            code: CloseCode::Policy,
            reason: "ü".repeat(100),
        };
        let payload = close.payload();
        assert_eq!(payload.len(), 2 + 122);
        assert_eq!(Close::read(&payload).unwrap().reason, "ü".repeat(61));
    }

    #[test]
    fn codes_keep_their_numbers() {
        for number in [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4999,
        ] {
            let close = Close {
                code: CloseCode::from_number(number),
                reason: String::new(),
            };
            assert_eq!(Close::read(&close.payload()).unwrap(), close);
        }
        for number in [0_u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert!(Close::read(&number.to_be_bytes()).is_err());
        }
    }
}
