//! The outbox on its way to the cloud: which reports wait, which are under way, when to try again.

use crate::asks;
use crate::plan::ReportClass;
use crate::told::{Known, Told};
use kedge_link::edge::RequestError;
use kedge_store::meta::{StoredReport, Written};
use kedge_telemetry::channel::ask;
use kedge_wire::{
    Body, Envelope, Header, Letter, MessageId, ObjectKey, ObjectKind, ObjectResponse, Reply, Request,
    Resource, ToCloud,
};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// Reports under way at one time: enough to hide the round trip, few enough that leases do not queue behind them.
pub(crate) const IN_FLIGHT_MAX: usize = 8;
/// Answers that say "not now" before a report is given up; with the waits below this is several minutes.
const ATTEMPTS_MAX: u32 = 12;
/// First wait after a failure; doubles.
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

type Waiter = ask::Reply<Result<Reply, RequestError>>;

/// What to do after an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The cloud has it, or refuses it for good.
    Forget,
    /// Stays in the outbox.
    Keep,
}

#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Under way, with what a newer report of the same state would carry.
    in_flight: HashMap<u64, Option<String>>,
    waiters: HashMap<u64, Vec<Waiter>>,
    /// Answers that came before the report's own commit was told: a row can be read, sent and answered that early. No
    /// more than are in flight.
    early: HashMap<u64, Result<Reply, RequestError>>,
    /// Delivered since the table was last read: rows read before that still show them. No more than were in flight.
    delivered: HashSet<u64>,
    attempts: HashMap<u64, u32>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether something may have become sendable since the table was read.
    may_wait: bool,
    pub(crate) given_up: u64,
    told: Told,
    /// Keys of statuses that are told again, past the outbox. A newer one waits for them too.
    repeating: HashSet<String>,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self {
            may_wait: true,
            ..Self::default()
        }
    }

    /// Whether this very status lies in the outbox or was taken by the cloud last.
    pub(crate) fn is_known(&self, class: ReportClass, request: &Request) -> Known {
        match status_key(class, request) {
            Some(key) => self.told.is_known(&key, request.body.json()),
            None => Known::New,
        }
    }

    /// A report is being written into the outbox.
    pub(crate) fn queued(&mut self, class: ReportClass, request: &Request) {
        if let Some(key) = status_key(class, request) {
            self.told.committing(key, request.body.json());
        }
    }

    /// It could not be written.
    pub(crate) fn not_queued(&mut self, class: ReportClass, request: &Request) {
        if let Some(key) = status_key(class, request) {
            self.told.forget(&key);
        }
    }

    /// It was written.
    pub(crate) fn stored(&mut self, class: ReportClass, request: &Request, written: &Written) {
        if let (Some(key), Some(id)) = (status_key(class, request), written.report) {
            let taken = self.early.get(&id).is_some_and(is_taken);
            self.told.stored(&key, request.body.json(), id, taken);
        }
    }

    /// `waiter` gets the cloud's answer to a report that is in the outbox already.
    pub(crate) fn wait(&mut self, id: u64, waiter: Waiter) {
        self.waiters.entry(id).or_default().push(waiter);
    }

    /// A status that the cloud has is told again; false while that happens already.
    pub(crate) fn begin_repeat(&mut self, request: &Request) -> bool {
        self.repeating.insert(request.key.to_string())
    }

    pub(crate) fn end_repeat(&mut self, request: &Request) {
        self.repeating.remove(&request.key.to_string());
        self.may_wait = true;
    }

    /// The pod is gone, and nothing more will be told of it.
    pub(crate) fn pod_gone(&mut self, pod: &ObjectKey) {
        let key = ObjectKey {
            kind: ObjectKind::PodPatch,
            ..pod.clone()
        };
        self.told.forget(&key.to_string());
    }

    /// A report is durable. `waiter` gets the cloud's answer.
    pub(crate) fn kept(&mut self, written: &Written, waiter: Option<Waiter>) {
        self.may_wait = true;
        let mut waiting = Vec::from_iter(waiter);
        if let Some(replaced) = written.replaced {
            self.attempts.remove(&replaced);
            if !self.in_flight.contains_key(&replaced) {
                waiting.extend(self.waiters.remove(&replaced).unwrap_or_default());
            }
        }
        if let Some(id) = written.report.filter(|_| !waiting.is_empty()) {
            self.waiters.entry(id).or_default().extend(waiting);
            if let Some(answer) = self.early.remove(&id) {
                self.answer(id, answer);
            }
        }
        for dropped in &written.dropped {
            tracing::warn!(
                report = dropped,
                "outbox full: oldest report of the lowest priority dropped"
            );
            self.attempts.remove(dropped);
            self.told.left(*dropped, false);
            self.answer(*dropped, Err(RequestError::Full));
        }
    }

    /// How many rows to read so that one that can be sent is among them; `None` when nothing may be sent now.
    /// What becomes sendable from here on is read again.
    pub(crate) fn wanted(&mut self, online: bool, now: Instant) -> Option<usize> {
        let ready = online && self.may_wait && self.retry_at.is_none_or(|at| at <= now);
        if !ready || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        self.may_wait = false;
        self.delivered.clear();
        Some(2 * IN_FLIGHT_MAX)
    }

    /// The rows could not be read.
    pub(crate) fn unreadable(&mut self, now: Instant) {
        self.may_wait = true;
        self.retry_at = Some(now + RETRY_DELAY_MAX);
    }

    /// Picks from the rows read what is sent now. A state of which an older version is under way has to wait, so that
    /// the older one cannot overtake it.
    pub(crate) fn pick(&mut self, rows: Vec<StoredReport>) -> Vec<(u64, Option<Request>)> {
        let mut picked = Vec::new();
        let mut busy: HashSet<String> = self.in_flight.values().flatten().cloned().collect();
        busy.extend(self.repeating.iter().cloned());
        for StoredReport { id, report } in rows {
            if self.in_flight.contains_key(&id) || self.delivered.contains(&id) {
                continue;
            }
            let blocked = report.coalesce.as_ref().is_some_and(|key| busy.contains(key));
            if blocked || self.in_flight.len() >= IN_FLIGHT_MAX {
                continue;
            }
            busy.extend(report.coalesce.clone());
            self.in_flight.insert(id, report.coalesce);
            picked.push((id, decode(&report.value)));
        }
        picked
    }

    /// An attempt ended. After `Forget` the owner removes the row and then calls [`Reports::forgotten`].
    pub(crate) fn attempted(&mut self, id: u64, answer: Result<Reply, RequestError>, now: Instant) -> Next {
        let next = match Verdict::of(&answer) {
            Verdict::Final => Next::Forget,
            // The connection ended: nothing was said about this report. It goes when the cloud is back.
            Verdict::NotSaid => Next::Keep,
            Verdict::NotNow => {
                let attempts = self.attempts.entry(id).or_default();
                *attempts += 1;
                if *attempts < ATTEMPTS_MAX {
                    Next::Keep
                } else {
                    Next::Forget
                }
            }
        };
        if next == Next::Forget && Verdict::of(&answer) != Verdict::Final {
            self.given_up += 1;
            tracing::error!(
                report = id,
                ATTEMPTS_MAX,
                "report given up: the cloud does not take it"
            );
        }
        match next {
            Next::Forget => {
                if !self.waiters.contains_key(&id) {
                    self.early.insert(id, answer.clone());
                }
                self.told.left(id, is_taken(&answer));
                self.attempts.remove(&id);
                self.failures = 0;
            }
            Next::Keep => {
                self.in_flight.remove(&id);
                self.may_wait = true;
                let delay = RETRY_DELAY
                    .saturating_mul(1 << self.failures.min(16))
                    .min(RETRY_DELAY_MAX);
                self.failures = self.failures.saturating_add(1);
                self.retry_at = Some(now + delay);
            }
        }
        self.answer(id, answer);
        next
    }

    /// The row of a delivered report is gone.
    pub(crate) fn forgotten(&mut self, id: u64) {
        self.early.remove(&id);
        self.delivered.insert(id);
        self.in_flight.remove(&id);
        self.may_wait = true;
    }

    /// The cloud is back: no reason to wait longer.
    pub(crate) fn connected(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    /// The moment at which [`Reports::wanted`] may change its mind.
    pub(crate) fn wake_at(&self, online: bool) -> Option<Instant> {
        self.retry_at
            .filter(|_| online && self.may_wait && self.in_flight.len() < IN_FLIGHT_MAX)
    }

    /// Answers everybody who waits for this report.
    pub(crate) fn answer(&mut self, id: u64, answer: Result<Reply, RequestError>) {
        for waiter in self.waiters.remove(&id).unwrap_or_default() {
            waiter.send(answer.clone());
        }
    }

    /// The cloud is away: nobody waits for an answer any longer, the reports stay.
    pub(crate) fn disconnected(&mut self) {
        let idle: Vec<u64> = self
            .waiters
            .keys()
            .filter(|id| !self.in_flight.contains_key(id))
            .copied()
            .collect();
        for id in idle {
            self.answer(id, Err(RequestError::Offline));
        }
    }
}

