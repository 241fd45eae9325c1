//! One session of one node: a task that owns the link's state machine and both directions of the connection.
//!
//! Ten thousand of them rest at one time, so what a session needs only while something happens (the future of a write,
//! questions that wait for an answer) exists only then.

mod end;
mod flow;
mod load;
mod outlet;
#[cfg(test)]
mod tests;

use crate::metrics::Pause;
use crate::ports::{Acked, Answer, Attach, Attached};
use crate::reception::Shared;
use crate::registry::{HeldSet, Place};
use crate::traffic::{Class, Unserved, bytes_of};
use end::End;
pub(crate) use end::Reason;
use flow::Flow;
pub use flow::FlowLimits;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kedge_link::Peer;
use kedge_link::cloud::{CloudLink, Config as LinkConfig, Event};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::NoAnswer;
use kedge_telemetry::channel::{ask, keyed};
use kedge_transport::{Close, CloseCode, Connection, Receiver, RecvError};
use kedge_wire::{
    Body, MessageId, NodeName, Object, ObjectKey, Packet, Request, ResourceVersion, Time, ToCloud, TraceId,
    Uid,
};
use load::{Load, Timing};
use outlet::Outlet;
use std::net::SocketAddr;
use std::pin::pin;
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
pub(crate) const REQUESTS_MAX: usize = 64;
/// How long the controllers may take for a request; less than the keepalive timeout, because reading may stand still
/// meanwhile.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the controllers may take to say what a node must hold.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// At the end of the process this many nodes a second are told to go, so that those who take over are not stormed.
const FAREWELLS_PER_SECOND: u32 = 2000;
/// But all of them have been told after this, which leaves most of a process's drain to the rest.
const FAREWELL_SPREAD_MAX: Duration = Duration::from_secs(4);

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) node: NodeName,
    pub(crate) peer: Peer,
    pub(crate) address: SocketAddr,
    /// `websocket` or `quic`.
    pub(crate) carrier: &'static str,
}

type Answered = (MessageId, Result<Answer, NoAnswer>);

/// How the session stands with the controllers.
enum Attachment {
    /// They are asked for the full set.
    Asking(BoxFuture<'static, Result<Attached, NoAnswer>>),
    /// They tell what changes.
    Following,
    /// The process ends, and they ended before this session.
    Over,
}

/// The moving parts of one session.
pub(crate) struct Session {
    hub: Arc<Shared>,
    link: CloudLink,
    receiver: Receiver,
    outlet: Outlet,
    flow: Flow,
    desired: keyed::Receiver<ObjectKey, Option<Object>>,
    acked: keyed::Sender<ObjectKey, Acked>,
    requests: ask::Sender<Request, Answer>,
    attachment: Attachment,
    /// `None` while no request is being worked on.
    asked: Option<FuturesUnordered<BoxFuture<'static, Answered>>>,
    timing: Timing,
    load: Load,
    pause: Option<Pause>,
    /// Set when the process ends: the moment at which this node is told.
    leave_at: Option<Time>,
    seed: u64,
    begun: Time,
    peer: Peer,
}

impl Session {
    /// Prepares the session of a node that was let in. `seed` differs from session to session. It is boxed because a
    /// task that takes a value and runs with it has room for it twice.
    pub(crate) fn new(
        hub: Arc<Shared>,
        guest: &Guest,
        connection: Connection,
        seed: u64,
        held: HeldSet,
    ) -> Box<Self> {
        let now = hub.clock.now();
        let config = LinkConfig {
            keepalive_timeout: hub.keepalive_timeout,
            in_flight_max: IN_FLIGHT_MAX,
            retry_delay: RETRY_DELAY,
            retry_delay_max: RETRY_DELAY_MAX,
            // Reading stops before the link would call it a violation.
            requests_max: REQUESTS_MAX + 1,
        };
        let mut link = CloudLink::new(guest.node.clone(), guest.peer, config, seed, now);
        link.assume_held(held);
        let (sender, receiver) = connection.split();
        let (desired_in, desired) = keyed::channel("node desired");
        let (acked, acked_out) = keyed::channel("node acked");
        let (requests, requests_out) = ask::channel("node requests", REQUESTS_MAX);
        let attach = Attach {
            node: guest.node.clone(),
            peer: guest.peer,
            desired: desired_in,
            requests: requests_out,
            acked: acked_out,
        };
        let controllers = hub.attach.clone();
        let asking = Box::pin(async move { controllers.ask(attach, ATTACH_TIMEOUT).await });
        let load = Load::new(Arc::clone(&hub.metrics), guest.peer);
        Box::new(Self {
            hub,
            link,
            receiver,
            outlet: Outlet::Idle(sender),
            flow: Flow::default(),
            desired,
            acked,
            requests,
            attachment: Attachment::Asking(asking),
            asked: None,
            timing: Timing::default(),
            load,
            pause: None,
            leave_at: None,
            seed,
            begun: now,
            peer: guest.peer,
        })
    }

