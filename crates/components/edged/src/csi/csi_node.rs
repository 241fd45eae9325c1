//! The object `CSINode`: what the drivers on this node call it, where it is to them, and how many volumes they take.
//!
//! The scheduler counts by it, and the cloud's side of drivers finds node and topology in it. Only our own cloud takes it
//! from an edge; an official one leaves the question without an answer and is asked again in the next session.

use super::DriverInfo;
use super::node::{RETRY_MAX, RETRY_MIN, node_uid};
use crate::cloud::{Cloud, Error};
use kedge_api::Node;
use kedge_link::edge::RequestError;
use kedge_telemetry::channel::latest;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the wire calls the object.
const KIND: &str = "csinode";

/// What one driver says of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    #[serde(rename = "nodeID")]
    node_id: String,
    /// In order; nothing where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    topology_keys: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocatable: Option<Allocatable>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Allocatable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<i32>,
}

#[derive(Deserialize)]
struct CsiNode {
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    drivers: Option<Vec<Entry>>,
}

impl CsiNode {
    fn entries(self) -> Vec<Entry> {
        let mut entries = self.spec.drivers.unwrap_or_default();
        for entry in &mut entries {
            entry.topology_keys = entry.topology_keys.take().filter(|keys| !keys.is_empty());
            if let Some(keys) = &mut entry.topology_keys {
                keys.sort();
            }
        }
        entries.sort();
        entries
    }
}

fn entry(name: &str, info: &DriverInfo) -> Entry {
    let keys: Vec<String> = info.topology.keys().cloned().collect();
    // 0 is no limit.
    let count = (info.volumes_max > 0).then(|| i32::try_from(info.volumes_max).unwrap_or(i32::MAX));
    Entry {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: (!keys.is_empty()).then_some(keys),
        allocatable: count.map(|count| Allocatable { count: Some(count) }),
    }
}

/// A call that brings the object closer to what is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make(Vec<Entry>),
    Set(Vec<Entry>),
}

/// What must be called. Drivers of a former life stay until they are `gone`: they may be about to register. An entry
/// cannot be changed in Kubernetes, it goes and comes again.
fn steps(known: Option<Vec<Entry>>, wanted: &[Entry], gone: &BTreeSet<String>) -> Vec<Step> {
    let Some(known) = known else {
        return vec![Step::Make(wanted.to_vec())];
    };
    let same_name = |entry: &Entry| wanted.iter().find(|other| other.name == entry.name);
    let stays = |entry: &&Entry| match same_name(entry) {
        Some(other) => other == *entry,
        None => !gone.contains(&entry.name),
    };
    let kept: Vec<Entry> = known.iter().filter(stays).cloned().collect();
    let mut target = kept.clone();
    target.extend(wanted.iter().filter(|entry| !kept.contains(entry)).cloned());
    target.sort();
    if target == known {
        return Vec::new();
    }
    let changes = known
        .iter()
        .any(|entry| same_name(entry).is_some_and(|other| other != entry));
    let first = changes.then_some(Step::Set(kept));
    first.into_iter().chain([Step::Set(target)]).collect()
}

/// What the task follows.
pub(super) struct Showing {
    pub(super) cloud: Cloud,
    pub(super) node_name: String,
    pub(super) online: latest::Receiver<bool>,
    /// The node as the cloud holds it.
    pub(super) node: latest::Receiver<Option<Arc<Node>>>,
    pub(super) drivers: latest::Receiver<Arc<BTreeMap<String, DriverInfo>>>,
}

/// What was shown, or is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Shown {
    entries: Vec<Entry>,
    /// The object ends with the node that it belongs to.
    node_uid: String,
}

