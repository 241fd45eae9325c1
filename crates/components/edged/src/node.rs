//! The Node object of this node: registered, described, and kept alive by a lease.
//!
//! Three tasks that must not wait for each other. One looks at the machine and the runtime every few seconds, whether
//! there is a cloud or not, and tells the owner what pods may use. One registers the node and sends what changed. The
//! lease has one of its own, so that neither a large status nor a slow API can make the cloud believe that the node is
//! gone.
//!
//! ```text
//!   machine, runtime, pressures, devices --> observe --(status)--> report --> cloud
//!                                               |                     |
//!                                               +--> owner, events    +--(registered)--> lease --> cloud
//! ```

mod addresses;
mod conditions;
mod lease;
mod object;
mod observe;
mod report;
mod status;
#[cfg(test)]
mod tests;

use crate::beside::{Beside, Order};
use crate::cloud::Error;
use crate::config::Config;
use crate::devices::Devices;
use kedge_api::{Node, NodeStatus, Taint};
use kedge_host::Facts;
use kedge_pods::Amounts;
use kedge_pods::allocatable::{self, DeviceCount, Machine};
use kedge_pods::eviction::Pressures;
use kedge_telemetry::channel::latest;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// First wait after a failure, then doubled: the cloud is there, so the cause is short.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);

/// What was seen last; nothing before the first look.
type Looked = Option<Arc<NodeStatus>>;

/// Starts everything that looks after the node itself: its object, its lease, eviction and the removal of images.
pub(crate) fn start(beside: &Beside, devices: &Devices, shutting_down: latest::Receiver<bool>) {
    let images = crate::gc::start(beside);
    let sources = Sources {
        pressures: crate::eviction::start(beside, &beside.stats, images),
        devices: devices.counts(),
        volumes_in_use: beside.volumes.in_use(),
        shutting_down,
    };
    let (looked_tx, looked) = latest::channel(None);
    let (registered_tx, registered) = latest::channel(None);
    let scope = &beside.scope;
    scope.spawn_until_cancelled(
        "edged-node-look",
        observe::run(beside.clone(), sources, looked_tx),
    );
    scope.spawn_until_cancelled("edged-lease", lease::run(beside.clone(), registered));
    let reporting = Reporting {
        beside: beside.clone(),
        looked,
        registered: registered_tx,
    };
    scope.spawn_until_cancelled("edged-node", reporting.run());
}

/// What others of this process know about the node.
struct Sources {
    pressures: latest::Receiver<Pressures>,
    devices: latest::Receiver<BTreeMap<String, DeviceCount>>,
    /// The unique names of attachable volumes that pods of this node use.
    volumes_in_use: latest::Receiver<Arc<BTreeSet<String>>>,
    /// The machine shuts down.
    shutting_down: latest::Receiver<bool>,
}

/// What pods may use at the start, before any device plug-in is there. Blocks for some small files.
pub(crate) fn allocatable(config: &Config, facts: &Facts) -> Amounts {
    allocatable::allocatable(&machine(config, facts), &config.allocatable_rules())
}

/// The labels and taints that the node has until the cloud says otherwise.
pub(crate) fn labels_and_taints(config: &Config, facts: &Facts) -> (BTreeMap<String, String>, Vec<Taint>) {
    (object::labels(config, facts), object::taints(config))
}

/// The addresses that pods on the node's network have.
pub(crate) fn host_ips(config: &Config, facts: &Facts) -> Vec<String> {
    let ip = addresses::internal_ip(
        &config.node,
        &facts.addresses,
        config.node_name.as_str().parse().ok(),
    );
    ip.map(|ip| ip.to_string()).into_iter().collect()
}

/// The sizes of huge pages as control groups spell them.
pub(crate) fn huge_page_sizes(config: &Config) -> Vec<String> {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    let spell = |bytes: &u64| {
        let (unit, name) = UNITS.iter().find(|(unit, _)| bytes.is_multiple_of(*unit))?;
        Some(format!("{}{name}", bytes / unit))
    };
    let sizes = kedge_host::node::huge_pages(&config.machine);
    sizes.keys().filter_map(spell).collect()
}

/// Measures the machine. Blocks for some small files.
fn machine(config: &Config, facts: &Facts) -> Machine {
    let nodefs = kedge_host::disk_usage(&config.root_dir);
    if let Err(error) = &nodefs {
        tracing::warn!(%error, "the size of the node's disk is unknown");
    }
    Machine {
        cpus: facts.cpus,
        memory_bytes: facts.memory_bytes,
        nodefs_bytes: nodefs.ok().map(|disk| disk.total_bytes),
        hugepages: kedge_host::node::huge_pages(&config.machine),
        devices: BTreeMap::new(),
    }
}

/// Registers the node and tells how it is.
struct Reporting {
    beside: Beside,
    looked: latest::Receiver<Looked>,
    /// The UID of the registered node; an empty one where it is not known.
    registered: latest::Sender<Option<String>>,
}

#[derive(PartialEq, Eq)]
enum Link {
    Down,
    NodeGone,
    /// This process ends.
    Over,
}

impl Reporting {
    async fn run(mut self) {
        let mut reporter = report::Reporter::default();
        loop {
            if wait_online(&mut self.beside.online).await.is_none() {
                return;
            }
            if self.registered.borrow().is_none() {
                let uid = if self.beside.config.node.register {
                    let Some(uid) = self.register().await else {
                        continue;
                    };
                    uid
                } else {
                    String::new()
                };
                self.registered.send_replace(Some(uid));
            }
            reporter.forget_times();
            match self.report_while_online(&mut reporter).await {
                Link::Down => {}
                Link::NodeGone => {
                    self.registered.send_replace(None);
                    // Somebody else makes the node, or it was removed on purpose a moment ago.
                    self.pause(RETRY_MAX).await;
                }
                Link::Over => return,
            }
        }
    }

