//! One session of one node: a task that owns the link's state machine and both directions of the connection.

use crate::metrics::{Metrics, count};
use crate::ports::{Answer, Attach, Ports};
use crate::registry::{HeldSet, Place};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_link::Peer;
use kedge_link::cloud::{CloudLink, Config as LinkConfig, Event};
use kedge_telemetry::channel::ask::NoAnswer;
use kedge_telemetry::channel::{ask, keyed, latest, queue};
use kedge_telemetry::{Scope, clock};
use kedge_transport::{Close, CloseCode, Connection, Receiver, RecvError, SendError, Sender};
use kedge_wire::{Body, Envelope, MessageId, NodeName, Object, ObjectKey, Request, Time, ToCloud};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Objects on their way to one node without an acknowledgement: enough to fill a slow link, few enough that a node
/// which takes nothing holds little memory here.
const IN_FLIGHT_MAX: usize = 32;
/// First wait before an object is sent again; the official hub waits as long.
const RETRY_DELAY: Duration = Duration::from_secs(5);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// Requests of one node being worked on. At this number the hub stops reading from the node until one is answered.
const REQUESTS_MAX: usize = 64;
/// How long the controllers may take for a request; less than the keepalive timeout, because reading may stand still
/// meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the controllers may take to say what a node must hold.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// Envelopes handed to the writer ahead of the socket. Few, because order by priority ends here.
const WRITE_AHEAD: usize = 4;
/// Time for the last words to a node; one that does not take them is cut off.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(3);

/// What a session is made of.
pub(crate) struct Session {
    pub(crate) node: NodeName,
    pub(crate) peer: Peer,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) kubernetes_ca: Option<Arc<str>>,
    pub(crate) seed: u64,
    pub(crate) ports: Ports,
    pub(crate) metrics: Arc<Metrics>,
}

/// Why a session ended.
#[derive(Debug)]
struct End {
    /// What to tell the node; `None` when there is nobody to tell.
    close: Option<Close>,
    why: String,
    /// Whether the node broke a rule.
    violation: bool,
}

impl End {
    fn broken(written: Result<(), SendError>) -> Self {
        let why = written.map_or_else(|error| error.to_string(), |()| "the connection is closed".into());
        Self {
            close: None,
            why,
            violation: false,
        }
    }

    fn tell(code: CloseCode, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self {
            close: Some(Close {
                code,
                reason: reason.clone(),
            }),
            why: reason,
            violation: false,
        }
    }
}

/// What the writer writes.
enum Out {
    Envelope(Box<Envelope>),
    Close(Close),
}

type Answered = (MessageId, Result<Answer, NoAnswer>);
type Attached = Result<Vec<(ObjectKey, Object)>, NoAnswer>;

/// The moving parts while the session runs.
struct Running {
    link: CloudLink,
    shared: Session,
    receiver: Receiver,
    desired: keyed::Receiver<ObjectKey, Option<Object>>,
    requests: ask::Sender<Request, Answer>,
    /// `None` once the controllers have told the full set.
    attaching: Option<BoxFuture<'static, Attached>>,
    asked: FuturesUnordered<BoxFuture<'static, Answered>>,
    out: queue::Sender<Out>,
    written: latest::Receiver<u64>,
}

