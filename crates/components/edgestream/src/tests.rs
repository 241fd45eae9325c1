//! The tunnel on loopback TLS, with the cloud and edged in the hands of the test.

use crate::session::STREAMS_MAX;
use crate::{Config, EdgeStream, NodeAnswer, Ports};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kedge_pki::{Authority, ClientAuth, ServerNames, UnixTime};
use kedge_streaming::Connection;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::{latest, queue};
use kedge_transport::tunnel::DATA_BYTES_MAX;
use kedge_transport::{
    Acceptance, Framing, Limits, Listener, Message, Plug, Receiver, Sender, UpgradeRequest, accept,
};
use kedge_wire::NodeName;
use kedge_wire::tunnel::{Connect, ConnectUrl, Frame, FrameBody, NodeGet, OFFER, OFFER_HEADER, WINDOW_BYTES};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    gets: ask::Receiver<NodeGet, NodeAnswer>,
    connects: queue::Receiver<Connection>,
    scope: Scope,
    _identity: latest::Sender<Option<kedge_pki::Identity>>,
}

/// The cloud's end of a tunnel.
struct Tunnel {
    sender: Sender,
    receiver: Receiver,
}

impl World {
    async fn start() -> Self {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let names = ServerNames {
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            dns: Vec::new(),
        };
        let server = authority.issue_server(&names, now).unwrap();
        let edge = authority
            .issue_client("system:node:edge-1", &["system:nodes"], PATIENCE, now)
            .unwrap();
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let config = Config {
            node: NodeName::new("edge-1").unwrap(),
            internal_ip: "10.1.2.3".to_owned(),
            server: listener.local_address().to_string(),
            handshake_timeout: PATIENCE,
            seed: 0,
        };
        // It waits until the node has joined.
        let (identity, identity_in) = latest::channel(None);
        let (gets_out, gets) = ask::channel("gets", 4);
        let (connects_out, connects) = queue::channel("connects", 4);
        let ports = Ports {
            identity: identity_in,
            gets: gets_out,
            connects: connects_out,
            plug: Plug::new(),
        };
        let scope = Scope::new();
        scope.spawn("edgestream", EdgeStream::new(config, ports).run(scope.clone()));
        let tls = Arc::new(server.server_config(ClientAuth::Required).unwrap());
        identity.send_replace(Some(edge));
        Self {
            listener,
            tls,
            gets,
            connects,
            scope,
            _identity: identity,
        }
    }

    /// As the official cloud does.
    async fn accept(&self) -> Tunnel {
        self.accept_with(Vec::new()).await
    }

    /// As ours does.
    async fn accept_with_credit(&self) -> Tunnel {
        self.accept_with(vec![(OFFER_HEADER, OFFER)]).await
    }

    async fn accept_with(&self, headers: Vec<(&'static str, &'static str)>) -> Tunnel {
        let accepted = async {
            let (tcp, _) = self.listener.accept().await;
            let decide = |request: &UpgradeRequest<'_>| {
                assert_eq!(request.path, "/v1/kubeedge/connect");
                assert_eq!(request.header("SessionHostNameOverride"), Some("edge-1"));
                assert_eq!(request.header("SessionInternalIP"), Some("10.1.2.3"));
                assert_eq!(request.header(OFFER_HEADER), Some(OFFER));
                Ok(Acceptance {
                    value: (),
                    headers,
                    framing: Framing::Official,
                })
            };
            accept(tcp, Arc::clone(&self.tls), Limits::TUNNEL, decide)
                .await
                .unwrap()
                .0
        };
        let (sender, receiver) = in_time(accepted).await.split();
        Tunnel { sender, receiver }
    }

    async fn connected(&mut self) -> Connection {
        in_time(self.connects.recv()).await.unwrap()
    }

    async fn asked(&mut self) -> Question<NodeGet, NodeAnswer> {
        in_time(self.gets.recv()).await.unwrap()
    }
}

