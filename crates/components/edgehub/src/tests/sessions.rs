//! The hub on in-memory connections.

use super::cloud::NODE;
use crate::{CertificateConfig, Config, Dialer, EdgeHub, Ports, Rates, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_link::edge::{CloudRequest, RequestError, StoreDone, StoreOrder};
use kedge_pki::{Authority, IdentityFiles, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::latest;
use kedge_transport::{
    Connection, DialError, Framing, Limits, Plug, Receiver, RecvError, Sender, Target, pair,
};
use kedge_wire::{
    Body, ChangeVerb, Envelope, Header, Letter, MessageId, NodeName, ObjectChange, ObjectKey, Packet, Reply,
    Request, Resource, ToCloud, ToEdge,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(3600);
const HEARTBEAT: Duration = Duration::from_secs(15);
const READ_DEADLINE: Duration = Duration::from_secs(15);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the hub asked to be dialled.
type Attempt = (Transport, Target);

/// Asks the test for each attempt: `None` refuses it.
#[derive(Debug)]
struct TestDialer {
    attempts: ask::Sender<Attempt, Option<Connection>>,
}

impl Dialer for TestDialer {
    fn dial(
        &self,
        transport: Transport,
        target: Target,
        _tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>> {
        let attempts = self.attempts.clone();
        async move {
            let address = target.address.clone();
            let given = attempts.ask((transport, target), PATIENCE).await.ok().flatten();
            given.ok_or(DialError::Refused { address })
        }
        .boxed()
    }
}

struct World {
    framing: Framing,
    attempts: ask::Receiver<Attempt, Option<Connection>>,
    store: ask::Receiver<StoreOrder, StoreDone>,
    requests: ask::Sender<CloudRequest, Result<Reply, RequestError>>,
    online: latest::Receiver<bool>,
    held_anew: latest::Sender<u64>,
    scope: Scope,
}

/// The far end of a connection.
struct Far {
    sender: Sender,
    receiver: Receiver,
}

impl World {
    fn start() -> Self {
        Self::with(Transport::WebSocket, &["cloud:10000"], Framing::Official)
    }

    fn with(transport: Transport, servers: &[&str], framing: Framing) -> Self {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let name = format!("system:node:{NODE}");
        let identity = authority
            .issue_client(&name, &["system:nodes"], PATIENCE, now)
            .unwrap();
        let nowhere = Path::new("/nonexistent");
        let config = Config {
            certificate: CertificateConfig {
                node: NodeName::new(NODE).unwrap(),
                http_server: "https://127.0.0.1:1".to_owned(),
                token: None,
                token_file: None,
                files: IdentityFiles::in_directories(nowhere, nowhere),
            },
            transport,
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            read_deadline: READ_DEADLINE,
            rates: Rates::default(),
            project_id: "p1".to_owned(),
            heartbeat: HEARTBEAT,
            rotate_certificates: false,
            seed: 12,
        };
        let (attempts_out, attempts) = ask::channel("attempts", 1);
        let (store_out, store) = ask::channel("store", 4);
        let (requests, requests_in) = ask::channel("requests", 16);
        let (online_out, online) = latest::channel(false);
        let (identity_out, _) = latest::channel(None);
        let (held_anew, held_anew_in) = latest::channel(0);
        let ports = Ports {
            store: store_out,
            requests: requests_in,
            online: online_out,
            held_anew: Some(held_anew_in),
            identity: identity_out,
        };
        let hub = EdgeHub::new(
            config,
            Some(identity),
            TestDialer {
                attempts: attempts_out,
            },
            ports,
        )
        .unwrap();
        let scope = Scope::new();
        scope.spawn("edgehub", hub.run(scope.clone()));
        Self {
            framing,
            attempts,
            store,
            requests,
            online,
            held_anew,
            scope,
        }
    }

    async fn connect(&mut self) -> Far {
        let attempt = self.attempts.recv().await.unwrap();
        self.accept(attempt.reply).await
    }

    /// Answers an attempt with a connection, and lets the session begin.
    async fn accept(&mut self, attempt: ask::Reply<Option<Connection>>) -> Far {
        let (near, far) = pair(Limits::HUB, self.framing, &Plug::new()).await;
        attempt.send(Some(near));
        let Question { question, reply } = self.store.recv().await.unwrap();
        assert_eq!(question, StoreOrder::Held);
        reply.send(StoreDone::Held(Vec::new()));
        self.online.wait_for(|online| *online).await.unwrap();
        let (sender, receiver) = far.split();
        let mut far = Far { sender, receiver };
        match self.framing {
            Framing::Official => assert_eq!(far.next().await.message, ToCloud::KeepAlive),
            Framing::Kedge => {
                let first = far.next().await.message;
                assert!(matches!(first, ToCloud::Resume { .. }), "{first:?}");
                assert_eq!(far.receiver.recv().await.unwrap(), Packet::Ping);
            }
        }
        far
    }

    fn ask(&self, timeout: Duration) -> tokio::task::JoinHandle<Result<Reply, RequestError>> {
        let requests = self.requests.clone();
        let message = ToCloud::Request(Request::query(key("default/configmap/c")));
        tokio::spawn(async move {
            requests
                .ask(CloudRequest { message, timeout }, PATIENCE)
                .await
                .unwrap()
        })
    }
}

impl Far {
    async fn next(&mut self) -> Letter<ToCloud> {
        match self.receiver.recv().await.unwrap() {
            Packet::Envelope(envelope) => ToCloud::open(*envelope),
            beat @ (Packet::Ping | Packet::Pong) => panic!("{beat:?}"),
        }
    }

    async fn say(&mut self, header: Header, message: ToEdge) {
        let envelope: Envelope = Letter { header, message }.seal();
        self.sender.send(&envelope.into()).await.unwrap();
    }

    async fn insert(&mut self, id: &str, name: &str) {
        let key = ObjectKey::parse(name).unwrap();
        let json = format!(
            r#"{{"metadata":{{"name":"{}","uid":"u-{id}","resourceVersion":"5"}}}}"#,
            key.name
        );
        let version = Some(kedge_wire::ResourceVersion::new("5"));
        let body = Body::from_json(json).unwrap();
        let change = ObjectChange::from_edge_controller(ChangeVerb::Insert, key, version, body);
        self.say(header(id), ToEdge::Object(change)).await;
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn header(id: &str) -> Header {
    Header::new(MessageId::new(id), 0)
}

#[tokio::test(start_paused = true)]
async fn it_dials_as_the_official_edge_and_again_after_growing_waits() {
    let mut world = World::start();
    let mut moments = Vec::new();
    for _ in 0..4 {
        let Question { question, reply } = world.attempts.recv().await.unwrap();
        let (transport, question) = question;
        assert_eq!(
            (transport, question.address.as_str()),
            (Transport::WebSocket, "cloud:10000")
        );
        assert_eq!(question.path, "/p1/edge-1/events");
        let headers: Vec<String> = question
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            headers,
            [
                "node_id: edge-1",
                "project_id: p1",
                "ConnectionUse: msg",
                "Kedge-Link: 1"
            ]
        );
        moments.push(Instant::now());
        reply.send(None);
    }
    for (index, full_ms) in [1000, 2000, 4000].into_iter().enumerate() {
        let wait = (moments[index + 1] - moments[index]).as_millis();
        assert!(
            (full_ms / 2..=full_ms + 2).contains(&wait),
            "wait {index} was {wait} ms"
        );
    }
    world.connect().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_is_acknowledged_after_its_commit_and_a_failure_is_said() {
    let mut world = World::start();
    let mut far = world.connect().await;
    far.insert("m1", "default/pod/web").await;
    far.insert("m2", "default/pod/db").await;
    let first = world.store.recv().await.unwrap();
    let second = world.store.recv().await.unwrap();
    assert!(
        matches!(&first.question, StoreOrder::Commit(ToEdge::Object(change)) if change.key.name == "web")
    );

    second.reply.send(StoreDone::Committed(Err(
        "store pod default/db: disk full".to_owned()
    )));
    let ToCloud::Refusal(refusal) = far.next().await.message else {
        panic!("not a refusal")
    };
    assert_eq!(refusal.parent.unwrap().as_str(), "m2");
    assert_eq!(refusal.body.content_data(), "store pod default/db: disk full");

    first.reply.send(StoreDone::Committed(Ok(())));
    let ToCloud::Ack(ack) = far.next().await.message else {
        panic!("not an acknowledgement")
    };
    assert_eq!(ack.parent.as_str(), "m1");
}

#[tokio::test(start_paused = true)]
async fn an_answer_finds_its_asker() {
    let mut world = World::start();
    assert_eq!(
        world.ask(PATIENCE).await.unwrap(),
        Err(RequestError::Offline),
        "offline it is said at once"
    );
    let mut far = world.connect().await;
    let first = world.ask(PATIENCE);
    let one = far.next().await;
    let second = world.ask(PATIENCE);
    let two = far.next().await;
    for (letter, version) in [(two, "2"), (one, "1")] {
        let object = Body::from_json(format!(r#"{{"metadata":{{"resourceVersion":"{version}"}}}}"#)).unwrap();
        let reply = Reply::response(Resource::Object(key("default/configmap/c")), None, object);
        far.say(header("r").answering(letter.header.id), ToEdge::Reply(reply))
            .await;
    }
    let version = |reply: Reply| reply.body.object_meta().unwrap().resource_version.unwrap();
    assert_eq!(version(first.await.unwrap().unwrap()).as_str(), "1");
    assert_eq!(version(second.await.unwrap().unwrap()).as_str(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_times_out_and_one_that_is_cut_off_is_lost() {
    let mut world = World::start();
    let mut far = world.connect().await;
    let asked = world.ask(Duration::from_secs(5));
    far.next().await;
    assert_eq!(asked.await.unwrap(), Err(RequestError::Timeout));
    let asked = world.ask(PATIENCE);
    far.next().await;
    drop(far);
    assert_eq!(asked.await.unwrap(), Err(RequestError::Lost));
    world.online.wait_for(|online| !online).await.unwrap();
    world.connect().await;
}

#[tokio::test(start_paused = true)]
async fn it_sends_a_keepalive_every_heartbeat() {
    let mut world = World::start();
    let mut far = world.connect().await;
    let start = Instant::now();
    for beat in 1..=4 {
        assert_eq!(far.next().await.message, ToCloud::KeepAlive);
        let passed = start.elapsed();
        assert!(
            passed >= HEARTBEAT * beat && passed < HEARTBEAT * beat + Duration::from_secs(1),
            "{passed:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_what_is_being_committed_is_still_acknowledged() {
    let mut world = World::start();
    let mut far = world.connect().await;
    far.insert("m1", "default/pod/web").await;
    let order = world.store.recv().await.unwrap();
    world.scope.cancel();
    order.reply.send(StoreDone::Committed(Ok(())));
    let ToCloud::Ack(ack) = far.next().await.message else {
        panic!("not an acknowledgement")
    };
    assert_eq!(ack.parent.as_str(), "m1");
    let ended = far.receiver.recv().await.unwrap_err();
    assert!(
        matches!(&ended, RecvError::Closed(close) if close.reason == "edgecore ends"),
        "{ended}"
    );
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
    assert!(!*world.online.borrow());
}

#[tokio::test(start_paused = true)]
async fn between_our_own_ends_the_heartbeat_is_a_ping_that_must_be_answered() {
    let mut world = World::with(Transport::WebSocket, &["cloud:10000"], Framing::Kedge);
    let mut far = world.connect().await;
    let start = Instant::now();
    far.sender.send(&Packet::Pong).await.unwrap();
    assert_eq!(far.receiver.recv().await.unwrap(), Packet::Ping);
    assert!(start.elapsed() >= HEARTBEAT);
    // Two more beats go out unanswered, then the edge gives up.
    let ended = loop {
        match far.receiver.recv().await {
            Ok(packet) => assert_eq!(packet, Packet::Ping),
            Err(ended) => break ended,
        }
    };
    assert!(ended.to_string().contains("an answer is due"), "{ended}");
    assert!(start.elapsed() < HEARTBEAT * 4, "{:?}", start.elapsed());
    world.connect().await;
}

/// A store that was damaged and mended while the session was open: the cloud must not go on from the old digest.
#[tokio::test(start_paused = true)]
async fn what_is_held_is_told_anew_when_it_has_changed_behind_the_back_of_the_cloud() {
    let mut world = World::with(Transport::WebSocket, &["cloud:10000"], Framing::Kedge);
    let mut far = world.connect().await;
    let start = Instant::now();
    world.held_anew.send_replace(1);
    let ended = loop {
        match far.receiver.recv().await {
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    assert!(
        matches!(&ended, RecvError::Closed(close) if close.reason == "what the node holds has changed"),
        "{ended}"
    );
    world.connect().await;
    assert!(start.elapsed() < HEARTBEAT, "{:?}", start.elapsed());
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

#[tokio::test(start_paused = true)]
async fn quic_is_dialled_when_it_is_configured() {
    let mut world = World::with(Transport::Quic, &["cloud:10001"], Framing::Kedge);
    let Question {
        question: (transport, target),
        reply,
    } = world.attempts.recv().await.unwrap();
    assert_eq!(
        (transport, target.address.as_str()),
        (Transport::Quic, "cloud:10001")
    );
    // Nothing but our own framing is spoken there.
    assert_eq!(target.offer.as_deref(), Some("Kedge-Link"));
    world.accept(reply).await;
}

#[tokio::test(start_paused = true)]
async fn of_several_clouds_the_next_is_dialled_at_once_and_all_before_a_rest() {
    let mut world = World::with(Transport::WebSocket, &["a:1", "b:1", "c:1"], Framing::Kedge);
    let start = Instant::now();
    for (address, rested) in [("a:1", false), ("b:1", false), ("c:1", false), ("a:1", true)] {
        let Question { question, reply } = world.attempts.recv().await.unwrap();
        assert_eq!(question.1.address, address);
        assert_eq!(start.elapsed() >= Duration::from_millis(100), rested, "{address}");
        reply.send(None);
    }
    let Question { question, reply } = world.attempts.recv().await.unwrap();
    assert_eq!(question.1.address, "b:1");
    let far = world.accept(reply).await;
    // That cloud dies: the next one has the node soon.
    let lost = Instant::now();
    drop(far);
    let Question { question, reply } = world.attempts.recv().await.unwrap();
    assert_eq!(question.1.address, "c:1");
    world.accept(reply).await;
    assert!(lost.elapsed() < Duration::from_secs(2), "{:?}", lost.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up() {
    let mut world = World::with(Transport::WebSocket, &["a:1", "b:1"], Framing::Official);
    let start = Instant::now();
    let hanging = world.attempts.recv().await.unwrap();
    assert_eq!(hanging.question.1.address, "a:1");
    let next = world.attempts.recv().await.unwrap();
    assert_eq!(next.question.1.address, "b:1");
    assert!(start.elapsed() >= HANDSHAKE_TIMEOUT);
    drop(hanging);
    world.accept(next.reply).await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_reports_is_paced_and_heartbeats_are_not() {
    let mut world = World::with(Transport::WebSocket, &["cloud:10000"], Framing::Kedge);
    let mut far = world.connect().await;
    let start = Instant::now();
    let requests = world.requests.clone();
    let flood = tokio::spawn(async move {
        for number in 0..600 {
            let key = key(&format!("default/event/e{number}"));
            let message = ToCloud::Request(Request::insert(key, Body::null()));
            let timeout = PATIENCE;
            requests
                .ask(CloudRequest { message, timeout }, PATIENCE)
                .await
                .unwrap()
                .unwrap();
        }
    });
    let (mut events, mut beats) = (0, 0);
    while events < 600 {
        match far.receiver.recv().await.unwrap() {
            Packet::Envelope(_) => events += 1,
            Packet::Ping => {
                beats += 1;
                far.sender.send(&Packet::Pong).await.unwrap();
            }
            Packet::Pong => panic!("nobody asked"),
        }
    }
    flood.await.unwrap();
    // 60 at once and 30 each second.
    let seconds = start.elapsed().as_secs_f32();
    assert!((17.5..19.0).contains(&seconds), "{seconds}");
    assert_eq!(beats, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_read_is_passed_over_and_many_end_the_session() {
    let mut world = World::start();
    let mut far = world.connect().await;
    for nonsense in ["", "no JSON", "[]", "{\"header\": 5}", &"[".repeat(10_000)] {
        far.sender.send_text(nonsense.to_owned().into()).await.unwrap();
    }
    far.insert("m1", "default/pod/web").await;
    let order = world.store.recv().await.unwrap();
    order.reply.send(StoreDone::Committed(Ok(())));
    let ToCloud::Ack(ack) = far.next().await.message else {
        panic!("not an acknowledgement")
    };
    assert_eq!(ack.parent.as_str(), "m1");
    for _ in 0..64 {
        far.sender.send_text("no JSON".into()).await.unwrap();
    }
    let ended = far.receiver.recv().await.unwrap_err();
    assert!(
        matches!(&ended, RecvError::Closed(close) if close.reason.contains("64 messages in a row")),
        "{ended}"
    );
    // The next session begins anew.
    world.connect().await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_owes_an_answer_for_two_read_deadlines_is_left() {
    let mut world = World::start();
    let mut far = world.connect().await;
    let asked = world.ask(PATIENCE);
    far.next().await;
    let start = Instant::now();
    let ended = loop {
        match far.receiver.recv().await {
            Ok(_beat) => {}
            Err(ended) => break ended,
        }
    };
    assert!(ended.to_string().contains("an answer is due"), "{ended}");
    let silent = start.elapsed();
    assert!(
        (READ_DEADLINE * 2..READ_DEADLINE * 2 + HEARTBEAT).contains(&silent),
        "{silent:?}"
    );
    assert_eq!(asked.await.unwrap(), Err(RequestError::Lost));
    world.connect().await;
}
