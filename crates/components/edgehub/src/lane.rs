//! The ordered way to the owner of the store.
//!
//! Orders are handed over one after the other, because changes of one key and the digest behind them must not overtake
//! each other; their answers are awaited together, so that the store can commit many at once.

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use kedge_link::Held;
use kedge_link::edge::{DeliveryId, StoreDone, StoreOrder};
use kedge_telemetry::channel::ask::{self, Question, Reply};
use kedge_wire::{ToEdge, TraceId};
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// An answer of the store's owner.
#[derive(Debug)]
pub(crate) enum Done {
    Committed(DeliveryId, Result<(), String>),
    Held(Vec<Held>),
    Noted,
}

#[derive(Debug, Clone, Copy)]
enum Purpose {
    Commit {
        id: DeliveryId,
        /// Of the version that is committed, if anybody reads about it.
        trace: Option<TraceId>,
    },
    Held,
    Complete,
}

/// An order in the owner's queue.
struct HandedOver {
    purpose: Purpose,
    answer: oneshot::Receiver<StoreDone>,
}

/// Holds at most as many orders as the link has deliveries.
pub(crate) struct StoreLane {
    store: ask::Sender<StoreOrder, StoreDone>,
    waiting: VecDeque<(Purpose, StoreOrder)>,
    handing_over: Option<BoxFuture<'static, HandedOver>>,
    answers: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl StoreLane {
    pub(crate) fn new(store: ask::Sender<StoreOrder, StoreDone>) -> Self {
        Self {
            store,
            waiting: VecDeque::new(),
            handing_over: None,
            answers: FuturesUnordered::new(),
        }
    }

    pub(crate) fn commit(&mut self, id: DeliveryId, message: ToEdge) {
        let purpose = Purpose::Commit {
            id,
            trace: trace(&message),
        };
        self.waiting.push_back((purpose, StoreOrder::Commit(message)));
    }

    pub(crate) fn ask_held(&mut self) {
        self.waiting.push_back((Purpose::Held, StoreOrder::Held));
    }

    /// Behind all that was to be committed.
    pub(crate) fn complete(&mut self) {
        self.waiting.push_back((Purpose::Complete, StoreOrder::Complete));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.handing_over.is_none() && self.answers.is_empty()
    }

    /// The next answer; waits for ever when nothing was ordered. Cancel safe.
    pub(crate) async fn next(&mut self) -> Done {
        loop {
            if self.handing_over.is_none()
                && let Some((purpose, order)) = self.waiting.pop_front()
            {
                self.handing_over = Some(hand_over(self.store.clone(), purpose, order).boxed());
            }
            let handed_over = async {
                match &mut self.handing_over {
                    Some(handing_over) => handing_over.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(done) = self.answers.next() => return done,
                HandedOver { purpose, answer } = handed_over => {
                    self.handing_over = None;
                    self.answers.push(async move { done(purpose, answer.await.ok()) }.boxed());
                }
            }
        }
    }
}

/// Completes when the order is in the owner's queue.
async fn hand_over(
    store: ask::Sender<StoreOrder, StoreDone>,
    purpose: Purpose,
    question: StoreOrder,
) -> HandedOver {
    let (reply, answer) = Reply::pair();
    // When the owner is gone the question is dropped, and the answer says so.
    let _ = store.forward(Question { question, reply }).await;
    HandedOver { purpose, answer }
}

/// Names the version in a message, which costs a look into the object, so only for a log that is read.
fn trace(message: &ToEdge) -> Option<TraceId> {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return None;
    }
    match message {
        ToEdge::Object(change) => {
            let uid = change.body.object_meta().ok()?.uid?;
            Some(TraceId::of(&uid, change.version.as_ref()?))
        }
        ToEdge::Reply(_)
        | ToEdge::Twin { .. }
        | ToEdge::User { .. }
        | ToEdge::Task { .. }
        | ToEdge::Volume { .. }
        | ToEdge::Resumed
        | ToEdge::Other { .. } => None,
    }
}

fn done(purpose: Purpose, answer: Option<StoreDone>) -> Done {
    match (purpose, answer) {
        (Purpose::Commit { id, trace }, Some(StoreDone::Committed(result))) => {
            if let (Some(trace), Ok(())) = (trace, &result) {
                tracing::debug!(%trace, "committed");
            }
            Done::Committed(id, result)
        }
        (Purpose::Commit { id, .. }, Some(StoreDone::Held(_) | StoreDone::Noted) | None) => {
            Done::Committed(id, Err("the store of this edge has ended".to_owned()))
        }
        (Purpose::Held, Some(StoreDone::Held(held))) => Done::Held(held),
        // Nothing held makes the cloud send everything: slower, and right.
        (Purpose::Held, Some(StoreDone::Committed(_) | StoreDone::Noted) | None) => Done::Held(Vec::new()),
        (Purpose::Complete, _) => Done::Noted,
    }
}