impl Tunnel {
    async fn say(&mut self, connection: u64, body: FrameBody) {
        self.sender
            .send_text(Bytes::from(Frame { connection, body }.encode()))
            .await
            .unwrap();
    }

    async fn logs(&mut self, id: u64) {
        let host = "198.51.100.1:80".to_owned();
        let path = "/containerLogs/default/web/nginx".to_owned();
        let url = ConnectUrl {
            host,
            path,
            raw_query: "follow=true".to_owned(),
            ..ConnectUrl::default()
        };
        let connect = Connect {
            id,
            url,
            header: Default::default(),
            method: String::new(),
        };
        self.say(id, FrameBody::LogsConnect(connect.encode())).await;
    }

    async fn exec(&mut self, id: u64) {
        let path = "/exec/default/web/nginx".to_owned();
        let url = ConnectUrl {
            path,
            raw_query: "command=ls".to_owned(),
            ..ConnectUrl::default()
        };
        let connect = Connect {
            id,
            url,
            header: [("Upgrade".to_owned(), vec!["SPDY/3.1".to_owned()])].into(),
            method: "POST".to_owned(),
        };
        self.say(id, FrameBody::ExecConnect(connect.encode())).await;
    }

    async fn next(&mut self) -> Frame {
        // An official cloud drops a tunnel that says anything but text.
        let Message::Text(bytes) = in_time(self.receiver.recv_message()).await.unwrap() else {
            panic!("a binary message")
        };
        Frame::decode(&bytes).unwrap()
    }

    /// Hears data of one stream, and credit of any, until this much data has come.
    async fn data_bytes(&mut self, id: u64, wanted: usize) -> usize {
        let mut came = 0;
        while came < wanted {
            match self.next().await {
                Frame {
                    connection,
                    body: FrameBody::Data(data),
                } if connection == id => came += data.len(),
                Frame {
                    body: FrameBody::Window(_),
                    ..
                } => {}
                other => panic!("{other:?}"),
            }
        }
        came
    }

    /// All data of a stream up to its end.
    async fn all(&mut self, id: u64) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let frame = self.next().await;
            assert_eq!(frame.connection, id);
            match frame.body {
                FrameBody::Data(data) => {
                    assert!(data.len() <= DATA_BYTES_MAX);
                    all.extend(data);
                }
                FrameBody::Remove => return all,
                other => panic!("neither data nor end: {other:?}"),
            }
        }
    }
}

/// Serves a connection, without a word, until its asker has hung up.
async fn until_gone(connection: Connection) {
    let gone = connection.serve(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    assert_eq!(in_time(gone).await, None);
}

async fn in_time<T>(fact: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, fact).await.unwrap()
}

/// What the official cloud has sent in its tunnel, which is no UTF-8 though it came as text.
fn recorded() -> Vec<Bytes> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../test/fixtures/vectors/tunnel.jsonl"
    );
    let lines = std::fs::read_to_string(path).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["dir"] == "cloud->edge")
        .map(|line| Bytes::from(STANDARD.decode(line["base64"].as_str().unwrap()).unwrap()))
        .collect()
}

