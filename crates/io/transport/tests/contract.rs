//! One suite for all carriers: WebSocket over TLS, QUIC, and memory.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

mod world;

use bytes::Bytes;
use kedge_pki::{Identity, UnixTime};
use kedge_transport::{
    Acceptance, BindError, Close, CloseCode, Connection, DialError, Framing, Limits, Listener, Plug,
    RecvError, Refusal, SendError, Target, TlsTrouble, accept, dial, dial_quic, pair,
};
use kedge_wire::{Body, Envelope, Header, MessageId, Packet};
use std::sync::Arc;
use std::time::Duration;
use world::{World, decide, edge_of, hub_target, keepalive, node, tls, welcome};

fn packet(text: &str) -> Packet {
    Packet::from(Envelope {
        header: Header {
            id: MessageId::new("b6f5b1a0-0000-4000-8000-000000000001"),
            parent: None,
            timestamp_ms: 1_767_225_600_000,
            resource_version: None,
            sync: false,
            kind: None,
        },
        route: keepalive(),
        content: Body::text(text),
    })
}

async fn over_tls(limits: Limits, framing: Framing, plug: &Plug) -> (Connection, Connection) {
    let world = World::new();
    let (listener, server) = world.listen().await;
    let target = hub_target(listener.local_address().to_string(), limits);
    let dialled = dial(&target, tls(&world.edge), plug);
    let accepted = async {
        let (tcp, _) = listener.accept().await;
        accept(tcp, server, limits, decide(framing)).await.unwrap().0
    };
    let (near, far) = tokio::join!(dialled, accepted);
    let near = near.unwrap();
    assert_eq!((near.framing(), far.framing()), (framing, framing));
    (near, far)
}

async fn over_quic(limits: Limits, plug: &Plug) -> (Connection, Connection) {
    let world = World::new();
    let listener = world.listen_quic();
    let target = hub_target(listener.local_address().to_string(), limits);
    let dialled = dial_quic(&target, tls(&world.edge), plug);
    let accepted = async {
        let handshake = listener.next().await;
        handshake.run(limits, decide(Framing::Kedge)).await.unwrap().0
    };
    let (near, far) = tokio::join!(dialled, accepted);
    let near = near.unwrap();
    assert_eq!((near.framing(), far.framing()), (Framing::Kedge, Framing::Kedge));
    (near, far)
}

