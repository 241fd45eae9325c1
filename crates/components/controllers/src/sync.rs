//! The records by which official clouds remember what a node holds: watched, written, swept.

use crate::edge::Caller;
use crate::edge::watches::{Observe, Observed, Watching, follow};
use kedge_cluster::{ApiError, Backoff, Class, Cluster, WatchItem};
use kedge_placement::report::ApiCall;
use kedge_placement::syncs::{Plan, Record, Records};
use kedge_telemetry::channel::{ask, latest};
use kedge_telemetry::{Scope, clock};
use kedge_wire::{Body, NodeName, ObjectKey, ResourceVersion, Uid};
use std::time::Duration;
use tokio::time::Instant;

/// How often to look whether the kind exists meanwhile.
const KIND_INTERVAL: Duration = Duration::from_secs(300);
/// First and longest wait while the API does not say whether the kind exists.
const PROBE_FIRST: Duration = Duration::from_millis(200);
const PROBE_MAX: Duration = Duration::from_secs(15);
/// How long one record is worked on. Nobody waits; but the next acknowledgement of the node does.
const RECORD_WORK_MAX: Duration = Duration::from_secs(60);
/// The owner answers between two watch events.
const OWNER_TIMEOUT: Duration = Duration::from_secs(10);
/// Records of nodes that are gone are looked for so often, and when a Node object is deleted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// A Node object that is deleted is often created anew in the same minute.
const SWEEP_DELAY: Duration = Duration::from_secs(60);

/// What the owner of the records can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordQuestion {
    /// What an acknowledgement asks for.
    Plan {
        node: NodeName,
        key: ObjectKey,
        uid: Uid,
        version: Option<ResourceVersion>,
    },
    /// Nodes that have records and neither a Node object nor a session here.
    NodesWithoutObject,
    Of(NodeName),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordAnswer {
    /// `replaced`: earlier objects under the same key whose records are left.
    Plan {
        plan: Plan,
        replaced: Vec<Uid>,
    },
    Nodes(Vec<NodeName>),
    Held(Vec<(ObjectKey, Uid, ResourceVersion)>),
}

/// Whether the cluster has the two kinds. Nothing is written to a kind that is not there.
#[derive(Debug)]
pub(crate) struct Kinds {
    namespaced: latest::Receiver<bool>,
    cluster: latest::Receiver<bool>,
}

impl Kinds {
    /// Whether the record of this key has a place.
    pub(crate) fn have(&self, key: &ObjectKey) -> bool {
        match &key.namespace {
            Some(_) => *self.namespaced.borrow(),
            None => *self.cluster.borrow(),
        }
    }
}

/// One task for each of the two kinds. `written`: somebody counts on them.
pub(crate) fn watch(cluster: &Cluster, observe: &Observe, written: bool, scope: &Scope) -> Kinds {
    let start = |records| {
        let by = Watching::Records(records);
        let name = format!("controllers.watch{}", by.watched().path);
        let (tell, exists) = latest::channel(false);
        let watched = watch_one(cluster.clone(), by, observe.clone(), tell, written);
        scope.spawn_until_cancelled(name, watched);
        exists
    };
    Kinds {
        namespaced: start(Records::Namespaced),
        cluster: start(Records::Cluster),
    }
}

/// Waits until the kind exists and follows it then. A cluster without it is complete without it.
async fn watch_one(
    cluster: Cluster,
    by: Watching,
    observe: Observe,
    exists: latest::Sender<bool>,
    written: bool,
) {
    let path = by.watched().path;
    let mut backoff = Backoff::new(PROBE_FIRST, PROBE_MAX, clock::process_seed());
    let mut told = false;
    loop {
        let wait = match cluster.get(&format!("{path}?limit=1")).await {
            Ok(_) => break,
            Err(error) if error.refusal().is_some() && !error.is_passing() => {
                if !told {
                    told = true;
                    no_records(&path, written, &error);
                    let nothing = Observed {
                        by,
                        at: Instant::now(),
                        // A kind that nobody has holds nothing at any version.
                        item: WatchItem::Synced {
                            version: ResourceVersion::new("0"),
                        },
                    };
                    if observe.send(nothing).await.is_err() {
                        return;
                    }
                }
                KIND_INTERVAL
            }
            Err(error) => {
                tracing::warn!(path, %error, "cannot tell whether the cluster has records of an official cloud");
                match told {
                    true => KIND_INTERVAL,
                    false => backoff.next(error.retry_after()),
                }
            }
        };
        tokio::time::sleep(wait).await;
    }
    exists.send_replace(true);
    follow(cluster, by, observe).await;
}

/// The kind is not there, or not for us: no reason to keep the edges waiting.
fn no_records(path: &str, written: bool, error: &ApiError) {
    if written || !error.is_not_found() {
        tracing::warn!(path, %error, "what edges hold is neither read nor written down for an official cloud");
    } else {
        tracing::info!(
            path,
            "the cluster has no such kind: no official cloud left records"
        );
    }
}