    /// Runs the session to its end and gives the place back.
    pub(crate) async fn run(mut self: Box<Self>, mut place: Place, scope: Scope) {
        let end = self.until_end(&mut place.replaced, &scope).await;
        // Boxed, so that a session at rest has no room for its end.
        Box::pin(self.finish(end, place)).await;
    }

    /// In this order: the controllers see the old attachment close before a newer session attaches, and the place is free
    /// before the last words, so that a newer session never waits for a dead peer.
    async fn finish(self: Box<Self>, end: End, place: Place) {
        let (node, peer) = (self.link.node().clone(), self.peer);
        let seconds = self.hub.clock.now().since(self.begun).as_secs();
        self.hub.metrics.ended(end.reason);
        let held = self.link.held();
        let outlet = self.part();
        place.leave(held);
        let (reason, why) = (end.reason.name(), end.why);
        if end.reason.is_violation() {
            tracing::warn!(%node, ?peer, reason, why, seconds, "node disconnected for breaking a rule");
        } else {
            tracing::info!(%node, ?peer, reason, why, seconds, "node disconnected");
        }
        if let Some(code) = end.code {
            outlet.close(Close { code, reason: why }).await;
        }
    }

    /// Drops everything but the way out.
    fn part(self) -> Outlet {
        self.outlet
    }