/// Runs one story on every carrier, in every framing that it has.
macro_rules! on_all {
    ($name:ident, $story:ident, $limits:expr) => {
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_tls_with_an_official_peer() {
                let plug = Plug::new();
                let (near, far) = super::over_tls($limits, Framing::Official, &plug).await;
                $story(near, far, plug).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_tls_between_own_ends() {
                let plug = Plug::new();
                let (near, far) = super::over_tls($limits, Framing::Kedge, &plug).await;
                $story(near, far, plug).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_quic() {
                let plug = Plug::new();
                let (near, far) = super::over_quic($limits, &plug).await;
                $story(near, far, plug).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_memory() {
                let plug = Plug::new();
                let (near, far) = pair($limits, Framing::Kedge, &plug).await;
                $story(near, far, plug).await;
            }
        }
    };
}

const SMALL: Limits = Limits {
    message_bytes_max: 1000,
};

on_all!(messages_arrive_in_order_and_whole, order, Limits::HUB);
async fn order(near: Connection, far: Connection, _: Plug) {
    let (mut near_out, mut near_in) = near.split();
    let (mut far_out, mut far_in) = far.split();
    let large = "x".repeat(1_000_000);
    let sending = async {
        for text in ["one", large.as_str(), "three"] {
            near_out.send(&packet(text)).await.unwrap();
        }
    };
    let receiving = async {
        for text in ["one", large.as_str(), "three"] {
            assert_eq!(far_in.recv().await.unwrap(), packet(text));
        }
    };
    tokio::join!(sending, receiving);
    let bytes = Bytes::from_static(&[0, 3, 0xff, 0xfe]);
    let (sent, got) = tokio::join!(far_out.send_binary(bytes.clone()), near_in.recv_binary());
    sent.unwrap();
    assert_eq!(got.unwrap(), bytes);
}

on_all!(heartbeats_travel_between_own_ends_only, heartbeat, Limits::HUB);
async fn heartbeat(near: Connection, far: Connection, _: Plug) {
    let framing = near.framing();
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    for packet in [Packet::Ping, Packet::Pong] {
        match framing {
            Framing::Official => assert!(matches!(out.send(&packet).await, Err(SendError::NoHeartbeat))),
            Framing::Kedge => {
                let (sent, got) = tokio::join!(out.send(&packet), far_in.recv());
                sent.unwrap();
                assert_eq!(got.unwrap(), packet);
            }
        }
    }
}

on_all!(text_of_the_tunnel_may_be_any_bytes, tunnel, Limits::TUNNEL);
async fn tunnel(near: Connection, far: Connection, _: Plug) {
    let bytes = Bytes::from_iter((0..=255_u8).cycle().take(100_000));
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let (sent, got) = tokio::join!(out.send_text(bytes.clone()), far_in.recv_binary());
    sent.unwrap();
    assert_eq!(got.unwrap(), bytes);
}

on_all!(
    a_message_given_up_half_way_is_finished_by_the_next,
    given_up,
    Limits::HUB
);
async fn given_up(near: Connection, far: Connection, _: Plug) {
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let large = Bytes::from(vec![7; 8_000_000]);
    // Nobody reads yet, so this cannot end.
    let giving_up = tokio::time::timeout(Duration::from_millis(50), out.send_binary(large.clone()));
    assert!(giving_up.await.is_err());
    let (sent, got) = tokio::join!(out.send_binary(Bytes::from_static(b"next")), async {
        (far_in.recv_binary().await, far_in.recv_binary().await)
    });
    sent.unwrap();
    assert_eq!(got.0.unwrap(), large);
    assert_eq!(got.1.unwrap(), "next");
}

on_all!(both_directions_at_once_starve_nobody, both_at_once, Limits::HUB);
async fn both_at_once(near: Connection, far: Connection, _: Plug) {
    const MESSAGES: usize = 300;
    // With the pongs, both stay below what a peer may send in a second.
    const MESSAGES_A_PING: usize = 10;
    let large = Bytes::from(vec![7; 50_000]);
    let talk = |connection: Connection| {
        let large = large.clone();
        let (mut out, mut incoming) = connection.split();
        let sending = tokio::spawn(async move {
            for number in 0..MESSAGES {
                out.send_binary(large.clone()).await.unwrap();
                if number % MESSAGES_A_PING == 0 {
                    match out.ping().await {
                        Ok(()) | Err(SendError::NoPing) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            out
        });
        let receiving = tokio::spawn(async move {
            for _ in 0..MESSAGES {
                assert_eq!(incoming.recv_binary().await.unwrap().len(), 50_000);
            }
            incoming
        });
        async { tokio::join!(sending, receiving) }
    };
    let both = async { tokio::join!(talk(near), talk(far)) };
    let (near, far) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("no wake-up is lost");
    // Both ends live until both are done.
    let ends = [near, far].map(|(out, incoming)| (out.unwrap(), incoming.unwrap()));
    drop(ends);
}

on_all!(a_close_tells_its_reason, close, Limits::HUB);
async fn close(near: Connection, far: Connection, _: Plug) {
    let reason = Close {
        code: CloseCode::TryAgain,
        reason: "the node limit is reached".into(),
    };
    let (_out, mut near_in) = near.split();
    let ((), got) = tokio::join!(far.close(&reason), near_in.recv());
    match got.unwrap_err() {
        RecvError::Closed(close) => assert_eq!(close, reason),
        other => panic!("{other}"),
    }
}

on_all!(a_message_that_is_too_large_is_a_verdict, too_large, SMALL);
async fn too_large(near: Connection, far: Connection, _: Plug) {
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let (_, got) = tokio::join!(out.send_binary(Bytes::from(vec![0; 1010])), far_in.recv());
    let verdict = got.unwrap_err().verdict().unwrap();
    assert_eq!(
        verdict.to_string(),
        "1009 the peer sent a message larger than 1000 bytes"
    );
}

on_all!(a_malformed_message_is_a_verdict, malformed, Limits::HUB);
async fn malformed(near: Connection, far: Connection, _: Plug) {
    let message: &[u8] = match near.framing() {
        Framing::Official => b"{\"header\":7",
        Framing::Kedge => b"\x03{\"header\":7",
    };
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let (sent, got) = tokio::join!(out.send_binary(Bytes::from_static(message)), far_in.recv());
    sent.unwrap();
    let verdict = got.unwrap_err().verdict().unwrap();
    assert_eq!(verdict.code, CloseCode::Policy);
    assert!(
        verdict.reason.starts_with("the peer sent a malformed message: "),
        "{}",
        verdict.reason
    );
}

on_all!(a_pulled_plug_cuts_both_directions, unplugged, Limits::HUB);
async fn unplugged(near: Connection, far: Connection, plug: Plug) {
    let (mut out, mut near_in) = near.split();
    let (_far_out, mut far_in) = far.split();
    let pulling = async {
        tokio::task::yield_now().await;
        plug.pull();
    };
    let (got, ()) = tokio::join!(near_in.recv(), pulling);
    assert!(matches!(got, Err(RecvError::Unplugged)));
    plug.insert();
    // A cut connection stays cut; the far end learns it when the near one lets go.
    assert!(matches!(
        out.send(&packet("late")).await,
        Err(SendError::Unplugged)
    ));
    drop((out, near_in));
    assert!(matches!(
        far_in.recv().await,
        Err(RecvError::Lost(_) | RecvError::Closed(_))
    ));
}

#[tokio::test]
async fn a_pulled_plug_lets_nobody_dial() {
    let world = World::new();
    let (listener, _server) = world.listen().await;
    let target = Target::hub(&listener.local_address().to_string(), "project", &node());
    let plug = Plug::new();
    plug.pull();
    let error = dial(&target, tls(&world.edge), &plug).await.unwrap_err();
    assert!(matches!(error, DialError::Unplugged { .. }));
}

/// The same over QUIC.
async fn refused_dial_quic(world: &World, identity: &Identity) -> DialError {
    let listener = world.listen_quic();
    let target = Target::hub(&listener.local_address().to_string(), "project", &node());
    let plug = Plug::new();
    let dialled = dial_quic(&target, tls(identity), &plug);
    let accepted = async {
        let refusal = Refusal {
            status: 403,
            text: "not you".into(),
        };
        listener
            .next()
            .await
            .run(Limits::HUB, |_| Err::<Acceptance<()>, _>(refusal))
            .await
            .unwrap_err()
    };
    let (dialled, _) = tokio::join!(dialled, accepted);
    dialled.unwrap_err()
}

/// Dials a server that refuses with the given decision, and tells what the dialler understands.
async fn refused_dial(world: &World, identity: &Identity) -> DialError {
    let (listener, server) = world.listen().await;
    let target = Target::hub(&listener.local_address().to_string(), "project", &node());
    let plug = Plug::new();
    let dialled = dial(&target, tls(identity), &plug);
    let accepted = async {
        let (tcp, _) = listener.accept().await;
        let refusal = Refusal {
            status: 403,
            text: "not you".into(),
        };
        accept(tcp, server, Limits::HUB, |_| Err::<Acceptance<()>, _>(refusal))
            .await
            .unwrap_err()
    };
    let (dialled, _) = tokio::join!(dialled, accepted);
    dialled.unwrap_err()
}

#[tokio::test]
async fn every_failure_to_dial_is_told_apart() {
    let world = World::new();
    let refusals = [
        refused_dial(&world, &world.edge).await,
        refused_dial_quic(&world, &world.edge).await,
    ];
    for refusal in refusals {
        match refusal {
            DialError::Rejected {
                status: 403, text, ..
            } => assert_eq!(text, "not you"),
            other => panic!("{other}"),
        }
    }

    // The server's authority is unknown to the edge.
    let stranger = World::new();
    let refusals = [
        refused_dial(&world, &stranger.edge).await,
        refused_dial_quic(&world, &stranger.edge).await,
    ];
    for refusal in refusals {
        match refusal {
            DialError::Tls {
                trouble: TlsTrouble::UnknownAuthority,
                ..
            } => {}
            other => panic!("{other}"),
        }
    }

    // The edge's certificate has expired: the server says so with an alert.
    let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1_600_000_000));
    let expired = edge_of(&world.authority, long_ago);
    let refusals = [
        refused_dial(&world, &expired).await,
        refused_dial_quic(&world, &expired).await,
    ];
    for refusal in refusals {
        match refusal {
            DialError::Tls {
                trouble: TlsTrouble::RefusesUs { alert },
                ..
            } => assert_eq!(alert, "CertificateExpired"),
            other => panic!("{other}"),
        }
    }

    // Nobody listens.
    let (listener, _) = world.listen().await;
    let target = Target::hub(&listener.local_address().to_string(), "project", &node());
    drop(listener);
    let error = dial(&target, tls(&world.edge), &Plug::new()).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error}");

    let nonsense = Target::hub("here", "project", &node());
    let error = dial(&nonsense, tls(&world.edge), &Plug::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "dial \"here\": not of the form host:port");
}

#[tokio::test]
async fn a_name_that_the_certificate_does_not_carry_is_refused() {
    let world = World::new();
    let (listener, server) = world.listen().await;
    let target = Target::hub(
        &format!("localhost:{}", listener.local_address().port()),
        "project",
        &node(),
    );
    let plug = Plug::new();
    let dialled = dial(&target, tls(&world.edge), &plug);
    let accepted = async {
        let (tcp, _) = listener.accept().await;
        accept(tcp, server, Limits::HUB, welcome).await.unwrap_err()
    };
    match tokio::join!(dialled, accepted).0.unwrap_err() {
        DialError::Tls {
            trouble: TlsTrouble::WrongName { .. },
            ..
        } => {}
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_does_not_get_in() {
    let world = World::new();
    let (listener, server) = world.listen().await;
    let target = Target::hub(&listener.local_address().to_string(), "project", &node());
    let anonymous = kedge_pki::anonymous_client_config(world.authority.certificate()).unwrap();
    let plug = Plug::new();
    let dialled = dial(&target, Arc::new(anonymous), &plug);
    let accepted = async {
        let (tcp, _) = listener.accept().await;
        accept(tcp, server, Limits::HUB, welcome).await.unwrap_err()
    };
    match tokio::join!(dialled, accepted).0.unwrap_err() {
        DialError::Tls {
            trouble: TlsTrouble::RefusesUs { alert },
            ..
        } => assert_eq!(alert, "CertificateRequired"),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_pings_without_end_is_at_fault() {
    let (near, far) = pair(Limits::HUB, Framing::Kedge, &Plug::new()).await;
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    // Every ten seconds for ten minutes, as edges do on their tunnel, is fine.
    for _ in 0..60 {
        out.ping().await.unwrap();
        let quiet = tokio::time::timeout(Duration::from_secs(10), far_in.recv()).await;
        assert!(quiet.is_err());
    }
    for _ in 0..101 {
        out.ping().await.unwrap();
    }
    let verdict = far_in.recv().await.unwrap_err().verdict().unwrap();
    assert_eq!(
        verdict.to_string(),
        "1002 the peer breaks the protocol: more than 100 pings a second"
    );
}

#[tokio::test]
async fn an_address_of_another_machine_cannot_be_listened_on() {
    let error = Listener::bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, BindError::NotLocal { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (near, _far) = pair(Limits::HUB, Framing::Official, &Plug::new()).await;
    let (mut out, _in) = near.split();
    let large = packet(&"x".repeat(1_000_000));
    let error = out.send(&large).await.unwrap_err();
    assert_eq!(error.to_string(), "the peer did not take a message within 15s");
}
