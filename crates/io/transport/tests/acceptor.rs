//! The door under pressure. Loopback has many addresses, so one machine can play many peers.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

mod world;

use kedge_transport::{
    AcceptError, Acceptor, Framing, HandshakeLimits, Limits, Listener, Plug, dial, dial_tls,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use world::{World, decide, hub_target};

const SOON: Duration = Duration::from_secs(10);

async fn open(world: &World, limits: HandshakeLimits) -> Arc<Acceptor> {
    let listener = Listener::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
    Arc::new(Acceptor::new(listener, world.server_tls(), limits))
}

/// Runs every handshake in a task of its own, as a server does; connections are dropped when they stand.
fn serve(acceptor: &Arc<Acceptor>) -> tokio::task::JoinHandle<()> {
    let acceptor = Arc::clone(acceptor);
    tokio::spawn(async move {
        loop {
            let handshake = acceptor.next().await;
            tokio::spawn(handshake.run(Limits::HUB, decide(Framing::Kedge)));
        }
    })
}

/// A peer at another address of this machine, which connects and says nothing.
async fn silent(acceptor: &Acceptor, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    let server = SocketAddr::from(([127, 0, 0, 1], acceptor.local_address().port()));
    socket.connect(server).await.unwrap()
}

async fn dials(world: &World, acceptor: &Acceptor) {
    let address = format!("127.0.0.1:{}", acceptor.local_address().port());
    let target = hub_target(address, Limits::HUB);
    let plug = Plug::new();
    let dialled = tokio::time::timeout(SOON, dial(&target, world.edge_tls(), &plug));
    assert_eq!(dialled.await.unwrap().unwrap().framing(), Framing::Kedge);
}

async fn is_closed(mut stream: TcpStream) -> bool {
    let mut byte = [0];
    matches!(
        tokio::time::timeout(SOON, stream.read(&mut byte)).await.unwrap(),
        Ok(0) | Err(_)
    )
}

/// Waits until so many connections are in the room.
async fn until_accepted(acceptor: &Acceptor, count: usize) {
    let there = async {
        while acceptor.in_progress() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, there).await.unwrap();
}

#[tokio::test]
async fn silent_peers_of_one_address_do_not_keep_another_out() {
    let world = World::new();
    let limits = HandshakeLimits {
        in_progress_max: 3,
        per_address_max: 2,
        accepted_max: 100,
    };
    let acceptor = open(&world, limits).await;
    let serving = serve(&acceptor);
    let mut silents = Vec::new();
    for _ in 0..20 {
        silents.push(silent(&acceptor, 2).await);
    }
    until_accepted(&acceptor, 20).await;
    dials(&world, &acceptor).await;
    assert_eq!(acceptor.refused(), 0);
    drop(silents);
    until_accepted(&acceptor, 0).await;
    serving.abort();
}

#[tokio::test]
async fn a_full_room_closes_newcomers_and_has_room_again() {
    let world = World::new();
    let limits = HandshakeLimits {
        in_progress_max: 10,
        per_address_max: 10,
        accepted_max: 4,
    };
    let acceptor = open(&world, limits).await;
    let serving = serve(&acceptor);
    let two = [silent(&acceptor, 2).await, silent(&acceptor, 2).await];
    until_accepted(&acceptor, 2).await;
    // The address has its half.
    assert!(is_closed(silent(&acceptor, 2).await).await);
    let others = [silent(&acceptor, 3).await, silent(&acceptor, 3).await];
    until_accepted(&acceptor, 4).await;
    assert!(is_closed(silent(&acceptor, 4).await).await);
    assert_eq!(acceptor.refused(), 2);
    drop((two, others));
    until_accepted(&acceptor, 0).await;
    dials(&world, &acceptor).await;
    serving.abort();
}

#[tokio::test]
async fn who_is_served_after_tls_keeps_the_place_of_its_handshake() {
    let world = World::new();
    let limits = HandshakeLimits {
        in_progress_max: 10,
        per_address_max: 10,
        accepted_max: 4,
    };
    let acceptor = open(&world, limits).await;
    let serving = tokio::spawn({
        let acceptor = Arc::clone(&acceptor);
        async move {
            loop {
                let handshake = acceptor.next().await;
                tokio::spawn(handshake.serve_tls(|mut stream| async move {
                    let _ = stream.write_all(b"!").await;
                    stream.read_to_end(&mut Vec::new()).await
                }));
            }
        }
    });
    let address = format!("127.0.0.1:{}", acceptor.local_address().port());
    let mut served = Vec::new();
    for _ in 0..2 {
        let mut stream = dial_tls(&address, world.edge_tls()).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'!');
        served.push(stream);
    }
    assert_eq!(acceptor.in_progress(), 2);
    assert!(is_closed(silent(&acceptor, 1).await).await);
    drop(served);
    until_accepted(&acceptor, 0).await;
    serving.abort();
}

#[tokio::test]
async fn what_is_not_an_upgrade_is_told_so() {
    let world = World::new();
    let requests: [(&str, &str); 6] = [
        ("POST / HTTP/1.1\r\n\r\n", "it is not a GET of HTTP/1.1"),
        ("GET / HTTP/1.0\r\n\r\n", "it is not a GET of HTTP/1.1"),
        ("\u{1}\u{2}\r\n\r\n", "invalid token"),
        (
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "this port serves websocket only",
        ),
        (
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 8\r\n\r\n",
            "only version 13 of WebSocket is served",
        ),
        (
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 3\r\n\r\n",
            "an upgrade has no body",
        ),
    ];
    let acceptor = open(&world, HandshakeLimits::default()).await;
    for (request, why) in requests {
        let address = format!("127.0.0.1:{}", acceptor.local_address().port());
        let dialled = async {
            let mut stream = kedge_transport::dial_tls(&address, world.edge_tls())
                .await
                .unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        let accepted = async {
            let handshake = acceptor.next().await;
            handshake
                .run(Limits::HUB, decide(Framing::Official))
                .await
                .unwrap_err()
        };
        let (answer, error) = tokio::join!(dialled, accepted);
        assert!(error.to_string().contains(why), "{request}: {error}");
        if matches!(error, AcceptError::Refused(_)) {
            assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{why}\n")), "{answer}");
        }
    }
}
