//! The result of a run, as one JSON object. Its shape is for programs: fields are added, never renamed.

use crate::histogram::{Histogram, Percentiles};
use crate::orders::Times;
use crate::proc::Memory;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything that a run found out. What was not measured is left out.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub scenario: &'static str,
    pub nodes: u32,
    pub pods_per_node: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub running: u32,
    pub processes: u32,
    pub arrive_within_s: f64,
    /// How long the whole run took.
    pub took_s: f64,
    /// How long the figures of `times_ms` and `api` were gathered.
    pub measured_s: f64,
    pub joined: u64,
    pub pods_running: u64,
    pub cloudcore: Vec<Cloud>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Calls>,
    /// Processor time of the API while the figures were gathered, when it is edgemark's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_cpu_s: Option<f64>,
    pub hollow: Hollow,
    pub times_ms: BTreeMap<&'static str, Percentiles>,
    /// `None` without a client of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_flips: Option<u64>,
    pub errors: BTreeMap<String, u64>,
    pub promises: Vec<Promise>,
}

/// A CloudCore, measured from outside.
#[derive(Debug, Clone, Serialize)]
pub struct Cloud {
    pub pid: u32,
    /// Before the first edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Memory>,
    /// With all edges at rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Memory>,
    /// The growth, divided by the edges that are connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_edge: Option<u64>,
    /// Processor time while the figures were gathered.
    pub cpu_s: f64,
}

/// Calls on the Kubernetes API while the edges were at rest.
#[derive(Debug, Clone, Serialize)]
pub struct Calls {
    /// Who counted: the name of the metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_node_minute: Option<f64>,
    /// The same by what the metric tells apart.
    pub by: BTreeMap<String, f64>,
    /// Growth of the API's resource version: every write of anybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes_per_node_minute: Option<f64>,
}

/// What the load itself cost.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Hollow {
    pub rss_bytes: u64,
    pub bytes_per_edge: u64,
    pub cpu_s: f64,
}

/// A number that is promised, and what was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Promise {
    pub what: &'static str,
    pub at_most: f64,
    pub seen: f64,
    pub kept: bool,
}

impl Promise {
    pub fn new(what: &'static str, at_most: f64, seen: f64) -> Self {
        Self {
            what,
            at_most,
            seen,
            kept: seen <= at_most,
        }
    }
}

impl Summary {
    /// Adds the times of edges, as far as there are any.
    pub fn add_times(&mut self, times: &Times) {
        let named = [
            ("certificate", &times.certificate),
            ("connect", &times.connect),
            ("register", &times.register),
            ("lease_reply", &times.lease),
            ("join", &times.join),
            ("back", &times.back),
        ];
        for (name, histogram) in named {
            self.add_time(name, histogram);
        }
    }

    pub fn add_time(&mut self, name: &'static str, histogram: &Histogram) {
        if let Some(percentiles) = histogram.percentiles() {
            self.times_ms.insert(name, percentiles);
        }
    }

    /// One line a promise, for people.
    pub fn verdict(&self) -> String {
        let line = |promise: &Promise| {
            let kept = if promise.kept { "kept" } else { "BROKEN" };
            format!(
                "{kept:>7}  {}: {} (at most {})\n",
                promise.what, promise.seen, promise.at_most
            )
        };
        self.promises.iter().map(line).collect()
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Two digits behind the point.
pub fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect_file;
    use std::time::Duration;

    #[test]
    fn the_shape_of_the_summary() {
        let mut times = Times::default();
        times.lease.observe(Duration::from_millis(2));
        times.join.observe(Duration::from_micros(1234));
        let memory = Memory {
            rss_bytes: 20_000_000,
            anonymous_bytes: 10_000_000,
        };
        let mut summary = Summary {
            scenario: "idle",
            nodes: 2,
            pods_per_node: 1,
            processes: 1,
            arrive_within_s: 10.0,
            took_s: 90.5,
            measured_s: 60.0,
            joined: 2,
            pods_running: 2,
            cloudcore: vec![Cloud {
                pid: 7,
                before: Some(memory),
                after: Some(memory),
                bytes_per_edge: Some(0),
                cpu_s: 0.5,
            }],
            api: Some(Calls {
                counted_by: Some("kedge_cluster_calls_total".to_owned()),
                per_node_minute: Some(2.5),
                by: [("lease".to_owned(), 2.5)].into(),
                writes_per_node_minute: None,
            }),
            api_cpu_s: Some(1.5),
            ready_flips: Some(0),
            errors: [("dial: refused".to_owned(), 3)].into(),
            promises: vec![Promise::new("calls on the API per node and minute", 3.0, 2.5)],
            ..Summary::default()
        };
        summary.add_times(&times);
        let text = serde_json::to_string_pretty(&summary).expect("plain data");
        expect_file!["../tests/summary.json"].assert_eq(&(text + "\n"));
        assert_eq!(
            summary.verdict(),
            "   kept  calls on the API per node and minute: 2.5 (at most 3)\n"
        );
    }
}
