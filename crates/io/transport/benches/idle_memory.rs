//! What a connection costs a server: anonymous memory (`RssAnon`) for each of N idle mTLS connections, after a small
//! message on each, and after a message of 1 MB on some of them; then the same for QUIC.
//!
//! `cargo bench -p kedge-transport --bench idle_memory -- [connections] [of them QUIC]`
//!
//! The clients live in a second process, so that only the server's memory is measured.
#![allow(clippy::unwrap_used)] // A benchmark that cannot go on has nothing better to do than to stop.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kedge_pki::{Authority, ClientAuth, Identity, NODES_ORGANIZATION, ServerNames, UnixTime};
use kedge_transport::{
    Acceptance, Acceptor, Connection, Framing, HandshakeLimits, Limits, Listener, Plug, QuicListener,
    Receiver, Refusal, Sender, Target, UpgradeRequest, dial, dial_quic,
};
use kedge_wire::{Body, Envelope, Header, MessageId, NodeName, Packet, RawRoute};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 5000;
const QUIC_CONNECTIONS: usize = 500;
/// Connections that carry a message of 1 MB.
const LARGE: usize = 300;
/// Dials under way at one time.
const DIALS: usize = 64;
const DAY: Duration = Duration::from_secs(86_400);

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    match arguments.as_slice() {
        [role, carrier, address, count, certificate, key] if role == "clients" => {
            let authority = Authority::from_pem(&decode(certificate), &decode(key)).unwrap();
            runtime.block_on(clients(carrier, address, count.parse().unwrap(), &authority));
        }
        [role, carrier, count] if role == "server" => {
            runtime.block_on(server(carrier, count.parse().unwrap()));
        }
        numbers => {
            for (index, (carrier, default)) in [("TLS", CONNECTIONS), ("QUIC", QUIC_CONNECTIONS)]
                .into_iter()
                .enumerate()
            {
                let count = numbers.get(index).cloned().unwrap_or_else(|| default.to_string());
                // A process of its own: memory that was freed by one carrier would hide what the other takes.
                let server = Command::new(std::env::current_exe().unwrap())
                    .args(["server", carrier, &count])
                    .status();
                assert!(server.unwrap().success());
            }
        }
    }
}

fn decode(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn anonymous_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn packet(bytes: usize) -> Packet {
    // Hard to pack, so that the size is the size on the wire too.
    let mut state = 7_u64;
    let text: String = (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
        })
        .collect();
    Packet::from(Envelope {
        header: Header::new(MessageId::new("m1"), 0),
        route: RawRoute::default(),
        content: Body::text(&text),
    })
}

// The server.

async fn server(carrier: &str, connections: usize) {
    let now = UnixTime::now();
    let authority = Authority::create(now).unwrap();
    let names = ServerNames {
        ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        dns: Vec::new(),
    };
    let tls = authority
        .issue_server(&names, now)
        .unwrap()
        .server_config(ClientAuth::Required)
        .unwrap();
    let limits = HandshakeLimits {
        per_address_max: DIALS,
        ..HandshakeLimits::default()
    };
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let address = if carrier == "QUIC" {
        let listener = QuicListener::bind(any, &tls, limits).unwrap();
        let address = listener.local_address();
        tokio::spawn(async move {
            loop {
                let handshake = listener.next().await;
                tokio::spawn(async move { echo(handshake.run(Limits::HUB, decide).await.unwrap().0).await });
            }
        });
        address
    } else {
        let acceptor = Acceptor::new(Listener::bind(any).await.unwrap(), Arc::new(tls), limits);
        let address = acceptor.local_address();
        tokio::spawn(async move {
            loop {
                let handshake = acceptor.next().await;
                tokio::spawn(async move { echo(handshake.run(Limits::HUB, decide).await.unwrap().0).await });
            }
        });
        address
    };
    measure(carrier, &address.to_string(), connections, &authority).await;
}

fn decide(_: &UpgradeRequest<'_>) -> Result<Acceptance<()>, Refusal> {
    Ok(Acceptance {
        value: (),
        headers: vec![("kedge-link", "1")],
        framing: Framing::Kedge,
    })
}

