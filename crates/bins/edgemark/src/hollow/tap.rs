//! Sits between two components, passes everything on in order, and notes how long answers take.

use super::Tally;
use super::dialer::Gate;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use kedge_link::edge::{CloudRequest, RequestError, StoreDone, StoreOrder};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question, Reply as Way};
use kedge_telemetry::channel::latest;
use kedge_wire::{ObjectKind, Operation, Reply, ToCloud, ToEdge};
use std::sync::Arc;
use tokio::time::Instant;

type Answer = Result<Reply, RequestError>;

/// The tap of one edge.
pub(super) struct Tap {
    /// From edgehub to metamanager.
    pub(super) orders: ask::Receiver<StoreOrder, StoreDone>,
    pub(super) orders_out: ask::Sender<StoreOrder, StoreDone>,
    /// From metamanager to edgehub.
    pub(super) requests: ask::Receiver<CloudRequest, Answer>,
    pub(super) requests_out: ask::Sender<CloudRequest, Answer>,
    pub(super) online: latest::Receiver<bool>,
    pub(super) gate: latest::Receiver<Gate>,
    pub(super) tally: Arc<Tally>,
    /// When this edge began to join.
    pub(super) began: Instant,
}

/// What a request is about, as far as it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Lease,
    Registration,
    Other,
}

/// What an answer tells the tap itself.
enum Seen {
    LeaseRenewed,
    Nothing,
}

impl Tap {
    pub(super) async fn run(mut self, scope: Scope) {
        let mut answers: FuturesUnordered<BoxFuture<'static, Seen>> = FuturesUnordered::new();
        let mut presence = Presence::default();
        let mut joined = false;
        loop {
            tokio::select! {
                biased;
                () = scope.cancelled() => break,
                // An answer is handed over before the next question: waiting here would count as latency.
                Some(seen) = answers.next() => {
                    if matches!(seen, Seen::LeaseRenewed) && !joined {
                        joined = true;
                        self.tally.joined(self.began.elapsed());
                    }
                }
                Some(question) = self.orders.recv() => {
                    let order = self.order(question).await;
                    answers.push(order);
                }
                Some(question) = self.requests.recv() => {
                    let request = self.request(question).await;
                    answers.push(request);
                }
                changed = self.online.changed() => match changed {
                    Ok(()) => presence.see(*self.online.borrow_and_update(), *self.gate.borrow(), &self.tally),
                    Err(_) => break,
                },
            }
        }
        presence.see(false, Gate::Closed, &self.tally);
    }

    /// Passes an order on; the future gives the answer back.
    async fn order(&self, question: Question<StoreOrder, StoreDone>) -> BoxFuture<'static, Seen> {
        let Question { question, reply } = question;
        let marked = match &question {
            StoreOrder::Commit(ToEdge::Object(change)) => self.tally.is_marked(&change.key, &change.body),
            StoreOrder::Commit(_) | StoreOrder::Held | StoreOrder::Complete => None,
        };
        let (way, answer) = Way::pair();
        // When the store's owner is gone the question is dropped, and the missing answer says so.
        let _ = self.orders_out.forward(Question { question, reply: way }).await;
        let tally = Arc::clone(&self.tally);
        async move {
            if let Ok(done) = answer.await {
                if let (Some(mark), StoreDone::Committed(Ok(()))) = (marked, &done) {
                    tally.committed(mark);
                }
                reply.send(done);
            }
            Seen::Nothing
        }
        .boxed()
    }

    /// Passes a request on; the future gives the answer back.
    async fn request(&self, question: Question<CloudRequest, Answer>) -> BoxFuture<'static, Seen> {
        let asked = Instant::now();
        let Question { question, reply } = question;
        let about = about(&question.message);
        let (way, answer) = Way::pair();
        // As above.
        let _ = self.requests_out.forward(Question { question, reply: way }).await;
        let tally = Arc::clone(&self.tally);
        async move {
            let Ok(answer) = answer.await else {
                return Seen::Nothing;
            };
            let renewed = match (&answer, about) {
                (Ok(reply), About::Lease) => {
                    tally.times(|times| times.lease.observe(asked.elapsed()));
                    renews(reply)
                }
                (Ok(_), About::Registration) => {
                    tally.times(|times| times.register.observe(asked.elapsed()));
                    false
                }
                (Ok(_), About::Other) => false,
                (Err(error), about) => {
                    tally.error(trouble(about, error));
                    false
                }
            };
            reply.send(answer);
            if renewed {
                Seen::LeaseRenewed
            } else {
                Seen::Nothing
            }
        }
        .boxed()
    }
}

/// Since when the edge is away, and whether it is.
#[derive(Debug, Default)]
struct Presence {
    online: bool,
    lost: Option<Instant>,
}

impl Presence {
    fn see(&mut self, online: bool, gate: Gate, tally: &Tally) {
        if online == self.online {
            return;
        }
        self.online = online;
        tally.online(online);
        if !online {
            self.lost = Some(Instant::now());
            if matches!(gate, Gate::Open { .. }) {
                tally.error("connection lost");
            }
            return;
        }
        let Some(lost) = self.lost.take() else { return };
        // It could not come before it was let.
        let since = match gate {
            Gate::Open { since } => since.max(lost),
            Gate::Closed => lost,
        };
        tally.times(|times| times.back.observe(since.elapsed()));
    }
}

fn about(message: &ToCloud) -> About {
    let ToCloud::Request(request) = message else {
        return About::Other;
    };
    match (&request.key.kind, &request.route.operation) {
        (ObjectKind::Lease, _) => About::Lease,
        (ObjectKind::Node, Operation::Insert) => About::Registration,
        (_other, _) => About::Other,
    }
}

/// Whether the answer holds a lease that was written, not the news that there is none.
fn renews(reply: &Reply) -> bool {
    !reply.is_error() && reply.body.json().contains("\"renewTime\"")
}

fn trouble(about: About, error: &RequestError) -> &'static str {
    match (about, error) {
        (About::Lease, RequestError::Offline) => "lease: offline",
        (About::Lease, RequestError::Lost) => "lease: connection lost",
        (About::Lease, RequestError::Timeout) => "lease: no answer in time",
        (About::Lease, RequestError::Full) => "lease: too many requests",
        (About::Lease, RequestError::Refused(_)) => "lease: refused",
        (About::Registration | About::Other, RequestError::Offline) => "request: offline",
        (About::Registration | About::Other, RequestError::Lost) => "request: connection lost",
        (About::Registration | About::Other, RequestError::Timeout) => "request: no answer in time",
        (About::Registration | About::Other, RequestError::Full) => "request: too many",
        (About::Registration | About::Other, RequestError::Refused(_)) => "request: refused",
    }
}
