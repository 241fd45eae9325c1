//! The owner of the edge's store: what the cloud wants here, and what edged has to say.
//!
//! **Duty.** Make each object of the cloud durable, then hand it to edged, then say so (acknowledge after commit). What a
//! Node says is durable before it is repeated, so its heartbeats need no transaction of their own.
//! Answer what edged asks from the store when it is held and from the cloud when not, and keep such answers. Keep
//! reports that must survive (ends of pods, pod status, events) in the durable outbox until the cloud has them.
//!
//! **Inputs.** [`Ports`]: orders of edgehub, requests of edged, whether the cloud is connected.
//! **Outputs.** Object changes to edged, questions to the cloud, answers to both.
//!
//! **Never.** It starts no containers, parses no pods, opens no connection. It does not wait for the cloud while
//! somebody else could be served: every question is its own future, their number is bounded, and the lease has places
//! of its own.
//!
//! ```text
//!   edgehub  --StoreOrder-->  judge --submit--> store --committed--> edged (keyed), then StoreDone
//!                               +-- a node's repetition: no transaction --^
//!   edged    --Request----->  plan +-> held row ................................ answer
//!                                  +-> cloud, keep the answer .................. answer
//!                                  +-> outbox --committed--> cloud --answered--> forget, answer
//! ```

mod asks;
mod copies;
mod objects;
mod plan;
mod quiet;
mod reports;
mod sweep;
#[cfg(test)]
mod tests;
mod tokens;
mod told;
mod worker;

use copies::Copies;
use kedge_link::edge::{CloudRequest, RequestError, StoreDone, StoreOrder};
use kedge_store::meta::MetaStore;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest};
use kedge_wire::{Body, ObjectKey, Reply, Request};
use quiet::Quiet;
use std::collections::HashMap;
use std::time::Duration;

/// Settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long the cloud may take for one answer; `metaManager.remoteQueryTimeout`, official default 60 s.
    pub query_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            query_timeout: Duration::from_secs(60),
        }
    }
}

/// The neighbours.
#[derive(Debug)]
pub struct Ports {
    /// From edgehub: commit this, tell what is held.
    pub orders: ask::Receiver<StoreOrder, StoreDone>,
    /// From edged.
    pub requests: ask::Receiver<Request, Result<Reply, RequestError>>,
    /// To edgehub.
    pub cloud: ask::Sender<CloudRequest, Result<Reply, RequestError>>,
    /// Whether the cloud is connected, as edgehub says.
    pub online: latest::Receiver<bool>,
    /// To edged: the newest state of each object it follows; `None` when it is gone. When a pod is replaced by another
    /// of its name quickly, only the new one comes out: edged tells them apart by uid.
    pub objects: keyed::Sender<ObjectKey, Option<Body>>,
    /// To edged: whether nothing that the cloud wants here is missing. Begins with [`Holding::complete`]; set after the
    /// objects that made it so.
    pub complete: latest::Sender<bool>,
}

/// What the node holds when it starts.
#[derive(Debug)]
pub struct Holding {
    /// Everything edged must run and know without a cloud.
    pub objects: Vec<(ObjectKey, Body)>,
    /// Nothing that the cloud wanted when it was last heard is missing from them.
    pub complete: bool,
}

/// Why the component cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read what this node holds: {0}")]
    Store(#[from] kedge_store::meta::Error),
}

/// The component, before it runs.
#[derive(Debug)]
pub struct MetaManager {
    config: Config,
    store: MetaStore,
    held: HashMap<ObjectKey, objects::Version>,
    copies: Copies,
    quiet: Quiet,
}

impl MetaManager {
    /// Reads the store.
    pub async fn open(store: MetaStore, config: Config) -> Result<(Self, Holding), Error> {
        let mut held = HashMap::new();
        let mut for_edged = Vec::new();
        let mut quiet = Quiet::default();
        for row in store.all().await? {
            if row.kind == tokens::KIND {
                continue;
            }
            let (Some(key), Ok(body)) = (ObjectKey::parse(&row.key), Body::from_json(row.value)) else {
                // Rows of other modules, or of an edge that wrote something else: not ours to judge or to remove.
                tracing::debug!(key = row.key, "stored row is not an object");
                continue;
            };
            held.insert(key.clone(), objects::Version::of(&body));
            quiet.writes(&key, &body);
            if plan::is_for_edged(&key) && body.json().starts_with('{') {
                for_edged.push((key, body));
            }
        }
        let copies = Copies::of(&store, &for_edged);
        let holding = Holding {
            objects: for_edged,
            complete: store.complete().await?,
        };
        let manager = Self {
            config,
            store,
            held,
            copies,
            quiet,
        };
        Ok((manager, holding))
    }

    /// Serves until the scope is cancelled; what was submitted to the store by then is still answered.
    pub async fn run(self, ports: Ports, scope: Scope) {
        let kept = worker::Kept {
            held: self.held,
            copies: self.copies,
            quiet: self.quiet,
        };
        worker::Worker::new(self.config, self.store, kept, ports)
            .run(scope)
            .await;
    }
}
