//! What the hub counts. Labels are classes, never names of nodes.

use crate::session::Reason;
use crate::traffic::{Class, Unserved};
use kedge_link::Peer;
use kedge_link::cloud::Depth;
use kedge_telemetry::metrics::{Counter, Gauge, Histogram, Registry, SECONDS};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Everything that one hub counts.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) handshakes: Handshakes,
    /// The official name of the sessions now.
    connected_nodes: Gauge,
    sessions: PerPeer<Gauge>,
    begun: PerPeer<Counter>,
    ended: [Counter; Reason::ALL.len()],
    pub(crate) replaced: Counter,
    received: Traffic,
    sent: Traffic,
    /// Requests passed to the controllers.
    pub(crate) requests: Counter,
    pauses: [Counter; Pause::ALL.len()],
    deliveries: Deliveries,
    queued: [Gauge; QUEUES.len()],
    pub(crate) ack_seconds: Histogram,
    unserved: [FirstCounter; Unserved::ALL.len()],
    pub(crate) certificates: Counter,
}

type DepthOf = fn(&Depth) -> usize;

/// What waits in a session, by its label.
const QUEUES: [(&str, DepthOf); 4] = [
    ("in_flight", |depth| depth.in_flight),
    ("in_flight_bytes", |depth| depth.in_flight_bytes),
    ("waiting", |depth| depth.waiting),
    ("requests", |depth| depth.requests),
];

/// Why the hub does not read from a node although the node may have something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// The node sends faster than it may.
    Rate,
    /// As many of its requests are being worked on as may be.
    Requests,
}

impl Pause {
    const ALL: [Self; 2] = [Self::Rate, Self::Requests];

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Requests => "requests",
        }
    }
}

/// One for official edges and one for our own.
#[derive(Debug)]
struct PerPeer<T> {
    official: T,
    own: T,
}

impl<T> PerPeer<T> {
    fn new(make: impl Fn(&[(&'static str, &str)]) -> T) -> Self {
        Self {
            official: make(&[("peer", "official")]),
            own: make(&[("peer", "own")]),
        }
    }

    fn of(&self, peer: Peer) -> &T {
        match peer {
            Peer::Official => &self.official,
            Peer::Kedge => &self.own,
        }
    }
}

/// What became of connections before a session began.
#[derive(Debug)]
pub(crate) struct Handshakes {
    pub(crate) ok: Counter,
    pub(crate) failed: Counter,
    /// Wrong name, node limit, replaced before it began.
    pub(crate) refused: Counter,
}

impl Handshakes {
    fn new(registry: &Registry) -> Self {
        let handshakes = |outcome| {
            let help = "Connections by what became of them before a session began";
            registry.counter("kedge_cloudhub_handshakes", help, &[("outcome", outcome)])
        };
        Self {
            ok: handshakes("ok"),
            failed: handshakes("failed"),
            refused: handshakes("refused"),
        }
    }
}

/// Messages and their bytes in one direction.
#[derive(Debug)]
struct Traffic {
    messages: [Counter; Class::ALL.len()],
    bytes: [Counter; Class::ALL.len()],
}

impl Traffic {
    fn new(registry: &Registry, direction: &'static str) -> Self {
        let per_class = |name, help| {
            Class::ALL.map(|class| {
                let labels = [("direction", direction), ("class", class.name())];
                registry.counter(name, help, &labels)
            })
        };
        Self {
            messages: per_class("kedge_cloudhub_messages", "Messages exchanged with nodes"),
            bytes: per_class(
                "kedge_cloudhub_message_bytes",
                "Size of the messages exchanged with nodes, before compression",
            ),
        }
    }

    fn count(&self, class: Class, bytes: usize) {
        self.messages[class as usize].inc();
        self.bytes[class as usize].add(bytes as u64);
    }
}

/// What links tell about their deliveries.
#[derive(Debug)]
struct Deliveries {
    retries: Counter,
    refusals: Counter,
    strays: Counter,
    imposters: Counter,
}

impl Deliveries {
    fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            retries: counter(
                "kedge_cloudhub_retries",
                "Objects sent again because nobody acknowledged them",
            ),
            refusals: counter(
                "kedge_cloudhub_refusals",
                "Objects that a node said it could not store",
            ),
            strays: counter(
                "kedge_cloudhub_stray_acks",
                "Acknowledgements of what was never sent, or was settled before",
            ),
            imposters: counter(
                "kedge_cloudhub_imposters",
                "Messages dropped because they spoke in the name of a part of the cloud",
            ),
        }
    }

    /// One session's numbers have grown.
    fn grow(&self, before: &Depth, now: &Depth) {
        self.retries.add(now.retries.saturating_sub(before.retries));
        self.refusals.add(now.refusals.saturating_sub(before.refusals));
        self.strays.add(now.strays.saturating_sub(before.strays));
        self.imposters.add(now.imposters.saturating_sub(before.imposters));
    }
}

/// A counter that knows the first time.
#[derive(Debug)]
struct FirstCounter {
    counter: Counter,
    begun: AtomicBool,
}

impl FirstCounter {
    /// Counts; true the first time.
    fn inc(&self) -> bool {
        self.counter.inc();
        !self.begun.swap(true, Ordering::Relaxed)
    }
}

/// The counters at one moment, for tests and people.
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
    /// Messages sent again.
    pub retries: u64,
    /// Acknowledgements of what was never sent, or was settled before.
    pub strays: u64,
    /// How often reading from a node stood still because it sent too fast.
    pub slowed: u64,
}

