use crate::play::{Controllers, Edge, SOON, name, object, pod};
use crate::world::{World, config, ports};
use bytes::Bytes;
use kedge_cloudhub::{Answer, CloudHub, Error};
use kedge_link::{Digest, Held};
use kedge_pki::{Authority, UnixTime};
use kedge_transport::{BindError, DialError, Plug, RecvError, Target, dial};
use kedge_wire::{Body, Operation, Packet, Resource, Route, Source, ToCloud};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn a_node_gets_what_it_must_hold_and_later_changes() {
    let mut world = World::start().await;
    let mut edge = world.edge("edge-1").await;
    let mut controllers = world.attach(vec![(pod("web"), object("web", 7))]).await;
    assert_eq!(controllers.node, name("edge-1"));
    assert_eq!(edge.take_object().await, "Insert default/pod/web@7");
    let (key, acked) = controllers.acked.recv().await.unwrap();
    assert_eq!((key, acked.uid.as_str()), (pod("web"), "uid-web"));
    assert_eq!(acked.version.unwrap().as_str(), "7");
    controllers.desired.set(pod("db"), Some(object("db", 8))).unwrap();
    assert!(edge.take_object().await.ends_with("default/pod/db@8"));
    controllers.desired.set(pod("web"), None).unwrap();
    assert!(edge.take_object().await.starts_with("Delete default/pod/web"));
}

#[tokio::test]
async fn requests_are_answered_under_their_id() {
    let mut world = World::start().await;
    let (mut edge, mut controllers) = world.node("edge-1").await;
    let id = edge.query("app").await;
    controllers.answer_one().await;
    assert_eq!(edge.reply(&id).await, "app");

    // A silent answer sends nothing; an error is told as one.
    edge.query("silent").await;
    let asked = controllers.requests.recv().await.unwrap();
    asked.reply.send(Answer {
        body: Body::null(),
        version: None,
        error: false,
        silent: true,
    });
    let id = edge.query("broken").await;
    let asked = controllers.requests.recv().await.unwrap();
    asked.reply.send(Answer {
        body: Body::text("no"),
        version: None,
        error: true,
        silent: false,
    });
    let letter = edge.hear().await;
    assert_eq!(letter.header.parent, Some(id));
    assert_eq!(letter.message.route().operation, Operation::Error);

    let route = Route::new(
        Source::MetaManager,
        kedge_wire::Group::Meta,
        Operation::Query,
        Resource::KubernetesCa,
    );
    let id = edge.say(ToCloud::KubernetesCa { route }).await;
    assert_eq!(edge.reply(&id).await, "PEM of the API");
}

#[tokio::test]
async fn the_certificate_says_who_a_node_is() {
    let world = World::start().await;
    match world.dial("edge-1", "edge-2", false).await {
        Err(DialError::Rejected {
            status: 403, text, ..
        }) => {
            assert_eq!(
                text,
                "header node_id says \"edge-2\" but the certificate is of node edge-1"
            );
        }
        other => panic!("{:?}", other.err()),
    }

    // A right header with another node's path.
    let mut target = Target::hub(&world.hub_address().to_string(), "project", &name("edge-1"));
    for (path, status, told) in [
        (
            "/project/edge-2/events",
            403,
            "the path is that of \"edge-2\" but the certificate is of node edge-1",
        ),
        (
            "/metrics",
            404,
            "there is no /metrics here; a node connects to /<project>/<node>/events",
        ),
    ] {
        target.path = path.into();
        let tls = Arc::new(world.identity("edge-1").client_config().unwrap());
        match dial(&target, tls, &Plug::new()).await {
            Err(DialError::Rejected {
                status: got, text, ..
            }) => {
                assert_eq!((got, text.as_str()), (status, told));
            }
            other => panic!("{:?}", other.err()),
        }
    }

    // A valid certificate that is not a node's.
    let lifetime = Duration::from_secs(60);
    let admin = world
        .authority
        .issue_client("admin", &["system:masters"], lifetime, UnixTime::now())
        .unwrap();
    let target = Target::hub(&world.hub_address().to_string(), "project", &name("edge-1"));
    let error = dial(&target, Arc::new(admin.client_config().unwrap()), &Plug::new())
        .await
        .unwrap_err();
    match error {
        DialError::Rejected {
            status: 403, text, ..
        } => {
            assert_eq!(text, "the certificate of \"admin\" is not a node's");
        }
        other => panic!("{other}"),
    }
    assert_eq!(world.metrics.snapshot().refused, 4);
}

