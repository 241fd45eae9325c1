//! The worker of one attached node: does what the node asks, and nothing that another node asks.
//!
//! A node at rest costs one small task: what is needed while something is under way is made then and given back after.

use super::calls::perform;
use super::events::EventBudget;
use super::lanes::{Lane, Lanes};
use super::metrics::{Asked, Metrics, Outcome};
use super::owner::{Ended, IndexQuestion, Leftover};
use super::ownership;
use super::refusal::Refusal;
use super::reports::Asker;
use super::{Acked, Answer, Caller, Config, answer, reports};
use crate::sync::{self, RecordAnswer, RecordQuestion};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_cluster::{ApiError, Class, Permit};
use kedge_link::Peer;
use kedge_placement::index::{Question, Standing};
use kedge_placement::leases::{self, Found, Lease, Write, Written};
use kedge_placement::report::{ApiCall, covers};
use kedge_placement::trimmed;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Reply};
use kedge_telemetry::channel::{keyed, queue};
use kedge_wire::{
    Body, NodeName, ObjectKey, ObjectKind, Operation, Request, ResourceVersion, Status, Time, TraceId, Uid,
};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// The index answers between two watch events; longer means that CloudCore is ending or badly overloaded.
const INDEX_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request is worked on, its tries and waits included. The hub gives up after 20 s; the edge shall hear
/// from us what the trouble is.
const REQUEST_WORK_MAX: Duration = Duration::from_secs(18);
/// The question of an edge that starts; longer, and it would go without a lease for longer than it takes to create one.
const LEASE_READ_TIMEOUT: Duration = Duration::from_secs(3);
/// One write of a lease; after that the newest renewal is tried, not this one.
const LEASE_WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// The last write of a session: the process may be about to end.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// What every worker shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) caller: Caller,
    pub(super) config: Config,
    pub(super) index: ask::Sender<IndexQuestion, Standing>,
    pub(super) records: ask::Sender<RecordQuestion, RecordAnswer>,
    pub(super) ended: queue::Sender<Ended>,
    pub(super) leftovers: queue::Sender<Leftover>,
    pub(super) metrics: Arc<Metrics>,
    /// The API refused to patch a lease; it may take replacements.
    pub(super) lease_patch: Refusal,
    /// Places for last writes: when the process ends, every session ends at once and the budget with them.
    pub(super) last_writes: Semaphore,
    /// From when the logic counts time.
    pub(super) epoch: Instant,
}

impl Shared {
    /// Time for the logic, from the clock of the runtime, which no step of the wall clock moves.
    fn now(&self) -> Time {
        let passed = self.epoch.elapsed().as_millis();
        Time::from_ms(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// What the index knows about a node and what it asks for.
    pub(super) async fn standing(
        &self,
        node: &NodeName,
        question: Question,
    ) -> Result<Standing, ask::NoAnswer> {
        self.index.ask((node.clone(), question), INDEX_TIMEOUT).await
    }
}

/// The ends of one session.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) requests: ask::Receiver<Request, Answer>,
    pub(super) acked: keyed::Receiver<ObjectKey, Acked>,
}

/// A session begins.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) node: NodeName,
    pub(super) peer: Peer,
    pub(super) session: u64,
    /// Whether other replicas must be told that the node is here now.
    pub(super) claims: bool,
    pub(super) ports: Ports,
}

pub(super) fn start(shared: Arc<Shared>, begin: Begin, scope: &Scope) {
    scope.spawn("controllers.node", work(shared, begin, scope.clone()));
}

/// A request that waits or runs, with everyone who wants its answer.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) request: Request,
    /// Empty for events, which have no answer.
    replies: Vec<Reply<Answer>>,
    deadline: Instant,
}

/// What ended.
enum Done {
    Lane(Lane),
    /// It is the lease's turn.
    LeaseTurn(Permit),
    Lease(Written),
    /// The API was asked for the lease, for this asker.
    LeaseFound(Found, Reply<Answer>),
    Record,
    Claim,
}

/// What is under way; exists only while something is.
struct Busy<'a> {
    lanes: Lanes<Item>,
    running: FuturesUnordered<BoxFuture<'a, Done>>,
}