    async fn until_end(&mut self, replaced: &mut oneshot::Receiver<()>, scope: &Scope) -> End {
        // One wait for the whole session: ten thousand share what it registers with.
        let mut cancelled = pin!(scope.cancelled());
        loop {
            self.transmit();
            let now = self.hub.clock.now();
            self.load.tell(&self.link.depth());
            self.notice_pause(now);
            let wake = self.wake(now);
            let (reading, leaving) = (self.pause.is_none(), self.leave_at.is_some());
            let following = self.attachment.is_following();
            let step = tokio::select! {
                biased;
                // The end comes before any work.
                () = &mut cancelled, if !leaving => {
                    self.leave_at = Some(now + self.farewell_delay());
                    Ok(())
                }
                _ = &mut *replaced => Err(End::replaced()),
                // What is being written makes room for the next, and answers make room for requests, so both come before
                // reading.
                written = self.outlet.written() => written.map_err(|error| End::unwritable(&error)),
                (id, answer) = next_answer(&mut self.asked) => {
                    self.answered(&id, answer);
                    Ok(())
                }
                attached = self.attachment.told() => self.attached(attached),
                received = self.receiver.recv(), if reading => self.received(received),
                changed = self.desired.recv(), if following => self.changed(changed),
                () = tokio::time::sleep(wake) => self.woken(),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// How long to sleep when nothing happens.
    fn wake(&self, now: Time) -> Duration {
        let resting = match self.pause {
            Some(Pause::Rate) => self.flow.paused_until(&self.hub.flow, now),
            Some(Pause::Requests) | None => None,
        };
        let moments = [self.link.poll_timeout(), self.leave_at, resting];
        moments
            .into_iter()
            .flatten()
            .min()
            .map_or(Duration::MAX, |at| at.since(now))
    }

    /// Whether reading stands still now, and counts each time that it begins to.
    fn notice_pause(&mut self, now: Time) {
        let working = self.asked.as_ref().map_or(0, FuturesUnordered::len);
        let pause = if self.flow.paused_until(&self.hub.flow, now).is_some() {
            Some(Pause::Rate)
        } else if working >= REQUESTS_MAX || self.link.depth().requests >= REQUESTS_MAX {
            Some(Pause::Requests)
        } else {
            None
        };
        if let Some(begun) = pause.filter(|_| pause != self.pause) {
            self.hub.metrics.paused(begun);
        }
        self.pause = pause;
    }

    /// Nodes are told to go one after the other.
    fn farewell_delay(&self) -> Duration {
        let sessions = u32::try_from(self.hub.metrics.sessions_now()).unwrap_or(u32::MAX);
        let needed = Duration::from_secs(1) * sessions / FAREWELLS_PER_SECOND;
        // The upper half of the seed is as good as chance here.
        let share = f64::from((self.seed >> 32) as u32) / f64::from(u32::MAX);
        needed.min(FAREWELL_SPREAD_MAX).mul_f64(share)
    }

    fn woken(&mut self) -> Result<(), End> {
        let now = self.hub.clock.now();
        if self.leave_at.is_some_and(|at| at <= now) {
            return Err(End::tell(
                Reason::Stopping,
                CloseCode::Away,
                "the cloud is stopping",
            ));
        }
        self.link.handle_timeout(now);
        // The only end that time brings is that of a silent node.
        self.take_events(Reason::Silent)
    }

    /// Begins to write the most urgent message if nothing is being written.
    fn transmit(&mut self) {
        if !self.outlet.is_idle() {
            return;
        }
        let now = self.hub.clock.now();
        if let Some(packet) = self.link.poll_transmit(now) {
            let class = Class::of_sent(&packet);
            self.hub.metrics.sent(class, bytes_of(&packet));
            if class == Class::Object {
                self.timing.sent(&packet, now, &self.hub.metrics.ack_seconds);
                log_sent(self.link.node(), &packet);
            }
            self.outlet.write(packet);
        }
    }

    fn received(&mut self, received: Result<Packet, RecvError>) -> Result<(), End> {
        let packet = received.map_err(|error| End::unreadable(&error))?;
        let now = self.hub.clock.now();
        let (class, bytes) = (Class::of_received(&packet), bytes_of(&packet));
        self.hub.metrics.received(class, bytes);
        tracing::trace!(node = %self.link.node(), class = class.name(), bytes, "received");
        self.flow.read(bytes, &self.hub.flow, now);
        if self.flow.is_flood(&self.hub.flow, now) {
            let limits = &self.hub.flow;
            let why = format!(
                "node {} has sent more than {} messages or {} bytes a second for {} s",
                self.link.node(),
                limits.messages_per_second,
                limits.bytes_per_second,
                limits.patience.as_secs()
            );
            return Err(End::tell(Reason::Flood, CloseCode::Policy, why));
        }
        if class == Class::Ack {
            self.timing
                .acknowledged(&packet, now, &self.hub.metrics.ack_seconds);
        }
        self.link.handle_packet(packet, now);
        self.take_events(Reason::Protocol)
    }

    /// `closing` is what it means if the link wants to end now.
    fn take_events(&mut self, closing: Reason) -> Result<(), End> {
        while let Some(event) = self.link.poll_event() {
            match event {
                Event::Request { id, request } => self.ask(id, request),
                Event::Message { id, message } => self.message(&id, &message),
                Event::Acked { key, uid, version } => self.acknowledged(key, uid, version),
                Event::Close { reason } => return Err(End::tell(closing, CloseCode::Policy, reason)),
            }
        }
        Ok(())
    }

    fn ask(&mut self, id: MessageId, request: Request) {
        self.hub.metrics.requests.inc();
        tracing::debug!(
            node = %self.link.node(), %id, operation = %request.route.operation, key = %request.key, "asked"
        );
        let controllers = self.requests.clone();
        self.asked.get_or_insert_default().push(Box::pin(async move {
            (id, controllers.ask(request, REQUEST_TIMEOUT).await)
        }));
    }

    fn acknowledged(&mut self, key: ObjectKey, uid: Uid, version: Option<ResourceVersion>) {
        let node = self.link.node();
        match &version {
            Some(version) => {
                let trace = TraceId::of(&uid, version);
                tracing::debug!(%node, %key, %version, %trace, "acknowledged");
            }
            None => tracing::debug!(%node, %key, uid = uid.as_str(), "acknowledged as gone"),
        }
        // Controllers that have ended are noticed where changes come from.
        let _ = self.acked.set(key, Acked { uid, version });
    }

    fn message(&mut self, id: &MessageId, message: &ToCloud) {
        if let ToCloud::KubernetesCa { .. } = message {
            match &self.hub.kubernetes_ca {
                Some(pem) => {
                    let now = self.hub.clock.now();
                    self.link.reply(id, Body::text(pem), None, false, now);
                }
                None => self.fail(id, "this cloud was not told the authority of its Kubernetes API"),
            }
            return;
        }
        let kind = Unserved::of(message);
        if self.hub.metrics.unserved(kind) {
            let (node, kind) = (self.link.node(), kind.name());
            tracing::warn!(%node, kind, "messages of this kind have no effect yet; counted from now on");
        }
    }

    fn answered(&mut self, id: &MessageId, answer: Result<Answer, NoAnswer>) {
        if self.asked.as_ref().is_some_and(FuturesUnordered::is_empty) {
            self.asked = None;
        }
        let now = self.hub.clock.now();
        match answer {
            Ok(answer) if answer.silent => self.link.dismiss(id),
            Ok(answer) => self
                .link
                .reply(id, answer.body, answer.version, answer.error, now),
            Err(NoAnswer::Timeout { .. }) => {
                self.fail(id, "the cloud did not get an answer from its API in time")
            }
            // Whoever serves the node next answers it.
            Err(NoAnswer::Closed(_)) if self.leave_at.is_some() => self.link.dismiss(id),
            // One dropped question is no reason to end; controllers that end close `desired`.
            Err(NoAnswer::Closed(_)) => self.fail(id, "the cloud dropped the question"),
        }
    }

    /// Answers with operation `error`.
    fn fail(&mut self, id: &MessageId, sentence: &str) {
        let now = self.hub.clock.now();
        self.link.reply(id, Body::text(sentence), None, true, now);
    }

    fn attached(&mut self, attached: Result<Attached, NoAnswer>) -> Result<(), End> {
        self.attachment = Attachment::Following;
        let Attached {
            objects,
            held,
            reached,
        } = match attached {
            Ok(attached) => attached,
            Err(_) if self.leave_at.is_some() => {
                self.attachment = Attachment::Over;
                return Ok(());
            }
            Err(no_answer) => {
                let why = format!("the cloud does not know what this node must hold: {no_answer}");
                return Err(End::tell(Reason::Unattached, CloseCode::TryAgain, why));
            }
        };
        tracing::debug!(node = %self.link.node(), objects = objects.len(), held = held.len(), "attached");
        match self.peer {
            // What its records say; an edge that was away may hold what is gone meanwhile.
            Peer::Official => self.link.assume_held(held),
            // One of our own says itself what it holds.
            Peer::Kedge => {}
        }
        let now = self.hub.clock.now();
        for (kind, version) in reached {
            self.link.set_reached(&kind, &version);
        }
        for (key, object) in objects {
            self.link.set_desired(key, Some(object), now);
        }
        self.link.desired_complete(now);
        Ok(())
    }

    fn changed(&mut self, changed: Option<(ObjectKey, Option<Object>)>) -> Result<(), End> {
        match changed {
            Some((key, object)) => {
                self.link.set_desired(key, object, self.hub.clock.now());
                Ok(())
            }
            // All of the process ends; this node is told in its turn.
            None if self.leave_at.is_some() => {
                self.attachment = Attachment::Over;
                Ok(())
            }
            None => {
                let why = format!(
                    "this cloud serves node {} no longer: it was deleted, or its controllers let it go",
                    self.link.node()
                );
                Err(End::tell(Reason::Released, CloseCode::TryAgain, why))
            }
        }
    }
}

/// Says which version of which object is on its way. The UID that a trace needs stands in the body, which is read only
/// when somebody listens.
fn log_sent(node: &NodeName, packet: &Packet) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let Packet::Envelope(envelope) = packet else {
        return;
    };
    let (id, resource) = (&envelope.header.id, envelope.route.resource.as_str());
    let version = envelope.header.resource_version.as_ref();
    let uid = envelope.content.object_meta().ok().and_then(|meta| meta.uid);
    match version.zip(uid) {
        Some((version, uid)) => {
            let trace = TraceId::of(&uid, version);
            tracing::debug!(%node, %id, resource, %version, %trace, "sent");
        }
        None => tracing::debug!(%node, %id, resource, "sent"),
    }
}

impl Attachment {
    fn is_following(&self) -> bool {
        match self {
            Self::Following => true,
            Self::Asking(_) | Self::Over => false,
        }
    }

    /// Waits for the full set, or for ever when it was told. Cancel safe.
    async fn told(&mut self) -> Result<Attached, NoAnswer> {
        match self {
            Self::Asking(asking) => asking.await,
            Self::Following | Self::Over => std::future::pending().await,
        }
    }
}

/// Waits for the next answer, or for ever when nothing was asked.
async fn next_answer(asked: &mut Option<FuturesUnordered<BoxFuture<'static, Answered>>>) -> Answered {
    if let Some(waiting) = asked
        && let Some(answered) = waiting.next().await
    {
        return answered;
    }
    std::future::pending().await
}
