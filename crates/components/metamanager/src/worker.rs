//! The one task that owns the state: takes orders and requests, starts questions, finishes commits in order.

mod looks;
mod orders;
mod restore;

use crate::asks::{Asker, Outcome};
use crate::copies::Copies;
use crate::objects::Version;
use crate::plan::{self, Plan, ReportClass};
use crate::quiet::{Moment, Quiet};
use crate::reports::{self, Next, Reports};
use crate::sweep::Sweeper;
use crate::told::Known;
use crate::{Config, Ports, tokens};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use kedge_link::edge::{RequestError, StoreDone, StoreOrder};
use kedge_store::meta::{
    DigestRow, Error as StoreError, MetaStore, Pending, Report, Row, StoredReport, Write, Written,
};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{Question, Reply as Way};
use kedge_telemetry::channel::{ask, keyed, latest};
use kedge_wire::{Body, ObjectChange, ObjectKey, Reply, Request};
use std::collections::HashMap;
use tokio::time::Instant;

/// Questions of edged in flight besides leases: a node of 200 pods asks for a few dozen at once after a start.
const QUESTIONS_MAX: usize = 64;
/// Places that only leases may take, so that nothing makes the node look dead.
const LEASES_MAX: usize = 4;
/// Commits submitted and not answered. Below the store's queue, so that submitting never waits.
const COMMITS_MAX: usize = 128;

/// Objects beyond which answers of the cloud are no longer kept. What the cloud places is, as far as the disk goes.
const HELD_MAX: usize = 20_000;

type Answered = Result<Reply, RequestError>;

/// What the node holds when the task begins.
pub(crate) struct Kept {
    pub(crate) held: HashMap<ObjectKey, Version>,
    pub(crate) copies: Copies,
    pub(crate) quiet: Quiet,
}

/// What waits for a commit.
enum After {
    Object {
        change: ObjectChange,
        done: Way<StoreDone>,
    },
    /// Says what the store holds, if the writes before it succeed.
    Repetition {
        change: ObjectChange,
        since: Moment,
        done: Way<StoreDone>,
    },
    /// The row of a repetition went along with another write.
    CaughtUp,
    /// Ordered behind the commits before it: the digest must not miss them.
    Digest {
        done: Way<StoreDone>,
    },
    Kept {
        key: ObjectKey,
        answer: Answered,
        way: Way<Answered>,
    },
    Reported {
        class: ReportClass,
        request: Request,
        way: Way<Answered>,
    },
    Forgotten {
        id: u64,
    },
    /// No pod needs it any more.
    Unused {
        key: ObjectKey,
    },
    /// Written again after damage.
    Restored {
        what: String,
    },
    /// Nothing that the cloud wants is missing.
    Complete {
        done: Way<StoreDone>,
    },
}

/// What a task beside the loop came to.
enum Beside {
    Lease(Way<Answered>, Outcome),
    Question(Way<Answered>, ObjectKey, Outcome),
    Digest(Way<StoreDone>, Result<Vec<DigestRow>, StoreError>),
    Reports(Result<Vec<StoredReport>, StoreError>),
    Sent(u64, Answered),
    /// A status that the cloud has already, told again; and whether it took it.
    Repeated(Request, Way<Answered>, Answered),
    Looked(Result<looks::Found, StoreError>),
    Restored(Result<Vec<DigestRow>, StoreError>),
    Swept,
}

/// A key that is being asked for.
#[derive(Default)]
struct Asked {
    questions: usize,
    /// The cloud changed it meanwhile: then its push is newer than the answers.
    changed: bool,
}

pub(crate) struct Worker {
    store: MetaStore,
    asker: Asker,
    orders: Option<ask::Receiver<StoreOrder, StoreDone>>,
    requests: Option<ask::Receiver<Request, Answered>>,
    online: latest::Receiver<bool>,
    objects: keyed::Sender<ObjectKey, Option<Body>>,
    complete: latest::Sender<bool>,
    /// What the store holds once every submitted write is committed.
    held: HashMap<ObjectKey, Version>,
    commits: FuturesOrdered<BoxFuture<'static, (After, Result<Written, StoreError>)>>,
    beside: FuturesUnordered<BoxFuture<'static, Beside>>,
    leases: usize,
    questions: usize,
    asked: HashMap<ObjectKey, Asked>,
    reports: Reports,
    reading_reports: bool,
    sweeper: Sweeper,
    copies: Copies,
    quiet: Quiet,
}