    /// Creates the node until the cloud has it. `None` when the link went down meanwhile.
    async fn register(&mut self) -> Option<String> {
        let mut delay = RETRY_MIN;
        loop {
            match self.register_once().await {
                Ok(uid) => {
                    tracing::info!(node = %self.beside.config.node_name, "node is registered");
                    return Some(uid);
                }
                Err(error) if error.is_absence() || !*self.beside.online.borrow() => return None,
                Err(error) => tracing::warn!(%error, delay = ?delay, "node not registered, will try again"),
            }
            self.pause(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    async fn register_once(&mut self) -> Result<String, Error> {
        let status = self.first_look().await;
        let node = object::node(&self.beside.config, &self.beside.facts, self.stamped(&status));
        let body = Body::from_value(&node).map_err(|error| Error::Unreadable(error.to_string()))?;
        let key = self.key(ObjectKind::Node);
        match self
            .beside
            .cloud
            .object::<Node>(Operation::Insert, key, body)
            .await
        {
            Ok(made) => Ok(self.shown(made).await),
            Err(error) if error.is_conflict() => Ok(self.reconcile(&node).await),
            Err(error) => Err(error),
        }
    }

    fn stamped(&self, status: &NodeStatus) -> NodeStatus {
        report::Reporter::default().stamp(status, None, self.beside.clock.wall())
    }

    /// The node exists: its labels may be those of an older configuration. Not being able to compare them is no reason
    /// to stay away.
    async fn reconcile(&self, wanted: &Node) -> String {
        // The status is due anyway, and its answer holds the whole node; official clouds answer no query of a node.
        let known: Node = match self.patch(&report::whole_patch(&wanted.status)).await {
            Ok(node) => node,
            Err(error) => {
                tracing::debug!(%error, "registered node cannot be compared");
                return String::new();
            }
        };
        if let Some(missing) = object::missing(wanted, &known) {
            let (cloud, key) = (self.beside.cloud.clone(), self.key(ObjectKind::NodePatch));
            let body = Body::text(&missing.to_string());
            // A cloud may refuse labels. The status must not wait for that.
            self.beside
                .scope
                .spawn_until_cancelled("edged-node-labels", async move {
                    if let Err(error) = cloud.ask(Operation::Patch, key, body).await {
                        tracing::debug!(%error, "labels of the node not updated");
                    }
                });
        }
        self.shown(known).await
    }

    /// The cloud has shown the node: the owner learns it, and the UID comes out.
    async fn shown(&self, node: Node) -> String {
        let Some(uid) = node.metadata.uid.clone() else {
            return String::new();
        };
        if self
            .beside
            .orders
            .send(Order::Node(Arc::new(node)))
            .await
            .is_err()
        {
            tracing::debug!("the owner of the pods has ended");
        }
        uid
    }

    async fn report_while_online(&mut self, reporter: &mut report::Reporter) -> Link {
        let mut delay = RETRY_MIN;
        loop {
            let looked = self.first_look().await;
            let now = self.beside.clock.now();
            let known = self.beside.node.borrow().clone();
            let known = known.as_deref().map(|node| &node.status);
            let config = &self.beside.config.node;
            let status = reporter.stamp(&looked, known, self.beside.clock.wall());
            let wait = match reporter.patch(config, &status, now) {
                None => reporter.due_in(config, now),
                Some(patch) => match self.patch::<IgnoredAny>(&patch).await {
                    Ok(_) => {
                        let now = self.beside.clock.now();
                        reporter.sent(status, now);
                        delay = RETRY_MIN;
                        reporter.due_in(config, now)
                    }
                    Err(error) if error.is_not_found() => return Link::NodeGone,
                    Err(error) if error.is_absence() => RETRY_MAX,
                    Err(error) => {
                        tracing::warn!(%error, "node status not taken, will be sent again");
                        // What the cloud has by now nobody knows.
                        reporter.forget_sent();
                        delay = (delay * 2).min(RETRY_MAX);
                        delay
                    }
                },
            };
            tokio::select! {
                biased;
                down = wait_offline(&mut self.beside.online) => { let () = down; return Link::Down },
                // News are told at once.
                changed = self.looked.changed() => if changed.is_err() { return Link::Over },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Gives back the node as it is then.
    async fn patch<T: DeserializeOwned>(&self, patch: &str) -> Result<T, Error> {
        let key = self.key(ObjectKind::NodePatch);
        self.beside
            .cloud
            .object(Operation::Patch, key, Body::text(patch))
            .await
    }

    /// What was seen last. The first look takes as long as the runtime needs to answer.
    async fn first_look(&mut self) -> Arc<NodeStatus> {
        let looked = self.looked.wait_for(Option::is_some).await;
        looked.ok().and_then(|looked| looked.clone()).unwrap_or_default()
    }

    /// Waits, but not for a link that is gone.
    async fn pause(&mut self, delay: Duration) {
        tokio::select! {
            biased;
            down = wait_offline(&mut self.beside.online) => down,
            () = tokio::time::sleep(delay) => {}
        }
    }

    fn key(&self, kind: ObjectKind) -> ObjectKey {
        ObjectKey::cluster(kind, self.beside.config.node_name.as_str())
    }
}

/// Completes when the cloud is connected; `None` when that will never be told.
async fn wait_online(online: &mut latest::Receiver<bool>) -> Option<()> {
    online.wait_for(|online| *online).await.ok().map(|_| ())
}

/// Completes when the cloud is not connected, or nobody tells any more.
async fn wait_offline(online: &mut latest::Receiver<bool>) {
    let _ = online.wait_for(|online| !*online).await;
}
