//! Who is connected: one task owns the table, so that "the newest session wins" is decided in one place.
//!
//! A newcomer waits until the session it replaces has let go, and takes over what that one knew about the node. Each
//! session holds its own place and gives it back by dropping it, so an old one can never take the new one out of the
//! table, and one that dies without a word counts as gone.

use crate::metrics::Metrics;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_telemetry::channel::ask;
use kedge_wire::{NodeName, ObjectKey, ResourceVersion, Uid};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a node is known to hold.
pub(crate) type HeldSet = Vec<(ObjectKey, Uid, ResourceVersion)>;

/// Questions that wait for the registry; each is answered in microseconds.
const QUESTIONS_MAX: usize = 256;
/// What absent nodes held is remembered for this many times the node limit; beyond it the longest absent is forgotten,
/// which costs that node a full transfer.
const REMEMBERED_PER_LIMIT: usize = 4;

/// A connection wants to become the session of its node.
#[derive(Debug)]
pub(crate) struct Enter {
    pub(crate) node: NodeName,
}

/// The answer to [`Enter`].
#[derive(Debug)]
pub(crate) enum Entered {
    Welcome(Place),
    /// The node limit is reached.
    Full,
    /// A still newer connection of the node came while this one waited.
    Superseded,
}

/// A place in the table. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place {
    /// What the node held when it was last here, until a session takes it.
    held: Option<HeldSet>,
    /// Completes when a newer connection of the node wants the place.
    pub(crate) replaced: oneshot::Receiver<()>,
    left: Option<oneshot::Sender<HeldSet>>,
}

impl Place {
    /// What the node held when it was last here. From now on only [`Place::leave`] knows better.
    pub(crate) fn take_held(&mut self) -> HeldSet {
        self.held.take().unwrap_or_default()
    }

    /// Gives the place back with what the node holds now.
    pub(crate) fn leave(mut self, held: HeldSet) {
        self.held = Some(held);
    }
}

impl Drop for Place {
    /// A session that dies without a word leaves nothing, so that what the node holds counts as unknown.
    fn drop(&mut self) {
        if let (Some(left), Some(held)) = (self.left.take(), self.held.take()) {
            let _ = left.send(held);
        }
    }
}

/// Where places are asked for.
pub(crate) type Places = ask::Sender<Enter, Entered>;

/// The owner of the table.
pub(crate) struct Registry {
    limit: usize,
    metrics: Arc<Metrics>,
    questions: ask::Receiver<Enter, Entered>,
    present: HashMap<NodeName, Present>,
    leaving: FuturesUnordered<Leaving>,
    remembered: Remembered,
}

/// A node that has a session.
enum Present {
    Here {
        replace: oneshot::Sender<()>,
    },
    /// The session was told to go, and a newcomer waits for its place.
    Replaced {
        next: ask::Reply<Entered>,
    },
}

/// Completes when a session has left, with what its node holds, if it said so.
type Leaving = BoxFuture<'static, (NodeName, Option<HeldSet>)>;

impl Registry {
    pub(crate) fn new(limit: usize, metrics: Arc<Metrics>) -> (Places, Self) {
        let (places, questions) = ask::channel("hub registry", QUESTIONS_MAX);
        let remembered = Remembered::new(limit.saturating_mul(REMEMBERED_PER_LIMIT));
        let registry = Self {
            limit,
            metrics,
            questions,
            present: HashMap::new(),
            leaving: FuturesUnordered::new(),
            remembered,
        };
        (places, registry)
    }

    /// Serves until nobody can ask any more.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                // Those who leave make room for those who come.
                Some((node, held)) = self.leaving.next() => self.left(node, held),
                question = self.questions.recv() => match question {
                    Some(question) => self.enter(question.question.node, question.reply),
                    None => return,
                },
            }
        }
    }

    fn enter(&mut self, node: NodeName, reply: ask::Reply<Entered>) {
        if let Some(present) = self.present.get_mut(&node) {
            match std::mem::replace(present, Present::Replaced { next: reply }) {
                Present::Here { replace } => {
                    self.metrics.replaced.inc();
                    // One that has ended meanwhile needs not be told.
                    let _ = replace.send(());
                }
                Present::Replaced { next: older } => older.send(Entered::Superseded),
            }
        } else if self.present.len() >= self.limit {
            reply.send(Entered::Full);
        } else {
            self.welcome(node, reply);
        }
    }

    fn left(&mut self, node: NodeName, held: Option<HeldSet>) {
        // Of a session that died without a word nothing is known, so all of it is sent again.
        if let Some(held) = held {
            self.remembered.put(node.clone(), held);
        }
        match self.present.remove(&node) {
            Some(Present::Replaced { next }) if !next.is_closed() => self.welcome(node, next),
            Some(Present::Replaced { .. } | Present::Here { .. }) | None => {}
        }
    }

    fn welcome(&mut self, node: NodeName, reply: ask::Reply<Entered>) {
        let (replace, replaced) = oneshot::channel();
        let (left, leaving) = oneshot::channel();
        let held = self.remembered.take(&node);
        self.present.insert(node.clone(), Present::Here { replace });
        self.leaving
            .push(Box::pin(async move { (node, leaving.await.ok()) }));
        reply.send(Entered::Welcome(Place {
            held: Some(held),
            replaced,
            left: Some(left),
        }));
    }
}