#[tokio::test]
async fn a_malformed_message_closes_only_the_connection_it_came_on() {
    let mut world = World::start().await;
    let (mut good, mut controllers) = world.node("good").await;
    let too_large = Bytes::from(vec![b' '; 16 * 1024 * 1024 + 1]);
    let deep = Bytes::from("[".repeat(200));
    let cases: [(bool, Bytes, &str); 5] = [
        (
            false,
            Bytes::from_static(b"{\"header\": 5"),
            "1008 the peer sent a malformed message: ",
        ),
        (false, deep, "1008 the peer sent a malformed message: "),
        (
            false,
            Bytes::from_static(b"{\"header\": \"\xff\"}"),
            "1007 the peer sent a malformed message: ",
        ),
        (false, too_large, "1009 the peer sent a message larger than "),
        (
            true,
            Bytes::from_static(&[77]),
            "1002 the peer breaks the protocol: ",
        ),
    ];
    let number = cases.len() as u64;
    for (own, bytes, told) in cases {
        let mut bad = world.dial("bad", "bad", own).await.unwrap();
        let _controllers = world.attach(Vec::new()).await;
        // What is too large is not taken whole, so sending it may fail.
        let sending = async {
            let _ = bad.sender.send_binary(bytes).await;
        };
        let ending = async {
            match tokio::time::timeout(SOON, bad.receiver.recv()).await.unwrap() {
                Err(RecvError::Closed(close)) => close.to_string(),
                other => format!("{other:?}"),
            }
        };
        let ((), end) = tokio::join!(sending, ending);
        assert!(end.starts_with(told), "{end}");
        let id = good.query_lease("good").await;
        controllers.answer_one().await;
        assert_eq!(good.reply(&id).await, "good");
    }
    assert_eq!(world.metrics.snapshot().violations, number);
}

#[tokio::test]
async fn a_node_that_floods_below_the_messages_is_ended() {
    let mut world = World::start().await;
    let (mut good, mut controllers) = world.node("good").await;
    let (mut bad, _bad_controllers) = world.node("bad").await;
    // It ends long before; a ping that meets the end fails.
    for _ in 0..100_000 {
        if bad.sender.ping().await.is_err() {
            break;
        }
    }
    assert_eq!(
        bad.end().await,
        "1002 the peer breaks the protocol: more than 100 pings a second"
    );
    let id = good.query_lease("good").await;
    controllers.answer_one().await;
    assert_eq!(good.reply(&id).await, "good");
}

#[tokio::test]
async fn connections_that_say_nothing_disturb_nobody() {
    let mut world = World::start().await;
    let (mut good, mut controllers) = world.node("good").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(world.hub_address()).await.unwrap());
    }
    for _ in 0..10 {
        let id = good.query_lease("good").await;
        controllers.answer_one().await;
        assert_eq!(good.reply(&id).await, "good");
    }
}

#[tokio::test]
async fn the_newest_connection_of_a_node_wins_and_inherits() {
    let mut world = World::start().await;
    let mut old = world.edge("edge-1").await;
    let old_controllers = world.attach(vec![(pod("web"), object("web", 7))]).await;
    assert!(old.take_object().await.ends_with("default/pod/web@7"));
    // The acknowledgement has arrived once a later question has.
    old.query("after").await;
    let Controllers {
        mut requests,
        desired,
        ..
    } = old_controllers;
    requests.recv().await.unwrap();

    let mut new = world.edge("edge-1").await;
    // Another pod that is newer shows that the controllers have seen all that the node has.
    let mut controllers = world.attach(vec![(pod("db"), object("db", 9))]).await;
    assert_eq!(
        old.end().await,
        "1008 replaced by a newer connection of this node"
    );
    // The old session's channels are closed, and what the node held meanwhile is deleted through the new one.
    assert!(desired.is_closed());
    let mut told = [new.take_object().await, new.take_object().await];
    told.sort();
    assert_eq!(told, ["Delete default/pod/web@-", "Insert default/pod/db@9"]);
    drop(old);
    let id = new.query("app").await;
    controllers.answer_one().await;
    assert_eq!(new.reply(&id).await, "app");
    let snapshot = world.metrics.snapshot();
    assert_eq!(
        (snapshot.sessions, snapshot.entered, snapshot.replaced),
        (1, 2, 1)
    );
}

#[tokio::test]
async fn a_flooding_node_waits_for_its_own_answers_and_disturbs_nobody() {
    let mut world = World::start().await;
    let (flooding, mut unanswering) = world.node("flooding").await;
    let (mut good, mut controllers) = world.node("good").await;
    // Far more than the hub works on at one time.
    let mut sender = flooding;
    let flood = tokio::spawn(async move {
        for number in 0..1500 {
            sender.query(&format!("{}-{number}", "x".repeat(200))).await;
        }
        sender
    });
    // The controllers take none of them until the good node was served.
    for number in 0..10 {
        let id = good.query_lease("good").await;
        controllers.answer_one().await;
        assert_eq!(good.reply(&id).await, "good", "answer {number}");
    }
    let busy = world.metrics.snapshot().requests;
    assert!(busy <= 10 + 64, "{busy} requests are being worked on");
    // Nothing was lost: once answers come, reading goes on.
    let answering = tokio::spawn(async move {
        for _ in 0..1500 {
            unanswering.answer_one().await;
        }
        unanswering
    });
    let mut edge = tokio::time::timeout(SOON, flood).await.unwrap().unwrap();
    for _ in 0..1500 {
        edge.hear().await;
    }
    let _controllers = answering.await.unwrap();
}

