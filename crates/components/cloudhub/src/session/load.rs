//! What one session adds to the numbers of the hub.

use crate::metrics::Metrics;
use kedge_link::Peer;
use kedge_link::cloud::Depth;
use kedge_telemetry::metrics::Histogram;
use kedge_wire::{MessageId, Packet, Time};
use std::sync::Arc;
use std::time::Duration;

/// An object without acknowledgement after this counts as one that took so long, and the next is timed.
const TIMED_MAX: Duration = Duration::from_secs(60);

/// The session's part of the hub's gauges; gone with the session.
pub(super) struct Load {
    metrics: Arc<Metrics>,
    peer: Peer,
    told: Depth,
}

impl Load {
    /// The session counts from now on.
    pub(super) fn new(metrics: Arc<Metrics>, peer: Peer) -> Self {
        metrics.session_begins(peer);
        let told = Depth::default();
        Self { metrics, peer, told }
    }

    /// Passes on what has changed since it was told last.
    pub(super) fn tell(&mut self, depth: &Depth) {
        if *depth != self.told {
            self.metrics.depth_changed(&self.told, depth);
            self.told = *depth;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The totals stay, what waits is gone.
        let nothing = Depth {
            in_flight: 0,
            in_flight_bytes: 0,
            waiting: 0,
            requests: 0,
            ..self.told
        };
        self.metrics.depth_changed(&self.told, &nothing);
        self.metrics.session_ends(self.peer);
    }
}

/// Times the acknowledgement of one object at a time, which costs nothing per message and is enough for a histogram.
#[derive(Debug, Default)]
pub(super) struct Timing {
    running: Option<Box<(MessageId, Time)>>,
}

impl Timing {
    pub(super) fn sent(&mut self, packet: &Packet, now: Time, seconds: &Histogram) {
        let Packet::Envelope(envelope) = packet else {
            return;
        };
        if let Some(running) = &self.running {
            let waited = now.since(running.1);
            if waited < TIMED_MAX {
                return;
            }
            seconds.observe(waited.as_secs_f64());
        }
        self.running = Some(Box::new((envelope.header.id.clone(), now)));
    }

    pub(super) fn acknowledged(&mut self, packet: &Packet, now: Time, seconds: &Histogram) {
        if let Packet::Envelope(envelope) = packet
            && let Some(running) = &self.running
            && envelope.header.parent.as_ref() == Some(&running.0)
        {
            seconds.observe(now.since(running.1).as_secs_f64());
            self.running = None;
        }
    }
}
