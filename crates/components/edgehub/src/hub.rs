//! The task that owns the link and the connection.

use crate::backoff::{Backoff, GOOD_SESSION};
use crate::certificate::Keeper;
use crate::lane::{Done, StoreLane};
use crate::phase::{Out, Phase, PhaseEvent};
use crate::servers::Servers;
use crate::{Config, Dialer, Identity, Ports, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_link::edge::{CloudRequest, EdgeLink, Event, RequestError, RequestId};
use kedge_link::{Held, OFFER_HEADER, OFFER_VERSION, Peer};
use kedge_telemetry::channel::ask::{Question, Reply as Way};
use kedge_telemetry::channel::latest;
use kedge_telemetry::{Scope, clock};
use kedge_transport::{Close, CloseCode, DialError, Framing, Target, TlsTrouble};
use kedge_wire::{Reply, Time, ToEdge};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Requests without an answer. More than metamanager ever has open, so that it never meets this limit.
const REQUESTS_MAX: usize = 128;
/// How many read deadlines a cloud may be silent although an answer is due: one is for a packet that was lost on the
/// way, and is sent again by the kernel.
const DEADLINES_SILENT: u32 = 2;
/// Messages in a row that cannot be read. One is passed over, because what comes behind it is needed; this many are no
/// accident.
const MALFORMED_MAX: u32 = 64;
/// For what is being committed or sent when the process ends.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Kinds of unknown message that are remembered so that each is logged once.
const UNKNOWN_KINDS_MAX: usize = 64;

/// Said when QUIC does not get through, because the operator may have changed the cloud and not the edge.
const QUIC_HINT: &str = "an official CloudCore speaks an abandoned dialect of QUIC that this edge does not: with one, \
                         enable modules.edgeHub.websocket instead of modules.edgeHub.quic";

type Answer = Result<Reply, RequestError>;

/// Why the hub cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no address of a cloud to dial is configured")]
    NoServer,
}

/// The component.
pub struct EdgeHub {
    config: Config,
    standing: Standing,
    dialer: Arc<dyn Dialer>,
    ports: Ports,
    lane: StoreLane,
    link: EdgeLink,
    phase: Phase,
    waiting: HashMap<RequestId, Way<Answer>>,
    servers: Servers,
    backoff: Backoff,
    keeper: Keeper,
    /// The identity after the one in use.
    next_identity: BoxFuture<'static, Identity>,
    malformed: u32,
    time: Clock,
    /// What was logged last about a failed attempt at each address, so that a long outage is one line each.
    complaints: HashMap<String, String>,
    unknown: HashSet<String>,
}

/// Who this node is to the cloud.
enum Standing {
    Nobody,
    Known(Known),
    /// The cloud and the identity do not know each other; another one is asked for.
    Disowned(Known),
}

/// An identity in use.
#[derive(Clone)]
struct Known {
    identity: Identity,
    tls: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for EdgeHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeHub")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl EdgeHub {
    /// Puts the parts together. An identity that is at hand saves the hub the look into the files.
    pub fn new(
        config: Config,
        identity: Option<Identity>,
        dialer: impl Dialer,
        ports: Ports,
    ) -> Result<Self, StartError> {
        let link = kedge_link::edge::Config {
            keepalive_interval: config.heartbeat,
            silence_max: config.read_deadline.saturating_mul(DEADLINES_SILENT),
            requests_max: REQUESTS_MAX,
            rates: config.rates.clone(),
        };
        let servers = Servers::new(config.servers.clone(), config.seed).ok_or(StartError::NoServer)?;
        let dialer: Arc<dyn Dialer> = Arc::new(dialer);
        let keeper = Keeper {
            config: config.certificate.clone(),
            dialer: Arc::clone(&dialer),
            rotate: config.rotate_certificates,
            seed: config.seed,
        };
        let next_identity = match identity {
            Some(identity) => std::future::ready(identity).boxed(),
            None => keeper.begin(),
        };
        Ok(Self {
            standing: Standing::Nobody,
            link: EdgeLink::new(link, config.seed),
            lane: StoreLane::new(ports.store.clone()),
            phase: Phase::Unknown,
            waiting: HashMap::new(),
            servers,
            backoff: Backoff::new(config.seed),
            keeper,
            next_identity,
            malformed: 0,
            time: Clock::start(),
            complaints: HashMap::new(),
            unknown: HashSet::new(),
            dialer,
            config,
            ports,
        })
    }

