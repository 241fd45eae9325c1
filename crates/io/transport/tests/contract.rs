//! One suite for both carriers: TLS over loopback, and memory.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

use bytes::Bytes;
use kedge_pki::{Authority, ClientAuth, Identity, ServerNames, UnixTime};
use kedge_transport::{
    Acceptance, BindError, Close, CloseCode, Connection, DialError, Limits, Listener, Plug, RecvError,
    Refusal, SendError, Target, TlsTrouble, accept, dial, pair,
};
use kedge_wire::{Body, Envelope, Header, MessageId, NodeName, RawRoute};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

fn node() -> NodeName {
    NodeName::new("edge-1").unwrap()
}

fn envelope(text: &str) -> Envelope {
    Envelope {
        header: Header {
            id: MessageId::new("b6f5b1a0-0000-4000-8000-000000000001"),
            parent: None,
            timestamp_ms: 1_767_225_600_000,
            resource_version: None,
            sync: false,
            kind: None,
        },
        route: RawRoute {
            source: "websocket".into(),
            group: "resource".into(),
            operation: "keepalive".into(),
            resource: "node".into(),
            ..RawRoute::default()
        },
        content: Body::text(text),
    }
}

struct World {
    authority: Authority,
    server: Identity,
    edge: Identity,
}

impl World {
    fn new() -> Self {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let names = ServerNames {
            ips: vec![IpAddr::from([127, 0, 0, 1])],
            dns: Vec::new(),
        };
        let server = authority.issue_server(&names, now).unwrap();
        let edge = edge_of(&authority, now);
        Self {
            authority,
            server,
            edge,
        }
    }

    async fn listen(&self) -> (Listener, Arc<rustls::ServerConfig>) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        (
            listener,
            Arc::new(self.server.server_config(ClientAuth::Required).unwrap()),
        )
    }
}

fn edge_of(authority: &Authority, now: UnixTime) -> Identity {
    let lifetime = Duration::from_secs(3600);
    authority
        .issue_client("system:node:edge-1", &["system:nodes"], lifetime, now)
        .unwrap()
}

fn tls(identity: &Identity) -> Arc<rustls::ClientConfig> {
    Arc::new(identity.client_config().unwrap())
}

async fn over_tls(limits: Limits, plug: &Plug) -> (Connection, Connection) {
    let world = World::new();
    let (listener, server) = world.listen().await;
    let target = Target {
        limits,
        ..Target::hub(&listener.local_address().to_string(), "project", &node())
    }
    .with_header("Kedge-Link", "1");
    let dialled = dial(&target, tls(&world.edge), plug);
    let accepted = async {
        let (tcp, _) = listener.accept().await;
        accept(tcp, server, limits, |request| {
            assert_eq!(request.path, "/project/edge-1/events");
            assert_eq!(request.header("Node_id"), Some("edge-1"));
            assert_eq!(request.header("ConnectionUse"), Some("msg"));
            assert!(request.certificate.is_some());
            Ok(Acceptance {
                value: (),
                headers: vec![("kedge-link", "1")],
            })
        })
        .await
        .unwrap()
        .0
    };
    let (near, far) = tokio::join!(dialled, accepted);
    let near = near.unwrap();
    assert_eq!(near.header("Kedge-Link"), Some("1"));
    (near, far)
}

/// Runs one story on both carriers.
macro_rules! on_both {
    ($name:ident, $story:ident, $limits:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn over_tls() {
                let plug = Plug::new();
                let (near, far) = super::over_tls($limits, &plug).await;
                $story(near, far, plug).await;
            }

            #[tokio::test]
            async fn in_memory() {
                let plug = Plug::new();
                let (near, far) = pair($limits, &plug).await;
                $story(near, far, plug).await;
            }
        }
    };
}

const SMALL: Limits = Limits {
    message_bytes_max: 1000,
};

