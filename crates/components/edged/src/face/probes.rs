//! Counts of probes for `/metrics/probes`.

use super::text::{Kind, Text};
use kedge_containers::ObservedSandbox;
use kedge_pods::{ProbeId, ProbeKind, ProbeResult};
use kedge_telemetry::channel::latest;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Three probes each of a thousand containers; beyond it only those of pods that are there still count.
const SERIES_MAX: usize = 3 * 1024;
/// Upper limits of how long a probe took, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How the probes of this node's containers went. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct ProbeCounts {
    seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
    series: Arc<Mutex<BTreeMap<Key, Series>>>,
}

/// A container keeps its counts when it restarts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    uid: String,
    container: String,
    kind: ProbeKind,
}

#[derive(Debug, Clone, Default)]
struct Series {
    namespace: String,
    pod: String,
    successful: u64,
    failed: u64,
    unknown: u64,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
}

impl Series {
    fn count(&self) -> u64 {
        self.successful + self.failed + self.unknown
    }
}

impl ProbeCounts {
    pub(crate) fn new(seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>) -> Self {
        Self {
            seen,
            series: Arc::default(),
        }
    }

    /// A probe was answered. One of a container that is gone is not counted any more.
    pub(crate) fn count(&self, id: &ProbeId, result: &ProbeResult, took: Duration) {
        let seen = Arc::clone(&self.seen.borrow());
        let Some(sandbox) = seen.iter().find(|sandbox| sandbox.pod.uid == id.uid) else {
            return;
        };
        let mut containers = sandbox.containers.iter();
        let Some(container) = containers.find(|container| container.id == id.container) else {
            return;
        };
        let key = Key {
            uid: id.uid.clone(),
            container: container.name.clone(),
            kind: id.kind,
        };
        let mut all = self.series();
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            retain(&mut all, &seen);
            if all.len() >= SERIES_MAX {
                return;
            }
        }
        let series = all.entry(key).or_insert_with(|| Series {
            namespace: sandbox.pod.namespace.clone(),
            pod: sandbox.pod.name.clone(),
            ..Series::default()
        });
        match result {
            ProbeResult::Success | ProbeResult::Warning(_) => series.successful += 1,
            ProbeResult::Failure(_) => series.failed += 1,
            ProbeResult::Error(_) => series.unknown += 1,
        }
        let took = took.as_secs_f64();
        series.seconds += took;
        for (bucket, limit) in series.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took <= limit);
        }
    }

    /// Prints the counts of pods that are there.
    pub(super) fn print(&self) -> String {
        let seen = Arc::clone(&self.seen.borrow());
        let mut all = self.series();
        retain(&mut all, &seen);
        let mut text = Text::default();
        let mut totals = text.family("prober_probe_total", Kind::Counter, "Probes by how they ended");
        for (key, series) in &*all {
            for (result, count) in [
                ("successful", series.successful),
                ("failed", series.failed),
                ("unknown", series.unknown),
            ] {
                if count > 0 {
                    let labels = [
                        ("container", key.container.as_str()),
                        ("namespace", &series.namespace),
                        ("pod", &series.pod),
                        ("pod_uid", &key.uid),
                        ("probe_type", kind(key.kind)),
                        ("result", result),
                    ];
                    totals.sample(&labels, count, None);
                }
            }
        }
        durations(&mut text, &all);
        text.finish()
    }

    fn series(&self) -> MutexGuard<'_, BTreeMap<Key, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn durations(text: &mut Text, all: &BTreeMap<Key, Series>) {
    let mut family = text.family(
        "prober_probe_duration_seconds",
        Kind::Histogram,
        "How long probes took",
    );
    for (key, series) in all {
        let labels = [
            ("container", key.container.as_str()),
            ("namespace", &series.namespace),
            ("pod", &series.pod),
            ("probe_type", kind(key.kind)),
        ];
        for (count, limit) in series.buckets.iter().zip(BUCKETS) {
            let limit = limit.to_string();
            let labels: Vec<_> = labels.into_iter().chain([("le", limit.as_str())]).collect();
            family.part("_bucket", &labels, count, None);
        }
        let all: Vec<_> = labels.into_iter().chain([("le", "+Inf")]).collect();
        family.part("_bucket", &all, series.count(), None);
        family.part("_sum", &labels, series.seconds, None);
        family.part("_count", &labels, series.count(), None);
    }
}

fn retain(all: &mut BTreeMap<Key, Series>, seen: &[ObservedSandbox]) {
    all.retain(|key, _| seen.iter().any(|sandbox| sandbox.pod.uid == key.uid));
}

fn kind(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_containers::{ContainerId, ContainerState, ObservedContainer, PodIdentity, SandboxId};

    fn sandbox(uid: &str, container: &str) -> ObservedSandbox {
        ObservedSandbox {
            id: SandboxId(format!("s-{uid}")),
            pod: PodIdentity {
                namespace: "default".into(),
                name: format!("pod-{uid}"),
                uid: uid.into(),
            },
            attempt: 0,
            ready: true,
            created_ms: 0,
            ips: Vec::new(),
            containers: vec![ObservedContainer {
                id: ContainerId(container.into()),
                name: "main".into(),
                attempt: 0,
                image: String::new(),
                image_ref: String::new(),
                spec_hash: String::new(),
                created_ms: 0,
                state: ContainerState::Running { started_ms: 1 },
                log_path: "x".into(),
            }],
        }
    }

    #[test]
    fn counts_stay_over_a_restart_and_go_with_the_pod() {
        let (tx, rx) = latest::channel(Arc::new(vec![sandbox("1", "a")]));
        let counts = ProbeCounts::new(rx);
        let id = |uid: &str, container: &str| ProbeId {
            uid: uid.into(),
            container: ContainerId(container.into()),
            kind: ProbeKind::Liveness,
        };
        counts.count(&id("1", "a"), &ProbeResult::Success, Duration::from_millis(7));
        counts.count(&id("9", "a"), &ProbeResult::Success, Duration::ZERO);
        tx.send_replace(Arc::new(vec![sandbox("1", "b")]));
        counts.count(
            &id("1", "b"),
            &ProbeResult::Failure("no".into()),
            Duration::from_secs(20),
        );
        let text = counts.print();
        for line in [
            r#"prober_probe_total{container="main",namespace="default",pod="pod-1",pod_uid="1",probe_type="Liveness",result="successful"} 1"#,
            r#"prober_probe_total{container="main",namespace="default",pod="pod-1",pod_uid="1",probe_type="Liveness",result="failed"} 1"#,
            r#"prober_probe_duration_seconds_bucket{container="main",namespace="default",pod="pod-1",probe_type="Liveness",le="0.005"} 0"#,
            r#"prober_probe_duration_seconds_bucket{container="main",namespace="default",pod="pod-1",probe_type="Liveness",le="10"} 1"#,
            r#"prober_probe_duration_seconds_count{container="main",namespace="default",pod="pod-1",probe_type="Liveness"} 2"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        tx.send_replace(Arc::new(Vec::new()));
        assert_eq!(counts.print(), "");
    }
}
