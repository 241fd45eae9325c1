//! Counters of the hub.

use kedge_wire::ToCloud;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what happens; read with [`Metrics::snapshot`].
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) sessions: AtomicU64,
    pub(crate) entered: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) violations: AtomicU64,
    pub(crate) handshakes_failed: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) certificates: AtomicU64,
    without_effect: [AtomicU64; KINDS],
}

const KINDS: usize = 6;

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Sessions now.
    pub sessions: u64,
    /// Sessions begun.
    pub entered: u64,
    /// Sessions ended by a newer one of the same node.
    pub replaced: u64,
    /// Connections refused: wrong name, node limit.
    pub refused: u64,
    /// Sessions ended because the node broke a rule.
    pub violations: u64,
    pub handshakes_failed: u64,
    /// Requests passed to the controllers.
    pub requests: u64,
    /// Node certificates signed.
    pub certificates: u64,
    /// Messages that this version has no use for.
    pub without_effect: u64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            sessions: read(&self.sessions),
            entered: read(&self.entered),
            replaced: read(&self.replaced),
            refused: read(&self.refused),
            violations: read(&self.violations),
            handshakes_failed: read(&self.handshakes_failed),
            requests: read(&self.requests),
            certificates: read(&self.certificates),
            without_effect: self.without_effect.iter().map(read).sum(),
        }
    }

    /// Counts a message that nobody takes; true for the first of its kind.
    pub(crate) fn without_effect(&self, message: &ToCloud) -> (&'static str, bool) {
        let (index, kind) = match message {
            ToCloud::Twin { .. } => (0, "twin"),
            ToCloud::Application { .. } => (1, "application"),
            ToCloud::Upload { .. } => (2, "upload"),
            ToCloud::Task { .. } => (3, "task"),
            ToCloud::Volume { .. } => (4, "volume"),
            ToCloud::Other { .. }
            | ToCloud::KeepAlive
            | ToCloud::Ack(_)
            | ToCloud::Refusal(_)
            | ToCloud::Request(_)
            | ToCloud::Resume { .. }
            | ToCloud::KubernetesCa { .. } => (5, "unknown"),
        };
        (
            kind,
            self.without_effect[index].fetch_add(1, Ordering::Relaxed) == 0,
        )
    }
}
