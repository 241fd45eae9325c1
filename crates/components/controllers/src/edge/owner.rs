//! The one owner of the placement index, of the records, and of the list of attached nodes.

use super::metrics::Metrics;
use super::ownership::{self, Ownership};
use super::watches::{Observed, Watching};
use super::{Attach, Attached, worker};
use crate::sync::{Kinds, RecordAnswer, RecordQuestion};
use kedge_cluster::WatchItem;
use kedge_link::Peer;
use kedge_placement::index::{BadObject, Change, Placement, Question, Seen, Standing};
use kedge_placement::syncs::{Held, Plan};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::{Body, NodeName, Object, ObjectKey, ObjectKind, ObjectMeta, ResourceVersion, TraceId, Uid};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What has this node to do with what it asks for?
pub(super) type IndexQuestion = (NodeName, Question);
/// The worker of this session of this node has ended.
pub(super) type Ended = (NodeName, u64);

/// A pod that a node runs although it is gone: left from a cloud that ended before it could say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) node: NodeName,
    pub(super) session: u64,
    pub(super) pod: ObjectKey,
    pub(super) uid: Uid,
}

/// Leftovers of one node that are remembered; the next session deals with more.
const LEFTOVERS_MAX: usize = 256;
/// How old a session must be to be ended for leftovers: by then the node has reported of all of them, and a node that
/// makes them up is not let in and out all the time.
const LEFTOVER_SESSION_AGE_MIN: Duration = Duration::from_secs(60);

/// Older than every version.
const UNKNOWN_VERSION: &str = "0";

#[derive(Debug)]
pub(super) struct Ports {
    pub(super) attach: ask::Receiver<Attach, Attached>,
    pub(super) observed: queue::Receiver<Observed>,
    pub(super) questions: ask::Receiver<IndexQuestion, Standing>,
    pub(super) record_questions: ask::Receiver<RecordQuestion, RecordAnswer>,
    pub(super) record_kinds: Kinds,
    pub(super) leftovers: queue::Receiver<Leftover>,
    pub(super) ends: queue::Receiver<Ended>,
    pub(super) synced: latest::Sender<bool>,
    /// Counts the Node objects that were deleted.
    pub(super) node_gone: latest::Sender<u64>,
}

pub(super) struct Owner {
    placement: Placement,
    records: Held,
    attached: HashMap<NodeName, Session>,
    /// What nodes whose session was ended for it must be rid of.
    leftovers: HashMap<NodeName, Vec<(ObjectKey, Uid)>>,
    /// The version that the watch of each placed kind has got to.
    reached: HashMap<ObjectKind, ResourceVersion>,
    /// Watches that have not told everything yet.
    unsynced: BTreeSet<Watching>,
    sessions: u64,
    worker: Arc<worker::Shared>,
    ports: Ports,
    metrics: Arc<Metrics>,
    scope: Scope,
}

struct Session {
    number: u64,
    since: Instant,
    desired: keyed::Sender<ObjectKey, Option<Object>>,
    leftovers: Vec<(ObjectKey, Uid)>,
    /// `None`: this CloudCore has no name among others.
    ownership: Option<Ownership>,
}

impl Owner {
    pub(super) fn new(
        worker: Arc<worker::Shared>,
        ports: Ports,
        metrics: Arc<Metrics>,
        scope: Scope,
    ) -> Self {
        Self {
            placement: Placement::new(),
            records: Held::new(),
            attached: HashMap::new(),
            leftovers: HashMap::new(),
            reached: HashMap::new(),
            unsynced: Watching::ALL.into(),
            sessions: 0,
            worker,
            ports,
            metrics,
            scope,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let ready = self.unsynced.is_empty();
            tokio::select! {
                biased;
                // The end comes first; then what is small and keeps a node waiting; then the flood of the watches.
                () = self.scope.cancelled() => return,
                Some(asked) = self.ports.questions.recv() => {
                    let (node, question) = &asked.question;
                    if let Question::Report { key, conditions } = question {
                        self.placement.handle_report(node, key, conditions);
                    }
                    asked.reply.send(self.placement.standing(node, question));
                }
                Some(asked) = self.ports.record_questions.recv() => {
                    asked.reply.send(self.about_records(asked.question));
                }
                Some((node, session)) = self.ports.ends.recv() => self.detach(&node, session),
                Some(leftover) = self.ports.leftovers.recv() => self.left_over(leftover),
                attach = self.ports.attach.recv(), if ready => match attach {
                    Some(ask::Question { question, reply }) => reply.send(self.attach(question)),
                    None => return,
                },
                Some(observed) = self.ports.observed.recv() => self.observe(observed),
            }
        }
    }

