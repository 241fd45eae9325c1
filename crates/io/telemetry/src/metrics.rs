//! Numbers for Prometheus.
//!
//! A [`Registry`] is handed to each component by value; nothing is global, so two processes' worth of components can
//! live in one test. An instrument is named by its name and labels: asking for the same twice gives the same one. Labels
//! are classes, never names of nodes or objects, so that the number of series does not grow with the fleet.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::{counter, gauge, histogram};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The labels of one instrument, in the order in which they were given.
type Labels = Vec<(&'static str, String)>;

/// Everything that one process counts. Cloning shares it.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    registry: prometheus_client::registry::Registry,
    counters: HashMap<&'static str, Family<Labels, counter::Counter>>,
    gauges: HashMap<&'static str, Family<Labels, gauge::Gauge>>,
    histograms: HashMap<&'static str, Family<Labels, histogram::Histogram, Buckets>>,
    reads: Vec<(Gauge, Read)>,
}

type Read = Box<dyn Fn() -> i64 + Send + Sync>;

/// Counts what happened; it only grows. The name must not end in `_total` nor the help in a full stop: the text form
/// adds both.
#[derive(Debug, Clone, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    pub fn inc(&self) {
        self.0.inc();
    }

    pub fn add(&self, number: u64) {
        self.0.inc_by(number);
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Tells how much of something there is now.
#[derive(Debug, Clone, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// Adds, or takes away when negative.
    pub fn add(&self, difference: i64) {
        self.0.inc_by(difference);
    }

    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// Sorts what was observed into buckets.
#[derive(Debug, Clone)]
pub struct Histogram(histogram::Histogram);

impl Histogram {
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

/// Upper limits for durations in seconds, from a loopback answer to the patience of a person.
pub const SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<histogram::Histogram> for Buckets {
    fn new_metric(&self) -> histogram::Histogram {
        histogram::Histogram::new(self.0.iter().copied())
    }
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        let mut guard = self.lock();
        let Inner {
            registry, counters, ..
        } = &mut *guard;
        let family = counters.entry(name).or_insert_with(|| {
            let family = Family::default();
            registry.register(name, help, Family::clone(&family));
            family
        });
        Counter(family.get_or_create_owned(&owned(labels)))
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        let mut guard = self.lock();
        let Inner { registry, gauges, .. } = &mut *guard;
        let family = gauges.entry(name).or_insert_with(|| {
            let family = Family::default();
            registry.register(name, help, Family::clone(&family));
            family
        });
        Gauge(family.get_or_create_owned(&owned(labels)))
    }

    /// A gauge that is read when somebody looks, for example the depth of a channel. `read` must not wait.
    pub fn gauge_read(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        let gauge = self.gauge(name, help, labels);
        self.lock().reads.push((gauge, Box::new(read)));
    }

    /// `buckets` are upper limits in rising order, for example [`SECONDS`]; those of the first call for a name hold.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        buckets: &'static [f64],
    ) -> Histogram {
        let mut guard = self.lock();
        let Inner {
            registry, histograms, ..
        } = &mut *guard;
        let family = histograms.entry(name).or_insert_with(|| {
            let family = Family::new_with_constructor(Buckets(buckets));
            registry.register(name, help, Family::clone(&family));
            family
        });
        Histogram(family.get_or_create_owned(&owned(labels)))
    }

    /// Everything in the text form that Prometheus reads.
    pub fn text(&self) -> String {
        let inner = self.lock();
        for (gauge, read) in &inner.reads {
            gauge.set(read());
        }
        let mut text = String::new();
        encode(&mut text, &inner.registry).expect("writing to a string does not fail");
        // Valid either way; without the empty braces people's searches for an official name find it.
        text.replace("{} ", " ")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metrics::Registry")
    }
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn instruments_are_shared_by_name_and_labels_and_printed_for_prometheus() {
        let metrics = Registry::new();
        let replies = |class| metrics.counter("kedge_hub_replies", "Replies sent", &[("class", class)]);
        replies("lease").inc();
        replies("lease").add(2);
        replies("other").inc();
        metrics.gauge("kedge_hub_sessions", "Sessions now", &[]).set(5);
        metrics.gauge_read(
            "kedge_queue_depth",
            "Entries that wait",
            &[("queue", "out")],
            || 7,
        );
        let latency = metrics.histogram("kedge_ack_seconds", "Until acknowledged", &[], &[0.1, 1.0]);
        latency.observe(0.5);
        expect![[r##"
            # HELP kedge_hub_replies Replies sent.
            # TYPE kedge_hub_replies counter
            kedge_hub_replies_total{class="lease"} 3
            kedge_hub_replies_total{class="other"} 1
            # HELP kedge_hub_sessions Sessions now.
            # TYPE kedge_hub_sessions gauge
            kedge_hub_sessions 5
            # HELP kedge_queue_depth Entries that wait.
            # TYPE kedge_queue_depth gauge
            kedge_queue_depth{queue="out"} 7
            # HELP kedge_ack_seconds Until acknowledged.
            # TYPE kedge_ack_seconds histogram
            kedge_ack_seconds_sum 0.5
            kedge_ack_seconds_count 1
            kedge_ack_seconds_bucket{le="0.1"} 0
            kedge_ack_seconds_bucket{le="1.0"} 1
            kedge_ack_seconds_bucket{le="+Inf"} 1
            # EOF
        "##]]
        .assert_eq(&sorted_within_families(&metrics.text()));
    }

    /// The library prints the series of one family in no fixed order.
    fn sorted_within_families(text: &str) -> String {
        let mut lines: Vec<&str> = text.lines().collect();
        let family = |line: &str| line.starts_with("kedge_hub_replies");
        let first = lines.iter().position(|line| family(line)).unwrap();
        let count = lines[first..].iter().take_while(|line| family(line)).count();
        lines[first..first + count].sort_unstable();
        lines.join("\n") + "\n"
    }
}