    /// Serves until the scope is cancelled, then finishes what is being committed and closes.
    pub async fn run(mut self, scope: Scope) {
        loop {
            self.settle(&scope);
            let wake_at = self.link.poll_timeout().map(|time| self.time.instant(time));
            tokio::select! {
                biased;
                // The end of the process comes before new work.
                () = scope.cancelled() => break,
                // What the store did becomes an acknowledgement.
                done = self.lane.next() => self.stored(done),
                event = self.phase.next() => self.connection_event(event, &scope),
                question = self.ports.requests.recv() => match question {
                    Some(question) => self.request(question),
                    // Nobody can ask any more: the process is ending.
                    None => break,
                },
                () = sleep_until(wake_at) => self.link.handle_timeout(self.time.now()),
                identity = &mut self.next_identity => self.identified(identity, &scope),
                () = changed(&mut self.ports.held_anew) => self.held_anew(&scope),
            }
        }
        self.drain(&scope).await;
    }

    async fn drain(mut self, scope: &Scope) {
        let _ = tokio::time::timeout(DRAIN_MAX, async {
            loop {
                self.settle(scope);
                let online = matches!(self.phase, Phase::Online { .. });
                if !online || (self.lane.is_idle() && !self.phase.is_sending()) {
                    return;
                }
                tokio::select! {
                    biased;
                    done = self.lane.next() => self.stored(done),
                    event = self.phase.next() => self.connection_event(event, scope),
                }
            }
        })
        .await;
        self.ports.online.send_replace(false);
        if let Phase::Online {
            out: Out::Idle(sender),
            ..
        } = self.phase
        {
            sender
                .close(&Close {
                    code: CloseCode::Away,
                    reason: "edgecore ends".to_owned(),
                })
                .await;
        }
    }

    /// Does what the link wants until it wants nothing more.
    fn settle(&mut self, scope: &Scope) {
        loop {
            while let Some(event) = self.link.poll_event() {
                self.link_event(event, scope);
            }
            if !self.phase.can_send() {
                return;
            }
            let Some(packet) = self.link.poll_transmit(self.time.now()) else {
                return;
            };
            self.phase.send(packet);
        }
    }

    fn link_event(&mut self, event: Event, scope: &Scope) {
        match event {
            Event::Deliver {
                id,
                message: message @ ToEdge::Object(_),
            } => self.lane.commit(id, message),
            Event::Deliver { message, .. } => self.unknown(&message),
            Event::Complete => self.lane.complete(),
            Event::Answer { id, answer } => {
                if let Some(way) = self.waiting.remove(&id) {
                    way.send(answer);
                }
            }
            Event::Close { reason } => {
                tracing::warn!(reason, "connection to the cloud closed");
                let close = Close {
                    code: CloseCode::Policy,
                    reason,
                };
                self.disconnect(Some(close), scope);
            }
        }
    }

    /// Twin, user and task messages have no taker among this edge's modules.
    fn unknown(&mut self, message: &ToEdge) {
        let route = message.route();
        let kind = format!("{} {} {}", route.source, route.group, route.operation);
        if self.unknown.len() < UNKNOWN_KINDS_MAX && self.unknown.insert(kind.clone()) {
            tracing::warn!(kind, %route, "no module of this edge takes this kind of message; said once");
        }
    }

    fn stored(&mut self, done: Done) {
        match done {
            Done::Committed(id, result) => self.link.committed(id, result, self.time.now()),
            Done::Held(held) => self.open(&held),
            Done::Noted => tracing::debug!("this node holds everything that the cloud wants here"),
        }
    }

    fn request(&mut self, question: Question<CloudRequest, Answer>) {
        let Question {
            question: CloudRequest { message, timeout },
            reply,
        } = question;
        match self.link.request(message, timeout, self.time.now()) {
            Ok(id) => {
                self.waiting.insert(id, reply);
            }
            Err(error) => reply.send(Err(error)),
        }
    }

    fn connection_event(&mut self, event: PhaseEvent, scope: &Scope) {
        match event {
            PhaseEvent::Rested => self.dial(),
            PhaseEvent::Connected(connection) => {
                self.phase = Phase::Opening { connection };
                self.lane.ask_held();
            }
            PhaseEvent::NotConnected(error) => self.not_connected(&error),
            PhaseEvent::Received(packet) => {
                self.malformed = 0;
                self.link.handle_packet(packet, self.time.now());
            }
            PhaseEvent::Malformed(why) => self.malformed(&why, scope),
            PhaseEvent::Sent => {}
            PhaseEvent::Broken(why, close) => {
                tracing::warn!(why, "connection to the cloud lost");
                self.disconnect(close, scope);
            }
        }
    }

