//! Pods, nodes, config maps and secrets: down to the nodes, and what the nodes say about them up to the API.

mod answer;
mod lanes;
mod owner;
mod watches;
mod worker;

use kedge_cluster::Cluster;
pub use kedge_link::cloud::Answer;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::{NodeName, Object, ObjectKey, Request};
use owner::Owner;

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Calls to the API at one time for one node, leases not counted.
    pub node_calls_max: usize,
    /// Written to a new node's annotation `cloudcore`, which tells people where the node is connected.
    pub advertise_address: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        // A node with 110 pods that all change at once is served in 14 rounds; ten thousand nodes do not drown the API.
        Self {
            node_calls_max: 8,
            advertise_address: None,
        }
    }
}

/// A session of a node begins. Its answer is everything that the node must hold now; later changes come through
/// `desired`. The worker of the node ends when `requests` does.
#[derive(Debug)]
pub struct Attach {
    pub node: NodeName,
    /// `None`: the node must not hold the key any more.
    pub desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub requests: ask::Receiver<Request, Answer>,
}

/// What the watches saw and the index has not taken yet. When full, the watches wait, and the API keeps the rest.
const OBSERVED_QUEUE: usize = 256;
/// Questions to the index. Each worker has at most `node_calls_max` of them; when full, workers wait.
const QUESTIONS_QUEUE: usize = 1024;
/// Ends of workers, to be forgotten by the owner; when full, workers wait.
const ENDED_QUEUE: usize = 64;

/// The component.
#[derive(Debug)]
pub struct Controllers {
    config: Config,
    cluster: Cluster,
    attach: ask::Receiver<Attach, Vec<(ObjectKey, Object)>>,
    synced: latest::Sender<bool>,
}

impl Controllers {
    pub fn new(
        config: Config,
        cluster: Cluster,
        attach: ask::Receiver<Attach, Vec<(ObjectKey, Object)>>,
    ) -> Self {
        Self {
            config,
            cluster,
            attach,
            synced: latest::channel(false).0,
        }
    }

    /// Whether every watch has seen all that exists. Before that, no session is answered.
    pub fn synced(&self) -> latest::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Works until the scope ends or nobody can attach any more.
    pub async fn run(self, scope: Scope) {
        let scope = scope.child();
        let (observe, observed) = queue::channel("controllers.observed", OBSERVED_QUEUE);
        let (may_read, questions) = ask::channel("controllers.may-read", QUESTIONS_QUEUE);
        let (ended, ends) = queue::channel("controllers.ended", ENDED_QUEUE);
        watches::start(&self.cluster, &observe, &scope);
        drop(observe);
        let worker = worker::Hands {
            cluster: self.cluster,
            config: self.config,
            may_read,
            ended,
        };
        let ports = owner::Ports {
            attach: self.attach,
            observed,
            questions,
            ends,
            synced: self.synced,
        };
        Owner::new(worker, ports, scope.clone()).run().await;
        scope.drain(DRAIN_MAX).await;
    }
}

/// Watches and workers have nothing to finish: they end at their next await.
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(2);