/// What [`Told`] knows a report by, if it is the status of a pod.
fn status_key(class: ReportClass, request: &Request) -> Option<String> {
    match class {
        ReportClass::PodStatus => class.coalesce(request),
        ReportClass::Event | ReportClass::PodDelete => None,
    }
}

/// Whether the cloud did what a report asks.
pub(crate) fn is_taken(answer: &Result<Reply, RequestError>) -> bool {
    let Ok(reply) = answer else { return false };
    let response: Option<ObjectResponse> = reply.body.parse().ok();
    response.is_none_or(|response| response.err.is_none())
}

/// What an answer says about a report.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Final,
    NotNow,
    NotSaid,
}

impl Verdict {
    fn of(answer: &Result<Reply, RequestError>) -> Self {
        match answer {
            Ok(reply) if is_overloaded(&reply.body) => Self::NotNow,
            Ok(_) | Err(RequestError::Refused(_)) => Self::Final,
            Err(RequestError::Timeout) => Self::NotNow,
            Err(RequestError::Offline | RequestError::Lost | RequestError::Full) => Self::NotSaid,
        }
    }
}

/// A Kubernetes API that fails or is busy (5xx, 429) may take the same report later; any other refusal is for good.
fn is_overloaded(body: &Body) -> bool {
    let response: Option<ObjectResponse> = body.parse().ok();
    response
        .and_then(|response| response.err)
        .is_some_and(|err| err.status.code >= 500 || err.status.code == 429)
}

/// The text of a request in the outbox: the message itself, without an id, because each sending gets its own.
pub(crate) fn encode(request: Request) -> String {
    let header = Header::new(MessageId::new(""), 0);
    Letter {
        header,
        message: ToCloud::Request(request),
    }
    .seal()
    .encode()
}

fn decode(value: &str) -> Option<Request> {
    match ToCloud::open(Envelope::decode(value.as_bytes()).ok()?).message {
        ToCloud::Request(request) => Some(request),
        _not_a_report => None,
    }
}

/// Whether edged is answered as soon as the report is durable.
pub(crate) fn local_answer(class: ReportClass, request: &Request) -> Option<Reply> {
    match class {
        ReportClass::Event => Some(asks::local_reply(
            Resource::Object(request.key.clone()),
            Body::text("OK"),
        )),
        ReportClass::PodStatus | ReportClass::PodDelete => None,
    }
}
