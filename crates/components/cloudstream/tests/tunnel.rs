//! CloudStream on loopback with real TLS; the test plays the edge and the API server.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kedge_cloudstream::{CloudStream, Config, NodeAnswer, Ports};
use kedge_pki::{Authority, ServerNames, UnixTime};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::{DialError, Message, Plug, Receiver, RecvError, Sender, Target, dial};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{Connect, Frame, FrameBody, NodeGet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

struct World {
    authority: Authority,
    address: SocketAddr,
    gets: ask::Sender<(NodeName, NodeGet), NodeAnswer>,
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
        let config = Config {
            address: "127.0.0.1:0".parse().unwrap(),
            identity,
        };
        let stream = CloudStream::bind(config, Ports { gets: asked }).await.unwrap();
        let scope = Scope::new();
        let address = stream.local_address();
        scope.spawn("cloudstream", stream.run(scope.clone()));
        Self {
            authority,
            address,
            gets,
            scope,
        }
    }

    async fn dial(&self, node: &str, claimed: &str) -> Result<Edge, DialError> {
        let organizations = [kedge_pki::NODES_ORGANIZATION];
        let common_name = format!("system:node:{node}");
        let lifetime = Duration::from_secs(60);
        let identity = self
            .authority
            .issue_client(&common_name, &organizations, lifetime, UnixTime::now())
            .unwrap();
        let target = Target::tunnel(&self.address.to_string(), &name(claimed), "192.0.2.7");
        let tls = Arc::new(identity.client_config().unwrap());
        let (sender, receiver) = dial(&target, tls, &Plug::new()).await?.split();
        Ok(Edge { sender, receiver })
    }

    async fn ask(&self, node: &str, path: &str) -> NodeAnswer {
        let get = NodeGet {
            path: path.into(),
            query: "follow=true".into(),
        };
        self.gets.ask((name(node), get), SOON).await.unwrap()
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
    assert_eq!(next(&mut reader).await.unwrap(), "hello\n");
    assert_eq!(next(&mut reader).await.unwrap(), bytes);
    assert_eq!(next(&mut reader).await, None);

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
    let reading = async {
        let mut all = Vec::new();
        while let Some(bytes) = next(&mut reader).await {
            all.extend_from_slice(&bytes);
        }
        all
    };
    let ((), all) = tokio::join!(playing, reading);
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
    for _ in 0..20 {
        edge.data(1, b"x").await;
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
    assert_eq!(
        last,
        "\nthe log was cut here: its reader did not take it for too long\n"
    );
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let world = World::start().await;
    let mut edge = world.dial("edge-1", "edge-1").await.unwrap();
    let mut reader = world.open("edge-1", "/containerLogs/default/web/c").await;
    edge.hear().await;
    let sending = async {
        for number in 0..2000 {
            edge.data(1, format!("{number}").as_bytes()).await;
        }
    };
    let reading = async {
        for number in 0..2000 {
            tokio::task::yield_now().await;
            assert_eq!(next(&mut reader).await.unwrap(), format!("{number}"));
        }
    };
    tokio::join!(sending, reading);
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
    assert_eq!(next(&mut of_old).await, None);
    let mut of_new = world.open("edge-1", "/containerLogs/d/p/c").await;
    new.hear().await;

    // A frame that is none ends the tunnel of this node.
    new.sender
        .send_binary(Bytes::from_static(&[1, 77]))
        .await
        .unwrap();
    assert_eq!(new.end().await, "1008 tunnel frame of type 77 is not known");
    assert_eq!(next(&mut of_new).await, None);
    assert!(world.scope.drain(SOON).await.left.is_empty());
}