/// Until the session or the process ends. What is then half done is dropped: the edge reports again in its next session.
async fn work(shared: Arc<Shared>, begin: Begin, scope: Scope) {
    let Begin {
        node,
        peer,
        session,
        claims,
        mut ports,
    } = begin;
    let mut worker = Worker {
        shared: &shared,
        node: &node,
        peer,
        session,
        lease: Lease::new(seed(shared.config.seed, &node)),
        lease_turn: false,
        recording: false,
        busy: None,
        events: None,
    };
    if claims {
        worker.claim();
    }
    let writes_records = shared.config.object_syncs && peer == Peer::Official;
    loop {
        worker.start();
        let wake = worker.wake();
        tokio::select! {
            biased;
            // The end comes first; what is done makes room for what comes.
            () = scope.cancelled() => break,
            done = next(&mut worker.busy) => worker.done(done),
            asked = ports.requests.recv() => match asked {
                Some(ask::Question { question, reply }) => worker.take(question, reply),
                None => break,
            },
            acked = ports.acked.recv(), if !worker.recording => match acked {
                Some((key, acked)) => worker.acknowledged(key, acked, writes_records),
                None => break,
            },
            () = sleep_until(wake), if wake.is_some() => {}
        }
    }
    let last = worker.lease.last_write(shared.now());
    drop(worker);
    if let Some(write) = last {
        let written = tokio::time::timeout(LAST_WRITE_TIMEOUT, write_last(&shared, &node, write));
        // The next session writes its first lease at once; this one only spares the node a gap.
        let _ = Box::pin(written).await;
    }
    // The owner may have ended before.
    let _ = shared.ended.send((node, session)).await;
}

struct Worker<'a> {
    shared: &'a Shared,
    node: &'a NodeName,
    peer: Peer,
    session: u64,
    lease: Lease,
    /// The lease waits for its turn, or is being written.
    lease_turn: bool,
    /// A record is being written.
    recording: bool,
    busy: Option<Box<Busy<'a>>>,
    events: Option<Box<EventBudget>>,
}

impl<'a> Worker<'a> {
    /// Starts what may start now; gives back what nothing needs.
    fn start(&mut self) {
        let due = self
            .lease
            .poll_timeout()
            .is_some_and(|at| at <= self.shared.now());
        if due && !self.lease_turn {
            self.lease_turn = true;
            let (shared, node) = (self.shared, self.node);
            self.run(async move {
                // First the turn, then the lease: what is written is the newest when the turn comes.
                Done::LeaseTurn(shared.caller.budget().acquire(Class::Lease, node).await)
            });
        }
        let Some(busy) = &mut self.busy else { return };
        let shared = self.shared;
        let asker = Asker {
            node: self.node,
            peer: self.peer,
            session: self.session,
        };
        while let Some((lane, item)) = busy.lanes.start() {
            busy.running.push(Box::pin(async move {
                item.work(shared, asker).await;
                Done::Lane(lane)
            }));
        }
        if busy.running.is_empty() {
            self.busy = None;
        }
    }

