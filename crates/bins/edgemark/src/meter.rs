//! Memory, processor time and API calls of CloudCore over a span of time.

use crate::conductor::Conductor;
use crate::proc::{self, Memory};
use crate::scrape::CallCounts;
use crate::summary::{Calls, Cloud, Hollow, Summary, rounded};
use crate::watch::Target;
use std::time::Duration;
use tokio::time::Instant;

/// What there was before the first edge.
#[derive(Debug)]
pub struct Baseline {
    memory: Vec<Option<Memory>>,
}

impl Baseline {
    pub fn take(target: &Target) -> Self {
        let memory = target.cloudcore_pids.iter().map(|pid| proc::memory(*pid));
        Self {
            memory: memory.collect(),
        }
    }

    /// The resident memory of the first CloudCore.
    pub fn rss_bytes(&self) -> Option<u64> {
        self.memory
            .first()
            .copied()
            .flatten()
            .map(|memory| memory.rss_bytes)
    }
}

/// The beginning of a span.
#[derive(Debug)]
pub struct Span {
    at: Instant,
    cloud_cpu: Vec<Duration>,
    hollow_cpu: Duration,
    api_cpu: Option<Duration>,
    calls: Option<CallCounts>,
    revision: Option<u64>,
}

impl Span {
    pub async fn begin(target: &Target, conductor: &Conductor) -> Self {
        let calls = target.calls().await;
        let revision = target.revision().await;
        Self {
            at: Instant::now(),
            cloud_cpu: target.cloudcore_pids.iter().map(|pid| cpu(*pid)).collect(),
            hollow_cpu: conductor.pids().into_iter().map(cpu).sum(),
            api_cpu: target.api_pid.map(cpu),
            calls,
            revision,
        }
    }

    /// Writes what the span cost into the summary. `at_rest`: the calls of this span are those of edges at rest.
    pub async fn end(
        self,
        target: &Target,
        conductor: &Conductor,
        baseline: &Baseline,
        summary: &mut Summary,
        at_rest: bool,
    ) {
        let took = self.at.elapsed();
        let online = conductor.online();
        summary.measured_s = rounded(took.as_secs_f64());
        summary.cloudcore = (target.cloudcore_pids.iter().zip(&baseline.memory))
            .zip(&self.cloud_cpu)
            .map(|((pid, before), cpu_before)| {
                let after = proc::memory(*pid);
                let grown = match (before, after) {
                    (Some(before), Some(after)) => Some(after.rss_bytes.saturating_sub(before.rss_bytes)),
                    (None, _) | (_, None) => None,
                };
                Cloud {
                    pid: *pid,
                    before: *before,
                    after,
                    bytes_per_edge: grown.and_then(|grown| grown.checked_div(online)),
                    cpu_s: rounded(cpu(*pid).saturating_sub(*cpu_before).as_secs_f64()),
                }
            })
            .collect();
        summary.api_cpu_s = (target.api_pid.zip(self.api_cpu))
            .map(|(pid, before)| rounded(cpu(pid).saturating_sub(before).as_secs_f64()));
        let hollow_cpu: Duration = conductor.pids().into_iter().map(cpu).sum();
        let rss_bytes = conductor.rss_bytes();
        summary.hollow = Hollow {
            rss_bytes,
            bytes_per_edge: rss_bytes
                .saturating_sub(conductor.rss_bytes_before())
                .checked_div(online)
                .unwrap_or(0),
            cpu_s: rounded(hollow_cpu.saturating_sub(self.hollow_cpu).as_secs_f64()),
        };
        if at_rest {
            summary.api = self.calls(target, took, online).await;
        }
    }

    async fn calls(&self, target: &Target, took: Duration, online: u64) -> Option<Calls> {
        let node_minutes = online as f64 * took.as_secs_f64() / 60.0;
        if node_minutes <= 0.0 {
            return None;
        }
        let writes = match (self.revision, target.revision().await) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before) as f64 / node_minutes),
            (None, _) | (_, None) => None,
        };
        let counted = match (&self.calls, target.calls().await) {
            (Some(before), Some(after)) if before.counter == after.counter => {
                Some((after.counter, after.since(before)))
            }
            (Some(_) | None, _) => None,
        };
        if writes.is_none() && counted.is_none() {
            return None;
        }
        let (counter, by) = counted.unzip();
        let by = by.unwrap_or_default();
        let sum: f64 = by.values().sum();
        Some(Calls {
            counted_by: counter.map(str::to_owned),
            per_node_minute: counter.map(|_| rounded(sum / node_minutes)),
            by: by
                .into_iter()
                .map(|(name, count)| (name, rounded(count / node_minutes)))
                .collect(),
            writes_per_node_minute: writes.map(rounded),
        })
    }
}

/// A process that has ended has used nothing since.
fn cpu(pid: u32) -> Duration {
    proc::cpu_time(pid).unwrap_or_default()
}
