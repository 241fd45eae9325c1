//! The pods of this node, and the node itself.
//!
//! **Duty.** Keep the containers of this node as the desired set says ([`kedge_pods`] decides, [`kedge_runtime`] does);
//! make their volumes; ask their probes; report pod status; register the node, keep its lease and its status; serve
//! container logs.
//!
//! **Inputs.** The objects held at the start and their later changes; whether the cloud is connected; questions for
//! logs. **Outputs.** Runtime calls; requests to the cloud, which metamanager keeps or forwards.
//!
//! **Never.** It does not wait for the cloud to start a pod, it does not stop containers when it ends, and nothing that
//! one pod does can hold up another: each action runs in a task of its own and comes back as an event.
//!
//! ```text
//!  desired ----> owner (kedge_pods::Pods) --- action ---> hands (a task each) ---> runtime, volumes
//!  list, hint -->   |      ^------------- outcome -----------'
//!                   +--> reports (newest per pod) --+
//!  online ------> node task, lease task ------------+--> cloud (metamanager)
//!  node_get ----> log task each                     |
//!                   +--> events (lossy) ------------+
//! ```

mod clock;
mod cloud;
mod config;
mod events;
mod hands;
mod logs;
mod node;
mod objects;
mod owner;
mod probe;
mod reports;
mod termination;
mod volumes;

pub use config::{Config, Reserved};

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
    /// Whether the cloud is connected.
    pub online: latest::Receiver<bool>,
    /// Log requests; the answer streams the bytes of the HTTP body.
    pub node_get: ask::Receiver<NodeGet, LogAnswer>,
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
}

/// The component, ready to run.
pub struct Edged {
    config: Config,
    facts: kedge_host::Facts,
    runtime: Arc<dyn Runtime>,
    initial: Vec<(ObjectKey, Body)>,
    ports: Ports,
}

impl std::fmt::Debug for Edged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edged")
            .field("node", &self.config.node_name)
            .finish_non_exhaustive()
    }
}

impl Edged {
    /// Prepares the directories; nothing runs before [`Edged::run`].
    pub fn new(
        config: Config,
        runtime: Arc<dyn Runtime>,
        initial: Vec<(ObjectKey, Body)>,
        ports: Ports,
    ) -> Result<Self, Error> {
        let facts = kedge_host::facts().map_err(Error::Facts)?;
        for path in [config.pods_dir(), config.log_dir.clone()] {
            volumes::make_private_dir(&path).map_err(|source| Error::Directory { path, source })?;
        }
        Ok(Self {
            config,
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
            scope,
        )
        .await;
    }
}
