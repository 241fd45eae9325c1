//! CloudStream on loopback with real TLS; the test plays the edge and the API server.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kedge_cloudstream::{CloudStream, Config, ConnectAnswer, NodeAnswer, Ports};
use kedge_pki::{Authority, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::{DialError, Message, Plug, Receiver, RecvError, Sender, Target, dial};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{
    Connect, Frame, FrameBody, NodeConnect, NodeGet, OFFER, OFFER_HEADER, WINDOW_BYTES,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const SOON: Duration = Duration::from_secs(20);
/// The last words of a tunnel to its readers.
const LOST: &[u8] = b"\ncut here: the tunnel to the node ended\n";

struct World {
    authority: Authority,
    address: SocketAddr,
    gets: ask::Sender<(NodeName, NodeGet), NodeAnswer>,
    connects: ask::Sender<(NodeName, NodeConnect), ConnectAnswer>,
    scope: Scope,
}

struct Edge {
    sender: Sender,
    receiver: Receiver,
}

fn name(node: &str) -> NodeName {
    NodeName::new(node).unwrap()
}

impl World {
    async fn start() -> Self {
        let authority = Authority::create(UnixTime::now()).unwrap();
        let names = ServerNames {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            dns: Vec::new(),
        };
        let identity = authority.issue_server(&names, UnixTime::now()).unwrap();
        let (gets, asked) = ask::channel("gets", 16);
        let (connects, connected) = ask::channel("connects", 16);
        let config = Config {
            address: "127.0.0.1:0".parse().unwrap(),
            identity,
        };
        let stream = CloudStream::bind(
            config,
            Ports {
                gets: asked,
                connects: connected,
            },
        )
        .await
        .unwrap();
        let scope = Scope::new();
        let address = stream.local_address();
        scope.spawn("cloudstream", stream.run(scope.clone()));
        Self {
            authority,
            address,
            gets,
            connects,
            scope,
        }
    }

    /// As an official edge.
    async fn dial(&self, node: &str, claimed: &str) -> Result<Edge, DialError> {
        let target = Target::tunnel(&self.address.to_string(), &name(claimed), "192.0.2.7");
        self.dial_as(node, target).await
    }

    /// As one of ours.
    async fn dial_with_credit(&self, node: &str) -> Edge {
        let target = Target::tunnel(&self.address.to_string(), &name(node), "192.0.2.7");
        self.dial_as(node, target.with_header(OFFER_HEADER, OFFER))
            .await
            .unwrap()
    }

    async fn dial_as(&self, node: &str, target: Target) -> Result<Edge, DialError> {
        let organizations = [kedge_pki::NODES_ORGANIZATION];
        let common_name = format!("system:node:{node}");
        let lifetime = Duration::from_secs(60);
        let identity = self
            .authority
            .issue_client(&common_name, &organizations, lifetime, UnixTime::now())
            .unwrap();
        let tls = Arc::new(identity.client_config().unwrap());
        let connection = dial(&target, tls, &Plug::new()).await?;
        // An official edge is told nothing that it does not know.
        let offered = target.headers.iter().any(|(name, _)| name == OFFER_HEADER);
        assert_eq!(connection.header(OFFER_HEADER), offered.then_some(OFFER));
        let (sender, receiver) = connection.split();
        Ok(Edge { sender, receiver })
    }

    async fn ask(&self, node: &str, path: &str) -> NodeAnswer {
        let get = NodeGet {
            path: path.into(),
            query: "follow=true".into(),
        };
        self.gets.ask((name(node), get), SOON).await.unwrap()
    }

    /// Connects until the tunnel, which was dialled just now, is in the table.
    async fn connect(&self, node: &str, path: &str) -> DuplexStream {
        let connected = async {
            loop {
                let connect = NodeConnect {
                    method: "POST".into(),
                    path: path.into(),
                    query: "command=ls".into(),
                    headers: vec![("Upgrade".into(), "SPDY/3.1".into())],
                };
                match self.connects.ask((name(node), connect), SOON).await.unwrap() {
                    Ok(stream) => return stream,
                    Err(why) if why.contains("has no tunnel") => tokio::task::yield_now().await,
                    Err(why) => panic!("{why}"),
                }
            }
        };
        tokio::time::timeout(SOON, connected).await.unwrap()
    }

    /// Asks until the tunnel, which was dialled just now, is in the table.
    async fn open(&self, node: &str, path: &str) -> queue::Receiver<Bytes> {
        let opened = async {
            loop {
                match self.ask(node, path).await {
                    Ok(reader) => return reader,
                    Err(why) if why.contains("has no tunnel") => tokio::task::yield_now().await,
                    Err(why) => panic!("{why}"),
                }
            }
        };
        tokio::time::timeout(SOON, opened).await.unwrap()
    }
}

impl Edge {
    async fn hear(&mut self) -> Frame {
        let message = tokio::time::timeout(SOON, self.receiver.recv_message())
            .await
            .unwrap()
            .unwrap();
        // Anything else would be strange to an official edge.
        let Message::Text(bytes) = message else {
            panic!("a binary message")
        };
        Frame::decode(&bytes).unwrap()
    }

    /// The next frame that is no credit, which comes whenever enough was read.
    async fn hear_more(&mut self) -> Frame {
        loop {
            let frame = self.hear().await;
            if !matches!(frame.body, FrameBody::Window(_)) {
                return frame;
            }
        }
    }

    async fn say(&mut self, connection: u64, body: FrameBody) {
        self.sender
            .send_text(Bytes::from(Frame { connection, body }.encode()))
            .await
            .unwrap();
    }

    async fn data(&mut self, connection: u64, text: &[u8]) {
        self.say(connection, FrameBody::Data(text.to_vec())).await;
    }

    async fn end(&mut self) -> String {
        match tokio::time::timeout(SOON, self.receiver.recv_binary())
            .await
            .unwrap()
            .unwrap_err()
        {
            RecvError::Closed(close) => close.to_string(),
            other => other.to_string(),
        }
    }
}

async fn next(reader: &mut queue::Receiver<Bytes>) -> Option<Bytes> {
    tokio::time::timeout(SOON, reader.recv()).await.unwrap()
}

/// All bytes up to the end.
async fn all(reader: &mut queue::Receiver<Bytes>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = next(reader).await {
        all.extend_from_slice(&bytes);
    }
    all
}

#[tokio::test]
async fn a_log_streams_until_the_edge_is_done() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut reader = world.open("edge-1", "/containerLogs/default/web/nginx").await;
    let frame = edge.hear().await;
    let FrameBody::LogsConnect(data) = &frame.body else {
        panic!("{frame:?}")
    };
    let connect = Connect::decode(data).unwrap();
    assert_eq!(
        (connect.id, connect.url.path.as_str()),
        (1, "/containerLogs/default/web/nginx")
    );
    assert_eq!(connect.url.raw_query, "follow=true");

    let bytes: &[u8] = &[0xff, 0xfe, b'\n'];
    edge.data(1, b"hello\n").await;
    edge.data(1, bytes).await;
    edge.data(99, b"of no stream").await;
    edge.say(1, FrameBody::Remove).await;
    assert_eq!(all(&mut reader).await, [b"hello\n", bytes].concat());

    let _metrics = world.ask("edge-1", "/metrics/cadvisor").await.unwrap();
    let frame = edge.hear().await;
    assert_eq!(frame.connection, 2);
    assert!(matches!(frame.body, FrameBody::MetricsConnect(_)));
}

/// What the official edge has sent in its tunnel, which is no UTF-8 though it came as text.
fn recorded_data() -> Vec<Vec<u8>> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../test/fixtures/vectors/tunnel.jsonl"
    );
    let lines = std::fs::read_to_string(path).unwrap();
    let frames = lines.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["dir"] == "edge->cloud").then(|| STANDARD.decode(line["base64"].as_str().unwrap()).unwrap())
    });
    frames
        .filter_map(|frame| match Frame::decode(&frame).unwrap().body {
            FrameBody::Data(data) => Some(data),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn recorded_binary_data_in_text_messages_arrives() {
    let data = recorded_data();
    assert!(data.iter().any(|data| std::str::from_utf8(data).is_err()));
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut reader = world.open("edge-1", "/containerLogs/default/web/nginx").await;
    edge.hear().await;
    let playing = async {
        for data in &data {
            edge.data(1, data).await;
        }
        edge.say(1, FrameBody::Remove).await;
    };
    let ((), all) = tokio::join!(playing, all(&mut reader));
    assert_eq!(all, data.concat());
}

#[tokio::test]
async fn a_reader_that_goes_ends_its_stream_on_the_edge() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let reader = world.open("edge-1", "/containerLogs/default/web/nginx").await;
    edge.hear().await;
    drop(reader);
    assert_eq!(
        edge.hear().await,
        Frame {
            connection: 1,
            body: FrameBody::Remove
        }
    );
}

#[tokio::test]
async fn a_reader_that_does_not_read_loses_its_stream_and_the_others_go_on() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut stuck = world.open("edge-1", "/containerLogs/default/stuck/c").await;
    let mut good = world.open("edge-1", "/containerLogs/default/good/c").await;
    edge.hear().await;
    edge.hear().await;
    // What waits here for a reader, and something more.
    for _ in 0..(16 * 32 * 1024 + WINDOW_BYTES) / 32_768 + 2 {
        edge.data(1, &[b'x'; 32_768]).await;
    }
    edge.data(2, b"still here").await;
    assert_eq!(next(&mut good).await.unwrap(), "still here");
    assert_eq!(
        edge.hear().await,
        Frame {
            connection: 1,
            body: FrameBody::Remove
        }
    );
    let mut last = Bytes::new();
    while let Some(bytes) = next(&mut stuck).await {
        last = bytes;
    }
    assert_eq!(last, "\ncut here: the reader did not take it for too long\n");
}

