//! The one owner of the placement index and of the list of attached nodes.

use super::watches::{Observed, Watching};
use super::{Attach, worker};
use kedge_cluster::WatchItem;
use kedge_placement::index::{BadObject, Change, Placement, Seen};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_wire::{NodeName, Object, ObjectKey};
use std::collections::{BTreeSet, HashMap};

/// May this node read this key?
pub(super) type MayRead = (NodeName, ObjectKey);
/// The worker of this session of this node has ended.
pub(super) type Ended = (NodeName, u64);

#[derive(Debug)]
pub(super) struct Ports {
    pub(super) attach: ask::Receiver<Attach, Vec<(ObjectKey, Object)>>,
    pub(super) observed: queue::Receiver<Observed>,
    pub(super) questions: ask::Receiver<MayRead, bool>,
    pub(super) ends: queue::Receiver<Ended>,
    pub(super) synced: latest::Sender<bool>,
}

pub(super) struct Owner {
    placement: Placement,
    attached: HashMap<NodeName, Attached>,
    /// Watches that have not told everything yet.
    unsynced: BTreeSet<Watching>,
    sessions: u64,
    hands: worker::Hands,
    ports: Ports,
    scope: Scope,
}

struct Attached {
    session: u64,
    desired: keyed::Sender<ObjectKey, Option<Object>>,
}

impl Owner {
    pub(super) fn new(hands: worker::Hands, ports: Ports, scope: Scope) -> Self {
        Self {
            placement: Placement::new(),
            attached: HashMap::new(),
            unsynced: Watching::ALL.into(),
            sessions: 0,
            hands,
            ports,
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
                Some(question) = self.ports.questions.recv() => {
                    let (node, key) = &question.question;
                    question.reply.send(self.placement.may_read(node, key));
                }
                Some((node, session)) = self.ports.ends.recv() => self.detach(&node, session),
                attach = self.ports.attach.recv(), if ready => match attach {
                    Some(ask::Question { question, reply }) => reply.send(self.attach(question)),
                    None => return,
                },
                Some(observed) = self.ports.observed.recv() => self.observe(observed),
            }
        }
    }

    /// Nothing changes between the answer and the first change that is told: there is one owner.
    fn attach(&mut self, attach: Attach) -> Vec<(ObjectKey, Object)> {
        let Attach {
            node,
            desired,
            requests,
        } = attach;
        self.sessions += 1;
        let session = self.sessions;
        let objects = self.placement.desired(&node);
        tracing::info!(%node, session, objects = objects.len(), "node attached");
        self.attached.insert(node.clone(), Attached { session, desired });
        self.hands.clone().start(node, session, requests, &self.scope);
        objects
    }

    /// Forgets a session, unless a newer one of the same node took its place.
    fn detach(&mut self, node: &NodeName, session: u64) {
        if self
            .attached
            .get(node)
            .is_some_and(|attached| attached.session == session)
        {
            self.attached.remove(node);
            tracing::info!(%node, session, "node detached");
        }
    }

    fn observe(&mut self, Observed { by, item }: Observed) {
        let seen = match item {
            WatchItem::Applied(body) => Seen::Applied(body),
            WatchItem::Deleted(body) => Seen::Deleted(body),
            WatchItem::Synced => return self.watch_synced(by),
        };
        match self.index(by, seen) {
            Ok(changes) => changes.into_iter().for_each(|change| self.tell(change)),
            Err(error) => tracing::warn!(%error, "an object is left out of the placement"),
        }
    }

    fn index(&mut self, by: Watching, seen: Seen) -> Result<Vec<Change>, BadObject> {
        match by {
            Watching::Nodes => self.placement.handle_node(seen),
            Watching::ConfigMaps => self.placement.handle_config_map(seen),
            Watching::Secrets => self.placement.handle_secret(seen),
            Watching::Pods => self.placement.handle_pod(seen),
        }
    }

    fn watch_synced(&mut self, by: Watching) {
        if self.unsynced.remove(&by) && self.unsynced.is_empty() {
            tracing::info!("the placement is complete");
            self.ports.synced.send_replace(true);
        }
    }

    fn tell(&mut self, Change { node, key, object }: Change) {
        let Some(attached) = self.attached.get(&node) else {
            return;
        };
        if attached.desired.set(key, object).is_err() {
            // The session has ended and its worker is about to say so.
            self.attached.remove(&node);
        }
    }
}
