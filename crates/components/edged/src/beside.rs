//! What the tasks beside the owner of the pods see of them, and what they may ask of it.
//!
//! The node's status, eviction, garbage collection, statistics and the local server each have a task of their own. They
//! learn about pods by the newest value of [`Beside::pods`] and [`Beside::seen`], and change something by an [`Order`];
//! none of them holds up the owner, and it holds up none of them.

use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::config::Config;
use crate::events::Events;
use crate::stats::Stats;
use crate::volumes::Volumes;
use kedge_api::{Node, Pod, PodStatus};
use kedge_containers::ObservedSandbox;
use kedge_host::Facts;
use kedge_pods::eviction::Pressures;
use kedge_pods::{Amounts, Eviction, PodSource};
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{latest, queue};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;

/// Orders that wait for the owner. It takes one at a time between its other events; who orders waits for a place.
pub(crate) const ORDERS_MAX: usize = 16;

/// Why the runtime does not work; nothing when it does.
pub(crate) type RuntimeTrouble = Option<String>;

/// A pod of this node, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodView {
    /// As it is desired.
    pub(crate) pod: Arc<Pod>,
    /// As this node computed it last, reported or not.
    pub(crate) status: Arc<PodStatus>,
    pub(crate) source: PodSource,
    /// The node took it: it counts against the node's resources until it has ended.
    pub(crate) admitted: bool,
}

/// What a task beside the owner wants.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// End this pod for good.
    Evict { uid: String, eviction: Eviction },
    /// What pods may use together has changed.
    Allocatable(Amounts),
    /// The cloud has shown the object of this node, in an answer to a task of its own.
    Node(Arc<Node>),
    /// What the node is short of has changed: it counts for new pods.
    Pressures(Pressures),
    /// Handlers of the runtime that make recursive read-only mounts are others now.
    RecursiveReadOnly(BTreeSet<String>),
    /// The machine shuts down: no pod begins any more.
    ShuttingDown,
    /// Somebody waits until all that is to be told of pods is with the cloud, or kept for it.
    WhenTold(Arc<Notify>),
}

/// Everything that a task beside the owner may need. Cloned into each.
#[derive(Clone)]
pub(crate) struct Beside {
    pub(crate) config: Arc<Config>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) cloud: Cloud,
    pub(crate) events: Events,
    pub(crate) clock: Clock,
    /// Whether the cloud is connected.
    pub(crate) online: latest::Receiver<bool>,
    pub(crate) trouble: latest::Receiver<RuntimeTrouble>,
    /// All pods that the owner has a worker for.
    pub(crate) pods: latest::Receiver<Arc<Vec<PodView>>>,
    /// What the runtime showed last.
    pub(crate) seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
    /// The object of this node as the cloud holds it; nothing until the cloud or the store gave it.
    pub(crate) node: latest::Receiver<Option<Arc<Node>>>,
    pub(crate) orders: queue::Sender<Order>,
    /// What pods and the node use; measured when it is asked for.
    pub(crate) stats: Arc<Stats>,
    pub(crate) volumes: Volumes,
    pub(crate) scope: Scope,
}

/// What the owner shows to the tasks beside it: the other ends of their receivers.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) trouble: latest::Sender<RuntimeTrouble>,
    pub(crate) pods: latest::Sender<Arc<Vec<PodView>>>,
    pub(crate) seen: latest::Sender<Arc<Vec<ObservedSandbox>>>,
    pub(crate) node: latest::Sender<Option<Arc<Node>>>,
}