    /// Passes over a message that cannot be read: what comes behind it is needed.
    fn malformed(&mut self, why: &str, scope: &Scope) {
        self.malformed += 1;
        match self.malformed {
            1 => tracing::warn!(why, "a message of the cloud cannot be read; it is passed over"),
            2..MALFORMED_MAX => tracing::debug!(why, "another message of the cloud cannot be read"),
            MALFORMED_MAX.. | 0 => {
                let reason = format!("{MALFORMED_MAX} messages in a row cannot be read, the last one: {why}");
                tracing::warn!(reason, "connection to the cloud closed");
                let code = CloseCode::Policy;
                self.disconnect(Some(Close { code, reason }), scope);
            }
        }
    }

    fn dial(&mut self) {
        let (Standing::Known(known) | Standing::Disowned(known)) = &self.standing else {
            self.phase = Phase::Unknown;
            return;
        };
        let node = &self.config.certificate.node;
        let target = Target::hub(self.servers.current(), &self.config.project_id, node);
        let target = target.offering(OFFER_HEADER, OFFER_VERSION);
        let (address, after) = (target.address.clone(), self.config.handshake_timeout);
        let attempt = self
            .dialer
            .dial(self.config.transport, target, Arc::clone(&known.tls));
        let attempt = async move {
            let step = "everything up to an open connection";
            let late = |_| DialError::Timeout { address, step, after };
            tokio::time::timeout(after, attempt).await.map_err(late)?
        };
        self.phase = Phase::Dialling {
            attempt: attempt.boxed(),
        };
    }

    fn not_connected(&mut self, error: &DialError) {
        self.disowned(error);
        let why = explain(self.config.transport, error);
        let address = self.servers.current().to_owned();
        let delay = if self.servers.failed() {
            self.backoff.next()
        } else {
            Duration::ZERO
        };
        if self.complaints.get(&address) == Some(&why) {
            tracing::debug!(why, ?delay, "cloud still not reached");
        } else {
            tracing::warn!(why, ?delay, "cloud not reached; trying again until it is");
            self.complaints.insert(address, why);
        }
        self.phase = Phase::Resting {
            until: Instant::now() + delay,
        };
    }

    /// The store's owner has said what is held: the session begins.
    fn open(&mut self, held: &[Held]) {
        let resting = Phase::Resting {
            until: Instant::now(),
        };
        let connection = match std::mem::replace(&mut self.phase, resting) {
            Phase::Opening { connection } => connection,
            other => {
                self.phase = other;
                return;
            }
        };
        let peer = match connection.framing() {
            Framing::Kedge => Peer::Kedge,
            Framing::Official => Peer::Official,
        };
        let (sender, receiver) = connection.split();
        self.phase = Phase::Online {
            receiver: Box::new(receiver),
            out: Out::Idle(sender),
            since: Instant::now(),
        };
        self.link.handle_connected(peer, held, self.time.now());
        self.ports.online.send_replace(true);
        self.malformed = 0;
        self.owned();
        self.complaints.clear();
        self.servers.reached();
        tracing::info!(
            server = self.servers.current(),
            ?peer,
            held = held.len(),
            "connected to the cloud"
        );
    }

    fn disconnect(&mut self, close: Option<Close>, scope: &Scope) {
        self.link.handle_disconnected(self.time.now());
        self.ports.online.send_replace(false);
        self.servers.lost();
        let now = Instant::now();
        let before = std::mem::replace(&mut self.phase, Phase::Resting { until: now });
        if let Phase::Online { since, out, .. } = before {
            if now - since >= GOOD_SESSION {
                self.backoff.reset();
            }
            if let (Some(close), Out::Idle(sender)) = (close, out) {
                scope.spawn("edgehub-close", async move { sender.close(&close).await });
            }
        }
        self.phase = Phase::Resting {
            until: now + self.backoff.next(),
        };
    }

    /// What the cloud was told is held is no longer true.
    fn held_anew(&mut self, scope: &Scope) {
        match self.phase {
            Phase::Online { .. } | Phase::Opening { .. } => {
                tracing::info!("connecting anew to tell the cloud what this node holds");
                let (code, reason) = (CloseCode::Away, "what the node holds has changed".to_owned());
                self.disconnect(Some(Close { code, reason }), scope);
            }
            // It is told when a connection stands.
            Phase::Unknown | Phase::Resting { .. } | Phase::Dialling { .. } => {}
        }
    }

