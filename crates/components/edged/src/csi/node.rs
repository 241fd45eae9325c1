//! Telling the cloud what drivers call this node: an annotation and the drivers' topology labels.
//!
//! The cloud's side of a driver finds the node by them, also where the cloud takes no [`super::csi_node`].

use super::DriverInfo;
use crate::cloud::Cloud;
use kedge_api::Node;
use kedge_telemetry::channel::latest;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// Between attempts at a cloud that is there but refuses.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(2);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(300);

type Infos = Arc<BTreeMap<String, DriverInfo>>;

/// What the task follows.
pub(crate) struct Telling {
    pub(crate) cloud: Cloud,
    pub(crate) node_name: String,
    pub(crate) online: latest::Receiver<bool>,
    /// The node as the cloud holds it.
    pub(crate) node: latest::Receiver<Option<Arc<Node>>>,
    pub(super) drivers: latest::Receiver<Infos>,
}

impl Telling {
    /// Until the scope is cancelled. A node that never had a driver says nothing.
    pub(crate) async fn run(mut self) {
        let mut told = Infos::default();
        let mut told_of = None;
        let mut delay = RETRY_MIN;
        loop {
            let uid = node_uid(&self.node.borrow_and_update());
            if uid != told_of {
                // The annotation went with the node that had it.
                (told, told_of) = (Infos::default(), uid.clone());
            }
            let wanted = self.drivers.borrow_and_update().clone();
            let online = *self.online.borrow_and_update();
            if online && wanted != told {
                if self.is_known(&wanted) || self.tell(&wanted, &told).await {
                    told = wanted;
                    delay = RETRY_MIN;
                    continue;
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_MAX);
                continue;
            }
            tokio::select! {
                biased;
                changed = self.drivers.changed() => if changed.is_err() { return },
                changed = self.online.changed() => if changed.is_err() { return },
                changed = self.node.wait_for(|node| node_uid(node) != uid) => if changed.is_err() { return },
            }
        }
    }

    /// Whether the cloud has it already, from a former life.
    fn is_known(&self, wanted: &Infos) -> bool {
        let node = self.node.borrow();
        let Some(metadata) = node.as_deref().map(|node| &node.metadata) else {
            return false;
        };
        let ids = metadata.annotations.get(NODE_IDS);
        let same = ids.and_then(|ids| serde_json::from_str::<Value>(ids).ok()) == Some(node_ids(wanted));
        same && labels(wanted).all(|(name, value)| metadata.labels.get(name) == Some(value))
    }

    async fn tell(&self, wanted: &Infos, told: &Infos) -> bool {
        let key = ObjectKey::cluster(ObjectKind::NodePatch, &self.node_name);
        let body = Body::text(&patch(wanted, told).to_string());
        match self.cloud.ask(Operation::Patch, key, body).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "the cloud does not learn what CSI drivers call this node");
                false
            }
        }
    }
}

/// Which node it is; its heartbeats are no news.
pub(super) fn node_uid(node: &Option<Arc<Node>>) -> Option<String> {
    node.as_ref()?.metadata.uid.clone()
}

fn node_ids(infos: &Infos) -> Value {
    infos
        .iter()
        .map(|(name, info)| (name.clone(), json!(info.node_id)))
        .collect::<Map<_, _>>()
        .into()
}

fn labels(infos: &Infos) -> impl Iterator<Item = (&String, &String)> {
    infos.values().flat_map(|info| &info.topology)
}

/// What a driver that is gone said goes with it.
fn patch(wanted: &Infos, told: &Infos) -> Value {
    let ids = match wanted.is_empty() {
        true => Value::Null,
        false => json!(node_ids(wanted).to_string()),
    };
    let mut topology: Map<String, Value> = labels(told)
        .map(|(name, _)| (name.clone(), Value::Null))
        .collect();
    topology.extend(labels(wanted).map(|(name, value)| (name.clone(), json!(value))));
    let mut metadata = json!({ "annotations": { NODE_IDS: ids } });
    if !topology.is_empty() {
        metadata["labels"] = topology.into();
    }
    json!({ "metadata": metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use kedge_link::edge::RequestError;
    use kedge_telemetry::channel::ask;
    use kedge_wire::{Reply, Request};

    #[tokio::test(start_paused = true)]
    async fn told_once_and_not_again_when_the_cloud_knows() {
        let (sender, mut questions) = ask::channel("test-cloud", 1);
        let (online_tx, online) = latest::channel(false);
        let (node_tx, node) = latest::channel(None);
        let (drivers_tx, drivers) = latest::channel(Infos::default());
        let telling = Telling {
            cloud: Cloud::new(sender),
            node_name: "edge-1".to_owned(),
            online,
            node,
            drivers,
        };
        let task = tokio::spawn(telling.run());
        let info = DriverInfo {
            node_id: "n1".to_owned(),
            ..DriverInfo::default()
        };
        drivers_tx.send_replace(Arc::new(BTreeMap::from([("a".to_owned(), info.clone())])));
        online_tx.send_replace(true);
        // The first attempt is refused.
        for refused in [true, false] {
            let question: ask::Question<Request, Result<Reply, RequestError>> =
                questions.recv().await.unwrap();
            assert!(question.question.body.content_data().contains("n1"));
            let route = question.question.route.clone();
            let body = Body::null();
            let reply = Reply {
                route,
                version: None,
                body,
            };
            question.reply.send(if refused {
                Err(RequestError::Timeout)
            } else {
                Ok(reply)
            });
        }
        let ids = r#"{"a":"n1","b":"n2"}"#.to_owned();
        let mut known = Node::default();
        known.metadata.annotations.insert(NODE_IDS.to_owned(), ids);
        node_tx.send_replace(Some(Arc::new(known)));
        let other = DriverInfo {
            node_id: "n2".to_owned(),
            ..DriverInfo::default()
        };
        let both = BTreeMap::from([("a".to_owned(), info), ("b".to_owned(), other)]);
        drivers_tx.send_replace(Arc::new(both));
        let silence = tokio::time::timeout(RETRY_MAX * 2, questions.recv()).await;
        assert!(silence.is_err(), "the cloud has it already");
        task.abort();
    }

    #[test]
    fn patches() {
        let infos = |list: &[(&str, &str, &str)]| -> Infos {
            let info = |(name, id, zone): &(&str, &str, &str)| {
                let topology = BTreeMap::from([(format!("{name}/zone"), (*zone).to_owned())]);
                let info = DriverInfo {
                    node_id: (*id).to_owned(),
                    topology,
                    volumes_max: 0,
                };
                ((*name).to_owned(), info)
            };
            Arc::new(list.iter().map(info).collect())
        };
        let one = infos(&[("a", "n1", "z")]);
        let other = infos(&[("b", "n2", "y")]);
        expect![[r#"{"metadata":{"annotations":{"csi.volume.kubernetes.io/nodeid":"{\"a\":\"n1\"}"},"labels":{"a/zone":"z"}}}"#]]
            .assert_eq(&patch(&one, &Infos::default()).to_string());
        expect![[r#"{"metadata":{"annotations":{"csi.volume.kubernetes.io/nodeid":"{\"b\":\"n2\"}"},"labels":{"a/zone":null,"b/zone":"y"}}}"#]]
            .assert_eq(&patch(&other, &one).to_string());
        expect![[r#"{"metadata":{"annotations":{"csi.volume.kubernetes.io/nodeid":null},"labels":{"b/zone":null}}}"#]]
            .assert_eq(&patch(&Infos::default(), &other).to_string());
    }
}
