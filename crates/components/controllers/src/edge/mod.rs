//! Pods, nodes, config maps and secrets: down to the nodes, and what the nodes say about them up to the API.

mod answer;
mod calls;
mod events;
mod lanes;
mod metrics;
mod owner;
mod ownership;
mod refusal;
pub(crate) mod reports;
pub(crate) mod watches;
mod worker;

pub(crate) use answer::refused;
pub(crate) use calls::Caller;
use kedge_cluster::{Budget, Cluster};
use kedge_link::Peer;
pub use kedge_link::cloud::{Acked, Answer, Attached};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_telemetry::metrics::Registry;
use kedge_wire::{NodeName, Object, ObjectKey, Request};
pub(crate) use metrics::{Metrics, Outcome};
use owner::Owner;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Calls to the API at one time for one node, leases not counted.
    pub node_calls_max: usize,
    /// The name of this replica, different from the others'. `None`: there are no others, and nothing is written about
    /// where a node is connected.
    pub replica: Option<String>,
    /// Written to a node's annotation `cloudcore`, which tells people where the node is connected.
    pub advertise_address: Option<String>,
    /// Whether the events of edges are written to the API.
    pub events: bool,
    /// Whether records for an official cloud are written (`modules.syncController.enable`). They are read in any case.
    pub object_syncs: bool,
    /// Whether the certificates of nodes' own servers are approved while this replica leads.
    pub serving_certificates: bool,
    /// Spreads what the nodes of this process do; see `kedge_telemetry::clock::process_seed`.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        // A node with 110 pods that all change at once is served in 14 rounds; ten thousand nodes do not drown the API.
        Self {
            node_calls_max: 8,
            replica: None,
            advertise_address: None,
            events: true,
            object_syncs: false,
            serving_certificates: true,
            seed: 0,
        }
    }
}

/// What the component works with.
#[derive(Debug, Clone)]
pub struct Hands {
    pub cluster: Cluster,
    /// Every call on behalf of a node goes through it.
    pub budget: Budget,
    pub metrics: Registry,
    /// Whether this replica does what only one may do.
    pub leads: latest::Receiver<bool>,
}

/// A session of a node begins. Its answer is an [`Attached`]; later changes of what the node must hold come through
/// `desired`. The worker of the node ends when `requests` does. The session ends when `desired` is dropped.
#[derive(Debug)]
pub struct Attach {
    pub node: NodeName,
    pub peer: Peer,
    /// `None`: the node must not hold the key any more.
    pub desired: keyed::Sender<ObjectKey, Option<Object>>,
    pub requests: ask::Receiver<Request, Answer>,
    /// What the node has made durable.
    pub acked: keyed::Receiver<ObjectKey, Acked>,
}

/// What the watches saw and the index has not taken yet. When full, the watches wait, and the API keeps the rest.
const OBSERVED_QUEUE: usize = 256;
/// Questions to the index. Each worker has at most `node_calls_max` of them; when full, workers wait.
const QUESTIONS_QUEUE: usize = 1024;
/// Pods that nodes run and no cloud knows of; when full, workers wait.
const LEFTOVERS_QUEUE: usize = 64;
/// Last leases written at one time.
const LAST_WRITES_MAX: usize = 64;
/// Ends of workers, to be forgotten by the owner; when full, workers wait.
const ENDED_QUEUE: usize = 64;

/// The component.
#[derive(Debug)]
pub struct Controllers {
    config: Config,
    hands: Hands,
    attach: ask::Receiver<Attach, Attached>,
    synced: latest::Sender<bool>,
}

impl Controllers {
    pub fn new(config: Config, hands: Hands, attach: ask::Receiver<Attach, Attached>) -> Self {
        Self {
            config,
            hands,
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
        let Hands {
            cluster,
            budget,
            metrics,
            leads,
        } = self.hands;
        let metrics = Arc::new(Metrics::new(&metrics));
        let (observe, observed) = queue::channel("controllers.observed", OBSERVED_QUEUE);
        let (ask_index, questions) = ask::channel("controllers.index", QUESTIONS_QUEUE);
        let (ask_records, record_questions) = ask::channel("controllers.records", QUESTIONS_QUEUE);
        let (ended, ends) = queue::channel("controllers.ended", ENDED_QUEUE);
        let (tell_leftovers, leftovers) = queue::channel("controllers.leftovers", LEFTOVERS_QUEUE);
        let (gone_tell, gone) = latest::channel(0);
        watches::start(&cluster, &observe, &scope);
        let record_kinds = crate::sync::watch(&cluster, &observe, self.config.object_syncs, &scope);
        drop(observe);
        let caller = Caller::new(cluster.clone(), budget, Arc::clone(&metrics), self.config.seed);
        if self.config.serving_certificates {
            crate::csr::start(caller.clone(), leads.clone(), &scope);
        }
        if self.config.object_syncs {
            crate::sync::sweep(caller.clone(), ask_records.clone(), gone, leads, &scope);
        }
        let shared = worker::Shared {
            caller,
            config: self.config,
            index: ask_index,
            records: ask_records,
            ended,
            leftovers: tell_leftovers,
            metrics: Arc::clone(&metrics),
            last_writes: Semaphore::new(LAST_WRITES_MAX),
            lease_patch: refusal::Refusal::default(),
            epoch: tokio::time::Instant::now(),
        };
        let ports = owner::Ports {
            attach: self.attach,
            observed,
            questions,
            record_questions,
            record_kinds,
            leftovers,
            ends,
            synced: self.synced,
            node_gone: gone_tell,
        };
        Owner::new(Arc::new(shared), ports, metrics, scope.clone())
            .run()
            .await;
        scope.drain(DRAIN_MAX).await;
    }
}

/// Workers write the newest lease of their node on their way out; the rest ends at its next await.
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_secs(3);
