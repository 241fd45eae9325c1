//! The clock that components read before they call logic.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch that never run backwards: wall time at first use plus a monotonic difference.
/// A step of the wall clock therefore never fires or stalls a timer.
pub fn now_ms() -> u64 {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let (instant, wall_ms) = *START.get_or_init(|| (Instant::now(), wall_ms()));
    let passed = u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX);
    wall_ms.saturating_add(passed)
}

/// Wall time in milliseconds since the Unix epoch, as the host believes it now.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A number that differs between processes and between starts: seeds what spreads delays and makes ids. Not a secret.
pub fn process_seed() -> u64 {
    wall_ms() ^ u64::from(std::process::id()).rotate_left(32)
}
