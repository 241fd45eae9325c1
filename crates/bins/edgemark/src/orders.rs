//! What the conductor and its crews say to each other: one JSON object a line, orders down the crew's standard input,
//! reports up its standard output.

use crate::histogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The longest line of either direction: a tick with a commit of each of 20,000 edges and full histograms stays below.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// From the conductor to a crew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Always the first.
    Setup(Box<Setup>),
    /// Every edge begins to join, spread evenly over this time.
    Arrive { within_ms: u64 },
    /// Every connection breaks now; each edge dials again at its moment within this time.
    Drop { return_within_ms: u64 },
    /// Tell when each edge has committed an object that contains this text.
    Mark(Mark),
    /// End.
    Stop,
}

/// Who the edges are and whom they dial.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// `host:port` of each CloudCore; an edge that does not reach one tries the next.
    pub hubs: Vec<String>,
    /// Whether hubs are dialled by QUIC.
    pub quic: bool,
    /// `https://host:port` where certificates are given.
    pub https: String,
    /// The join token.
    pub token: String,
    /// Edge 7 of prefix `hollow` is node `hollow-7`.
    pub prefix: String,
    pub first: u32,
    pub count: u32,
    /// Certificates, kept between runs.
    pub state: PathBuf,
    /// Logs and volumes of hollow containers.
    pub scratch: PathBuf,
    /// How far this process stands back when the machine has too little time for all.
    pub nice: i32,
    /// Filter of the log lines on standard error.
    pub log: String,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("hubs", &self.hubs)
            .field("prefix", &self.prefix)
            .field("first", &self.first)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// An object whose arrival on each edge is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// `<namespace>/<kind>/<name>`.
    pub key: String,
    /// What stands in the wanted version and in no earlier one.
    pub text: String,
}

/// From a crew to the conductor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The crew is set up; no edge has begun.
    Ready { rss_bytes: u64 },
    /// The mark is set.
    Marked,
    /// How things stand, and what happened since the last tick.
    Tick(Box<Tick>),
    /// The crew cannot go on.
    Failed { why: String },
}

/// How things stand with the edges of one crew.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tick {
    #[serde(flatten)]
    pub now: Gauges,
    /// Since the last tick.
    pub times: Times,
    /// By kind, since the last tick.
    pub errors: BTreeMap<String, u64>,
    /// Moments of commits of the marked object since the last tick: microseconds of the wall clock, which all processes
    /// of a machine share.
    pub commits_us: Vec<u64>,
}

/// What there is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gauges {
    /// Edges that began to join.
    pub started: u64,
    /// Connected, with an open session.
    pub online: u64,
    /// Had their node registered and a lease renewed at least once.
    pub joined: u64,
    /// Edges of which a part has ended: a fault of ours.
    pub broken: u64,
    /// Pods whose container runs.
    pub pods_running: u64,
    pub rss_bytes: u64,
}

impl Gauges {
    pub fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.online += other.online;
        self.joined += other.joined;
        self.broken += other.broken;
        self.pods_running += other.pods_running;
        self.rss_bytes += other.rss_bytes;
    }
}

/// What edges wait for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// From the first dial to the certificate.
    pub certificate: Histogram,
    /// TCP, TLS and the upgrade of a hub connection.
    pub connect: Histogram,
    /// From the question to the answer of a node's registration.
    pub register: Histogram,
    /// From the question to the answer of every request about a lease.
    pub lease: Histogram,
    /// From the first dial to the first renewed lease.
    pub join: Histogram,
    /// From the first dial after a loss to an open session.
    pub back: Histogram,
}

impl Times {
    pub fn merge(&mut self, other: &Self) {
        self.certificate.merge(&other.certificate);
        self.connect.merge(&other.connect);
        self.register.merge(&other.register);
        self.lease.merge(&other.lease);
        self.join.merge(&other.join);
        self.back.merge(&other.back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::time::Duration;

    #[test]
    fn lines() {
        let mut tick = Tick::default();
        tick.now.online = 3;
        tick.times.lease.observe(Duration::from_micros(700));
        tick.errors.insert("dial: refused".to_owned(), 2);
        tick.commits_us.push(1_700_000_000_000_000);
        let lines = [
            serde_json::to_string(&Order::Arrive { within_ms: 10_000 }),
            serde_json::to_string(&Order::Mark(Mark {
                key: "edgemark/configmap/shared".to_owned(),
                text: "round-1".to_owned(),
            })),
            serde_json::to_string(&Order::Stop),
            serde_json::to_string(&Report::Ready { rss_bytes: 1 }),
            serde_json::to_string(&Report::Tick(Box::new(tick.clone()))),
        ];
        let lines = lines.map(|line| line.expect("plain data")).join("\n");
        expect![[r#"
            {"arrive":{"within_ms":10000}}
            {"mark":{"key":"edgemark/configmap/shared","text":"round-1"}}
            "stop"
            {"ready":{"rss_bytes":1}}
            {"tick":{"started":0,"online":3,"joined":0,"broken":0,"pods_running":0,"rss_bytes":0,"times":{"certificate":{"n":0,"max":0,"b":{}},"connect":{"n":0,"max":0,"b":{}},"register":{"n":0,"max":0,"b":{}},"lease":{"n":1,"max":700,"b":{"279":1}},"join":{"n":0,"max":0,"b":{}},"back":{"n":0,"max":0,"b":{}}},"errors":{"dial: refused":2},"commits_us":[1700000000000000]}}"#]]
        .assert_eq(&lines);
        let last = lines.lines().last().expect("there are lines");
        let read: Report = serde_json::from_str(last).expect("as it was written");
        assert_eq!(read, Report::Tick(Box::new(tick)));
    }

    #[test]
    fn a_token_is_not_printed() {
        let setup = Setup {
            hubs: vec!["cloud:10000".to_owned()],
            quic: false,
            https: "https://cloud:10002".to_owned(),
            token: "secret".to_owned(),
            prefix: "hollow".to_owned(),
            first: 0,
            count: 1,
            state: PathBuf::new(),
            scratch: PathBuf::new(),
            nice: 0,
            log: String::new(),
        };
        assert!(!format!("{setup:?}").contains("secret"));
    }
}
