//! How long to wait before trying again.

use kedge_wire::Time;
use std::time::Duration;

/// The first wait after a failed restart or pull.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_secs(10);
/// No wait is longer: a repaired cause is noticed within this time.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long has recovered: its next end is a first one.
pub(crate) const RECOVERED_AFTER: Duration = Duration::from_secs(600);

/// The wait that follows a wait of `delay`.
pub(crate) fn next(delay: Duration) -> Duration {
    if delay.is_zero() {
        BACKOFF_MIN
    } else {
        (delay * 2).min(BACKOFF_MAX)
    }
}

/// Reason of a container that waits for a config map or a secret.
pub(crate) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// Restarts of one container: the first is at once, the others wait 10 s doubling to 5 min after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CrashBackoff {
    delay: Duration,
}

impl CrashBackoff {
    /// Considers that the last instance ran from `started` to `finished`.
    pub(crate) fn delay(&mut self, started: Time, finished: Time) -> Duration {
        if finished.since(started) >= RECOVERED_AFTER {
            self.delay = Duration::ZERO;
        }
        self.delay
    }

    /// A restart is being made; the wait after it is not longer than `longest`.
    pub(crate) fn restarted(&mut self, longest: Duration) {
        self.delay = next(self.delay).min(longest);
    }
}

/// Something was refused and will be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: Time,
    pub(crate) delay: Duration,
}

impl Trouble {
    /// The image could not be fetched.
    pub(crate) fn is_pull(&self) -> bool {
        matches!(
            self.reason.as_str(),
            "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed"
        )
    }

    /// Something that the pod names is missing.
    pub(crate) fn is_config(&self) -> bool {
        self.reason == CONFIG_ERROR
    }

    /// When the next try is due.
    pub(crate) fn retry_at(&self) -> Time {
        self.since + self.delay
    }
}