    /// Nothing changes between the answer and the first change that is told: there is one owner.
    fn attach(&mut self, attach: Attach) -> Attached {
        let Attach {
            node,
            peer,
            desired,
            requests,
            acked,
        } = attach;
        self.sessions += 1;
        let number = self.sessions;
        let objects = self.placement.desired(&node);
        let mut held = match peer {
            Peer::Official => self.records.of(&node),
            Peer::Kedge => Vec::new(),
        };
        let leftovers = self.leftovers.remove(&node).into_iter().flatten();
        held.extend(leftovers.map(|(pod, uid)| (pod, uid, ResourceVersion::new(UNKNOWN_VERSION))));
        tracing::info!(%node, ?peer, session = number, objects = objects.len(), held = held.len(), "node attached");
        let replica = self.worker.config.replica.as_deref();
        let object = self.placement.node(&node).map(|node| &node.body);
        let ownership = replica.map(|replica| Ownership::begin(object, replica));
        let session = Session {
            number,
            since: Instant::now(),
            desired,
            leftovers: Vec::new(),
            ownership,
        };
        self.attached.insert(node.clone(), session);
        let begin = worker::Begin {
            node,
            peer,
            session: number,
            claims: ownership == Some(Ownership::Claiming),
            ports: worker::Ports { requests, acked },
        };
        worker::start(Arc::clone(&self.worker), begin, &self.scope);
        self.count();
        let reached = self.reached.iter();
        Attached {
            objects,
            held,
            reached: reached
                .map(|(kind, version)| (kind.clone(), version.clone()))
                .collect(),
        }
    }

    /// Forgets a session, unless a newer one of the same node took its place.
    fn detach(&mut self, node: &NodeName, session: u64) {
        if self
            .attached
            .get(node)
            .is_some_and(|attached| attached.number == session)
        {
            self.attached.remove(node);
            tracing::info!(%node, session, "node detached");
            self.count();
        }
    }

    /// A delete needs to know what the node holds, and a session learns that at its beginning: so this one ends.
    fn left_over(&mut self, leftover: Leftover) {
        let Leftover {
            node,
            session,
            pod,
            uid,
        } = leftover;
        let attached = self.attached.get_mut(&node);
        let Some(attached) = attached.filter(|attached| attached.number == session) else {
            return;
        };
        let known = attached.leftovers.iter().any(|(_, known)| *known == uid);
        if !known && attached.leftovers.len() < LEFTOVERS_MAX {
            attached.leftovers.push((pod, uid));
        }
        if attached.since.elapsed() >= LEFTOVER_SESSION_AGE_MIN
            && let Some(attached) = self.attached.remove(&node)
        {
            let pods = attached.leftovers.len();
            tracing::warn!(%node, pods, "the node runs pods that are gone; its session is ended, and the next one deletes them");
            self.leftovers.insert(node, attached.leftovers);
        }
    }

    fn observe(&mut self, Observed { by, at, item }: Observed) {
        let seen = match item {
            WatchItem::Applied(body) => Seen::Applied(body),
            WatchItem::Deleted(body) => Seen::Deleted(body),
            WatchItem::Synced { version } => return self.watch_synced(by, version),
        };
        let deleted = matches!(seen, Seen::Deleted(_));
        let trace = self.note(by, &seen);
        match self.index(by, seen) {
            Ok(changes) => {
                let nodes = changes.len();
                for change in changes {
                    self.tell(change, deleted);
                }
                trace.placed(nodes);
                self.metrics.placed_after(at.elapsed());
            }
            Err(error) => tracing::warn!(%error, "an object is left out of the placement"),
        }
        self.count();
    }

    /// What the metadata says: how far the watch has got, where a node is connected, and the name of the journey.
    fn note(&mut self, by: Watching, seen: &Seen) -> Trace {
        let (Seen::Applied(body) | Seen::Deleted(body)) = seen;
        // What has no metadata is refused by the index, which says why.
        let meta = body.object_meta().unwrap_or_default();
        if let (Some(kind), Some(version)) = (by.placed(), &meta.resource_version) {
            self.reached.insert(kind, version.clone());
        }
        if let (Watching::Nodes, Seen::Applied(node)) = (by, seen) {
            self.see_replica(&meta.name, node);
        }
        Trace::taken(seen, &meta)
    }

