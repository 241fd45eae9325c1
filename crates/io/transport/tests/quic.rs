//! What only QUIC has: streams, ALPN, and the dialect of official edges on the same socket.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

mod world;

use kedge_transport::{
    AcceptError, BindError, DialError, Framing, HandshakeLimits, Limits, Plug, QuicListener, dial_quic,
};
use kedge_wire::Packet;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use world::{World, decide, hub_target, welcome};

const SOON: Duration = Duration::from_secs(10);

/// A client of quinn's own, which may do what ours does not.
async fn stranger(world: &World, server: SocketAddr, alpn: &[u8]) -> Result<Connection, ConnectionError> {
    let mut tls = Arc::unwrap_or_clone(world.edge_tls());
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(config, server, "127.0.0.1").unwrap().await
}

async fn dials(world: &World, listener: &QuicListener) {
    let target = hub_target(listener.local_address().to_string(), Limits::HUB);
    let plug = Plug::new();
    let accepted = async {
        let handshake = listener.next().await;
        handshake
            .run(Limits::HUB, decide(Framing::Kedge))
            .await
            .unwrap()
            .0
    };
    let (near, far) = tokio::join!(dial_quic(&target, world.edge_tls(), &plug), accepted);
    let (mut out, _in) = near.unwrap().split();
    let (_out, mut far_in) = far.split();
    let (sent, heard) = tokio::join!(out.send(&Packet::Ping), far_in.recv());
    sent.unwrap();
    assert_eq!(heard.unwrap(), Packet::Ping);
}

#[tokio::test]
async fn the_dialect_of_official_edges_is_answered_and_harms_nobody() {
    let world = World::new();
    let listener = world.listen_quic();
    let edge = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (hello, answer) in [
        (&b"\x0912345678Q043"[..], &b"\x0912345678\0\0\0\x01"[..]),
        (b"\xffQ044\x50abcdefgh", b"\x80\0\0\0\0\x05abcdefgh\0\0\0\x01"),
    ] {
        let mut hello = hello.to_vec();
        hello.resize(1200, 0);
        edge.send_to(&hello, listener.local_address()).await.unwrap();
        let mut heard = [0; 100];
        let (length, from) = tokio::time::timeout(SOON, edge.recv_from(&mut heard))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&heard[..length], from), (answer, listener.local_address()));
    }
    dials(&world, &listener).await;
}

#[tokio::test]
async fn a_peer_has_one_stream() {
    let world = World::new();
    let listener = world.listen_quic();
    let dialled = async {
        let connection = stranger(&world, listener.local_address(), b"kedge/1")
            .await
            .unwrap();
        let mut first = connection.open_bi().await.unwrap();
        assert_eq!(connection.max_datagram_size(), None);
        // No other stream is granted, until the listener refuses the connection for what is said on this one.
        let say = async { first.0.write_all(b"GET / HTTP/1.1\r\n\r\n").await };
        let (said, second, one_way) = tokio::join!(say, connection.open_bi(), connection.open_uni());
        said.unwrap();
        assert!(second.is_err() && one_way.is_err());
    };
    let accepted = async {
        let handshake = listener.next().await;
        handshake
            .run(Limits::HUB, decide(Framing::Kedge))
            .await
            .unwrap_err()
    };
    let ((), error) = tokio::join!(dialled, accepted);
    assert!(matches!(error, AcceptError::Refused(_)), "{error}");
}

#[tokio::test]
async fn another_protocol_is_refused_in_the_handshake() {
    let world = World::new();
    let listener = world.listen_quic();
    let accepted = async {
        let handshake = listener.next().await;
        handshake
            .run(Limits::HUB, decide(Framing::Kedge))
            .await
            .unwrap_err()
    };
    let (dialled, error) = tokio::join!(stranger(&world, listener.local_address(), b"h3"), accepted);
    assert!(dialled.is_err());
    assert!(matches!(error, AcceptError::Tls(_)), "{error}");
}

#[tokio::test]
async fn the_official_framing_is_not_spoken_over_quic() {
    let world = World::new();
    let listener = world.listen_quic();
    let target = hub_target(listener.local_address().to_string(), Limits::HUB);
    let plug = Plug::new();
    let accepted = async {
        let handshake = listener.next().await;
        handshake.run(Limits::HUB, welcome).await.unwrap_err()
    };
    let (dialled, _) = tokio::join!(dial_quic(&target, world.edge_tls(), &plug), accepted);
    match dialled.unwrap_err() {
        DialError::Rejected {
            status: 400, text, ..
        } => assert!(
            text.starts_with("QUIC is spoken between two ends of kedge only"),
            "{text}"
        ),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn under_load_a_peer_proves_its_address_and_gets_in() {
    let world = World::new();
    let limits = HandshakeLimits {
        in_progress_max: 2,
        ..HandshakeLimits::default()
    };
    let listener = QuicListener::bind("127.0.0.1:0".parse().unwrap(), &world.server_tls(), limits).unwrap();
    let server = listener.local_address();
    // Two peers shake hands and then say nothing, so every turn is taken until they go.
    let mut silent = Vec::new();
    let mut running = Vec::new();
    for _ in 0..2 {
        let (dialled, handshake) = tokio::join!(stranger(&world, server, b"kedge/1"), async {
            let run = listener.next().await.run(Limits::HUB, decide(Framing::Kedge));
            let running = tokio::spawn(run);
            tokio::task::yield_now().await;
            (running,)
        });
        silent.push(dialled.unwrap());
        running.push(handshake.0);
    }
    let leaving = async {
        tokio::task::yield_now().await;
        silent.clear();
    };
    tokio::join!(leaving, dials(&world, &listener));
    for handshake in running {
        assert!(handshake.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = World::new();
    let first = world.listen_quic();
    let error = QuicListener::bind(
        first.local_address(),
        &world.server_tls(),
        HandshakeLimits::default(),
    )
    .unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }));
}