impl Session {
    /// Runs the session to its end and gives the place back.
    pub(crate) async fn run(self, connection: Connection, mut place: Place, scope: Scope) {
        let metrics = Arc::clone(&self.metrics);
        let node = self.node.clone();
        let (sender, receiver) = connection.split();
        let (out, outgoing) = queue::channel("hub write", WRITE_AHEAD);
        let (tick, written) = latest::channel(0);
        let held = std::mem::take(&mut place.held);
        let mut running = self.begin(receiver, out, written, held);
        tracing::info!(%node, peer = ?running.shared.peer, "node connected");

        let mut writer = Box::pin(write(sender, outgoing, tick));
        let end = tokio::select! {
            biased;
            // A broken socket is noticed first: nothing else matters then.
            written = &mut writer => End::broken(written),
            end = running.until_end(&mut place.replaced, &scope) => end,
        };
        // In this order: the controllers see the old attachment close before a newer session attaches, and the place is
        // free before the last words, so that a newer session never waits for a dead peer.
        let (held, out) = (running.link.held(), running.out.clone());
        drop(running);
        place.leave(held);
        if end.violation {
            count(&metrics.violations);
            tracing::warn!(%node, why = end.why, "node disconnected for breaking a rule");
        } else {
            tracing::info!(%node, why = end.why, "node disconnected");
        }
        let Some(close) = end.close else { return };
        if out.try_send(Out::Close(close)).is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, writer).await;
        }
    }

    fn begin(
        self,
        receiver: Receiver,
        out: queue::Sender<Out>,
        written: latest::Receiver<u64>,
        held: HeldSet,
    ) -> Running {
        let config = LinkConfig {
            keepalive_timeout: self.keepalive_timeout,
            in_flight_max: IN_FLIGHT_MAX,
            retry_delay: RETRY_DELAY,
            retry_delay_max: RETRY_DELAY_MAX,
            // Reading stops before the link would call it a violation.
            requests_max: REQUESTS_MAX + 1,
        };
        let mut link = CloudLink::new(self.node.clone(), self.peer, config, self.seed, now());
        link.assume_held(held);
        let (desired_in, desired) = keyed::channel("node desired");
        let (requests, requests_out) = ask::channel("node requests", REQUESTS_MAX);
        let attach = Attach {
            node: self.node.clone(),
            desired: desired_in,
            requests: requests_out,
        };
        let controllers = self.ports.attach.clone();
        let attaching: BoxFuture<'static, Attached> =
            Box::pin(async move { controllers.ask(attach, ATTACH_TIMEOUT).await });
        Running {
            link,
            shared: self,
            receiver,
            desired,
            requests,
            attaching: Some(attaching),
            asked: FuturesUnordered::new(),
            out,
            written,
        }
    }
}

