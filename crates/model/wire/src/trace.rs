//! One name for the journey of one version of one object.

use crate::{ResourceVersion, Uid};
use std::fmt;

/// Names a version of an object in the logs of every process that it passes, from the watch event to the edge's
/// commit. It is computed from the object's UID and resource version, so nothing has to carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u64);

/// The numbers of 64-bit FNV-1a, which is small, stable for ever and spreads well enough to be unique in a log.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

impl TraceId {
    pub fn of(uid: &Uid, version: &ResourceVersion) -> Self {
        // A byte that is in neither text keeps `a`+`bc` apart from `ab`+`c`.
        let bytes = uid.as_str().bytes().chain([0xff]).chain(version.as_str().bytes());
        Self(bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(uid: &str, version: &str) -> String {
        TraceId::of(&Uid::new(uid), &ResourceVersion::new(version)).to_string()
    }

    #[test]
    fn a_trace_is_the_same_everywhere_and_differs_with_uid_and_version() {
        // Fixed for ever: an edge of one release and a cloud of another must agree.
        assert_eq!(trace("u1", "7"), "9211abe52fa1e809");
        let all = [
            trace("u1", "7"),
            trace("u1", "8"),
            trace("u17", ""),
            trace("u", "17"),
        ];
        for (n, one) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == one), Some(n));
        }
    }
}