/// What nodes held when they were last here, bounded.
struct Remembered {
    max: usize,
    held: HashMap<NodeName, (u64, HeldSet)>,
    /// Oldest first; an entry whose number is not the newest of its node is stale.
    order: VecDeque<(u64, NodeName)>,
    number: u64,
}

impl Remembered {
    fn new(max: usize) -> Self {
        Self {
            max,
            held: HashMap::new(),
            order: VecDeque::new(),
            number: 0,
        }
    }

    /// What is known goes with the node and comes back when it leaves.
    fn take(&mut self, node: &NodeName) -> HeldSet {
        self.held.remove(node).map(|(_, held)| held).unwrap_or_default()
    }

    fn put(&mut self, node: NodeName, held: HeldSet) {
        self.number += 1;
        self.held.insert(node.clone(), (self.number, held));
        self.order.push_back((self.number, node));
        while self.held.len() > self.max || self.order.len() > 2 * self.max.max(1) {
            let Some((number, oldest)) = self.order.pop_front() else {
                return;
            };
            if self
                .held
                .get(&oldest)
                .is_some_and(|(newest, _)| *newest == number)
            {
                self.held.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_telemetry::metrics::Registry as Numbers;
    use kedge_wire::ObjectKind;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(5);

    fn start(limit: usize) -> (Places, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new(&Numbers::new()));
        let (door, registry) = Registry::new(limit, Arc::clone(&metrics));
        tokio::spawn(registry.run());
        (door, metrics)
    }

    async fn enter(door: &Places, node: &str) -> Entered {
        door.ask(
            Enter {
                node: NodeName::new(node).unwrap(),
            },
            SOON,
        )
        .await
        .unwrap()
    }

    async fn place(door: &Places, node: &str) -> Place {
        match enter(door, node).await {
            Entered::Welcome(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn held() -> HeldSet {
        let key = ObjectKey::namespaced(ObjectKind::Pod, "default", "web");
        vec![(key, Uid::new("u1"), ResourceVersion::new("7"))]
    }

    #[tokio::test]
    async fn the_newest_session_wins_and_takes_over_what_the_old_one_knew() {
        let (door, metrics) = start(10);
        let mut old = place(&door, "edge-1").await;
        let ending = async {
            (&mut old.replaced).await.unwrap();
            old.leave(held());
        };
        let ((), mut new) = tokio::join!(ending, place(&door, "edge-1"));
        assert_eq!(new.take_held(), held());
        assert_eq!(metrics.snapshot().replaced, 1);
    }

    #[tokio::test]
    async fn a_place_that_nobody_used_keeps_what_was_known() {
        let (door, _) = start(10);
        place(&door, "edge-1").await.leave(held());
        drop(place(&door, "edge-1").await);
        let mut third = place(&door, "edge-1").await;
        assert_eq!(third.take_held(), held());
        // Its session dies without a word.
        drop(third);
        assert_eq!(place(&door, "edge-1").await.take_held(), []);
    }

    #[tokio::test]
    async fn of_several_newcomers_only_the_last_is_welcome() {
        let (door, _) = start(10);
        let old = place(&door, "edge-1").await;
        let second = tokio::spawn({
            let door = door.clone();
            async move { enter(&door, "edge-1").await }
        });
        let (reply, _gone) = ask::Reply::pair();
        // The second has asked once the old one was told.
        let mut old = old;
        (&mut old.replaced).await.unwrap();
        let question = ask::Question {
            question: Enter {
                node: NodeName::new("edge-1").unwrap(),
            },
            reply,
        };
        door.forward(question).await.unwrap();
        assert!(matches!(second.await.unwrap(), Entered::Superseded));
        drop(old);
    }

    #[tokio::test]
    async fn the_limit_counts_nodes_not_connections() {
        let (door, _) = start(1);
        let mut old = place(&door, "edge-1").await;
        assert!(matches!(enter(&door, "edge-2").await, Entered::Full));
        let leaving = async {
            (&mut old.replaced).await.unwrap();
            drop(old);
        };
        // At the limit the reconnecting node is not counted twice.
        let ((), _new) = tokio::join!(leaving, place(&door, "edge-1"));
        assert!(matches!(enter(&door, "edge-2").await, Entered::Full));
    }

    #[test]
    fn memory_of_absent_nodes_is_bounded() {
        let mut remembered = Remembered::new(3);
        let name = |number: usize| NodeName::new(format!("edge-{number}")).unwrap();
        for number in 0..100 {
            remembered.put(name(0), held());
            remembered.put(name(number), held());
        }
        assert!(remembered.held.len() <= 3 && remembered.order.len() <= 6);
        assert_eq!(remembered.take(&name(99)), held());
        assert_eq!(remembered.take(&name(0)), held());
        assert_eq!(remembered.take(&name(50)), []);
    }
}