/// Half a log, or half of the metrics, must not look like all of it.
#[tokio::test]
async fn an_edge_that_goes_in_the_middle_leaves_a_word() {
    let world = World::start().await;
    for path in ["/containerLogs/default/web/c", "/metrics"] {
        let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
        let mut reader = world.open("edge-1", path).await;
        let mut connected = world.connect("edge-1", "/exec/default/web/c").await;
        edge.hear().await;
        edge.hear().await;
        edge.data(1, b"half").await;
        assert_eq!(next(&mut reader).await.unwrap(), "half");
        drop(edge);
        assert_eq!(all(&mut reader).await, LOST);
        // The protocols of connections tell it in their own ways.
        let mut heard = Vec::new();
        let read = connected.read_to_end(&mut heard);
        assert_eq!(tokio::time::timeout(SOON, read).await.unwrap().unwrap(), 0);
    }
    assert!(world.scope.drain(SOON).await.left.is_empty());
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut reader = world.open("edge-1", "/containerLogs/default/web/c").await;
    edge.hear().await;
    let sending = async {
        for number in 0..2000 {
            edge.data(1, format!("{number}\n").as_bytes()).await;
        }
        edge.say(1, FrameBody::Remove).await;
    };
    let reading = async {
        let mut all = Vec::new();
        while let Some(bytes) = next(&mut reader).await {
            tokio::task::yield_now().await;
            all.extend_from_slice(&bytes);
        }
        all
    };
    let ((), all) = tokio::join!(sending, reading);
    let wanted: String = (0..2000).map(|number| format!("{number}\n")).collect();
    assert_eq!(all, wanted.into_bytes());
}