    fn wake(&self) -> Option<Duration> {
        if self.lease_turn {
            return None;
        }
        self.lease.poll_timeout().map(|at| at.since(self.shared.now()))
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Lane(lane) => self.busy().lanes.finished(&lane),
            Done::LeaseTurn(permit) => match self.lease.poll_write(self.shared.now()) {
                Some(write) => {
                    let (shared, node) = (self.shared, self.node);
                    self.run(async move {
                        let written = write_lease(shared, node, write).await;
                        drop(permit);
                        Done::Lease(written)
                    });
                }
                None => self.lease_turn = false,
            },
            Done::Lease(written) => {
                self.lease_turn = false;
                self.lease.handle_written(written, self.shared.now());
            }
            Done::LeaseFound(found, reply) => {
                let lease = self.lease.handle_found(self.node, found);
                self.shared.metrics.request(Asked::Lease, Outcome::Done);
                reply.send(answer::lease(lease.map(|lease| trimmed(&lease))));
            }
            Done::Record => self.recording = false,
            Done::Claim => {}
        }
    }

    /// Tells the other replicas that the node is here now.
    fn claim(&mut self) {
        let (shared, node) = (self.shared, self.node);
        self.run(async move {
            make_ours(shared, node).await;
            Done::Claim
        });
    }

    fn take(&mut self, request: Request, reply: Reply<Answer>) {
        if request.key.kind == ObjectKind::Lease {
            self.renew(&request, reply);
        } else if request.key.kind == ObjectKind::Event {
            reply.send(answer::silence());
            self.take_event(request);
        } else {
            self.take_request(request, reply);
        }
    }

    /// A renewal is answered here and now, whatever else the node does and whether there is an API or not. Only an edge
    /// that starts asks the API.
    fn renew(&mut self, request: &Request, reply: Reply<Answer>) {
        let (shared, node) = (self.shared, self.node);
        if self.lease.must_ask(node, request) {
            return self.run(async move { Done::LeaseFound(find_lease(shared, node).await, reply) });
        }
        let metrics = &self.shared.metrics;
        match self.lease.handle_request(self.node, request, self.shared.now()) {
            Ok(renewed) => {
                if renewed.saved {
                    metrics.lease_writes_saved.inc();
                }
                metrics.request(Asked::Lease, Outcome::Done);
                reply.send(answer::lease(Ok(renewed.lease)));
            }
            Err(status) => {
                metrics.request(Asked::Lease, Outcome::Refused);
                reply.send(answer::lease(Err(status)));
            }
        }
    }

    fn take_event(&mut self, request: Request) {
        let now = Instant::now();
        let events = self.events.get_or_insert_with(|| Box::new(EventBudget::new(now)));
        let fits = self.shared.config.events && events.take(now);
        let key = request.key.clone();
        if !fits
            || self
                .busy()
                .lanes
                .add_event(&key, Item::new(request, None))
                .is_err()
        {
            self.shared.metrics.request(Asked::Event, Outcome::Dropped);
        }
    }

    fn take_request(&mut self, request: Request, reply: Reply<Answer>) {
        let key = request.key.clone();
        let lanes = &mut self.busy().lanes;
        let request = match lanes.last_waiting(&key) {
            Some(waiting) => match waiting.supersede(request) {
                // One call for both, and both hear of it.
                None => {
                    waiting.replies.push(reply);
                    let asked = Asked::of(&waiting.request);
                    return self.shared.metrics.request(asked, Outcome::Superseded);
                }
                Some(request) => request,
            },
            None => request,
        };
        if let Err(item) = self.busy().lanes.add(&key, Item::new(request, Some(reply))) {
            let status = Status::failure(429, "TooManyRequests", "too many requests of this node wait");
            self.shared
                .metrics
                .request(Asked::of(&item.request), Outcome::Dropped);
            let refusal = answer::refused(&item.request, status);
            item.answer(&refusal);
        }
    }

    fn acknowledged(&mut self, key: ObjectKey, acked: Acked, write: bool) {
        let Acked { uid, version } = acked;
        if tracing::enabled!(tracing::Level::DEBUG) {
            let trace = version.as_ref().map(|version| TraceId::of(&uid, version));
            tracing::debug!(node = %self.node, %key, trace = trace.map(tracing::field::display), "held by the node");
        }
        if write {
            self.record(key, uid, version);
        }
    }

    fn record(&mut self, key: ObjectKey, uid: Uid, version: Option<ResourceVersion>) {
        self.recording = true;
        let (shared, node) = (self.shared, self.node);
        self.run(async move {
            sync::record(&shared.caller, &shared.records, node, key, uid, version).await;
            Done::Record
        });
    }

    fn run(&mut self, work: impl Future<Output = Done> + Send + 'a) {
        self.busy().running.push(Box::pin(work));
    }

    fn busy(&mut self) -> &mut Busy<'a> {
        let calls_max = self.shared.config.node_calls_max;
        self.busy.get_or_insert_with(|| {
            Box::new(Busy {
                lanes: Lanes::new(calls_max),
                running: FuturesUnordered::new(),
            })
        })
    }
}

impl Item {
    fn new(request: Request, reply: Option<Reply<Answer>>) -> Self {
        Self {
            request,
            replies: reply.into_iter().collect(),
            deadline: Instant::now() + REQUEST_WORK_MAX,
        }
    }

    /// Takes the place of this one with a later report of the same object; gives it back when both are needed.
    fn supersede(&mut self, later: Request) -> Option<Request> {
        let reports =
            later.route.operation == Operation::Patch && self.request.route.operation == Operation::Patch;
        let patch = |request: &Request| request.body.content_data();
        if reports && self.request.key == later.key && covers(&patch(&self.request), &patch(&later)) {
            self.request = later;
            self.deadline = Instant::now() + REQUEST_WORK_MAX;
            return None;
        }
        Some(later)
    }

    /// Whether somebody asked and nobody waits any more: the edge will report again.
    fn is_forgotten(&self) -> bool {
        !self.replies.is_empty() && self.replies.iter().all(Reply::is_closed)
    }

    async fn work(self, shared: &Shared, asker: Asker<'_>) {
        let asked = Asked::of(&self.request);
        if self.is_forgotten() {
            return shared.metrics.request(asked, Outcome::Superseded);
        }
        let (outcome, answer) = reports::answer(shared, asker, &self.request, self.deadline).await;
        shared.metrics.request(asked, outcome);
        self.answer(&answer);
    }

    fn answer(self, answer: &Answer) {
        for reply in self.replies {
            reply.send(answer.clone());
        }
    }
}

