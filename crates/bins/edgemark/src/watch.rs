//! What the API says about the nodes, and who is asked.

use crate::scrape::{self, CallCounts};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_cluster::{Cluster, Watch, WatchItem, Watched};
use kedge_telemetry::channel::latest;
use kedge_wire::Body;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

/// The CloudCores of a run and what surrounds them.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub hubs: Vec<String>,
    /// `https://host:port`.
    pub https: String,
    pub token: String,
    pub cluster: Option<Cluster>,
    pub cloudcore_pids: Vec<u32>,
    /// The API, when it is our own.
    pub api_pid: Option<u32>,
    /// One for each CloudCore that has them.
    pub metrics: Vec<String>,
}

impl Target {
    /// Calls on the API so far, from whoever counts them; `None` when nobody does.
    pub async fn calls(&self) -> Option<CallCounts> {
        let mut sum: Option<CallCounts> = None;
        for url in &self.metrics {
            let page = match scrape::page(url).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "no metrics");
                    continue;
                }
            };
            let Some(counts) = CallCounts::find(&page) else {
                continue;
            };
            match &mut sum {
                None => sum = Some(counts),
                Some(sum) => {
                    for (name, count) in counts.by {
                        *sum.by.entry(name).or_default() += count;
                    }
                }
            }
        }
        if sum.is_some() {
            return sum;
        }
        // The API's own counter has the calls of everybody, also ours: while edges rest we make none.
        let page = self.cluster.as_ref()?.get_text("/metrics").await.ok()?;
        CallCounts::find(&page)
    }

    /// The newest resource version, where it is a number: it counts the writes of everybody.
    pub async fn revision(&self) -> Option<u64> {
        let list = self
            .cluster
            .as_ref()?
            .get("/api/v1/namespaces?limit=1")
            .await
            .ok()?;
        let list: Value = list.parse().ok()?;
        list["metadata"]["resourceVersion"].as_str()?.parse().ok()
    }
}

/// Reads the join token that CloudCore publishes.
pub async fn join_token(cluster: &Cluster) -> Result<String> {
    let secret = cluster
        .get("/api/v1/namespaces/kubeedge/secrets/tokensecret")
        .await
        .context("read the join token; is CloudCore running? Otherwise give one with --token")?;
    let secret: Value = secret.parse().context("read secret kubeedge/tokensecret")?;
    let data = secret["data"]["tokendata"]
        .as_str()
        .context("secret kubeedge/tokensecret has no tokendata")?;
    let token = BASE64.decode(data).context("tokendata of kubeedge/tokensecret")?;
    String::from_utf8(token).context("tokendata of kubeedge/tokensecret")
}

/// Whether nodes were ever not ready, by the first part of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    by_prefix: Vec<(String, Readiness)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Readiness {
    ready: u64,
    /// How often a node that was ready was not any more, or was gone.
    flips: u64,
}

impl Seen {
    fn new(prefixes: &[String]) -> Self {
        let by_prefix = prefixes
            .iter()
            .map(|prefix| (format!("{prefix}-"), Readiness::default()));
        Self {
            by_prefix: by_prefix.collect(),
        }
    }

    pub fn ready(&self) -> u64 {
        self.by_prefix.iter().map(|(_, readiness)| readiness.ready).sum()
    }

    pub fn flips(&self) -> u64 {
        self.by_prefix.iter().map(|(_, readiness)| readiness.flips).sum()
    }

    /// Flips of the nodes of one prefix.
    pub fn flips_of(&self, prefix: &str) -> u64 {
        let fits = |(own, _): &&(String, Readiness)| own.strip_suffix('-') == Some(prefix);
        self.by_prefix
            .iter()
            .find(fits)
            .map_or(0, |(_, readiness)| readiness.flips)
    }

    /// Takes in that a node is ready now, or not; `was` is what was known.
    fn change(&mut self, name: &str, was: bool, is: bool) {
        let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_digit());
        let ours =
            |(prefix, _): &&mut (String, Readiness)| name.strip_prefix(prefix.as_str()).is_some_and(number);
        let Some((_, readiness)) = self.by_prefix.iter_mut().find(ours) else {
            return;
        };
        match (was, is) {
            (false, true) => readiness.ready += 1,
            (true, false) => {
                readiness.ready = readiness.ready.saturating_sub(1);
                readiness.flips += 1;
            }
            (true, true) | (false, false) => {}
        }
    }
}

/// Follows the nodes until it is dropped. `prefixes` tell which ones are ours.
pub async fn follow_nodes(cluster: Cluster, prefixes: Vec<String>, seen: latest::Sender<Seen>) {
    let mut known: HashMap<String, bool> = HashMap::new();
    seen.send_replace(Seen::new(&prefixes));
    let mut watch = Watch::new(
        cluster,
        Watched {
            path: "/api/v1/nodes".to_owned(),
            api_version: "v1",
            kind: "Node",
        },
    );
    loop {
        let (node, exists) = match watch.next().await {
            WatchItem::Applied(body) => (read(&body), true),
            WatchItem::Deleted(body) => (read(&body), false),
            WatchItem::Synced { .. } => continue,
        };
        let Some(node) = node else { continue };
        let is = exists && node.is_ready();
        let was = known.get(&node.metadata.name).copied().unwrap_or(false);
        if was != is {
            seen.send_modify(|seen| seen.change(&node.metadata.name, was, is));
        }
        if exists {
            known.insert(node.metadata.name, is);
        } else {
            known.remove(&node.metadata.name);
        }
    }
}

#[derive(Debug, Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Node {
    fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

fn read(body: &Body) -> Option<Node> {
    body.parse()
        .inspect_err(|error| tracing::warn!(%error, "a node cannot be read"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_counted_for_the_nodes_of_a_run_only() {
        let mut seen = Seen::new(&["hollow-run".to_owned(), "hollow-new".to_owned()]);
        for (name, was, is) in [
            ("hollow-run-1", false, true),
            ("hollow-run-2", false, true),
            ("hollow-run-2", true, false),
            ("hollow-run-2", false, true),
            ("hollow-new-1", false, true),
            ("hollow-new-1", true, false),
            ("hollow-runner", true, false),
            ("another-1", true, false),
        ] {
            seen.change(name, was, is);
        }
        assert_eq!((seen.ready(), seen.flips()), (2, 2));
        assert_eq!((seen.flips_of("hollow-run"), seen.flips_of("hollow-new")), (1, 1));
    }

    #[test]
    fn readiness_of_a_node() {
        let ready = r#"{"metadata":{"name":"a"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
        let body = Body::from_json(ready.to_owned()).expect("JSON");
        assert!(read(&body).is_some_and(|node| node.is_ready()));
        let unknown = Body::from_json(ready.replace("True", "Unknown")).expect("JSON");
        assert!(read(&unknown).is_some_and(|node| !node.is_ready()));
    }
}