async fn echo(connection: Connection) {
    let (mut sender, mut receiver) = connection.split();
    while let Ok(packet) = receiver.recv().await {
        sender.send(&packet).await.unwrap();
    }
}

async fn measure(carrier: &str, address: &str, count: usize, authority: &Authority) {
    let base = anonymous_bytes();
    let mut clients = Clients::start(carrier, address, count, authority);
    let started = Instant::now();
    clients.order("connect").await;
    let elapsed = started.elapsed();
    let idle = anonymous_bytes();
    clients.order("small").await;
    let small = anonymous_bytes();
    clients.order("large").await;
    let large = anonymous_bytes();
    let each = |bytes: usize, count: usize| bytes.saturating_sub(base) / count;
    let large_count = LARGE.min(count);
    println!(
        "{carrier}: {count} connections in {elapsed:.1?}, {:.0}/s",
        count as f64 / elapsed.as_secs_f64()
    );
    println!("  base RssAnon              {:>9} KB", base / 1024);
    println!("  idle                      {:>9} B each", each(idle, count));
    println!("  after 2 KB on each        {:>9} B each", each(small, count));
    println!(
        "  after 1 MB on {large_count} of them  {:>9} B each of these",
        each(small, count) + large.saturating_sub(small) / large_count
    );
    clients.order("end").await;
}

struct Clients {
    _process: Child,
    orders: ChildStdin,
    answers: Option<BufReader<ChildStdout>>,
}

impl Clients {
    fn start(carrier: &str, address: &str, count: usize, authority: &Authority) -> Self {
        let certificate = STANDARD.encode(authority.certificate().pem());
        let key = STANDARD.encode(authority.key().pkcs8_pem());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "clients",
                carrier,
                address,
                &count.to_string(),
                &certificate,
                &key,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: process.stdin.take().unwrap(),
            answers: process.stdout.take().map(BufReader::new),
            _process: process,
        }
    }

    /// Gives an order and waits until it is done.
    async fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        let mut answers = self.answers.take().unwrap();
        let answered = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            assert_eq!(line, "done\n");
            answers
        });
        self.answers = Some(answered.await.unwrap());
    }
}

// The clients.

async fn clients(carrier: &str, address: &str, count: usize, authority: &Authority) {
    let identity = authority
        .issue_client("system:node:edge-1", &[NODES_ORGANIZATION], DAY, UnixTime::now())
        .unwrap();
    let mut connections: Vec<(Sender, Receiver)> = Vec::new();
    let (small, large) = (packet(2000), packet(1_000_000));
    for order in std::io::stdin().lines() {
        match order.unwrap().as_str() {
            "connect" => {
                while connections.len() < count {
                    let wave = DIALS.min(count - connections.len());
                    let dials: Vec<_> = (0..wave)
                        .map(|_| {
                            tokio::spawn(connect(carrier == "QUIC", address.to_owned(), identity.clone()))
                        })
                        .collect();
                    for dial in dials {
                        connections.push(dial.await.unwrap());
                    }
                }
            }
            "small" => exchange(&mut connections, count, &small).await,
            "large" => exchange(&mut connections, LARGE.min(count), &large).await,
            "end" => {
                println!("done");
                return;
            }
            other => panic!("no such order: {other}"),
        }
        println!("done");
    }
}

async fn connect(quic: bool, address: String, identity: Identity) -> (Sender, Receiver) {
    let target =
        Target::hub(&address, "project", &NodeName::new("edge-1").unwrap()).offering("Kedge-Link", "1");
    let tls = Arc::new(identity.client_config().unwrap());
    let plug = Plug::new();
    let connection = if quic {
        dial_quic(&target, tls, &plug).await
    } else {
        dial(&target, tls, &plug).await
    };
    connection.unwrap().split()
}

async fn exchange(connections: &mut [(Sender, Receiver)], count: usize, packet: &Packet) {
    for (sender, receiver) in &mut connections[..count] {
        let (sent, heard) = tokio::join!(sender.send(packet), receiver.recv());
        sent.unwrap();
        assert_eq!(heard.unwrap(), *packet);
    }
}
