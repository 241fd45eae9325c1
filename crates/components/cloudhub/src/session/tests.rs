//! Sessions in memory under a paused clock: what one node does is seen by itself only.

#[allow(dead_code)] // The tests outside play more.
#[path = "../../tests/hub/play.rs"]
mod play;

use super::*;
use crate::Attach;
use crate::clock::Clock;
use crate::metrics::{Metrics, Snapshot};
use crate::registry::Registry;
use kedge_telemetry::metrics::Registry as Numbers;
use kedge_transport::{Framing, Limits, Plug, WRITE_TIMEOUT, pair};
use kedge_wire::{Ack, Envelope, Header, Letter, ToEdge};
use play::{Controllers, Edge, name, object, pod};
use std::sync::atomic::AtomicU64;
use tokio::time::Instant;

/// A hub without sockets.
struct Stage {
    hub: Arc<Shared>,
    attaches: ask::Receiver<Attach, Attached>,
    scope: Scope,
    numbers: Numbers,
}

impl Stage {
    fn new() -> Self {
        Self::with(FlowLimits::default())
    }

    fn with(flow: FlowLimits) -> Self {
        let (attach, attaches) = ask::channel("attach", 256);
        let numbers = Numbers::new();
        let metrics = Arc::new(Metrics::new(&numbers));
        let (places, registry) = Registry::new(1000, Arc::clone(&metrics));
        let scope = Scope::new();
        scope.spawn("registry", registry.run());
        let hub = Shared {
            places,
            attach,
            metrics,
            clock: Clock::start(),
            keepalive_timeout: Duration::from_secs(30),
            flow,
            kubernetes_ca: None,
            node_limit: 1000,
            seed: 7,
            sessions: AtomicU64::new(0),
        };
        Self {
            hub: Arc::new(hub),
            attaches,
            scope,
            numbers,
        }
    }

    async fn connect(&self, node: &str) -> Edge {
        let (near, far) = pair(Limits::HUB, Framing::Official, &Plug::new()).await;
        let guest = Guest {
            node: name(node),
            peer: Peer::Official,
            address: "127.0.0.1:1".parse().unwrap(),
            carrier: "memory",
        };
        Arc::clone(&self.hub).admit(guest, far, self.scope.clone()).await;
        Edge::new(near)
    }

    async fn node(&mut self, node: &str) -> (Edge, Controllers) {
        let edge = self.connect(node).await;
        let controllers = play::attach(&mut self.attaches, Vec::new()).await;
        assert_eq!(controllers.node, name(node));
        (edge, controllers)
    }

    fn counted(&self) -> Snapshot {
        self.hub.metrics.snapshot()
    }
}

/// A node that behaves.
struct Neighbour {
    edge: Edge,
    controllers: Controllers,
}

impl Neighbour {
    async fn join(stage: &mut Stage) -> Self {
        let (edge, controllers) = stage.node("neighbour").await;
        Self { edge, controllers }
    }