/// Writes down one acknowledgement, as an official cloud would find it. What cannot be written is counted: the next
/// acknowledgement of the object writes it again.
pub(crate) async fn record(
    caller: &Caller,
    owner: &ask::Sender<RecordQuestion, RecordAnswer>,
    node: &NodeName,
    key: ObjectKey,
    uid: Uid,
    version: Option<ResourceVersion>,
) {
    let Some(record) = Record::new(node, &key, &uid) else {
        return;
    };
    let question = RecordQuestion::Plan {
        node: node.clone(),
        key: key.clone(),
        uid,
        version: version.clone(),
    };
    let Ok(RecordAnswer::Plan { plan, replaced }) = owner.ask(question, OWNER_TIMEOUT).await else {
        // The process is ending.
        return;
    };
    let deadline = Instant::now() + RECORD_WORK_MAX;
    let writer = Writer {
        caller,
        node,
        deadline,
    };
    for uid in replaced {
        if let Some(earlier) = Record::new(node, &key, &uid) {
            writer.count(writer.delete(&earlier).await);
        }
    }
    let written = match (plan, &version) {
        (Plan::Nothing, _) => return,
        (Plan::Delete, _) | (Plan::Patch | Plan::Create, None) => writer.delete(&record).await,
        (Plan::Patch, Some(version)) => match writer.patch(&record, version).await {
            Err(error) if error.is_not_found() => writer.create(&record, version).await,
            patched => patched,
        },
        (Plan::Create, Some(version)) => writer.create(&record, version).await,
    };
    writer.count(written);
}

struct Writer<'a> {
    caller: &'a Caller,
    node: &'a NodeName,
    deadline: Instant,
}

impl Writer<'_> {
    async fn create(&self, record: &Record, version: &ResourceVersion) -> Result<(), ApiError> {
        let create = ApiCall::Create {
            path: record.collection(),
            body: record.to_create(),
        };
        match self.call(&create).await {
            // Somebody else wrote it: another replica, or this one before its watch told of it.
            Err(error) if error.is_already_exists() => {}
            created => created?,
        }
        self.patch(record, version).await
    }

    async fn patch(&self, record: &Record, version: &ResourceVersion) -> Result<(), ApiError> {
        let patch = ApiCall::MergePatch {
            path: record.status_path(),
            body: Record::status_patch(version),
        };
        self.call(&patch).await
    }

    async fn delete(&self, record: &Record) -> Result<(), ApiError> {
        let delete = ApiCall::Delete {
            path: record.path(),
            options: Body::null(),
        };
        match self.call(&delete).await {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => deleted,
        }
    }

    async fn call(&self, call: &ApiCall) -> Result<(), ApiError> {
        let made = self.caller.call(Class::Bulk, self.node, call, self.deadline);
        made.await.map(drop)
    }

    fn count(&self, written: Result<(), ApiError>) {
        match written {
            Ok(()) => self.caller.metrics.records_written.inc(),
            Err(error) => {
                tracing::debug!(node = %self.node, %error, "a record for an official cloud was not written");
                self.caller.metrics.records_failed.inc();
            }
        }
    }
}

/// Removes the records of nodes that are gone, while this replica leads.
pub(crate) fn sweep(
    caller: Caller,
    owner: ask::Sender<RecordQuestion, RecordAnswer>,
    mut gone: latest::Receiver<u64>,
    mut leads: latest::Receiver<bool>,
    scope: &Scope,
) {
    scope.spawn_until_cancelled("controllers.sweep", async move {
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            gone.mark_unchanged();
            let stays = async {
                tokio::time::sleep(SWEEP_DELAY).await;
                sweep_once(&caller, &owner).await;
                tokio::select! {
                    biased;
                    _ = gone.changed() => {}
                    () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                }
            };
            tokio::select! {
                biased;
                // What only one may do ends at once when this is not the one any more.
                _ = leads.wait_for(|leads| !*leads) => {}
                () = stays => {}
            }
        }
    });
}

async fn sweep_once(caller: &Caller, owner: &ask::Sender<RecordQuestion, RecordAnswer>) {
    let question = RecordQuestion::NodesWithoutObject;
    let Ok(RecordAnswer::Nodes(nodes)) = owner.ask(question, OWNER_TIMEOUT).await else {
        return;
    };
    for node in nodes {
        let deadline = Instant::now() + RECORD_WORK_MAX;
        let node_object = ApiCall::Get {
            path: format!("/api/v1/nodes/{node}"),
        };
        // The index knows edge nodes only; the API is asked before anything is removed.
        match caller.call(Class::Bulk, &node, &node_object, deadline).await {
            Err(error) if error.is_not_found() => {}
            Ok(_) | Err(_) => continue,
        }
        let Ok(RecordAnswer::Held(held)) = owner.ask(RecordQuestion::Of(node.clone()), OWNER_TIMEOUT).await
        else {
            return;
        };
        tracing::info!(%node, records = held.len(), "the records of a node that is gone are removed");
        for (key, uid, _) in held {
            let writer = Writer {
                caller,
                node: &node,
                deadline: Instant::now() + RECORD_WORK_MAX,
            };
            if let Some(record) = Record::new(&node, &key, &uid) {
                writer.count(writer.delete(&record).await);
            }
        }
    }
}