impl Showing {
    /// Until the scope is cancelled. A node that never had a driver shows nothing.
    pub(super) async fn run(mut self) {
        let mut shown = Shown::default();
        let mut delay = RETRY_MIN;
        loop {
            let wanted = self.wanted();
            let online = *self.online.borrow_and_update();
            let is_news = wanted.as_ref().is_some_and(|wanted| {
                let empty = wanted.entries.is_empty() && shown.entries.is_empty();
                !empty && *wanted != shown
            });
            if let Some(wanted) = wanted.filter(|_| online && is_news) {
                match self.show(&shown, &wanted).await {
                    Ok(()) => {
                        shown = wanted;
                        delay = RETRY_MIN;
                        continue;
                    }
                    Err(Error::NotAsked(why @ (RequestError::Timeout | RequestError::Refused(_)))) => {
                        tracing::debug!(%why, "the cloud does not take what CSI drivers say of this node");
                    }
                    Err(error) => {
                        tracing::debug!(%error, "what CSI drivers say of this node is told again");
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(RETRY_MAX);
                        continue;
                    }
                }
            }
            if self.changed().await.is_none() {
                return;
            }
        }
    }

    /// Nothing while the cloud has not shown the node.
    fn wanted(&mut self) -> Option<Shown> {
        let infos = Arc::clone(&self.drivers.borrow_and_update());
        let node_uid = node_uid(&self.node.borrow_and_update())?;
        let mut entries: Vec<Entry> = infos.iter().map(|(name, info)| entry(name, info)).collect();
        entries.sort();
        Some(Shown { entries, node_uid })
    }

    /// Completes when it may be worth to look again; `None` when nobody tells any more.
    async fn changed(&mut self) -> Option<()> {
        let before = node_uid(&self.node.borrow());
        tokio::select! {
            biased;
            changed = self.drivers.changed() => changed.ok(),
            changed = self.online.changed() => changed.ok(),
            // Its heartbeats are no news.
            changed = self.node.wait_for(|node| node_uid(node) != before) => changed.ok().map(drop),
        }
    }