#[tokio::test]
async fn what_cannot_be_read_is_told() {
    let world = World::start().await;
    assert_eq!(
        world.ask("edge-9", "/containerLogs/d/p/c").await.unwrap_err(),
        "node edge-9 has no tunnel to the cloud: it is offline, or its edgeStream is switched off"
    );
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let _reader = world.open("edge-1", "/containerLogs/d/p/c").await;
    edge.hear().await;
    assert_eq!(
        world.ask("edge-1", "/exec/d/p/c").await.unwrap_err(),
        "the tunnel carries /containerLogs, /metrics and /stats, not /exec/d/p/c"
    );
}

#[tokio::test]
async fn the_certificate_says_whose_tunnel_it_is() {
    let world = World::start().await;
    match world.dial("edge-1", "edge-2").await {
        Err(DialError::Rejected {
            status: 403, text, ..
        }) => assert_eq!(
            text,
            "header SessionHostNameOverride says \"edge-2\" but the certificate is of node edge-1"
        ),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn the_newest_tunnel_wins_and_the_end_of_one_ends_its_streams() {
    let world = World::start().await;
    let mut old = world.dial("edge-1", "edge-1").await.unwrap();
    let mut of_old = world.open("edge-1", "/containerLogs/d/p/c").await;
    old.hear().await;
    let mut new = world.dial("edge-1", "edge-1").await.unwrap();
    assert_eq!(
        old.end().await,
        "1001 the cloud stops, or a newer tunnel of this node came"
    );
    assert_eq!(all(&mut of_old).await, LOST);
    let mut of_new = world.open("edge-1", "/containerLogs/d/p/c").await;
    new.hear().await;

    // A frame that is none ends the tunnel of this node.
    new.sender
        .send_binary(Bytes::from_static(&[1, 77]))
        .await
        .unwrap();
    assert_eq!(new.end().await, "1008 tunnel frame of type 77 is not known");
    assert_eq!(all(&mut of_new).await, LOST);
    assert!(world.scope.drain(SOON).await.left.is_empty());
}

#[tokio::test]
async fn a_connection_carries_bytes_both_ways_until_either_side_is_done() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut stream = world.connect("edge-1", "/exec/default/web/nginx").await;
    let frame = edge.hear().await;
    let FrameBody::ExecConnect(data) = &frame.body else {
        panic!("{frame:?}")
    };
    let connect = Connect::decode(data).unwrap();
    assert_eq!(
        (connect.method.as_str(), connect.url.path.as_str()),
        ("POST", "/exec/default/web/nginx")
    );
    assert_eq!(connect.header["Upgrade"], ["SPDY/3.1"]);

    stream.write_all(b"to the edge").await.unwrap();
    assert_eq!(edge.hear().await.body, FrameBody::Data(b"to the edge".to_vec()));
    edge.data(1, b"HTTP/1.1 101 ").await;
    edge.data(1, b"and the end").await;
    edge.say(1, FrameBody::Remove).await;
    let mut all = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, "HTTP/1.1 101 and the end");

    let stream = world.connect("edge-1", "/portForward/default/web").await;
    assert!(matches!(edge.hear().await.body, FrameBody::ExecConnect(_)));
    drop(stream);
    let removed = Frame {
        connection: 2,
        body: FrameBody::Remove,
    };
    assert_eq!(edge.hear().await, removed);
    let refused = world.connects.ask(
        (
            name("edge-1"),
            NodeConnect {
                method: "POST".into(),
                path: "/run/default/web/nginx".into(),
                query: String::new(),
                headers: Vec::new(),
            },
        ),
        SOON,
    );
    assert!(
        refused
            .await
            .unwrap()
            .unwrap_err()
            .ends_with("not /run/default/web/nginx")
    );
}

