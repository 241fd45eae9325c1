//! The task that owns the link and the connection.

use crate::backoff::{Backoff, GOOD_SESSION};
use crate::certificate::renew;
use crate::lane::{Done, StoreLane};
use crate::phase::{Out, Phase, PhaseEvent};
use crate::servers::Servers;
use crate::{CertificateConfig, Config, Dialer, Identity, Ports, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_link::edge::{CloudRequest, EdgeLink, Event, RequestError, RequestId};
use kedge_link::{Held, OFFER_HEADER, OFFER_VERSION, Peer};
use kedge_pki::{UnixTime, renewal_time};
use kedge_telemetry::channel::ask::{Question, Reply as Way};
use kedge_telemetry::{Scope, clock};
use kedge_transport::{Close, CloseCode, DialError, Framing, Target};
use kedge_wire::{Reply, Time, ToEdge};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Requests without an answer. More than metamanager ever has open, so that it never meets this limit.
const REQUESTS_MAX: usize = 128;
/// Nothing heard for this long although an answer is due: the connection is dead. Two official heartbeats.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// For what is being committed or sent when the process ends.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Official: 2 s doubling in five attempts, then every 32 s.
const RENEWAL_DELAY: Duration = Duration::from_secs(2);
const RENEWAL_DELAY_MAX: Duration = Duration::from_secs(32);
/// A machine that slept must not renew late, so long waits are cut and the clock is looked at again.
const RENEWAL_LOOK: Duration = Duration::from_secs(3600);
/// After a renewal the next one is at least this far, however short the cloud makes the lives of certificates.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// Kinds of unknown message that are remembered so that each is logged once.
const UNKNOWN_KINDS_MAX: usize = 64;

/// Said when QUIC does not get through, because the operator may have changed the cloud and not the edge.
const QUIC_HINT: &str = "an official CloudCore speaks an abandoned dialect of QUIC that this edge does not: with one, \
                         enable modules.edgeHub.websocket instead of modules.edgeHub.quic";

type Answer = Result<Reply, RequestError>;

/// Why the hub cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("make a TLS configuration of the node's certificate")]
    Identity(#[from] kedge_pki::Error),
    #[error("no address of a cloud to dial is configured")]
    NoServer,
}

/// The component.
pub struct EdgeHub {
    config: Config,
    identity: Identity,
    tls: Arc<rustls::ClientConfig>,
    dialer: Box<dyn Dialer>,
    ports: Ports,
    lane: StoreLane,
    link: EdgeLink,
    phase: Phase,
    waiting: HashMap<RequestId, Way<Answer>>,
    servers: Servers,
    backoff: Backoff,
    renewal: BoxFuture<'static, Identity>,
    time: Clock,
    /// What was logged last about a failed attempt at each address, so that a long outage is one line each.
    complaints: HashMap<String, String>,
    unknown: HashSet<String>,
}

impl std::fmt::Debug for EdgeHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeHub")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl EdgeHub {
    /// Puts the parts together.
    pub fn new(
        config: Config,
        identity: Identity,
        dialer: impl Dialer,
        ports: Ports,
    ) -> Result<Self, StartError> {
        let link = kedge_link::edge::Config {
            keepalive_interval: config.heartbeat,
            silence_max: SILENCE_MAX,
            requests_max: REQUESTS_MAX,
            rates: config.rates.clone(),
        };
        let servers = Servers::new(config.servers.clone(), config.seed).ok_or(StartError::NoServer)?;
        Ok(Self {
            tls: Arc::new(identity.client_config()?),
            link: EdgeLink::new(link, config.seed),
            lane: StoreLane::new(ports.store.clone()),
            phase: Phase::Resting {
                until: Instant::now(),
            },
            waiting: HashMap::new(),
            servers,
            backoff: Backoff::new(config.seed),
            renewal: renewal(&config, &identity, Duration::ZERO),
            time: Clock::start(),
            complaints: HashMap::new(),
            unknown: HashSet::new(),
            dialer: Box::new(dialer),
            config,
            identity,
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
                identity = &mut self.renewal => self.renewed(identity, &scope),
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
            PhaseEvent::Received(packet) => self.link.handle_packet(packet, self.time.now()),
            PhaseEvent::Sent => {}
            PhaseEvent::Broken(why, close) => {
                tracing::warn!(why, "connection to the cloud lost");
                self.disconnect(close, scope);
            }
        }
    }

    fn dial(&mut self) {
        let node = &self.config.certificate.node;
        let target = Target::hub(self.servers.current(), &self.config.project_id, node);
        let target = target.offering(OFFER_HEADER, OFFER_VERSION);
        let (address, after) = (target.address.clone(), self.config.handshake_timeout);
        let attempt = self
            .dialer
            .dial(self.config.transport, target, Arc::clone(&self.tls));
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

    fn renewed(&mut self, identity: Identity, scope: &Scope) {
        self.renewal = renewal(&self.config, &identity, RENEWAL_PAUSE);
        match identity.client_config() {
            Ok(tls) => self.tls = Arc::new(tls),
            Err(error) => {
                tracing::error!(%error, "renewed certificate cannot be used; the old one stays");
                return;
            }
        }
        tracing::info!("certificate renewed; connecting anew with it");
        self.identity = identity.clone();
        self.ports.identity.send_replace(identity);
        if matches!(self.phase, Phase::Online { .. }) {
            let reason = "certificate renewed".to_owned();
            self.disconnect(
                Some(Close {
                    code: CloseCode::Away,
                    reason,
                }),
                scope,
            );
        }
    }
}

/// Both ends are ours when the cloud echoes the offer.
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

/// Waits until the certificate is due, then asks until there is a new one.
fn renewal(config: &Config, identity: &Identity, pause: Duration) -> BoxFuture<'static, Identity> {
    if !config.rotate_certificates {
        return std::future::pending().boxed();
    }
    let due = renewal_time(identity.certificate().info(), config.seed);
    let (config, identity) = (config.certificate.clone(), identity.clone());
    async move {
        tokio::time::sleep(pause).await;
        renew_when_due(config, identity, due).await
    }
    .boxed()
}

async fn renew_when_due(config: CertificateConfig, current: Identity, due: UnixTime) -> Identity {
    loop {
        let left = due.as_secs().saturating_sub(UnixTime::now().as_secs());
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_secs(left).min(RENEWAL_LOOK)).await;
    }
    let mut delay = RENEWAL_DELAY;
    loop {
        match renew(&config, &current, UnixTime::now()).await {
            Ok(identity) => return identity,
            Err(error) => tracing::warn!(%error, ?delay, "certificate not renewed; trying again"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RENEWAL_DELAY_MAX);
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
