//! The Node object of this node: registered, described, and kept alive by a lease.
//!
//! Three things that must not wait for each other: the lease has a task of its own, so that neither a large status nor
//! a slow API can make the cloud believe that the node is gone.

mod lease;
mod status;

use crate::clock::Clock;
use crate::cloud::{Cloud, Error};
use crate::config::Config;
use kedge_api::{Node, NodeSpec, NodeStatus, ObjectMeta, Taint};
use kedge_host::Facts;
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation, Time};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use status::allocatable;

/// First wait after a failure, then doubled: the cloud is there, so the cause is short.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// What the owner knows about the runtime: the reason why it does not work, or nothing.
pub(crate) type RuntimeTrouble = Option<String>;

/// What the node's tasks need.
#[derive(Clone)]
pub(crate) struct NodeTasks {
    pub(crate) config: Arc<Config>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) addresses: Vec<String>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cloud: Cloud,
    pub(crate) clock: Clock,
    pub(crate) online: latest::Receiver<bool>,
    pub(crate) trouble: latest::Receiver<RuntimeTrouble>,
    pub(crate) scope: Scope,
}

impl NodeTasks {
    /// Starts the tasks. The lease waits for the registration, because only then has it an owner.
    pub(crate) fn start(self) {
        let scope = self.scope.clone();
        let (uid_tx, uid_rx) = latest::channel(None);
        scope.spawn_until_cancelled("edged-lease", lease::run(self.clone(), uid_rx));
        scope.spawn_until_cancelled("edged-node", self.run(uid_tx));
    }

    async fn run(mut self, registered: latest::Sender<Option<String>>) {
        let mut reporter = status::Reporter::default();
        loop {
            if wait_online(&mut self.online).await.is_none() {
                return;
            }
            if self.config.register_node && registered.borrow().is_none() {
                let Some(uid) = self.register().await else {
                    continue;
                };
                registered.send_replace(Some(uid));
            } else if registered.borrow().is_none() {
                registered.send_replace(Some(String::new()));
            }
            reporter.forget_sent();
            if self.report_while_online(&mut reporter).await == Link::NodeGone {
                registered.send_replace(None);
            }
        }
    }