    fn index(&mut self, by: Watching, seen: Seen) -> Result<Vec<Change>, BadObject> {
        match by {
            Watching::Nodes => self.placement.handle_node(seen),
            Watching::ConfigMaps => self.placement.handle_config_map(seen),
            Watching::Secrets => self.placement.handle_secret(seen),
            Watching::Pods => self.placement.handle_pod(seen),
            Watching::Records(records) => {
                let taken = match &seen {
                    Seen::Applied(record) => self.records.handle_applied(record),
                    Seen::Deleted(record) => self.records.handle_deleted(record),
                };
                taken.map(|()| Vec::new()).map_err(|problem| BadObject {
                    kind: records.kind(),
                    reason: problem.to_string(),
                })
            }
        }
    }

    fn watch_synced(&mut self, by: Watching, version: ResourceVersion) {
        if let Some(kind) = by.placed() {
            self.reached.insert(kind, version);
        }
        if self.unsynced.remove(&by) && self.unsynced.is_empty() {
            tracing::info!("the placement is complete");
            self.ports.synced.send_replace(true);
        }
    }

    fn tell(&mut self, Change { node, key, object }: Change, deleted: bool) {
        if deleted && key.kind == ObjectKind::Node {
            self.node_gone(&node);
            return;
        }
        let Some(attached) = self.attached.get(&node) else {
            return;
        };
        if attached.desired.set(key, object).is_err() {
            // The session has ended and its worker is about to say so.
            self.attached.remove(&node);
        }
    }

    /// A node that has connected to another replica since has no session here.
    fn see_replica(&mut self, name: &str, object: &Body) {
        let (Some(replica), Ok(node)) = (self.worker.config.replica.as_deref(), NodeName::new(name)) else {
            return;
        };
        let Some(attached) = self.attached.get_mut(&node) else {
            return;
        };
        let Some(ownership) = attached.ownership else {
            return;
        };
        match ownership.see(object, replica) {
            ownership::Seen::Unchanged => {}
            ownership::Seen::NowOurs => attached.ownership = Some(Ownership::Ours),
            ownership::Seen::Lost => {
                tracing::info!(%node, "the node has connected to another replica: the session here ends");
                self.attached.remove(&node);
                self.count();
            }
        }
    }

    /// A node without a Node object has no session; it may come back and register anew.
    fn node_gone(&mut self, node: &NodeName) {
        self.leftovers.remove(node);
        if self.attached.remove(node).is_some() {
            tracing::info!(%node, "the Node object was deleted: the session ends");
        }
        self.ports.node_gone.send_modify(|number| *number += 1);
    }

    fn about_records(&self, question: RecordQuestion) -> RecordAnswer {
        match question {
            RecordQuestion::Plan { key, .. } if !self.ports.record_kinds.have(&key) => RecordAnswer::Plan {
                plan: Plan::Nothing,
                replaced: Vec::new(),
            },
            RecordQuestion::Plan {
                node,
                key,
                uid,
                version,
            } => RecordAnswer::Plan {
                plan: self.records.plan(&node, &uid, version.as_ref()),
                replaced: match version {
                    Some(_) => self.records.replaced(&node, &key, &uid),
                    None => Vec::new(),
                },
            },
            RecordQuestion::NodesWithoutObject => RecordAnswer::Nodes(
                self.records
                    .nodes()
                    .filter(|node| self.placement.node(node).is_none() && !self.attached.contains_key(*node))
                    .cloned()
                    .collect(),
            ),
            RecordQuestion::Of(node) => RecordAnswer::Held(self.records.of(&node)),
        }
    }

    fn count(&self) {
        let sizes = self.placement.sizes();
        self.metrics.sizes(sizes, self.records.len(), self.attached.len());
    }
}

/// The journey of an object, for the log.
struct Trace(Option<TraceId>);

impl Trace {
    fn taken(seen: &Seen, meta: &ObjectMeta) -> Self {
        let what = match seen {
            Seen::Applied(_) => "applied",
            Seen::Deleted(_) => "deleted",
        };
        let trace = meta.uid.as_ref().zip(meta.resource_version.as_ref());
        let trace = trace.map(|(uid, version)| TraceId::of(uid, version));
        if let Some(trace) = trace {
            tracing::debug!(%trace, what, namespace = meta.namespace, name = meta.name, "watch event taken");
        }
        Self(trace)
    }

    fn placed(&self, nodes: usize) {
        if let Some(trace) = self.0 {
            tracing::debug!(%trace, nodes, "placed");
        }
    }
}