impl Worker {
    pub(crate) fn new(config: Config, store: MetaStore, kept: Kept, ports: Ports) -> Self {
        let Kept { held, copies, quiet } = kept;
        let Ports {
            orders,
            requests,
            cloud,
            online,
            objects,
            complete,
        } = ports;
        let asker = Asker {
            store: store.clone(),
            cloud,
            online: online.clone(),
            timeout: config.query_timeout,
        };
        Self {
            store,
            asker,
            orders: Some(orders),
            requests: Some(requests),
            online,
            objects,
            complete,
            held,
            commits: FuturesOrdered::new(),
            beside: FuturesUnordered::new(),
            leases: 0,
            questions: 0,
            asked: HashMap::new(),
            reports: Reports::new(),
            reading_reports: false,
            sweeper: Sweeper::new(Instant::now()),
            copies,
            quiet,
        }
    }

    pub(crate) async fn run(mut self, scope: Scope) {
        loop {
            self.pump_reports();
            self.look();
            let wake_at = [
                self.reports.wake_at(*self.online.borrow()),
                self.sweeper.wake_at(),
            ];
            let wake_at = wake_at.into_iter().flatten().min();
            tokio::select! {
                biased;
                // The end of the process comes before new work.
                () = scope.cancelled() => break,
                // Finishing makes room and answers those who have waited longest.
                Some((after, result)) = self.commits.next() => self.committed(after, result).await,
                Some(beside) = self.beside.next() => self.finished(beside).await,
                // Before new writes: what they are compared with must be there.
                () = self.copies.needed() => self.restore().await,
                changed = self.online.changed() => if !self.connection_changed(changed.is_ok()) { break },
                () = sleep_until(wake_at) => {}
                // Orders before requests: what the cloud wants decides what edged needs.
                order = next(&mut self.orders), if self.commits.len() < COMMITS_MAX => match order {
                    Some(order) => self.order(order).await,
                    None => self.orders = None,
                },
                request = next(&mut self.requests) => match request {
                    Some(request) => self.request(request).await,
                    None => self.requests = None,
                },
            }
        }
        self.catch_up().await;
        while let Some((after, result)) = self.commits.next().await {
            self.committed(after, result).await;
        }
    }

    fn connection_changed(&mut self, known: bool) -> bool {
        if known && *self.online.borrow_and_update() {
            self.reports.connected();
        } else {
            self.reports.disconnected();
        }
        // Without a sender edgehub is gone, and with it the process.
        known
    }

    async fn submit(&mut self, write: Write, after: After) {
        // The transaction is needed anyway.
        self.catch_up().await;
        self.submit_alone(write, after).await;
    }

    /// Writes what waits for a reason to write.
    async fn catch_up(&mut self) {
        for row in self.quiet.take() {
            self.submit_alone(Write::Put(row), After::CaughtUp).await;
        }
    }

    async fn submit_alone(&mut self, write: Write, after: After) {
        let pending: Result<Pending, StoreError> = self.store.submit(write).await;
        self.commits.push_back(Box::pin(async {
            match pending {
                Ok(pending) => (after, pending.await),
                Err(error) => (after, Err(error)),
            }
        }));
    }

    async fn committed(&mut self, after: After, result: Result<Written, StoreError>) {
        match after {
            After::Object { change, done } => self.object_committed(change, done, result),
            After::Repetition { change, since, done } => self.repetition_reached(change, since, done),
            After::CaughtUp => {
                if let Err(error) = result {
                    // It holds the same, of an older version.
                    tracing::debug!(%error, "newest version of a node not stored");
                }
            }
            After::Digest { done } => {
                let store = self.store.clone();
                self.beside.push(Box::pin(
                    async move { Beside::Digest(done, store.digest().await) },
                ));
            }
            After::Kept { key, answer, way } => {
                // Newer than the copy, and asked for again if it is lost.
                self.copies.set(&key, None);
                if let Err(error) = result {
                    self.held.remove(&key);
                    self.quiet.lost(&key);
                    // The answer is good; it will have to be asked for again after a restart.
                    tracing::warn!(%error, "answer of the cloud not kept");
                }
                way.send(answer);
            }
            After::Reported { class, request, way } => self.reported(class, request, way, result),
            After::Forgotten { id } => {
                if let Err(error) = result {
                    tracing::warn!(%error, "delivered report not removed; it will be sent again");
                }
                self.reports.forgotten(id);
            }
            After::Restored { what } => Self::restored_one(&what, result),
            After::Unused { key } => self.unused_removed(key, result),
            After::Complete { done } => self.completed(done, result),
        }
    }