    /// Asks for its lease once a second and gets each answer in the same moment: under the paused clock any wait for a
    /// timer, the own or another node's, would show.
    async fn lives(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let asked_at = Instant::now();
            let id = self.edge.query_lease("neighbour").await;
            self.controllers.answer_one().await;
            assert_eq!(self.edge.reply(&id).await, "neighbour");
            assert_eq!(asked_at.elapsed(), Duration::ZERO);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A small object made large by its name.
fn large(number: usize) -> (ObjectKey, Object) {
    let name = format!("{}-{number}", "x".repeat(8000));
    (pod(&name), object(&name, 1))
}

#[tokio::test(start_paused = true)]
async fn a_node_that_takes_nothing_is_cut_off_and_disturbs_nobody() {
    let mut stage = Stage::new();
    let mut neighbour = Neighbour::join(&mut stage).await;
    let (slow, controllers) = stage.node("slow").await;
    // More than the memory of the connection holds.
    for (key, object) in (0..40).map(large) {
        controllers.desired.set(key, Some(object)).unwrap();
    }
    neighbour.lives(WRITE_TIMEOUT.as_secs() - 1).await;
    assert!(!controllers.desired.is_closed());
    neighbour.lives(3).await;
    assert!(controllers.desired.is_closed());
    let snapshot = stage.counted();
    assert_eq!((snapshot.sessions, snapshot.violations), (1, 0));
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_told_and_disturbs_nobody() {
    let mut stage = Stage::new();
    let mut neighbour = Neighbour::join(&mut stage).await;
    let (mut silent, _controllers) = stage.node("silent").await;
    let began = Instant::now();
    let ((), end) = tokio::join!(neighbour.lives(40), async {
        let end = silent.end().await;
        format!("{} s: {end}", began.elapsed().as_secs())
    });
    assert_eq!(end, "30 s: 1008 node silent was silent for 30 s");
    assert_eq!(stage.counted().violations, 0);
}

const NARROW: FlowLimits = FlowLimits {
    messages_per_second: 10,
    messages_burst: 20,
    bytes_per_second: 100_000,
    bytes_burst: 200_000,
    patience: Duration::from_secs(20),
};

/// Sends for as long as anybody reads; how many were taken.
async fn flood(edge: &mut Edge, text: &str) -> usize {
    for sent in 0.. {
        let key = ObjectKey::namespaced(kedge_wire::ObjectKind::Event, "default", text);
        let event = ToCloud::Request(Request::insert(key, Body::null()));
        let header = Header::new(MessageId::new(format!("flood-{sent}")), 1);
        let letter = Letter {
            header,
            message: event,
        };
        if edge.sender.send(&letter.seal().into()).await.is_err() {
            return sent;
        }
    }
    unreachable!("the loop has no end but its own")
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_read_at_its_rate_then_ended_and_disturbs_nobody() {
    // Small messages meet the limit of messages, large ones that of bytes.
    for text in ["x".to_owned(), "x".repeat(4000)] {
        let mut stage = Stage::with(NARROW);
        let mut neighbour = Neighbour::join(&mut stage).await;
        let (mut flooding, mut controllers) = stage.node("flooding").await;
        let (mut taken, began) = (0, Instant::now());
        let taking = async {
            while let Some(asked) = controllers.requests.recv().await {
                taken += 1;
                asked.reply.send(Answer {
                    body: Body::null(),
                    version: None,
                    error: false,
                    silent: true,
                });
            }
            began.elapsed().as_secs()
        };
        let (ended, sent, ()) = tokio::join!(taking, flood(&mut flooding, &text), neighbour.lives(40));
        assert!((20..=23).contains(&ended), "ended after {ended} s");
        // The burst, and 20 s at the rate; the rest never left its own side.
        assert!((200..=250).contains(&taken), "{taken} of {sent} taken");
        assert_eq!(
            flooding.end().await,
            "1008 node flooding has sent more than 10 messages or 100000 bytes a second for 20 s"
        );
        let snapshot = stage.counted();
        assert_eq!(snapshot.violations, 1);
        assert!(snapshot.slowed > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_acknowledges_nothing_is_sent_again_and_lives() {
    let mut stage = Stage::new();
    let mut neighbour = Neighbour::join(&mut stage).await;
    let (mut deaf, mut controllers) = stage.node("deaf").await;
    for number in 0..200 {
        let name = format!("pod-{number}");
        controllers
            .desired
            .set(pod(&name), Some(object(&name, 1)))
            .unwrap();
    }
    let listening = async {
        let (mut objects, mut leases) = (Vec::new(), 0);
        for second in 0..60 {
            let lease = deaf.query_lease("deaf").await;
            controllers.answer_one().await;
            // Whatever else comes, the answer to its lease does.
            loop {
                let letter = deaf.hear().await;
                match &letter.message {
                    ToEdge::Object(_) => objects.push((second, letter.header.id)),
                    _reply if letter.header.parent.as_ref() == Some(&lease) => break leases += 1,
                    other => panic!("{other:?}"),
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        (objects, leases)
    };
    let ((objects, leases), ()) = tokio::join!(listening, neighbour.lives(60));
    assert_eq!(leases, 60);
    // Never more than the window within one retry delay, and whatever was sent comes again.
    let delay = RETRY_DELAY.as_secs();
    for (second, _) in &objects {
        let flying = objects
            .iter()
            .filter(|(other, _)| (*second..second + delay).contains(other));
        assert!(flying.count() <= IN_FLIGHT_MAX + 1, "{objects:?}");
    }
    let first = &objects[0].1;
    assert!(
        objects.iter().filter(|(_, id)| id == first).count() > 1,
        "{objects:?}"
    );
    let snapshot = stage.counted();
    assert_eq!((snapshot.sessions, snapshot.violations), (2, 0));
    assert!(snapshot.retries > 0);
}

/// An acknowledgement of whatever `parent` was.
fn acknowledgement(parent: &MessageId, message: &ToEdge, number: usize) -> Envelope {
    let mut header = Header::new(MessageId::new(format!("again-{number}")), 1);
    header.parent = Some(parent.clone());
    let message = ToCloud::Ack(Ack::of(parent.clone(), message));
    Letter { header, message }.seal()
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_nothing_change_nothing() {
    let mut stage = Stage::new();
    let (mut edge, mut controllers) = stage.node("edge-1").await;
    controllers
        .desired
        .set(pod("web"), Some(object("web", 7)))
        .unwrap();
    let letter = edge.hear().await;
    let never_sent = MessageId::new("never sent");
    let ids = [&never_sent, &letter.header.id, &letter.header.id, &never_sent];
    for (number, id) in ids.into_iter().enumerate() {
        edge.send(acknowledgement(id, &letter.message, number)).await;
    }
    let id = edge.query_lease("edge-1").await;
    controllers.answer_one().await;
    assert_eq!(edge.reply(&id).await, "edge-1");

    let acked = Acked {
        uid: Uid::new("uid-web"),
        version: Some(ResourceVersion::new("7")),
    };
    assert_eq!(controllers.acked.recv().await, Some((pod("web"), acked)));
    // The session goes on: once, and nothing is sent again.
    controllers.desired.set(pod("db"), Some(object("db", 8))).unwrap();
    assert!(edge.take_object().await.ends_with("default/pod/db@8"));
    let (key, _) = controllers.acked.recv().await.unwrap();
    assert_eq!(key, pod("db"));
    let snapshot = stage.counted();
    assert_eq!(
        (snapshot.violations, snapshot.retries, snapshot.strays),
        (0, 0, 3)
    );
    assert!(
        stage
            .numbers
            .text()
            .contains("kedge_cloudhub_ack_seconds_count 2\n")
    );
}

/// Lines of the log, as text.
#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn one_trace_follows_an_object_through_the_log() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut stage = Stage::new();
    let (mut edge, mut controllers) = stage.node("edge-1").await;
    controllers
        .desired
        .set(pod("web"), Some(object("web", 7)))
        .unwrap();
    edge.take_object().await;
    controllers.acked.recv().await.unwrap();
    drop(controllers);
    edge.end().await;
    // The end is logged before it is told.
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let trace = TraceId::of(&Uid::new("uid-web"), &ResourceVersion::new("7"));
    let told = |what: &str| {
        let of_session = |line: &&str| line.contains("kedge_cloudhub") && line.contains(what);
        log.lines().find(of_session).unwrap_or_default().to_owned()
    };
    for what in [": sent ", ": acknowledged "] {
        assert!(told(what).contains(&format!("trace={trace}")), "{log}");
    }
    assert!(
        told(": node connected ").contains("node=edge-1 peer=Official"),
        "{log}"
    );
    assert!(
        told(": node disconnected ").contains("reason=\"released\""),
        "{log}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_records_say_an_official_edge_holds_is_deleted_when_it_is_not_wanted() {
    let mut stage = Stage::new();
    let mut edge = stage.connect("edge-1").await;
    let asked = stage.attaches.recv().await.unwrap();
    asked.reply.send(Attached {
        objects: vec![(pod("web"), object("web", 7))],
        held: vec![(pod("old"), Uid::new("uid-old"), ResourceVersion::new("3"))],
        ..Attached::default()
    });
    let mut told = [edge.take_object().await, edge.take_object().await];
    told.sort();
    assert_eq!(told, ["Delete default/pod/old@-", "Insert default/pod/web@7"]);
    let mut acked = asked.question.acked;
    let gone = Acked {
        uid: Uid::new("uid-old"),
        version: None,
    };
    let both = [acked.recv().await.unwrap(), acked.recv().await.unwrap()];
    assert!(both.contains(&(pod("old"), gone)), "{both:?}");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_nodes_are_told_one_after_the_other() {
    let mut stage = Stage::new();
    let mut nodes = Vec::new();
    for number in 0..200 {
        nodes.push(stage.node(&format!("edge-{number}")).await);
    }
    let began = Instant::now();
    let ends = nodes.into_iter().map(|(mut edge, controllers)| {
        // The controllers end at the same time as the hub.
        drop(controllers);
        async move {
            assert_eq!(edge.end().await, "1001 the cloud is stopping");
            began.elapsed().as_millis()
        }
    });
    stage.scope.cancel();
    let mut ends = futures_util::future::join_all(ends).await;
    ends.sort_unstable();
    let spread = Duration::from_secs(1) * 200 / FAREWELLS_PER_SECOND;
    assert!(ends.iter().all(|end| *end <= spread.as_millis() + 1), "{ends:?}");
    let moments = ends.iter().zip(&ends[1..]).filter(|(one, next)| one != next);
    assert!(moments.count() > 50, "{ends:?}");
    drop(stage.hub);
    assert!(stage.scope.drain(Duration::from_secs(5)).await.left.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_at_rest_is_small() {
    let stage = Stage::new();
    let (_near, far) = pair(Limits::HUB, Framing::Kedge, &Plug::new()).await;
    let Ok(crate::registry::Entered::Welcome(place)) = stage
        .hub
        .places
        .ask(
            crate::registry::Enter { node: name("edge-1") },
            Duration::from_secs(1),
        )
        .await
    else {
        panic!("the first is welcome")
    };
    let guest = Guest {
        node: name("edge-1"),
        peer: Peer::Kedge,
        address: "127.0.0.1:1".parse().unwrap(),
        carrier: "memory",
    };
    let session = Session::new(Arc::clone(&stage.hub), &guest, far, 1, Vec::new());
    let state = std::mem::size_of_val(&*session);
    let task = std::mem::size_of_val(&session.run(place, stage.scope.clone()));
    assert!(state <= 1280 && task <= 1024, "state {state}, task {task}");
}