    /// There is an identity to use from now on.
    fn identified(&mut self, identity: Identity, scope: &Scope) {
        let tls = match identity.client_config() {
            Ok(tls) => Arc::new(tls),
            Err(error) => {
                tracing::error!(%error, "the certificate of this node cannot be used");
                self.next_identity = self.keeper.replace(identity);
                return;
            }
        };
        let first = matches!(self.standing, Standing::Nobody);
        self.next_identity = match first {
            true => self.keeper.keep(identity.clone()),
            false => self.keeper.keep_new(identity.clone()),
        };
        self.ports.identity.send_replace(Some(identity.clone()));
        self.standing = Standing::Known(Known { identity, tls });
        if first {
            self.phase = Phase::Resting {
                until: Instant::now(),
            };
            return;
        }
        tracing::info!("certificate replaced; connecting anew with it");
        match self.phase {
            Phase::Online { .. } | Phase::Opening { .. } => {
                let (code, reason) = (CloseCode::Away, "certificate replaced".to_owned());
                self.disconnect(Some(Close { code, reason }), scope);
            }
            // What is under way was begun with the old one.
            Phase::Unknown | Phase::Resting { .. } | Phase::Dialling { .. } => {
                self.backoff.reset();
                self.phase = Phase::Resting {
                    until: Instant::now(),
                };
            }
        }
    }

    /// Asks for another identity when the failure says that this one leads nowhere.
    fn disowned(&mut self, error: &DialError) {
        let DialError::Tls { trouble, .. } = error else {
            return;
        };
        match trouble {
            TlsTrouble::UnknownAuthority | TlsTrouble::RefusesUs { .. } => {}
            TlsTrouble::Expired { .. }
            | TlsTrouble::NotYetValid { .. }
            | TlsTrouble::WrongName { .. }
            | TlsTrouble::Other(_) => return,
        }
        if let Standing::Known(known) = &self.standing {
            let known = known.clone();
            self.next_identity = self.keeper.replace(known.identity.clone());
            self.standing = Standing::Disowned(known);
        }
    }

    /// There is a session: the identity is good.
    fn owned(&mut self) {
        if let Standing::Disowned(known) = &self.standing {
            let known = known.clone();
            self.next_identity = self.keeper.keep(known.identity.clone());
            self.standing = Standing::Known(known);
        }
    }
}

/// What a person reads about a failed attempt.
fn explain(transport: Transport, error: &DialError) -> String {
    let reached = match error {
        DialError::Tls { .. } | DialError::Rejected { .. } | DialError::Handshake { .. } => true,
        DialError::Unplugged { .. }
        | DialError::Address { .. }
        | DialError::Refused { .. }
        | DialError::Timeout { .. }
        | DialError::Network { .. } => false,
    };
    match (transport, reached) {
        (Transport::WebSocket, _) | (Transport::Quic, true) => error.to_string(),
        (Transport::Quic, false) => format!("{error}; {QUIC_HINT}"),
    }
}

/// The time for the link, on the clock of the runtime, so that a test may stop it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            start_ms: clock::now_ms(),
        }
    }

    fn now(&self) -> Time {
        Time::from_ms(self.start_ms) + self.start.elapsed()
    }

    fn instant(&self, time: Time) -> Instant {
        self.start + time.since(Time::from_ms(self.start_ms))
    }
}

/// Completes at each change; never where there are none. Cancel safe.
async fn changed(what: &mut Option<latest::Receiver<u64>>) {
    if let Some(receiver) = what
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_quic_says_what_official_clouds_speak() {
        let address = || "cloud:10001".to_owned();
        let error = DialError::Refused { address: address() };
        assert_eq!(
            explain(Transport::WebSocket, &error),
            "dial cloud:10001: nobody listens there"
        );
        assert_eq!(
            explain(Transport::Quic, &error),
            "dial cloud:10001: nobody listens there; an official CloudCore speaks an abandoned dialect of QUIC that \
             this edge does not: with one, enable modules.edgeHub.websocket instead of modules.edgeHub.quic"
        );
        let trouble = kedge_transport::TlsTrouble::UnknownAuthority;
        let error = DialError::Tls {
            address: address(),
            trouble,
        };
        assert!(
            !explain(Transport::Quic, &error).contains("official"),
            "a cloud that has a certificate speaks it"
        );
    }
}