#[tokio::test]
async fn the_recorded_official_cloud_is_served() {
    let frames = recorded();
    assert!(frames.iter().any(|frame| std::str::from_utf8(frame).is_err()));
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    let noise = Bytes::from_iter((0..=255_u8).cycle().take(3000));
    let (mut served, mut connected) = (0, 0);
    let mut open = None;
    for bytes in frames {
        tunnel.sender.send_text(bytes.clone()).await.unwrap();
        let Frame { connection, body } = Frame::decode(&bytes).unwrap();
        match body {
            FrameBody::LogsConnect(data) | FrameBody::MetricsConnect(data) => {
                let Question { question, reply } = world.asked().await;
                assert_eq!(question.path, Connect::decode(&data).unwrap().url.path);
                let (bytes, answer) = queue::channel("log", 1);
                reply.send(Ok(answer));
                bytes.send(noise.clone()).await.unwrap();
                drop(bytes);
                assert_eq!(tunnel.all(connection).await, noise);
                served += 1;
            }
            FrameBody::ExecConnect(data) | FrameBody::AttachConnect(data) => {
                let asked = world.connected().await;
                let url = Connect::decode(&data).unwrap().url;
                assert_eq!(asked.request.method, "POST");
                assert_eq!(
                    (&asked.request.path, &asked.request.query),
                    (&url.path, &url.raw_query)
                );
                let versions: Vec<&str> = asked.request.values("X-Stream-Protocol-Version").collect();
                assert!(versions.contains(&"v4.channel.k8s.io"));
                open = Some(asked);
                connected += 1;
            }
            FrameBody::Data(data) => {
                let stream = &mut open.as_mut().unwrap().stream;
                let mut came = vec![0; data.len()];
                in_time(stream.read_exact(&mut came)).await.unwrap();
                assert_eq!(came, data);
                stream.write_all(&data).await.unwrap();
                assert_eq!(tunnel.next().await.body, FrameBody::Data(data));
            }
            FrameBody::Remove => {
                if let Some(asked) = open.take() {
                    until_gone(asked).await;
                }
            }
            FrameBody::Close(_) | FrameBody::Window(_) => {}
        }
    }
    assert_eq!((served, connected), (2, 3));
}

#[tokio::test]
async fn a_log_comes_in_pieces_of_bounded_size_and_ends() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.logs(300).await;
    let Question { question, reply } = world.asked().await;
    let path = "/containerLogs/default/web/nginx".to_owned();
    assert_eq!(
        question,
        NodeGet {
            path,
            query: "follow=true".to_owned()
        }
    );
    let (bytes, answer) = queue::channel("log", 1);
    reply.send(Ok(answer));
    bytes.send(Bytes::from_static(b"first line\n")).await.unwrap();
    bytes.send(Bytes::from(vec![b'x'; 70_000])).await.unwrap();
    drop(bytes);
    let all = tunnel.all(300).await;
    assert_eq!((all.len(), &all[..11]), (70_011, b"first line\n".as_slice()));
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

#[tokio::test]
async fn what_cannot_be_served_is_said_in_words() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.logs(1).await;
    world
        .asked()
        .await
        .reply
        .send(Err("container nginx is not running".to_owned()));
    assert_eq!(tunnel.all(1).await, b"container nginx is not running\n");

    tunnel.say(2, FrameBody::ExecConnect(b"{}".to_vec())).await;
    let refused = String::from_utf8(tunnel.all(2).await).unwrap();
    assert!(refused.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{refused}");
    assert!(refused.contains("the request is not understood"), "{refused}");

    tunnel
        .say(3, FrameBody::MetricsConnect(b"no json".to_vec()))
        .await;
    assert!(
        String::from_utf8(tunnel.all(3).await)
            .unwrap()
            .starts_with("the request is not understood")
    );
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_stream_on_the_edge() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.logs(1).await;
    let (bytes, answer) = queue::channel("log", 1);
    world.asked().await.reply.send(Ok(answer));
    bytes.send(Bytes::from_static(b"line\n")).await.unwrap();
    assert_eq!(tunnel.next().await.body, FrameBody::Data(b"line\n".to_vec()));
    tunnel.say(1, FrameBody::Remove).await;
    in_time(bytes.closed()).await;
}

#[tokio::test]
async fn the_number_of_streams_is_bounded() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    let mut open = Vec::new();
    for id in 1..=STREAMS_MAX as u64 {
        tunnel.logs(id).await;
        let (bytes, answer) = queue::channel("log", 1);
        world.asked().await.reply.send(Ok(answer));
        open.push(bytes);
    }
    tunnel.logs(1000).await;
    let refused = String::from_utf8(tunnel.all(1000).await).unwrap();
    assert_eq!(
        refused,
        "this edge already serves 64 streams; end one and try again\n"
    );
    open.remove(0);
    assert_eq!(
        tunnel.next().await,
        Frame {
            connection: 1,
            body: FrameBody::Remove
        }
    );
    tunnel.logs(1001).await;
    world.asked().await;
}