    /// Creates the node until the cloud has it. `None` when the link went down meanwhile.
    async fn register(&mut self) -> Option<String> {
        let mut delay = RETRY_MIN;
        loop {
            match self.register_once().await {
                Ok(uid) => {
                    tracing::info!(node = %self.config.node_name, "node is registered");
                    return Some(uid);
                }
                Err(error) if error.is_absence() || !*self.online.borrow() => return None,
                Err(error) => tracing::warn!(%error, delay = ?delay, "node not registered, will try again"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    async fn register_once(&self) -> Result<String, Error> {
        let node = self.node().await;
        let body = Body::from_value(&node).map_err(|error| Error::Unreadable(error.to_string()))?;
        match self
            .cloud
            .object::<Node>(Operation::Insert, self.key(ObjectKind::Node), body)
            .await
        {
            Ok(made) => Ok(made.metadata.uid.unwrap_or_default()),
            Err(error) if error.is_conflict() => Ok(self.reconcile(&node).await),
            Err(error) => Err(error),
        }
    }

    /// The node exists: its labels may be those of an older configuration. Not being able to compare them is no reason
    /// to stay away.
    async fn reconcile(&self, wanted: &Node) -> String {
        // The status is due anyway, and its answer holds the whole node; official clouds answer no query of a node.
        let known: Node = match self.patch_status(&status_patch(&wanted.status)).await {
            Ok(node) => node,
            Err(error) => {
                tracing::debug!(%error, "registered node cannot be compared");
                return String::new();
            }
        };
        let missing = wanted
            .metadata
            .labels
            .iter()
            .any(|(name, value)| known.metadata.labels.get(name) != Some(value));
        if missing && let Ok(body) = Body::from_value(wanted) {
            let (cloud, key) = (self.cloud.clone(), self.key(ObjectKind::Node));
            // The official cloud does not answer a failed update, so nobody waits for it.
            self.scope.spawn_until_cancelled("edged-node-labels", async move {
                if let Err(error) = cloud.ask(Operation::Update, key, body).await {
                    tracing::debug!(%error, "labels of the node not updated");
                }
            });
        }
        known.metadata.uid.unwrap_or_default()
    }

    async fn report_while_online(&mut self, reporter: &mut status::Reporter) -> Link {
        let mut delay = RETRY_MIN;
        loop {
            let status = self.status(reporter.before()).await;
            let wait = match reporter.patch(&self.config, &status, self.clock.now()) {
                None => self.config.status_check_interval,
                Some(patch) => match self.patch_status::<IgnoredAny>(&patch).await {
                    Ok(_) => {
                        reporter.sent(status, self.clock.now());
                        delay = RETRY_MIN;
                        self.config.status_check_interval
                    }
                    Err(error) if error.is_not_found() => return Link::NodeGone,
                    Err(error) if error.is_absence() => RETRY_MAX,
                    Err(error) => {
                        tracing::warn!(%error, "node status not taken, will be sent again");
                        delay = (delay * 2).min(RETRY_MAX);
                        delay
                    }
                },
            };
            tokio::select! {
                biased;
                // The runtime's state decides about Ready: it is told at once.
                changed = self.trouble.changed() => if changed.is_err() { return Link::Down },
                down = wait_offline(&mut self.online) => { let () = down; return Link::Down },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Gives back the node as it is then.
    async fn patch_status<T: DeserializeOwned>(&self, patch: &str) -> Result<T, Error> {
        let key = self.key(ObjectKind::NodePatch);
        self.cloud.object(Operation::Patch, key, Body::text(patch)).await
    }

    async fn node(&self) -> Node {
        let config = &self.config;
        let mut labels = config.labels.clone();
        let facts = &self.facts;
        for (name, value) in [
            ("kubernetes.io/hostname", config.node_name.as_str()),
            ("kubernetes.io/os", facts.operating_system.as_str()),
            ("kubernetes.io/arch", facts.architecture.as_str()),
            ("beta.kubernetes.io/os", facts.operating_system.as_str()),
            ("beta.kubernetes.io/arch", facts.architecture.as_str()),
            ("node-role.kubernetes.io/edge", ""),
            ("node-role.kubernetes.io/agent", ""),
        ] {
            labels.insert(name.to_owned(), value.to_owned());
        }
        let mut annotations = config.annotations.clone();
        annotations.insert(
            "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
            "true".to_owned(),
        );
        let mut taints = config.taints.clone();
        if config.unschedulable {
            let (key, effect) = (
                "node.kubernetes.io/unschedulable".to_owned(),
                "NoSchedule".to_owned(),
            );
            taints.push(Taint {
                key,
                effect,
                ..Taint::default()
            });
        }
        Node {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            metadata: ObjectMeta {
                name: config.node_name.to_string(),
                labels,
                annotations,
                ..ObjectMeta::default()
            },
            spec: NodeSpec {
                taints,
                unschedulable: config.unschedulable.then_some(true),
                pod_cidr: None,
            },
            status: self.status(None).await,
        }
    }

    async fn status(&self, before: Option<&NodeStatus>) -> NodeStatus {
        let trouble = self.trouble.borrow().clone();
        status::compute(self, trouble, before).await
    }

    fn key(&self, kind: ObjectKind) -> ObjectKey {
        ObjectKey::cluster(kind, self.config.node_name.as_str())
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }
}

#[derive(PartialEq, Eq)]
enum Link {
    Down,
    NodeGone,
}

/// Completes when the cloud is connected; `None` when that will never be told.
pub(crate) async fn wait_online(online: &mut latest::Receiver<bool>) -> Option<()> {
    online.wait_for(|online| *online).await.ok().map(|_| ())
}

/// Completes when the cloud is not connected, or nobody tells any more.
pub(crate) async fn wait_offline(online: &mut latest::Receiver<bool>) {
    let _ = online.wait_for(|online| !*online).await;
}

/// The patch that carries a status.
pub(crate) fn status_patch(status: &NodeStatus) -> String {
    json!({ "status": status }).to_string()
}