on_both!(messages_arrive_in_order_and_whole, order, Limits::HUB);
async fn order(near: Connection, far: Connection, _: Plug) {
    let (mut near_out, mut near_in) = near.split();
    let (mut far_out, mut far_in) = far.split();
    let large = "x".repeat(1_000_000);
    let sending = async {
        for text in ["one", large.as_str(), "three"] {
            near_out.send(&envelope(text)).await.unwrap();
        }
    };
    let receiving = async {
        for text in ["one", large.as_str(), "three"] {
            assert_eq!(far_in.recv().await.unwrap(), envelope(text));
        }
    };
    tokio::join!(sending, receiving);
    let bytes = Bytes::from_static(&[0, 3, 0xff, 0xfe]);
    let (sent, got) = tokio::join!(far_out.send_binary(bytes.clone()), near_in.recv_binary());
    sent.unwrap();
    assert_eq!(got.unwrap(), bytes);
}

on_both!(a_close_tells_its_reason, close, Limits::HUB);
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

on_both!(a_message_that_is_too_large_is_a_verdict, too_large, SMALL);
async fn too_large(near: Connection, far: Connection, _: Plug) {
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let (_, got) = tokio::join!(out.send_binary(Bytes::from(vec![0; 1001])), far_in.recv());
    let verdict = got.unwrap_err().verdict().unwrap();
    assert_eq!(
        verdict.to_string(),
        "1009 the peer sent a message larger than 1000 bytes"
    );
}

on_both!(a_malformed_message_is_a_verdict, malformed, Limits::HUB);
async fn malformed(near: Connection, far: Connection, _: Plug) {
    let (mut out, _in) = near.split();
    let (_out, mut far_in) = far.split();
    let (sent, got) = tokio::join!(
        out.send_binary(Bytes::from_static(b"{\"header\":7")),
        far_in.recv()
    );
    sent.unwrap();
    let verdict = got.unwrap_err().verdict().unwrap();
    assert_eq!(verdict.code, CloseCode::Policy);
    assert!(
        verdict.reason.starts_with("the peer sent a malformed message: "),
        "{}",
        verdict.reason
    );
}

on_both!(a_pulled_plug_cuts_both_directions, unplugged, Limits::HUB);
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
        out.send(&envelope("late")).await,
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
    match refused_dial(&world, &world.edge).await {
        DialError::Rejected {
            status: 403, text, ..
        } => assert_eq!(text, "not you"),
        other => panic!("{other}"),
    }

    // The server's authority is unknown to the edge.
    let stranger = World::new();
    match refused_dial(&world, &stranger.edge).await {
        DialError::Tls {
            trouble: TlsTrouble::UnknownAuthority,
            ..
        } => {}
        other => panic!("{other}"),
    }

    // The edge's certificate has expired: the server says so with an alert.
    let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1_600_000_000));
    match refused_dial(&world, &edge_of(&world.authority, long_ago)).await {
        DialError::Tls {
            trouble: TlsTrouble::RefusesUs { alert },
            ..
        } => assert_eq!(alert, "CertificateExpired"),
        other => panic!("{other}"),
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
        accept(tcp, server, Limits::HUB, |_| {
            Ok(Acceptance {
                value: (),
                headers: Vec::new(),
            })
        })
        .await
        .unwrap_err()
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
        accept(tcp, server, Limits::HUB, |_| {
            Ok(Acceptance {
                value: (),
                headers: Vec::new(),
            })
        })
        .await
        .unwrap_err()
    };
    match tokio::join!(dialled, accepted).0.unwrap_err() {
        DialError::Tls {
            trouble: TlsTrouble::RefusesUs { alert },
            ..
        } => assert_eq!(alert, "CertificateRequired"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_address_of_another_machine_cannot_be_listened_on() {
    let error = Listener::bind("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, BindError::NotLocal { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (near, _far) = pair(Limits::HUB, &Plug::new()).await;
    let (mut out, _in) = near.split();
    let large = envelope(&"x".repeat(1_000_000));
    let error = out.send(&large).await.unwrap_err();
    assert_eq!(error.to_string(), "the peer did not take a message within 15s");
}