/// Counts what only a door knows. It is watched from afar, so that whoever keeps the numbers keeps no port open.
pub(crate) fn watch_door<D: Send + Sync + 'static>(
    registry: &Registry,
    name: &'static str,
    door: &Arc<D>,
    waiting: fn(&D) -> usize,
    turned_away: fn(&D) -> u64,
) {
    let labels = [("door", name)];
    let watched = Arc::downgrade(door);
    registry.gauge_read(
        "kedge_cloudhub_handshakes_waiting",
        "Connections whose handshake is under way or waits for its turn",
        &labels,
        move || watched.upgrade().map_or(0, |door| waiting(&door) as i64),
    );
    let watched = Arc::downgrade(door);
    registry.gauge_read(
        "kedge_cloudhub_turned_away",
        "Connections closed unseen since the start because too many were joining",
        &labels,
        move || {
            watched
                .upgrade()
                .map_or(0, |door| turned_away(&door).cast_signed())
        },
    );
}

impl Metrics {
    /// Registers the hub's instruments.
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            handshakes: Handshakes::new(registry),
            connected_nodes: registry.gauge("KubeEdge_CloudHub_connected_nodes", "Nodes connected now", &[]),
            sessions: PerPeer::new(|labels| {
                registry.gauge("kedge_cloudhub_sessions", "Sessions now", labels)
            }),
            begun: PerPeer::new(|labels| {
                registry.counter("kedge_cloudhub_sessions_begun", "Sessions begun", labels)
            }),
            ended: Reason::ALL.map(|reason| {
                let (help, labels) = ("Sessions by how they ended", [("reason", reason.name())]);
                registry.counter("kedge_cloudhub_sessions_ended", help, &labels)
            }),
            replaced: counter(
                "kedge_cloudhub_sessions_replaced",
                "Sessions told to go because their node connected again",
            ),
            received: Traffic::new(registry, "in"),
            sent: Traffic::new(registry, "out"),
            requests: counter(
                "kedge_cloudhub_requests",
                "Requests of nodes passed to the controllers",
            ),
            pauses: Pause::ALL.map(|pause| {
                let help = "How often reading from a node stood still";
                registry.counter("kedge_cloudhub_read_pauses", help, &[("reason", pause.name())])
            }),
            deliveries: Deliveries::new(registry),
            queued: QUEUES.map(|(queue, _)| {
                let help = "What waits in all sessions together";
                registry.gauge("kedge_cloudhub_queue_depth", help, &[("queue", queue)])
            }),
            ack_seconds: registry.histogram(
                "kedge_cloudhub_ack_seconds",
                "From writing an object to its acknowledgement; one object of a node at a time is timed",
                &[],
                SECONDS,
            ),
            unserved: Unserved::ALL.map(|kind| {
                let (help, labels) = (
                    "Messages of kinds that have no effect yet",
                    [("kind", kind.name())],
                );
                FirstCounter {
                    counter: registry.counter("kedge_cloudhub_messages_without_effect", help, &labels),
                    begun: AtomicBool::new(false),
                }
            }),
            certificates: counter("kedge_cloudhub_certificates_signed", "Node certificates signed"),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let violations = Reason::ALL.into_iter().zip(&self.ended);
        Snapshot {
            sessions: self.sessions_now() as u64,
            entered: self.begun.official.get() + self.begun.own.get(),
            replaced: self.replaced.get(),
            refused: self.handshakes.refused.get(),
            violations: violations
                .filter(|(reason, _)| reason.is_violation())
                .map(|(_, counter)| counter.get())
                .sum(),
            handshakes_failed: self.handshakes.failed.get(),
            requests: self.requests.get(),
            certificates: self.certificates.get(),
            without_effect: self.unserved.iter().map(|kind| kind.counter.get()).sum(),
            retries: self.deliveries.retries.get(),
            strays: self.deliveries.strays.get(),
            slowed: self.pauses[Pause::Rate as usize].get(),
        }
    }

    pub(crate) fn sessions_now(&self) -> usize {
        usize::try_from(self.connected_nodes.get()).unwrap_or(0)
    }

    pub(crate) fn session_begins(&self, peer: Peer) {
        self.connected_nodes.add(1);
        self.sessions.of(peer).add(1);
        self.begun.of(peer).inc();
    }

    /// The other end of [`Metrics::session_begins`]; why it ended is told to [`Metrics::ended`].
    pub(crate) fn session_ends(&self, peer: Peer) {
        self.connected_nodes.add(-1);
        self.sessions.of(peer).add(-1);
    }

    pub(crate) fn ended(&self, reason: Reason) {
        self.ended[reason as usize].inc();
    }

    /// One session's numbers have changed.
    pub(crate) fn depth_changed(&self, before: &Depth, now: &Depth) {
        for ((_, depth_of), gauge) in QUEUES.iter().zip(&self.queued) {
            let (before, now) = (depth_of(before), depth_of(now));
            if before != now {
                gauge.add(now as i64 - before as i64);
            }
        }
        self.deliveries.grow(before, now);
    }

    pub(crate) fn received(&self, class: Class, bytes: usize) {
        self.received.count(class, bytes);
    }

    pub(crate) fn sent(&self, class: Class, bytes: usize) {
        self.sent.count(class, bytes);
    }

    pub(crate) fn paused(&self, pause: Pause) {
        self.pauses[pause as usize].inc();
    }

    /// Counts a message that nobody takes; true for the first of its kind.
    pub(crate) fn unserved(&self, kind: Unserved) -> bool {
        self.unserved[kind as usize].inc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters are found by number; nothing else holds the order of `ALL` to that of the variants.
    #[test]
    fn numbers_of_labels_are_their_places() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
        for (place, pause) in Pause::ALL.into_iter().enumerate() {
            assert_eq!(pause as usize, place);
        }
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
        }
        for (place, kind) in Unserved::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