#[tokio::test]
async fn with_credit_a_stalled_stream_stalls_nothing_else_and_loses_nothing() {
    let world = World::start().await;
    let mut edge = world.dial_with_credit("edge-1").await;
    let mut stuck = world.connect("edge-1", "/exec/d/stuck/c").await;
    let mut log = world.open("edge-1", "/containerLogs/d/good/c").await;
    edge.hear().await;
    edge.hear().await;

    // Towards the cloud: all that may go, and the other stream goes on.
    let full: Vec<u8> = (0..WINDOW_BYTES).map(|number| number as u8).collect();
    for part in full.chunks(30_000) {
        edge.data(1, part).await;
    }
    for _ in 0..20 {
        edge.data(2, b"line\n").await;
        assert_eq!(next(&mut log).await.unwrap(), "line\n");
    }
    let mut all = vec![0; WINDOW_BYTES];
    tokio::time::timeout(SOON, stuck.read_exact(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert!(all == full);
    let mut credit = 0;
    while credit < WINDOW_BYTES / 2 {
        match edge.hear().await {
            Frame {
                connection: 1,
                body: FrameBody::Window(more),
            } => credit += more as usize,
            other => panic!("{other:?}"),
        }
    }

    // Towards the edge: no more than it has room for.
    let (mut from, mut to) = tokio::io::split(stuck);
    let writing = tokio::spawn(async move { to.write_all(&vec![b'y'; WINDOW_BYTES + 5]).await });
    let mut heard = 0;
    while heard < WINDOW_BYTES {
        match edge.hear_more().await.body {
            FrameBody::Data(data) => heard += data.len(),
            other => panic!("{other:?}"),
        }
    }
    edge.say(1, FrameBody::Window(100_000)).await;
    while heard < WINDOW_BYTES + 5 {
        match edge.hear_more().await.body {
            FrameBody::Data(data) => heard += data.len(),
            other => panic!("{other:?}"),
        }
    }
    tokio::time::timeout(SOON, writing)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    // A peer that does not keep to it loses the stream.
    for part in vec![b'z'; 3 * WINDOW_BYTES].chunks(30_000) {
        edge.data(1, part).await;
    }
    let removed = Frame {
        connection: 1,
        body: FrameBody::Remove,
    };
    assert_eq!(edge.hear_more().await, removed);
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, from.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.len() <= 2 * WINDOW_BYTES, "{}", rest.len());
}
