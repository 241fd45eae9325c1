//! The pods of this node, and the node itself.
//!
//! **Duty.** Keep the containers of this node as the desired set and the files of the node say ([`kedge_pods`] decides,
//! [`kedge_runtime`] does); fetch their images, make their volumes, run their hooks, ask their probes; report pod status
//! and events; register the node, keep its lease and its status; keep the node itself alive when it runs short; turn logs
//! over; tell what a kubelet tells.
//!
//! **Inputs.** The objects held at the start and their later changes; manifests of static pods; whether the cloud is
//! connected; pods that are released; questions through the tunnel. **Outputs.** Runtime calls; requests to the cloud,
//! which metamanager keeps or forwards; answers.
//!
//! **Never.** It does not wait for the cloud to start a pod, it does not stop containers when it ends, and nothing that
//! one pod does can hold up another: each action runs in a task of its own and comes back as an event.
//!
//! ```text
//!  desired, files -> owner (kedge_pods::Pods) --- action ---> hands (a task each) ---> runtime, volumes, devices
//!  list, hint ---->   |  ^   ^------------- outcome ---------'   '--> pulls (one task)
//!                     |  |
//!                     |  '-- orders -- node, eviction, image gc <-- board: pods, seen, trouble, node
//!                     |                stats, face (tunnel, port) <-'
//!                     +--> reports (newest per pod) ----+
//!  online --------> node task, lease task --------------+--> cloud (metamanager)
//!                     +--> events (lossy, counted) -----+
//! ```

mod beside;
mod checkpoint;
mod clock;
mod cloud;
mod config;
mod csi;
mod devices;
mod events;
mod eviction;
mod face;
mod gc;
mod hands;
mod images;
mod logs;
mod node;
mod objects;
mod owner;
mod pinning;
mod probe;
mod reports;
mod shutdown;
mod static_pods;
mod stats;
mod termination;
mod volumes;

pub use config::{Config, Images, Node, Reserved};
pub use events::Limits as EventLimits;
pub use face::Settings as FaceSettings;
pub use images::Limits as PullLimits;
pub use logs::Rotation as LogRotation;
pub use owner::PodRules;
pub use pinning::{CpuRules, Error as PinningError, Rules as Pinning};
pub use shutdown::MachineStops;
pub use static_pods::Source as StaticPods;

use bytes::Bytes;
use kedge_link::edge::RequestError;
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::tunnel::NodeGet;
use kedge_wire::{Body, ObjectKey, Reply, Request};
use std::path::PathBuf;
use std::sync::Arc;

/// The bytes of a log as they are read, or why there are none.
pub type LogAnswer = Result<queue::Receiver<Bytes>, String>;

/// What edged is connected to.
#[derive(Debug)]
pub struct Ports {
    /// Changes of pods, config maps, secrets and the node, after the initial set; `None` is deleted.
    pub desired: keyed::Receiver<ObjectKey, Option<Body>>,
    /// Requests to the cloud, by way of metamanager.
    pub cloud: ask::Sender<Request, Result<Reply, RequestError>>,
    /// Nothing that the cloud wants here is missing from the initial set and the changes before. Until then containers of
    /// pods that are not held are left alone: on a node that never held anything, and on one that has lost something.
    pub complete: latest::Receiver<bool>,
    /// Whether the cloud is connected.
    pub online: latest::Receiver<bool>,
    /// Log requests; the answer streams the bytes of the HTTP body.
    pub node_get: ask::Receiver<NodeGet, LogAnswer>,
    /// Connections through the tunnel: exec, attach, port forwarding.
    pub node_connect: queue::Receiver<kedge_streaming::Connection>,
    /// Pods whose update was held back and may begin now.
    pub releases: queue::Receiver<kedge_pods::Release>,
    /// The machine shuts down, from whoever is told so. Nobody need ever ask.
    pub shutdown: ask::Receiver<MachineStops, ()>,
    /// What this process counts, for `/metrics`.
    pub metrics: kedge_telemetry::metrics::Registry,
}

/// Why edged cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("create directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read the facts of this machine")]
    Facts(#[source] kedge_host::Error),
    #[error(transparent)]
    Pinning(#[from] PinningError),
}

/// The component, ready to run.
pub struct Edged {
    config: Config,
    facts: kedge_host::Facts,
    runtime: Arc<dyn Runtime>,
    initial: Vec<(ObjectKey, Body)>,
    ports: Ports,
    pinning: Option<pinning::Prepared>,
}

impl std::fmt::Debug for Edged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edged")
            .field("node", &self.config.node_name)
            .finish_non_exhaustive()
    }
}

impl Edged {
    /// Prepares the directories; nothing runs before [`Edged::run`]. `initial` is what the node held when it was started.
    pub fn new(
        config: Config,
        runtime: Arc<dyn Runtime>,
        initial: Vec<(ObjectKey, Body)>,
        ports: Ports,
    ) -> Result<Self, Error> {
        let mut facts = kedge_host::facts().map_err(Error::Facts)?;
        for path in [config.pods_dir(), config.log_dir.clone()] {
            volumes::make_private_dir(&path).map_err(|source| Error::Directory { path, source })?;
        }
        let pinning = pinning::prepare(&config.pinning, &config.machine, &config.root_dir)?;
        // The node promises the CPUs that it gives out.
        facts.cpus = pinning.as_ref().map_or(facts.cpus, pinning::Prepared::cpus);
        Ok(Self {
            config,
            pinning,
            facts,
            runtime,
            initial,
            ports,
        })
    }

    /// Runs until the scope is cancelled. Containers are left as they are.
    pub async fn run(self, scope: Scope) {
        owner::run(
            self.config,
            self.facts,
            self.runtime,
            self.initial,
            self.ports,
            self.pinning,
            scope,
        )
        .await;
    }
}
