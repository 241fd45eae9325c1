//! Whether this machine's clock can be believed: certificates and leases depend on it.

use std::time::{Duration, SystemTime};

/// No correct clock shows an earlier time: this program did not exist (2026-01-01T00:00:00Z).
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// What is to be thought of a moment on this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanity {
    Plausible,
    /// A machine without a battery-backed clock starts in the past until it reached a time server.
    BeforeThisProgram,
}

/// Judges `now`.
pub fn sanity(now: SystemTime) -> Sanity {
    match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if since >= EARLIEST => Sanity::Plausible,
        Ok(_) | Err(_) => Sanity::BeforeThisProgram,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_at_its_origin_is_not_believed() {
        assert_eq!(sanity(SystemTime::UNIX_EPOCH), Sanity::BeforeThisProgram);
        assert_eq!(sanity(SystemTime::UNIX_EPOCH + EARLIEST), Sanity::Plausible);
    }
}