    async fn request(
        &mut self,
        Question {
            question: request,
            reply: way,
        }: Question<Request, Answered>,
    ) {
        let plan = plan::plan(&request);
        let full = match plan {
            Plan::Lease => self.leases >= LEASES_MAX,
            Plan::Report(_) => self.commits.len() >= COMMITS_MAX,
            Plan::Nobody => false,
            Plan::Held | Plan::HeldElseCloud | Plan::CloudElseHeld | Plan::Token | Plan::Cloud { .. } => {
                self.questions >= QUESTIONS_MAX
            }
        };
        if full {
            way.send(Err(RequestError::Full));
            return;
        }
        match plan {
            Plan::Report(class) => self.report(class, request, way).await,
            Plan::Nobody => {
                let why = format!("{} cannot be asked for", request.key);
                way.send(Err(RequestError::Refused(why)));
            }
            Plan::Lease => {
                self.leases += 1;
                let asker = self.asker.clone();
                self.beside.push(Box::pin(async move {
                    Beside::Lease(way, asker.cloud(request).await.into())
                }));
            }
            Plan::Held | Plan::HeldElseCloud | Plan::CloudElseHeld | Plan::Token | Plan::Cloud { .. } => {
                self.question(plan, request, way);
            }
        }
    }

    fn question(&mut self, plan: Plan, request: Request, way: Way<Answered>) {
        self.questions += 1;
        let key = request.key.clone();
        self.asked.entry(key.clone()).or_default().questions += 1;
        let asker = self.asker.clone();
        self.beside.push(Box::pin(async move {
            let outcome = match plan {
                Plan::Held => asker.held_only(request).await,
                Plan::HeldElseCloud => asker.held_else_cloud(request).await,
                Plan::CloudElseHeld => asker.cloud_else_held(request).await,
                Plan::Token => asker.token(request).await,
                Plan::Cloud { keep_object } => asker.cloud_keeping(request, keep_object).await,
                Plan::Lease | Plan::Report(_) | Plan::Nobody => asker.cloud(request).await.into(),
            };
            Beside::Question(way, key, outcome)
        }));
    }

    async fn report(&mut self, class: ReportClass, request: Request, way: Way<Answered>) {
        match self.reports.is_known(class, &request) {
            Known::New => self.report_anew(class, request, way).await,
            // It is on the disk already.
            Known::Waits(_) if !*self.online.borrow() => way.send(Err(RequestError::Offline)),
            Known::Waits(id) => self.reports.wait(id, way),
            // The repetition under way is as good, but this one has to be answered too.
            Known::Delivered if self.questions >= QUESTIONS_MAX || !self.reports.begin_repeat(&request) => {
                self.report_anew(class, request, way).await;
            }
            Known::Delivered => {
                self.questions += 1;
                let asker = self.asker.clone();
                self.beside.push(Box::pin(async move {
                    let answer = asker.cloud(request.clone()).await;
                    Beside::Repeated(request, way, answer)
                }));
            }
        }
    }

    async fn report_anew(&mut self, class: ReportClass, request: Request, way: Way<Answered>) {
        self.reports.queued(class, &request);
        let (priority, coalesce) = (class.priority(), class.coalesce(&request));
        let report = Report {
            priority,
            coalesce,
            value: reports::encode(request.clone()),
        };
        self.submit(Write::Push(report), After::Reported { class, request, way })
            .await;
    }

    fn reported(
        &mut self,
        class: ReportClass,
        request: Request,
        way: Way<Answered>,
        result: Result<Written, StoreError>,
    ) {
        let written = match result {
            Ok(written) => written,
            Err(error) => {
                self.reports.not_queued(class, &request);
                tracing::error!(%error, "report not kept");
                way.send(Err(RequestError::Refused(error.to_string())));
                return;
            }
        };
        let waiter = match reports::local_answer(class, &request) {
            Some(answer) => {
                way.send(Ok(answer));
                None
            }
            None if !*self.online.borrow() => {
                way.send(Err(RequestError::Offline));
                None
            }
            None => Some(way),
        };
        self.reports.stored(class, &request, &written);
        self.reports.kept(&written, waiter);
    }