#[tokio::test]
async fn the_node_limit_is_told() {
    let mut world = World::with_limit(1).await;
    let (_first, _controllers) = world.node("edge-1").await;
    let mut second = world.edge("edge-2").await;
    assert_eq!(second.end().await, "1013 the node limit of 1 is reached");
}

#[tokio::test]
async fn our_own_edges_are_recognised_by_their_offer() {
    let mut world = World::start().await;
    let edge = world.dial("edge-1", "edge-1", true).await.unwrap();
    resumes(&mut world, edge).await;
}

#[tokio::test]
async fn over_quic_a_session_is_the_same() {
    let mut world = World::start().await;
    let edge = world.dial_quic("edge-1").await.unwrap();
    let (mut edge, _controllers) = resumes(&mut world, edge).await;
    // The newest connection wins, whatever carries it.
    let mut newer = world.dial("edge-1", "edge-1", true).await.unwrap();
    let mut controllers = world.attach(Vec::new()).await;
    assert_eq!(
        edge.end().await,
        "1008 replaced by a newer connection of this node"
    );
    newer.sender.send(&Packet::Ping).await.unwrap();
    assert_eq!(newer.receiver.recv().await.unwrap(), Packet::Pong);
    let id = newer.query_lease("edge-1").await;
    controllers.answer_one().await;
    loop {
        // Deletes of what the node no longer needs may come between.
        if newer.hear().await.header.parent.as_ref() == Some(&id) {
            break;
        }
    }
}

#[tokio::test]
async fn a_hub_may_have_quic_only() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let config = kedge_cloudhub::Config {
        hub_address: None,
        ..config(&authority, 9)
    };
    let mut world = World::with(authority, config).await;
    let edge = world.dial_quic("edge-1").await.unwrap();
    resumes(&mut world, edge).await;
    let report = world.scope.drain(SOON).await;
    assert!(report.left.is_empty(), "{report:?}");
}

#[tokio::test]
async fn a_hub_without_a_way_in_does_not_start() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let closed = kedge_cloudhub::Config {
        hub_address: None,
        quic_address: None,
        ..config(&authority, 9)
    };
    let error = CloudHub::bind(closed, ports().0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "edges have no way in: enable WebSocket or QUIC"
    );
}

/// One of our own edges says what it holds and gets the difference.
async fn resumes(world: &mut World, mut edge: Edge) -> (Edge, Controllers) {
    let controllers = world
        .attach(vec![(pod("web"), object("web", 7)), (pod("db"), object("db", 3))])
        .await;
    let held = Held {
        key: "default/pod/web".into(),
        uid: "uid-web".into(),
        version: "7".into(),
    };
    let digest = Digest {
        window: 8,
        held: vec![held],
    };
    edge.say(ToCloud::Resume {
        body: Body::from_value(&digest).unwrap(),
    })
    .await;
    // Only the difference is sent.
    assert!(edge.take_object().await.ends_with("default/pod/db@3"));
    (edge, controllers)
}

#[tokio::test]
async fn a_silent_node_is_let_go() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let config = kedge_cloudhub::Config {
        keepalive_timeout: Duration::from_secs(2),
        ..config(&authority, 9)
    };
    let mut world = World::with(authority, config).await;
    let (mut edge, _controllers) = world.node("edge-1").await;
    assert_eq!(edge.end().await, "1008 node edge-1 was silent for 2 s");
}

#[tokio::test]
async fn messages_without_effect_are_counted() {
    let mut world = World::start().await;
    let (mut edge, mut controllers) = world.node("edge-1").await;
    let route = Route::new(
        Source::Twin,
        kedge_wire::Group::Twin,
        Operation::Update,
        Resource::Device("membership/detail".into()),
    );
    edge.say(ToCloud::Twin {
        route,
        body: Body::null(),
    })
    .await;
    let id = edge.query("app").await;
    controllers.answer_one().await;
    edge.reply(&id).await;
    assert_eq!(world.metrics.snapshot().without_effect, 1);
}

#[tokio::test]
async fn everybody_is_told_when_the_cloud_stops() {
    let mut world = World::start().await;
    let (mut edge, _controllers) = world.node("edge-1").await;
    let (report, end) = tokio::join!(world.scope.drain(SOON), edge.end());
    assert_eq!(end, "1001 the cloud is stopping");
    assert!(report.left.is_empty(), "{report:?}");
}

#[tokio::test]
async fn controllers_that_end_are_a_reason() {
    let mut world = World::start().await;
    let (mut edge, controllers) = world.node("edge-1").await;
    drop(controllers);
    assert_eq!(
        edge.end().await,
        "1013 this cloud serves node edge-1 no longer: it was deleted, or its controllers let it go"
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = World::start().await;
    let taken = kedge_cloudhub::Config {
        hub_address: Some(world.hub_address()),
        ..config(&world.authority, 1)
    };
    match CloudHub::bind(taken, ports().0).await.unwrap_err() {
        Error::Hub(BindError::InUse { address }) => assert_eq!(address, world.hub_address()),
        other => panic!("{other}"),
    }
}
