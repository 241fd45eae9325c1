//! What the cloud and the files of this node want.

use super::Owner;
use kedge_api::{Node, Pod};
use kedge_pods::{NodeFacts, PodKey};
use kedge_wire::{Body, ObjectKey, ObjectKind, Time};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Config maps and secrets that change more often than this are told once each time: every pod that uses one renews its
/// volumes once for however many changes, and still within a second.
const CHANGES_INTERVAL: Duration = Duration::from_millis(250);

/// Config maps and secrets whose change the pods were not told yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    waiting: BTreeSet<Change>,
    told: Option<Time>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    namespace: String,
    is_secret: bool,
    name: String,
}

impl Changes {
    pub(super) fn due(&self) -> Option<Time> {
        let ready = self.told.map_or(Time::from_ms(0), |told| told + CHANGES_INTERVAL);
        (!self.waiting.is_empty()).then_some(ready)
    }

    fn take(&mut self, now: Time) -> BTreeSet<Change> {
        if self.due().is_none_or(|due| due > now) {
            return BTreeSet::new();
        }
        self.told = Some(now);
        std::mem::take(&mut self.waiting)
    }
}

impl Owner {
    /// A desired object has changed.
    pub(super) fn desired(&mut self, key: ObjectKey, body: Option<Body>) {
        let now = self.now();
        match (&key.kind, &key.namespace) {
            (ObjectKind::Pod, Some(namespace)) => {
                let pod_key = PodKey::new(namespace, &key.name);
                self.desired_pod(pod_key, body.as_ref(), now);
            }
            (ObjectKind::ConfigMap | ObjectKind::Secret, Some(namespace)) => {
                // What is gone leaves the volumes as they are.
                if body.is_some() {
                    self.changes.waiting.insert(Change {
                        namespace: namespace.clone(),
                        is_secret: key.kind == ObjectKind::Secret,
                        name: key.name.clone(),
                    });
                }
                self.held.set(key, body);
            }
            (ObjectKind::Node, _) if key.name == self.node_name => self.desired_node(body.as_ref()),
            (_other, _) => {}
        }
    }

    /// Tells the pods which config maps and secrets have changed.
    pub(super) fn tell_changes(&mut self) {
        let now = self.now();
        for change in self.changes.take(now) {
            self.pods
                .handle_config_changed(&change.namespace, change.is_secret, &change.name, now);
        }
    }

    fn desired_pod(&mut self, key: PodKey, body: Option<&Body>, now: Time) {
        let pod = match body.map(Body::parse::<Pod>) {
            None => None,
            Some(Ok(pod)) => Some(Arc::new(pod)),
            Some(Err(error)) => {
                // The earlier version of the pod, if there is one, goes on.
                tracing::error!(pod = %key, %error, "desired pod cannot be read");
                return;
            }
        };
        let elsewhere = |pod: &Arc<Pod>| {
            pod.spec
                .node_name
                .as_ref()
                .is_some_and(|node| *node != self.node_name)
        };
        if pod.as_ref().is_some_and(elsewhere) {
            tracing::warn!(pod = %key, "pod of another node is not run here");
            return;
        }
        self.board_stale = true;
        self.pods.handle_desired(&key, pod, now);
        self.end_waits();
    }

    /// A pod that is deleted, gone or replaced does not go on pulling images or waiting for the cloud.
    fn end_waits(&mut self) {
        let pods = &self.pods;
        self.waits.retain(|uid, (key, wait)| {
            let goes_on = pods
                .pod(key)
                .is_some_and(|pod| pod.uid() == uid && pod.metadata.deletion_timestamp.is_none());
            if !goes_on {
                wait.cancel();
            }
            goes_on
        });
    }

    fn desired_node(&mut self, body: Option<&Body>) {
        let Some(body) = body else { return };
        match body.parse::<Node>() {
            Ok(node) => self.node_shown(Arc::new(node)),
            Err(error) => tracing::warn!(%error, "object of this node cannot be read"),
        }
    }

    /// The cloud has shown the object of this node.
    pub(super) fn node_shown(&mut self, node: Arc<Node>) {
        let facts = NodeFacts {
            uid: node.metadata.uid.clone(),
            labels: node.metadata.labels.clone(),
            taints: node.spec.taints.clone(),
        };
        self.pods.handle_node(facts, self.now());
        self.board.node.send_replace(Some(node));
    }

    /// The files of this node have changed.
    pub(super) fn static_pods(&mut self, pods: Vec<Pod>) {
        self.files_known = true;
        self.board_stale = true;
        self.pods.handle_static(pods, self.now());
        self.end_waits();
    }
}