    /// What was told again reached the cloud, or becomes a report like any other.
    async fn repeated(&mut self, request: Request, way: Way<Answered>, answer: Answered) {
        self.questions -= 1;
        self.reports.end_repeat(&request);
        if reports::is_taken(&answer) {
            way.send(answer);
        } else {
            self.report_anew(ReportClass::PodStatus, request, way).await;
        }
    }

    /// Reads reports when some may be sent.
    fn pump_reports(&mut self) {
        if self.reading_reports {
            return;
        }
        let Some(max) = self.reports.wanted(*self.online.borrow(), Instant::now()) else {
            return;
        };
        self.reading_reports = true;
        let store = self.store.clone();
        self.beside
            .push(Box::pin(async move { Beside::Reports(store.reports(max).await) }));
    }

    async fn finished(&mut self, beside: Beside) {
        match beside {
            Beside::Swept => {}
            Beside::Lease(way, outcome) => {
                self.leases -= 1;
                way.send(outcome.answer);
            }
            Beside::Question(way, key, outcome) => self.answered(way, key, outcome).await,
            Beside::Digest(done, digest) => done.send(self.held_of(digest)),
            Beside::Restored(digest) => self.restored(digest).await,
            Beside::Looked(found) => self.looked(found).await,
            Beside::Repeated(request, way, answer) => self.repeated(request, way, answer).await,
            Beside::Reports(rows) => self.send_reports(rows).await,
            Beside::Sent(id, answer) => {
                if self.reports.attempted(id, answer, Instant::now()) == Next::Forget {
                    self.submit(Write::Forget { report: id }, After::Forgotten { id })
                        .await;
                }
            }
        }
    }

    async fn answered(&mut self, way: Way<Answered>, key: ObjectKey, Outcome { answer, keep }: Outcome) {
        self.questions -= 1;
        let changed = self.end_question(&key);
        match keep.filter(|row| !changed && self.may_keep(&key, row)) {
            Some(row) => {
                self.submit(Write::Put(row), After::Kept { key, answer, way })
                    .await
            }
            None => way.send(answer),
        }
    }

    /// Whether the cloud changed the object since it was first asked for.
    fn end_question(&mut self, key: &ObjectKey) -> bool {
        let Some(asked) = self.asked.get_mut(key) else {
            return false;
        };
        let changed = asked.changed;
        asked.questions -= 1;
        if asked.questions == 0 {
            self.asked.remove(key);
        }
        changed
    }

    /// Notes an object that is about to be kept; false when what is held is newer.
    fn may_keep(&mut self, key: &ObjectKey, row: &Row) -> bool {
        if row.kind == tokens::KIND {
            return true;
        }
        let Ok(body) = Body::from_json(row.value.clone()) else {
            return false;
        };
        let version = Version::of(&body);
        if self.held.get(key).is_some_and(|held| version.is_older_than(held)) {
            return false;
        }
        let is_known = self.held.contains_key(key);
        if !is_known && self.held.len() >= HELD_MAX {
            tracing::warn!(%key, HELD_MAX, "too much is held; the answer is not kept");
            return false;
        }
        self.sweeper.came(key);
        self.sweeper.something_went(Instant::now());
        self.quiet.forget(key);
        self.held.insert(key.clone(), version);
        true
    }

    async fn send_reports(&mut self, rows: Result<Vec<StoredReport>, StoreError>) {
        self.reading_reports = false;
        let rows = rows.unwrap_or_else(|error| {
            tracing::error!(%error, "outbox not readable");
            self.reports.unreadable(Instant::now());
            Vec::new()
        });
        for (id, request) in self.reports.pick(rows) {
            let Some(request) = request else {
                tracing::warn!(report = id, "report not readable; removed");
                self.submit(Write::Forget { report: id }, After::Forgotten { id })
                    .await;
                continue;
            };
            let asker = self.asker.clone();
            self.beside.push(Box::pin(
                async move { Beside::Sent(id, asker.cloud(request).await) },
            ));
        }
    }
}

async fn next<Q, A>(receiver: &mut Option<ask::Receiver<Q, A>>) -> Option<Question<Q, A>> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        // Nobody can ask any more; the other arms go on.
        None => std::future::pending().await,
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
