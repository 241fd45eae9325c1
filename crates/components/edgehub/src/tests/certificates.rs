//! Trouble with the certificate: hands of memory, a clock that a test sets.

use super::cloud::{Directory, NODE};
use crate::{CertificateConfig, Config, Dialer, EdgeHub, Enrolment, Error, Ports, Rates, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_pki::{Authority, Identity, JoinToken, TokenError, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::latest;
use kedge_transport::{Connection, DialError, Framing, Limits, Plug, Target, TlsTrouble, pair};
use kedge_wire::{NodeName, Packet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
const LIFE: Duration = Duration::from_secs(3000);
/// When the certificates of these stories begin.
const BEGIN: u64 = 1_800_000_000;

/// Asks the test for everything.
#[derive(Debug)]
struct Hands {
    attempts: ask::Sender<Target, Result<Connection, DialError>>,
    enrolments: ask::Sender<Enrolment, Result<Identity, Error>>,
    clock: Arc<AtomicU64>,
}

impl Dialer for Hands {
    fn dial(
        &self,
        _transport: Transport,
        target: Target,
        _tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>> {
        let attempts = self.attempts.clone();
        async move {
            let address = target.address.clone();
            let given = attempts.ask(target, PATIENCE).await;
            given.unwrap_or(Err(DialError::Refused { address }))
        }
        .boxed()
    }

    fn enrol(
        &self,
        config: CertificateConfig,
        how: Enrolment,
        _now: UnixTime,
    ) -> BoxFuture<'static, Result<Identity, Error>> {
        let enrolments = self.enrolments.clone();
        async move {
            let identity = enrolments
                .ask(how, PATIENCE)
                .await
                .unwrap_or_else(|_| Err(away()))?;
            config.files.save(&identity)?;
            Ok(identity)
        }
        .boxed()
    }

    fn now(&self) -> UnixTime {
        at(self.clock.load(Ordering::Relaxed))
    }
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn away() -> Error {
    Error::Unreachable {
        url: "https://cloud:10002".to_owned(),
        source: refused(),
    }
}

fn refused() -> DialError {
    DialError::Refused {
        address: "cloud:10000".to_owned(),
    }
}

fn tls(trouble: TlsTrouble) -> DialError {
    DialError::Tls {
        address: "cloud:10000".to_owned(),
        trouble,
    }
}

struct World {
    authority: Authority,
    directory: Directory,
    attempts: ask::Receiver<Target, Result<Connection, DialError>>,
    enrolments: ask::Receiver<Enrolment, Result<Identity, Error>>,
    store: ask::Receiver<StoreOrder, StoreDone>,
    online: latest::Receiver<bool>,
    identity: latest::Receiver<Option<Identity>>,
    clock: Arc<AtomicU64>,
    scope: Scope,
}

impl World {
    /// `held` says whether the node has a certificate already; the clock shows `now`.
    fn start(held: bool, now: u64) -> Self {
        Self::with_token(held, now, None)
    }

    /// `token` is of the file that the operator wrote long ago.
    fn with_token(held: bool, now: u64, token: Option<String>) -> Self {
        let authority = Authority::create(at(BEGIN)).unwrap();
        let directory = Directory::new();
        if held {
            directory.files().save(&issue(&authority, BEGIN)).unwrap();
        }
        let config = Config {
            certificate: CertificateConfig {
                node: NodeName::new(NODE).unwrap(),
                http_server: "https://cloud:10002".to_owned(),
                token,
                token_file: Some(directory.path("bootstrap-edgecore.conf")),
                files: directory.files(),
            },
            transport: Transport::WebSocket,
            servers: vec!["cloud:10000".to_owned()],
            handshake_timeout: PATIENCE,
            read_deadline: Duration::from_secs(15),
            rates: Rates::default(),
            project_id: "p1".to_owned(),
            heartbeat: Duration::from_secs(15),
            rotate_certificates: true,
            seed: 12,
        };
        let (attempts_out, attempts) = ask::channel("attempts", 1);
        let (enrolments_out, enrolments) = ask::channel("enrolments", 1);
        let (store_out, store) = ask::channel("store", 4);
        let (requests_out, requests) = ask::channel("requests", 4);
        let (online_out, online) = latest::channel(false);
        let (identity_out, identity) = latest::channel(None);
        let clock = Arc::new(AtomicU64::new(now));
        let hands = Hands {
            attempts: attempts_out,
            enrolments: enrolments_out,
            clock: Arc::clone(&clock),
        };
        let ports = Ports {
            store: store_out,
            requests,
            online: online_out,
            held_anew: None,
            identity: identity_out,
        };
        let hub = EdgeHub::new(config, None, hands, ports).unwrap();
        let scope = Scope::new();
        scope.spawn("edgehub", hub.run(scope.clone()));
        scope.spawn_until_cancelled("asker", async move {
            let _open = requests_out;
            std::future::pending().await
        });
        Self {
            authority,
            directory,
            attempts,
            enrolments,
            store,
            online,
            identity,
            clock,
            scope,
        }
    }

    fn lay_down_a_token(&self, authority: &Authority) {
        let text = format!("{}\n", token_of(authority));
        let path = self.directory.path("bootstrap-edgecore.conf");
        kedge_pki::write_private(&path, text.as_bytes()).unwrap();
    }

    fn set_clock(&self, seconds: u64) {
        self.clock.store(seconds, Ordering::Relaxed);
    }

    /// What the hub asks the cloud for, answered.
    async fn enrol(&mut self, answer: Result<Identity, Error>) -> &'static str {
        let Question { question, reply } = self.enrolments.recv().await.unwrap();
        reply.send(answer);
        match question {
            Enrolment::Join(_) => "join",
            Enrolment::Renew(_) => "renew",
        }
    }

    async fn refuse_dial(&mut self, why: DialError) {
        self.attempts.recv().await.unwrap().reply.send(Err(why));
    }

    /// Lets the hub connect and begin a session, with a cloud that answers every heartbeat.
    async fn connect(&mut self) {
        let attempt = self.attempts.recv().await.unwrap();
        let (near, far) = pair(Limits::HUB, Framing::Kedge, &Plug::new()).await;
        attempt.reply.send(Ok(near));
        let Question { reply, .. } = self.store.recv().await.unwrap();
        reply.send(StoreDone::Held(Vec::new()));
        self.online.wait_for(|online| *online).await.unwrap();
        let (mut sender, mut receiver) = far.split();
        self.scope.spawn_until_cancelled("cloud", async move {
            while let Ok(packet) = receiver.recv().await {
                if packet == Packet::Ping && sender.send(&Packet::Pong).await.is_err() {
                    return;
                }
            }
        });
    }

    async fn uses(&mut self, identity: &Identity) {
        let found = self
            .identity
            .wait_for(|found| found.as_ref() == Some(identity))
            .await;
        found.unwrap();
    }

    async fn end(self) {
        assert!(self.scope.drain(PATIENCE).await.left.is_empty());
    }
}

fn token_of(authority: &Authority) -> String {
    let token = JoinToken::issue(authority, at(BEGIN * 2)).unwrap();
    token.text().to_owned()
}

fn issue(authority: &Authority, from: u64) -> Identity {
    let name = format!("system:node:{NODE}");
    authority
        .issue_client(&name, &["system:nodes"], LIFE, at(from))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn without_certificate_token_and_cloud_it_waits_and_joins_when_a_token_comes() {
    let mut world = World::start(false, BEGIN);
    assert!(world.identity.borrow().is_none());
    // A day without anything: nobody is asked and nobody dialled.
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    world.lay_down_a_token(&world.authority);
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(world.enrol(Err(away())).await, "join");
    }
    let identity = issue(&world.authority, BEGIN);
    assert_eq!(world.enrol(Ok(identity.clone())).await, "join");
    assert!(
        began.elapsed() < Duration::from_secs(4 * 60 + 1),
        "{:?}",
        began.elapsed()
    );
    world.uses(&identity).await;
    world.connect().await;
    assert_eq!(world.directory.files().load().unwrap(), Some(identity));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
    let mut world = World::start(true, BEGIN);
    world.connect().await;
    world.set_clock(BEGIN + LIFE.as_secs() * 2 / 3 + 101);
    assert_eq!(world.enrol(Err(away())).await, "renew");
    let next = issue(&world.authority, BEGIN + 2000);
    assert_eq!(world.enrol(Ok(next.clone())).await, "renew");
    world.uses(&next).await;
    // The session of the old certificate ends, and the next one has the new one.
    world.connect().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ended_while_offline_is_replaced_by_a_token() {
    let mut world = World::start(true, BEGIN);
    let old = issue(&world.authority, BEGIN);
    world.refuse_dial(refused()).await;
    world.set_clock(BEGIN + 2500);
    assert_eq!(world.enrol(Err(away())).await, "renew");
    world.set_clock(BEGIN + LIFE.as_secs() + 1);
    // An old certificate cannot ask any more; a token can, and comes while the hub dials in vain.
    for _ in 0..20 {
        world.refuse_dial(refused()).await;
    }
    world.lay_down_a_token(&world.authority);
    let fresh = issue(&world.authority, BEGIN + LIFE.as_secs());
    loop {
        tokio::select! {
            biased;
            how = world.enrolments.recv() => {
                let Question { question, reply } = how.unwrap();
                assert!(matches!(question, Enrolment::Join(_)));
                reply.send(Ok(fresh.clone()));
                break;
            }
            attempt = world.attempts.recv() => attempt.unwrap().reply.send(Err(refused())),
        }
    }
    assert_ne!(old, fresh);
    loop {
        tokio::select! {
            biased;
            changed = world.identity.changed() => changed.unwrap(),
            attempt = world.attempts.recv() => attempt.unwrap().reply.send(Err(refused())),
        }
        if world.identity.borrow().as_ref() == Some(&fresh) {
            break;
        }
    }
    world.connect().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_certificate_is_replaced_at_the_start_or_shown_when_no_token_helps() {
    let ended = BEGIN + LIFE.as_secs() + 1;
    // Without a token: the clock may be wrong, so the cloud judges.
    let mut world = World::start(true, ended);
    world.connect().await;
    world.end().await;

    let mut world = World::start(true, ended);
    world.lay_down_a_token(&world.authority);
    let fresh = issue(&world.authority, ended);
    assert_eq!(world.enrol(Ok(fresh.clone())).await, "join");
    world.uses(&fresh).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_begins_in_1970_or_jumps_asks_for_nothing_it_does_not_need() {
    let mut world = World::start(true, 5);
    world.connect().await;
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    // The right time comes. Then a wrong one, in which the cloud's answer is not valid yet.
    world.set_clock(BEGIN + 10);
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    world.set_clock(BEGIN + LIFE.as_secs() - 1);
    let skewed = Error::Clock {
        here: "then".to_owned(),
        there: "now".to_owned(),
    };
    assert_eq!(world.enrol(Err(skewed)).await, "renew");
    world.set_clock(BEGIN + 20);
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    let asked = tokio::time::timeout(Duration::from_millis(1), world.enrolments.recv()).await;
    assert!(asked.is_err(), "with the right time nothing is due");
    assert!(*world.online.borrow());
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_authority_of_the_cloud_is_believed_by_a_token_of_it_alone() {
    let mut world = World::start(true, BEGIN);
    world.refuse_dial(tls(TlsTrouble::UnknownAuthority)).await;
    // Hours of refused attempts: no certificate is asked for without a token.
    for _ in 0..50 {
        world.refuse_dial(tls(TlsTrouble::UnknownAuthority)).await;
    }
    let other = Authority::create(at(BEGIN + 1)).unwrap();
    world.lay_down_a_token(&other);
    let fresh = issue(&other, BEGIN + 1);
    loop {
        tokio::select! {
            biased;
            how = world.enrolments.recv() => {
                how.unwrap().reply.send(Ok(fresh.clone()));
                break;
            }
            attempt = world.attempts.recv() => attempt.unwrap().reply.send(Err(tls(TlsTrouble::UnknownAuthority))),
        }
    }
    loop {
        tokio::select! {
            biased;
            changed = world.identity.changed() => changed.unwrap(),
            attempt = world.attempts.recv() => attempt.unwrap().reply.send(Err(refused())),
        }
        if world.identity.borrow().as_ref() == Some(&fresh) {
            break;
        }
    }
    world.connect().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn files_that_an_operator_replaced_are_taken() {
    let mut world = World::start(true, BEGIN);
    world
        .refuse_dial(tls(TlsTrouble::RefusesUs {
            alert: "unknown".to_owned(),
        }))
        .await;
    let given = issue(&world.authority, BEGIN + 1);
    world.directory.files().save(&given).unwrap();
    loop {
        tokio::select! {
            biased;
            changed = world.identity.changed() => changed.unwrap(),
            attempt = world.attempts.recv() => attempt.unwrap().reply.send(Err(refused())),
        }
        if world.identity.borrow().as_ref() == Some(&given) {
            break;
        }
    }
    world.connect().await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_token_that_was_laid_down_goes_before_the_one_of_the_file_and_neither_hides_the_other() {
    let other = Authority::create(at(BEGIN)).unwrap();
    let mut world = World::with_token(false, BEGIN, Some(token_of(&other)));
    let hash = |how: &Enrolment| match how {
        Enrolment::Join(token) => token.authority_hash().to_owned(),
        Enrolment::Renew(_) => "renew".to_owned(),
    };
    let not_this_cloud = || {
        let (expected, found) = ("a".to_owned(), "b".to_owned());
        Err(Error::Token(TokenError::OtherAuthority { expected, found }))
    };
    let asked = world.enrolments.recv().await.unwrap();
    assert_eq!(hash(&asked.question), other.certificate().hash());
    asked.reply.send(not_this_cloud());
    world.lay_down_a_token(&world.authority);
    for authority in [world.authority.certificate(), other.certificate()] {
        let asked = world.enrolments.recv().await.unwrap();
        assert_eq!(hash(&asked.question), authority.hash());
        asked.reply.send(not_this_cloud());
    }
    // Next time the cloud takes it.
    let fresh = issue(&world.authority, BEGIN);
    assert_eq!(world.enrol(Ok(fresh.clone())).await, "join");
    world.uses(&fresh).await;
    world.end().await;
}