    async fn show(&self, shown: &Shown, wanted: &Shown) -> Result<(), Error> {
        let known = match self.ask::<CsiNode>(Operation::Query, Body::null()).await {
            Ok(object) => Some(object.entries()),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let gone = shown.entries.iter().map(|entry| entry.name.clone());
        let gone = gone.filter(|name| !wanted.entries.iter().any(|entry| entry.name == *name));
        for step in steps(known, &wanted.entries, &gone.collect()) {
            let (operation, value) = match step {
                Step::Make(entries) => (Operation::Insert, self.object(&entries, &wanted.node_uid)),
                Step::Set(entries) => (Operation::Patch, json!({ "spec": { "drivers": entries } })),
            };
            let body = Body::from_value(&value).map_err(|error| Error::Unreadable(error.to_string()))?;
            let _: Value = self.ask(operation, body).await?;
        }
        Ok(())
    }

    fn object(&self, entries: &[Entry], node_uid: &str) -> Value {
        let owner = json!({
            "apiVersion": "v1", "kind": "Node", "name": self.node_name, "uid": node_uid,
        });
        json!({
            "metadata": { "name": self.node_name, "ownerReferences": [owner] },
            "spec": { "drivers": entries },
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        operation: Operation,
        body: Body,
    ) -> Result<T, Error> {
        let key = ObjectKey::cluster(ObjectKind::Other(KIND.to_owned()), &self.node_name);
        self.cloud.object(operation, key, body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use kedge_telemetry::channel::ask;
    use kedge_wire::{ObjectResponse, Reply, Request, Resource, Status};
    use std::time::Duration;

    fn info(id: &str, zone: &str, volumes_max: i64) -> DriverInfo {
        let topology = zone.split_whitespace();
        DriverInfo {
            node_id: id.to_owned(),
            topology: topology.map(|key| (key.to_owned(), "x".to_owned())).collect(),
            volumes_max,
        }
    }

    #[test]
    fn what_must_be_called() {
        let list = |text: &str| -> Vec<Entry> {
            let parts = text.split_whitespace().map(|part| part.split_once('=').unwrap());
            parts.map(|(name, id)| entry(name, &info(id, "", 0))).collect()
        };
        let told = |known: Option<&str>, wanted: &str, gone: &str| {
            let gone = gone.split_whitespace().map(str::to_owned).collect();
            let short = |entries: Vec<Entry>| {
                let parts = entries
                    .iter()
                    .map(|entry| format!(" {}={}", entry.name, entry.node_id));
                parts.collect::<String>()
            };
            let steps = steps(known.map(list), &list(wanted), &gone)
                .into_iter()
                .map(|step| match step {
                    Step::Make(entries) => format!("make{}", short(entries)),
                    Step::Set(entries) => format!("set{}", short(entries)),
                });
            steps.collect::<Vec<_>>().join(", ")
        };
        let lines = [
            told(None, "a=1", ""),
            told(Some("a=1"), "a=1", ""),
            told(Some("a=1"), "b=1", ""),
            told(Some("a=1"), "b=1", "a"),
            told(Some("a=1 c=1"), "a=2 b=1", ""),
            told(Some("a=1"), "", "a"),
        ];
        expect![[r#"
            make a=1

            set a=1 b=1
            set b=1
            set c=1, set a=2 b=1 c=1
            set"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn entries_as_kubernetes_has_them() {
        let check = |info: &DriverInfo, expected: Expect| {
            let entry = entry("drv", info);
            expected.assert_eq(&serde_json::to_string(&entry).unwrap());
            let drivers = json!([{ "name": "drv", "nodeID": entry.node_id, "topologyKeys": null }]);
            let read: CsiNode = serde_json::from_value(json!({ "spec": { "drivers": drivers } })).unwrap();
            assert_eq!(read.entries().len(), 1);
        };
        check(
            &info("n1", "drv/zone drv/rack", 16),
            expect![[
                r#"{"name":"drv","nodeID":"n1","topologyKeys":["drv/rack","drv/zone"],"allocatable":{"count":16}}"#
            ]],
        );
        check(&info("n1", "", 0), expect![[r#"{"name":"drv","nodeID":"n1"}"#]]);
        check(
            &info("n1", "", i64::MAX),
            expect![[r#"{"name":"drv","nodeID":"n1","allocatable":{"count":2147483647}}"#]],
        );
    }

    type Asked = ask::Question<Request, Result<Reply, RequestError>>;

    fn reply(question: Asked, body: Body) {
        let resource = Resource::Object(question.question.key.clone());
        question.reply.send(Ok(Reply::response(resource, None, body)));
    }

    #[tokio::test(start_paused = true)]
    async fn made_once_and_made_again_with_the_node() {
        let (sender, mut questions) = ask::channel("test-cloud", 1);
        let (online_tx, online) = latest::channel(false);
        let (node_tx, node) = latest::channel(None);
        let infos = Arc::new(BTreeMap::from([("drv".to_owned(), info("n1", "", 3))]));
        let (_drivers_tx, drivers) = latest::channel(infos);
        let showing = Showing {
            cloud: Cloud::new(sender),
            node_name: "edge-1".to_owned(),
            online,
            node,
            drivers,
        };
        let task = tokio::spawn(showing.run());
        let node = |uid: &str| {
            let mut node = Node::default();
            node.metadata.uid = Some(uid.to_owned());
            Some(Arc::new(node))
        };
        node_tx.send_replace(node("u1"));
        // Official clouds do not answer; the next session tries again.
        online_tx.send_replace(true);
        let question: Asked = questions.recv().await.unwrap();
        question.reply.send(Err(RequestError::Timeout));
        let silence = tokio::time::timeout(Duration::from_secs(3600), questions.recv()).await;
        assert!(silence.is_err());
        online_tx.send_replace(false);
        tokio::task::yield_now().await;
        online_tx.send_replace(true);
        for uid in ["u1", "u2"] {
            node_tx.send_replace(node(uid));
            let question = questions.recv().await.unwrap();
            assert_eq!(question.question.route.operation, Operation::Query);
            let absent = Status::not_found("csinodes", "edge-1");
            reply(question, ObjectResponse::err(absent).to_body());
            let question = questions.recv().await.unwrap();
            assert_eq!(question.question.route.operation, Operation::Insert);
            let made = question.question.body.json().to_owned();
            assert!(
                made.contains(&format!(r#""uid":"{uid}""#)) && made.contains(r#""count":3"#),
                "{made}"
            );
            let object = Body::from_json(made).unwrap();
            reply(question, ObjectResponse::ok(object).to_body());
        }
        task.abort();
    }
}