#[tokio::test]
async fn a_closed_or_broken_tunnel_is_dialled_again_and_its_streams_end() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.logs(1).await;
    let (bytes, answer) = queue::channel("log", 1);
    world.asked().await.reply.send(Ok(answer));
    tunnel
        .say(0, FrameBody::Close(b"the node is not known".to_vec()))
        .await;
    in_time(bytes.closed()).await;

    let mut tunnel = world.accept().await;
    // A frame that is none: this end hangs up rather than guess.
    tunnel
        .sender
        .send_binary(Bytes::from_static(&[1, 99]))
        .await
        .unwrap();
    let mut tunnel = world.accept().await;
    tunnel.logs(2).await;
    world.asked().await;
}

#[tokio::test]
async fn a_connection_ends_when_edged_is_done_with_it() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.exec(7).await;
    let mut asked = world.connected().await;
    asked.stream.write_all(b"HTTP/1.1 101 ").await.unwrap();
    asked.stream.write_all(&[0xff; 70_000]).await.unwrap();
    drop(asked);
    let all = tunnel.all(7).await;
    assert_eq!((&all[..13], all.len()), (b"HTTP/1.1 101 ".as_slice(), 70_013));
}

#[tokio::test]
async fn connections_that_nobody_takes_are_refused_as_http_does() {
    let world = World::start().await;
    let mut tunnel = world.accept().await;
    for id in 1..=5 {
        tunnel.exec(id).await;
    }
    let refused = String::from_utf8(tunnel.all(5).await).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(world.scope.drain(PATIENCE).await.left.is_empty());
}

#[tokio::test]
async fn an_official_cloud_that_floods_one_connection_loses_it_and_no_other() {
    let mut world = World::start().await;
    let mut tunnel = world.accept().await;
    tunnel.exec(1).await;
    let stuck = world.connected().await;
    tunnel.exec(2).await;
    let mut good = world.connected().await;
    for _ in 0..20 {
        tunnel.say(1, FrameBody::Data(vec![b'x'; 32_768])).await;
    }
    tunnel.say(2, FrameBody::Data(b"still here".to_vec())).await;
    let mut came = [0; 10];
    in_time(good.stream.read_exact(&mut came)).await.unwrap();
    assert_eq!(&came, b"still here");
    assert_eq!(tunnel.next().await.connection, 1);
    until_gone(stuck).await;
}

#[tokio::test]
async fn with_credit_a_stalled_connection_stalls_nothing_else() {
    let mut world = World::start().await;
    let mut tunnel = world.accept_with_credit().await;
    tunnel.exec(1).await;
    let mut stuck = world.connected().await;
    for part in vec![b'x'; WINDOW_BYTES].chunks(32_768) {
        tunnel.say(1, FrameBody::Data(part.to_vec())).await;
    }
    // Logs end, or go on when the cloud has room: they have credit, too.
    tunnel.logs(2).await;
    let (bytes, answer) = queue::channel("log", 64);
    world.asked().await.reply.send(Ok(answer));
    for _ in 0..10 {
        bytes.send(Bytes::from(vec![b'l'; 32_768])).await.unwrap();
    }
    assert_eq!(tunnel.data_bytes(2, WINDOW_BYTES).await, WINDOW_BYTES);
    let mut came = vec![0; WINDOW_BYTES];
    in_time(stuck.stream.read_exact(&mut came)).await.unwrap();
    stuck.stream.write_all(b"done").await.unwrap();
    assert_eq!(tunnel.data_bytes(1, 4).await, 4);
    tunnel.say(2, FrameBody::Window(200_000)).await;
    let rest = 10 * 32_768 - WINDOW_BYTES;
    assert_eq!(tunnel.data_bytes(2, rest).await, rest);
}
