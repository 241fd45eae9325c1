use crate::world::{SOON, World, config, name, object, pod, ports};
use bytes::Bytes;
use kedge_cloudhub::{Answer, CloudHub, Error};
use kedge_link::{OFFER_HEADER, OFFER_VERSION};
use kedge_pki::{Authority, UnixTime};
use kedge_transport::{BindError, DialError, Plug, Target, dial};
use kedge_wire::{Body, Operation, Resource, Route, Source, ToCloud};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn a_node_gets_what_it_must_hold_and_later_changes() {
    let mut world = World::start().await;
    let mut edge = world.edge("edge-1").await;
    let controllers = world.attach(vec![(pod("web"), object("web", 7))]).await;
    assert_eq!(controllers.node, name("edge-1"));
    assert_eq!(edge.take_object().await, "Insert default/pod/web@7");
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

    // A valid certificate that is not a node's.
    let lifetime = Duration::from_secs(60);
    let admin = world
        .authority
        .issue_client("admin", &["system:masters"], lifetime, UnixTime::now())
        .unwrap();
    let target = Target::hub(&world.hub_address.to_string(), "project", &name("edge-1"));
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
    assert_eq!(world.metrics.snapshot().refused, 2);
}

#[tokio::test]
async fn a_malformed_message_closes_only_the_connection_it_came_on() {
    let mut world = World::start().await;
    let (mut good, mut controllers) = world.node("good").await;
    let (mut bad, _bad_controllers) = world.node("bad").await;
    bad.sender
        .send_binary(Bytes::from_static(b"{\"header\": 5"))
        .await
        .unwrap();
    let end = bad.end().await;
    assert!(
        end.starts_with("1008 the peer sent a malformed message: "),
        "{end}"
    );
    let id = good.query("app").await;
    controllers.answer_one().await;
    assert_eq!(good.reply(&id).await, "app");
    assert_eq!(world.metrics.snapshot().violations, 1);
}

#[tokio::test]
async fn the_newest_connection_of_a_node_wins_and_inherits() {
    let mut world = World::start().await;
    let mut old = world.edge("edge-1").await;
    let old_controllers = world.attach(vec![(pod("web"), object("web", 7))]).await;
    assert!(old.take_object().await.ends_with("default/pod/web@7"));
    // The acknowledgement has arrived once a later question has.
    old.query("after").await;
    let Attached {
        mut requests,
        desired,
        ..
    } = Attached::from(old_controllers);
    requests.recv().await.unwrap();

    let mut new = world.edge("edge-1").await;
    let mut controllers = world.attach(Vec::new()).await;
    assert_eq!(
        old.end().await,
        "1008 replaced by a newer connection of this node"
    );
    // The old session's channels are closed, and what the node held meanwhile is deleted through the new one.
    assert!(desired.is_closed());
    assert!(new.take_object().await.starts_with("Delete default/pod/web"));
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

struct Attached {
    requests: kedge_telemetry::channel::ask::Receiver<kedge_wire::Request, Answer>,
    desired: kedge_telemetry::channel::keyed::Sender<kedge_wire::ObjectKey, Option<kedge_wire::Object>>,
}

impl From<crate::world::Controllers> for Attached {
    fn from(controllers: crate::world::Controllers) -> Self {
        Self {
            requests: controllers.requests,
            desired: controllers.desired,
        }
    }
}

#[tokio::test]
async fn a_flooding_node_waits_for_its_own_answers_and_disturbs_nobody() {
    let mut world = World::start().await;
    let (flooding, mut unanswering) = world.node("flooding").await;
    let (mut good, mut controllers) = world.node("good").await;
    // Far more than the hub works on at one time, and more than the socket holds.
    let mut sender = flooding;
    let flood = tokio::spawn(async move {
        for number in 0..5000 {
            sender.query(&format!("{}-{number}", "x".repeat(200))).await;
        }
        sender
    });
    // The controllers take none of them until the good node was served.
    for number in 0..10 {
        let id = good.query(&format!("app-{number}")).await;
        controllers.answer_one().await;
        assert_eq!(good.reply(&id).await, format!("app-{number}"));
    }
    let busy = world.metrics.snapshot().requests;
    assert!(busy <= 10 + 64, "{busy} requests are being worked on");
    // Nothing was lost: once answers come, reading goes on.
    let answering = tokio::spawn(async move {
        for _ in 0..5000 {
            unanswering.answer_one().await;
        }
        unanswering
    });
    let mut edge = tokio::time::timeout(SOON, flood).await.unwrap().unwrap();
    for _ in 0..5000 {
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
    let mut edge = world.dial("edge-1", "edge-1", true).await.unwrap();
    let _controllers = world
        .attach(vec![(pod("web"), object("web", 7)), (pod("db"), object("db", 3))])
        .await;
    let held = r#"[{"key":"default/pod/web","uid":"uid-web","version":"7"}]"#;
    edge.say(ToCloud::Resume {
        body: Body::from_json(held.into()).unwrap(),
    })
    .await;
    // Only the difference is sent.
    assert!(edge.take_object().await.ends_with("default/pod/db@3"));
    assert_eq!((OFFER_HEADER, OFFER_VERSION), ("Kedge-Link", "1"));
}

#[tokio::test]
async fn a_silent_node_is_let_go() {
    let authority = Authority::create(UnixTime::now()).unwrap();
    let (ports, attaches) = ports();
    let config = kedge_cloudhub::Config {
        keepalive_timeout: Duration::from_secs(2),
        ..config(&authority, 9)
    };
    let hub = CloudHub::bind(config, ports).await.unwrap();
    let scope = kedge_telemetry::Scope::new();
    let mut world = World {
        authority,
        hub_address: hub.hub_address(),
        https_address: hub.https_address(),
        metrics: hub.metrics(),
        attaches,
        scope: scope.clone(),
    };
    scope.spawn("hub", hub.run(scope.clone()));
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
        "1013 the cloud's controllers have let this node go"
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = World::start().await;
    let taken = kedge_cloudhub::Config {
        hub_address: world.hub_address,
        ..config(&world.authority, 1)
    };
    match CloudHub::bind(taken, ports().0).await.unwrap_err() {
        Error::Hub(BindError::InUse { address }) => assert_eq!(address, world.hub_address),
        other => panic!("{other}"),
    }
}
