//! What the controllers count.

use kedge_placement::index::Sizes;
use kedge_telemetry::metrics::{Counter, Gauge, Histogram, Registry, SECONDS};
use kedge_wire::{ObjectKind, Request};
use std::time::Duration;

/// What a request is about, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Lease,
    NodeStatus,
    PodStatus,
    Node,
    Pod,
    Object,
    Token,
    Signing,
    Event,
    Other,
}

impl Asked {
    const ALL: [Self; 10] = [
        Self::Lease,
        Self::NodeStatus,
        Self::PodStatus,
        Self::Node,
        Self::Pod,
        Self::Object,
        Self::Token,
        Self::Signing,
        Self::Event,
        Self::Other,
    ];

    pub(crate) fn of(request: &Request) -> Self {
        match request.key.kind {
            ObjectKind::Lease => Self::Lease,
            ObjectKind::NodePatch | ObjectKind::NodeStatus => Self::NodeStatus,
            ObjectKind::PodPatch | ObjectKind::PodStatus => Self::PodStatus,
            ObjectKind::Node => Self::Node,
            ObjectKind::Pod => Self::Pod,
            ObjectKind::ConfigMap
            | ObjectKind::Secret
            | ObjectKind::PersistentVolume
            | ObjectKind::PersistentVolumeClaim
            | ObjectKind::VolumeAttachment => Self::Object,
            ObjectKind::ServiceAccountToken => Self::Token,
            ObjectKind::CertificateSigningRequest => Self::Signing,
            ObjectKind::Event => Self::Event,
            ObjectKind::ServiceAccountAccess
            | ObjectKind::Device
            | ObjectKind::DeviceModel
            | ObjectKind::Volume
            | ObjectKind::Other(_) => Self::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::NodeStatus => "node_status",
            Self::PodStatus => "pod_status",
            Self::Node => "node",
            Self::Pod => "pod",
            Self::Object => "object",
            Self::Token => "token",
            Self::Signing => "signing",
            Self::Event => "event",
            Self::Other => "other",
        }
    }
}

/// How a request ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The node may not, or the request means nothing.
    Refused,
    /// The API said no, or could not be asked.
    Failed,
    /// A later report made it superfluous, or nobody waited for it any more.
    Superseded,
    /// Over a limit.
    Dropped,
}

impl Outcome {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Refused,
        Self::Failed,
        Self::Superseded,
        Self::Dropped,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Vec<[Counter; Outcome::ALL.len()]>,
    pub(crate) retries: Counter,
    pub(crate) lease_writes_saved: Counter,
    pub(crate) records_written: Counter,
    pub(crate) records_failed: Counter,
    pub(crate) certificates_approved: Counter,
    pub(crate) attached: Gauge,
    pub(crate) records: Gauge,
    pods: Gauge,
    shared: Gauge,
    nodes: Gauge,
    lag: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let request = |asked: Asked, outcome: Outcome| {
            let labels = [("class", asked.word()), ("result", outcome.word())];
            registry.counter("kedge_controllers_requests", "Requests of nodes", &labels)
        };
        let counter = |name, help| registry.counter(name, help, &[]);
        let objects = |kind| {
            let labels = [("kind", kind)];
            registry.gauge("kedge_controllers_index_objects", "Objects in the index", &labels)
        };
        Self {
            requests: Asked::ALL
                .map(|asked| Outcome::ALL.map(|outcome| request(asked, outcome)))
                .into(),
            retries: counter(
                "kedge_controllers_call_retries",
                "Calls to the API that were made again",
            ),
            lease_writes_saved: counter(
                "kedge_controllers_lease_writes_saved",
                "Renewals of leases that needed no write",
            ),
            records_written: counter(
                "kedge_controllers_object_syncs_written",
                "Records for official clouds written or removed",
            ),
            records_failed: counter(
                "kedge_controllers_object_syncs_failed",
                "Records for official clouds given up",
            ),
            certificates_approved: counter(
                "kedge_controllers_certificates_approved",
                "Certificates of nodes' servers approved",
            ),
            attached: registry.gauge("kedge_controllers_attached_nodes", "Attached nodes", &[]),
            records: objects("object_sync"),
            pods: objects("pod"),
            shared: objects("config"),
            nodes: objects("node"),
            lag: registry.histogram(
                "kedge_controllers_placement_lag_seconds",
                "From the watch event to the last node told",
                &[],
                SECONDS,
            ),
        }
    }

    pub(crate) fn request(&self, asked: Asked, outcome: Outcome) {
        let row = Asked::ALL.iter().position(|one| *one == asked);
        let column = Outcome::ALL.iter().position(|one| *one == outcome);
        if let Some(counter) = row
            .zip(column)
            .and_then(|(row, column)| self.requests.get(row)?.get(column))
        {
            counter.inc();
        }
    }

    pub(crate) fn sizes(&self, sizes: Sizes, records: usize, attached: usize) {
        let number = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        self.pods.set(number(sizes.pods));
        self.shared.set(number(sizes.shared));
        self.nodes.set(number(sizes.nodes));
        self.records.set(number(records));
        self.attached.set(number(attached));
    }

    pub(crate) fn placed_after(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }
}