impl Running {
    async fn until_end(&mut self, replaced: &mut oneshot::Receiver<()>, scope: &Scope) -> End {
        loop {
            if let Some(end) = self.take_events() {
                return end;
            }
            let blocked = !self.transmit();
            let wake = self
                .link
                .poll_timeout()
                .map_or(Duration::MAX, |at| at.since(now()));
            let reading = self.asked.len() < REQUESTS_MAX && self.link.depth().requests < REQUESTS_MAX;
            let step = tokio::select! {
                biased;
                // The end comes before any work.
                () = scope.cancelled() => return End::tell(CloseCode::Away, "the cloud is stopping"),
                _ = &mut *replaced => {
                    return End::tell(CloseCode::Policy, "replaced by a newer connection of this node");
                }
                // Answers make room for requests, so they come before reading.
                Some((id, answer)) = self.asked.next(), if !self.asked.is_empty() => {
                    self.answered(&id, answer);
                    Ok(())
                }
                attached = attached(&mut self.attaching) => self.attached(attached),
                Ok(()) = self.written.changed(), if blocked => Ok(()),
                received = self.receiver.recv(), if reading => self.received(received),
                changed = self.desired.recv(), if self.attaching.is_none() => self.changed(changed),
                () = tokio::time::sleep(wake) => {
                    self.link.handle_timeout(now());
                    Ok(())
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Hands envelopes to the writer; false when it has no room.
    fn transmit(&mut self) -> bool {
        self.written.mark_unchanged();
        loop {
            // This is the only sender, so room that is there now stays.
            let depth = self.out.depth();
            if depth.used >= depth.size {
                return false;
            }
            let Some(envelope) = self.link.poll_transmit(now()) else {
                return true;
            };
            if self.out.try_send(Out::Envelope(Box::new(envelope))).is_err() {
                // The writer has ended; its own error ends the session.
                return true;
            }
        }
    }

    fn take_events(&mut self) -> Option<End> {
        while let Some(event) = self.link.poll_event() {
            match event {
                Event::Request { id, request } => self.ask(id, request),
                Event::Message { id, message } => self.message(&id, &message),
                Event::Acked { key, version } => {
                    tracing::debug!(node = %self.shared.node, %key, ?version, "acknowledged");
                }
                Event::Close { reason } => {
                    return Some(End {
                        violation: true,
                        ..End::tell(CloseCode::Policy, reason)
                    });
                }
            }
        }
        None
    }

    fn ask(&mut self, id: MessageId, request: Request) {
        count(&self.shared.metrics.requests);
        let controllers = self.requests.clone();
        self.asked.push(Box::pin(async move {
            (id, controllers.ask(request, REQUEST_TIMEOUT).await)
        }));
    }

    fn message(&mut self, id: &MessageId, message: &ToCloud) {
        if let ToCloud::KubernetesCa { .. } = message {
            match &self.shared.kubernetes_ca {
                Some(pem) => self.link.reply(id, Body::text(pem), None, false, now()),
                None => self.fail(id, "this cloud was not told the authority of its Kubernetes API"),
            }
            return;
        }
        let (kind, first) = self.shared.metrics.without_effect(message);
        if first {
            tracing::warn!(node = %self.shared.node, kind, "messages of this kind have no effect yet; counted from now on");
        }
    }

    fn answered(&mut self, id: &MessageId, answer: Result<Answer, NoAnswer>) {
        match answer {
            Ok(answer) if answer.silent => self.link.dismiss(id),
            Ok(answer) => self
                .link
                .reply(id, answer.body, answer.version, answer.error, now()),
            Err(NoAnswer::Timeout { .. }) => {
                self.fail(id, "the cloud did not get an answer from its API in time")
            }
            // One dropped question is no reason to end; controllers that end close `desired`.
            Err(NoAnswer::Closed(_)) => self.fail(id, "the cloud dropped the question"),
        }
    }

    /// Answers with operation `error`.
    fn fail(&mut self, id: &MessageId, sentence: &str) {
        self.link.reply(id, Body::text(sentence), None, true, now());
    }

    fn attached(&mut self, attached: Attached) -> Result<(), End> {
        self.attaching = None;
        let objects = attached.map_err(|no_answer| {
            End::tell(
                CloseCode::TryAgain,
                format!("the cloud does not know what this node must hold: {no_answer}"),
            )
        })?;
        tracing::debug!(node = %self.shared.node, objects = objects.len(), "attached");
        for (key, object) in objects {
            self.link.set_desired(key, Some(object), now());
        }
        self.link.desired_complete(now());
        Ok(())
    }

    fn changed(&mut self, changed: Option<(ObjectKey, Option<Object>)>) -> Result<(), End> {
        let (key, object) = changed.ok_or_else(|| {
            End::tell(
                CloseCode::TryAgain,
                "the cloud's controllers have let this node go",
            )
        })?;
        self.link.set_desired(key, object, now());
        Ok(())
    }

    fn received(&mut self, received: Result<Envelope, RecvError>) -> Result<(), End> {
        match received {
            Ok(envelope) => {
                self.link.handle_envelope(envelope, now());
                Ok(())
            }
            Err(error) => {
                let close = error.verdict();
                let why = close
                    .as_ref()
                    .map_or_else(|| error.to_string(), |close| close.reason.clone());
                Err(End {
                    violation: close.is_some(),
                    close,
                    why,
                })
            }
        }
    }
}

/// Waits for the controllers' first answer, or for ever when it has come.
async fn attached(attaching: &mut Option<BoxFuture<'static, Attached>>) -> Attached {
    match attaching {
        Some(attaching) => attaching.await,
        None => std::future::pending().await,
    }
}

/// Writes envelopes in order until the session ends or the socket breaks.
async fn write(
    mut sender: Sender,
    mut outgoing: queue::Receiver<Out>,
    tick: latest::Sender<u64>,
) -> Result<(), SendError> {
    while let Some(out) = outgoing.recv().await {
        match out {
            Out::Envelope(envelope) => sender.send(&envelope).await?,
            Out::Close(close) => {
                sender.close(&close).await;
                return Ok(());
            }
        }
        tick.send_modify(|count| *count += 1);
    }
    Ok(())
}

fn now() -> Time {
    Time::from_ms(clock::now_ms())
}