async fn make_ours(shared: &Shared, node: &NodeName) {
    let Some(replica) = &shared.config.replica else {
        return;
    };
    let claim = ownership::claim(node, replica, shared.config.advertise_address.as_deref());
    let deadline = Instant::now() + REQUEST_WORK_MAX;
    match shared.caller.call(Class::Other, node, &claim, deadline).await {
        Ok(_) => {}
        // It will register, and that names us too.
        Err(error) if error.is_not_found() => {}
        Err(error) => tracing::warn!(%node, %error, "the Node does not say that it is connected here"),
    }
}

/// Asks the API for the lease, not for long: the edge can do without an answer.
async fn find_lease(shared: &Shared, node: &NodeName) -> Found {
    let deadline = Instant::now() + LEASE_READ_TIMEOUT;
    let read = leases::read(node);
    match shared.caller.once(Class::Lease, node, &read, deadline).await {
        Ok(lease) => Found::Lease(lease),
        Err(error) if error.is_not_found() => Found::Absent,
        Err(error) => {
            tracing::debug!(%node, %error, "the node's lease cannot be read; the node will create it");
            Found::Nothing
        }
    }
}

/// Writes a lease; the caller holds the permit.
async fn write_lease(shared: &Shared, node: &NodeName, write: Write) -> Written {
    let creates = matches!(write, Write::Create(_));
    let owner = match creates {
        true => {
            let lease = Question::Key(ObjectKey::lease(node));
            shared
                .standing(node, lease)
                .await
                .ok()
                .and_then(|standing| standing.uid)
        }
        false => None,
    };
    let call = write.call(node, owner.as_ref());
    let made = put_lease(shared, node, &call);
    let result = match tokio::time::timeout(LEASE_WRITE_TIMEOUT, made).await {
        Ok(result) => result,
        Err(_) => return Written::Failed { retry_after: None },
    };
    match result {
        Ok(lease) => written(&lease),
        Err(error) if !creates && error.is_not_found() => Written::Absent,
        Err(error) if creates && error.is_already_exists() => Written::Exists,
        Err(error) => {
            tracing::warn!(%node, %error, "the node's lease was not written and will be tried again");
            Written::Failed {
                retry_after: error.retry_after(),
            }
        }
    }
}

/// Merges into the lease; under the roles of the official cloud, which may not patch leases, reads and replaces it.
async fn put_lease(shared: &Shared, node: &NodeName, call: &ApiCall) -> Result<Body, ApiError> {
    let cluster = shared.caller.cluster();
    let merges = matches!(call, ApiCall::MergePatch { .. });
    if !merges || shared.lease_patch.may_try(Instant::now()) {
        let made = perform(cluster, call).await;
        let forbidden = |error: &ApiError| error.refusal().is_some_and(|status| status.code == 403);
        if !merges || !made.as_ref().is_err_and(forbidden) {
            return made;
        }
        if shared.lease_patch.refused(Instant::now()) {
            tracing::warn!(
                "CloudCore may not patch leases; each write is a read and a replacement for a while"
            );
        }
    }
    let current = perform(cluster, &leases::read(node)).await?;
    match leases::replaced(call, &current) {
        Some(replacement) => perform(cluster, &replacement).await,
        // The API holds something that has no spec: what is said about that is the API's to say.
        None => perform(cluster, call).await,
    }
}

fn written(lease: &Body) -> Written {
    let meta = lease.object_meta().unwrap_or_default();
    match meta.uid.zip(meta.resource_version) {
        Some((uid, version)) => Written::Done { uid, version },
        // The API answers with the object; something that is none was not the API.
        None => Written::Failed { retry_after: None },
    }
}

async fn write_last(shared: &Shared, node: &NodeName, write: Write) {
    let Ok(_place) = shared.last_writes.acquire().await else {
        return;
    };
    let _permit = shared.caller.budget().acquire(Class::Lease, node).await;
    write_lease(shared, node, write).await;
}

/// The next end of something; waits for ever while nothing is under way.
async fn next(busy: &mut Option<Box<Busy<'_>>>) -> Done {
    match busy {
        Some(busy) => match busy.running.next().await {
            Some(done) => done,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Duration>) {
    match wake {
        Some(wake) => tokio::time::sleep(wake).await,
        None => std::future::pending().await,
    }
}

fn seed(process: u64, node: &NodeName) -> u64 {
    let mut hasher = DefaultHasher::new();
    (process, node).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside it a node at rest costs the ends of its channels, which the hub makes, and what the runtime adds.
    #[test]
    fn a_node_at_rest_is_small() {
        fn size_of_output<F, T>(_: F) -> usize
        where
            F: FnOnce(Arc<Shared>, Begin, Scope) -> T,
        {
            size_of::<T>()
        }
        let size = size_of_output(work);
        println!("the task of a node at rest: {size} bytes");
        assert!(size < 2048, "the task of a node at rest is {size} bytes");
    }
}
