//! The decisions of the built-in controllers: snapshots in, writes out.
//!
//! ```text
//!   store's changes ──> World ──> decide(now, seed) ──> [Write ...], wake_at
//!                         ^                                 │
//!                         └──── answers of the writes <─────┘
//! ```
//!
//! Every pass looks at everything and says what is still to be done; nothing is remembered between passes but what the
//! [`World`] observed (heartbeats by our own clock). A write that fails is dropped: the next pass repeats it if it is
//! still right.

mod accounts;
mod deployment;
mod event;
mod garbage;
mod namespaces;
mod nodes;
mod pods;
mod replicaset;
mod requests;
mod scheduler;
mod view;
mod world;

pub use event::count_event;
pub use view::{difference, view};
pub use world::World;

use crate::meta;
use crate::strategy::DeleteOptions;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Most writes of one pass. What does not fit is decided again in the next pass, which is asked for at once.
pub const WRITES_MAX: usize = 500;

/// One write that a controller wants. All carry what is needed for optimistic concurrency: the object's
/// resourceVersion or a UID. `resource` is `pods`, `deployments.apps` ...
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Create {
        resource: String,
        object: Value,
    },
    /// PUT of the whole object.
    Update {
        resource: String,
        object: Value,
    },
    /// PUT of `/status`.
    UpdateStatus {
        resource: String,
        object: Value,
    },
    Delete {
        resource: String,
        namespace: String,
        name: String,
        options: DeleteOptions,
    },
    /// POST of `pods/<name>/binding`.
    Bind {
        namespace: String,
        name: String,
        uid: String,
        node: String,
    },
    /// PUT of `namespaces/<name>/finalize`.
    FinalizeNamespace {
        object: Value,
    },
    /// Create the core/v1 event; when one of that name exists, store [`count_event`] instead.
    Event {
        object: Value,
    },
}

/// Which controllers run and how.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// IPv4 network for `spec.podCIDR` of nodes, e.g. `10.42.0.0/16`; none: nodes bring their own.
    pub cluster_cidr: Option<String>,
    /// PEM of the cluster's CA for the config map kube-root-ca.crt.
    pub root_ca: Option<String>,
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub writes: Vec<Write>,
    pub wake_at: Option<Timestamp>,
}

/// One pass of all controllers. Level-triggered: call it after any change (debounced) and at `wake_at`, with another
/// seed each time. The caller calls [`World::observe`] before each pass, and feeds the answers of the writes into the world before the next pass.
pub fn decide(world: &World, settings: &Settings, now: Timestamp, seed: u64) -> Decision {
    let mut pass = Pass::new(world, now, seed);
    namespaces::run(&mut pass);
    accounts::run(&mut pass, settings);
    nodes::run(&mut pass, settings);
    pods::run(&mut pass);
    garbage::run(&mut pass);
    deployment::run(&mut pass);
    replicaset::run(&mut pass);
    scheduler::run(&mut pass);
    requests::run(&mut pass);
    event::expire(&mut pass);
    let mut decision = pass.decision;
    if decision.writes.len() > WRITES_MAX {
        decision.writes.truncate(WRITES_MAX);
        decision.wake_at = Some(now);
    }
    decision
}

/// What every controller sees during one pass.
struct Pass<'a> {
    world: &'a World,
    now: Timestamp,
    seed: u64,
    decision: Decision,
    /// Owner's UID -> its dependents with their resource.
    dependents: HashMap<&'a str, Vec<(&'a str, &'a Arc<Value>)>>,
}

impl<'a> Pass<'a> {
    fn new(world: &'a World, now: Timestamp, seed: u64) -> Self {
        let mut dependents: HashMap<&str, Vec<_>> = HashMap::new();
        for (resource, object) in world.iter() {
            for owner in meta::items(object, &["metadata", "ownerReferences"]) {
                dependents
                    .entry(meta::text(owner, &["uid"]))
                    .or_default()
                    .push((resource, object));
            }
        }
        Self {
            world,
            now,
            seed,
            decision: Decision::default(),
            dependents,
        }
    }

    fn write(&mut self, write: Write) {
        self.decision.writes.push(write);
    }

    fn create(&mut self, resource: &str, object: Value) {
        self.write(Write::Create {
            resource: resource.to_owned(),
            object,
        });
    }

    fn update(&mut self, resource: &str, object: Value) {
        self.write(Write::Update {
            resource: resource.to_owned(),
            object,
        });
    }

    fn update_status(&mut self, resource: &str, object: Value) {
        self.write(Write::UpdateStatus {
            resource: resource.to_owned(),
            object,
        });
    }

    /// Deletes just this object, never a later one of the same name.
    fn delete(&mut self, resource: &str, object: &Value, options: DeleteOptions) {
        let options = DeleteOptions {
            precondition_uid: Some(meta::uid(object).to_owned()),
            ..options
        };
        let (namespace, name) = (meta::namespace(object).to_owned(), meta::name(object).to_owned());
        self.write(Write::Delete {
            resource: resource.to_owned(),
            namespace,
            name,
            options,
        });
    }

    /// Asks for another pass at that moment.
    fn wake(&mut self, at: Timestamp) {
        let at = at.max(self.now);
        self.decision.wake_at = Some(self.decision.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Asks for another pass so many seconds after a moment.
    fn wake_after(&mut self, from: Timestamp, seconds: i64) {
        if let Ok(at) = from.checked_add(jiff::SignedDuration::from_secs(seconds)) {
            self.wake(at);
        }
    }

    /// The objects of a resource that this owner controls.
    fn controlled(&self, resource: &str, owner_uid: &str) -> Vec<&'a Arc<Value>> {
        let all = self.dependents.get(owner_uid).into_iter().flatten();
        all.filter(|(r, o)| *r == resource && is_controlled_by(o, owner_uid))
            .map(|(_, o)| *o)
            .collect()
    }
}

fn is_controlled_by(object: &Value, owner_uid: &str) -> bool {
    meta::controller_of(object).is_some_and(|c| meta::text(c, &["uid"]) == owner_uid)
}

#[cfg(test)]
mod tests;
