//! What edged asks.

use super::{Answer, World, body, key, object, reply};
use kedge_link::edge::RequestError;
use kedge_telemetry::clock;
use kedge_wire::{ChangeVerb, NodeName, ObjectKey, Operation, Request, Source};
use std::time::Duration;

const CONFIG: &str = "default/configmap/c";

fn json(answer: Answer) -> String {
    answer.unwrap().body.json().to_owned()
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_answered_without_the_cloud() {
    let world = World::online().await;
    let config = object("c", "u1", "7");
    world.commit(ChangeVerb::Insert, CONFIG, &config).await.unwrap();
    world.online.send(false).unwrap();
    let answer = world.ask(Request::query(key(CONFIG))).await.unwrap().unwrap();
    assert_eq!(answer.body.json(), config);
    assert_eq!(answer.version.unwrap().as_str(), "7");
    assert_eq!(answer.route.source, Source::MetaManager);
    let missing = world.ask(Request::query(key("default/secret/s"))).await.unwrap();
    assert_eq!(missing, Err(RequestError::Offline));
}

#[tokio::test(start_paused = true)]
async fn nodes_and_pods_are_never_asked_of_the_cloud() {
    let world = World::online().await;
    for absent in ["null/node/edge-1", "default/pod/web"] {
        let asked = world.ask(Request::query(key(absent))).await.unwrap().unwrap_err();
        assert_eq!(
            asked,
            RequestError::Refused(format!("{absent} not found on this node"))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_cloud_is_kept() {
    let mut world = World::online().await;
    let asked = world.ask(Request::query(key(CONFIG)));
    let (request, way) = world.at_cloud().await;
    assert_eq!(request.key, key(CONFIG));
    let config = object("c", "u1", "7");
    way.send(reply(&request, &config));
    assert_eq!(json(asked.await.unwrap()), config);
    world.online.send(false).unwrap();
    assert_eq!(
        json(world.ask(Request::query(key(CONFIG))).await.unwrap()),
        config
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_instead_of_an_object_is_not_kept() {
    let mut world = World::online().await;
    let asked = world.ask(Request::query(key(CONFIG)));
    let (request, way) = world.at_cloud().await;
    way.send(reply(
        &request,
        r#"{"ErrStatus":{"status":"Failure","message":"configmaps \"c\" not found","code":404}}"#,
    ));
    let refused = asked.await.unwrap().unwrap_err();
    assert!(
        matches!(&refused, RequestError::Refused(why) if why.contains("not found")),
        "{refused:?}"
    );
    assert_eq!(world.stored(CONFIG).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_a_push_overtook_is_not_kept() {
    let mut world = World::online().await;
    let asked = world.ask(Request::query(key(CONFIG)));
    let (request, way) = world.at_cloud().await;
    let newer = object("c", "u1", "not a number");
    world.commit(ChangeVerb::Update, CONFIG, &newer).await.unwrap();
    way.send(reply(&request, &object("c", "u1", "7")));
    asked.await.unwrap().unwrap();
    assert_eq!(world.stored(CONFIG).await, Some(newer));
}

#[tokio::test(start_paused = true)]
async fn a_volume_claim_comes_from_the_cloud_and_from_the_store_while_it_is_away() {
    let claim = "default/persistentvolumeclaim/p";
    let mut world = World::online().await;
    for version in ["1", "2"] {
        let asked = world.ask(Request::query(key(claim)));
        let (request, way) = world.at_cloud().await;
        way.send(reply(&request, &object("p", "u1", version)));
        assert_eq!(json(asked.await.unwrap()), object("p", "u1", version));
    }
    world.online.send(false).unwrap();
    assert_eq!(
        json(world.ask(Request::query(key(claim))).await.unwrap()),
        object("p", "u1", "2")
    );
}

#[tokio::test(start_paused = true)]
async fn the_registered_node_is_kept() {
    let mut world = World::online().await;
    let node = ObjectKey::parse("null/node/edge-1").unwrap();
    let asked = world.ask(Request::insert(node.clone(), body("{}")));
    let (request, way) = world.at_cloud().await;
    assert_eq!(request.route.operation, Operation::Insert);
    let registered = object("edge-1", "u1", "7");
    way.send(reply(
        &request,
        &format!(r#"{{"Object":{registered},"Err":null}}"#),
    ));
    asked.await.unwrap().unwrap();
    assert_eq!(world.stored("null/node/edge-1").await, Some(registered));
}

#[tokio::test(start_paused = true)]
async fn slow_questions_leave_the_lease_its_place() {
    let mut world = World::online().await;
    let mut asked = Vec::new();
    let mut unanswered = Vec::new();
    for number in 0..64 {
        asked.push(world.ask(Request::query(key(&format!("default/secret/s{number}")))));
        unanswered.push(world.at_cloud().await.1);
    }
    let one_more = world
        .ask(Request::query(key("default/secret/more")))
        .await
        .unwrap();
    assert_eq!(one_more, Err(RequestError::Full));

    let lease = ObjectKey::lease(&NodeName::new("edge-1").unwrap());
    let renewed = world.ask(Request::update(lease.clone(), body("{}")));
    let (request, way) = world.at_cloud().await;
    assert_eq!(request.key, lease);
    way.send(reply(&request, r#"{"Object":{"metadata":{}},"Err":null}"#));
    assert!(renewed.await.unwrap().is_ok());
    assert!(asked.iter().all(|asked| !asked.is_finished()));
}

fn token(expires_in_seconds: i64) -> String {
    let expires = jiff::Timestamp::from_millisecond(clock::wall_ms() as i64).unwrap()
        + jiff::SignedDuration::from_secs(expires_in_seconds);
    let spec =
        r#"{"audiences":["api"],"expirationSeconds":3600,"boundObjectRef":{"kind":"Pod","uid":"pod-uid"}}"#;
    let status = format!(r#"{{"token":"secret {expires_in_seconds}","expirationTimestamp":"{expires}"}}"#);
    format!(r#"{{"kind":"TokenRequest","metadata":{{}},"spec":{spec},"status":{status}}}"#)
}

fn token_request() -> Request {
    let asked = r#"{"spec":{"audiences":null,"expirationSeconds":3600,"boundObjectRef":{"uid":"pod-uid"}}}"#;
    Request::query_token("default", "robot", body(asked))
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_for_most_of_its_life_and_goes_with_its_pod() {
    let mut world = World::online().await;
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &token(600)));
    assert!(
        json(asked.await.unwrap()).contains("secret 600"),
        "the first token"
    );

    // 600 of 3600 seconds are left: due for renewal, but good while no other can be had.
    let asked = world.ask(token_request());
    world.at_cloud().await.1.send(Err(RequestError::Timeout));
    assert!(json(asked.await.unwrap()).contains("secret 600"));
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &token(3600)));
    assert!(json(asked.await.unwrap()).contains("secret 3600"));

    world.online.send(false).unwrap();
    assert!(
        json(world.ask(token_request()).await.unwrap()).contains("secret 3600"),
        "fresh: no cloud needed"
    );

    let pod = object("web", "pod-uid", "1");
    world
        .commit(ChangeVerb::Insert, "default/pod/web", &pod)
        .await
        .unwrap();
    world
        .commit(ChangeVerb::Delete, "default/pod/web", &pod)
        .await
        .unwrap();
    let swept = async {
        while !world.store.list("serviceaccounttoken").await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), swept)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_is_given_to_its_own_identity_only() {
    let mut world = World::online().await;
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &token(3600)));
    asked.await.unwrap().unwrap();
    world.online.send(false).unwrap();

    let same = [
        r#"{"spec":{"boundObjectRef":{"uid":"pod-uid"},"expirationSeconds":3600,"audiences":[]}}"#,
        r#"{"kind":"TokenRequest","spec":{"expirationSeconds":3600,"boundObjectRef":{"uid":"pod-uid"}},"status":{}}"#,
    ];
    for same in same {
        let answer = world
            .ask(Request::query_token("default", "robot", body(same)))
            .await
            .unwrap();
        assert!(json(answer).contains("secret 3600"), "{same}");
    }
    let spec = |spec: &str| body(&format!(r#"{{"spec":{spec}}}"#));
    let others = [
        ("default", "other", token_request().body),
        ("kube-system", "robot", token_request().body),
        (
            "default",
            "robot",
            spec(r#"{"expirationSeconds":3600,"boundObjectRef":{"uid":"next-uid"}}"#),
        ),
        (
            "default",
            "robot",
            spec(r#"{"expirationSeconds":3600,"audiences":["vault"],"boundObjectRef":{"uid":"pod-uid"}}"#),
        ),
        (
            "default",
            "robot",
            spec(r#"{"expirationSeconds":600,"boundObjectRef":{"uid":"pod-uid"}}"#),
        ),
        ("default", "robot", spec(r#"{"expirationSeconds":3600}"#)),
    ];
    for (namespace, account, asked) in others {
        let request = Request::query_token(namespace, account, asked.clone());
        let answer = world.ask(request).await.unwrap();
        assert_eq!(
            answer,
            Err(RequestError::Offline),
            "{namespace}/{account} {asked:?}"
        );
    }
    let nonsense = world
        .ask(Request::query_token("default", "robot", body("7")))
        .await
        .unwrap();
    assert!(matches!(nonsense, Err(RequestError::Refused(_))), "{nonsense:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_pod_is_refused_and_not_kept() {
    let mut world = World::online().await;
    for (answer, why) in [
        (
            token(3600).replace("pod-uid", "other"),
            "the answer is a token of another object",
        ),
        (
            r#"{"spec":{},"status":{"token":""}}"#.to_owned(),
            "the answer is not an object",
        ),
        (
            r#"{"metadata":{},"status":null}"#.to_owned(),
            "the answer holds no token",
        ),
        (
            r#"{"ErrStatus":{"status":"Failure","message":"no","code":403}}"#.to_owned(),
            "no",
        ),
        ("[]".to_owned(), "not an object"),
    ] {
        let asked = world.ask(token_request());
        let (request, way) = world.at_cloud().await;
        way.send(reply(&request, &answer));
        let refused = asked.await.unwrap().unwrap_err();
        assert!(
            matches!(&refused, RequestError::Refused(told) if told.contains(why)),
            "{refused:?}"
        );
    }
    assert_eq!(world.store.all().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_token_survives_a_restart_and_a_refused_renewal() {
    let mut world = World::online().await;
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &token(700)));
    asked.await.unwrap().unwrap();
    let (mut world, _) = World::start(world.end().await, true).await;
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(
        &request,
        r#"{"ErrStatus":{"status":"Failure","message":"busy","code":500}}"#,
    ));
    assert!(json(asked.await.unwrap()).contains("secret 700"));
    world.online.send(false).unwrap();
    assert!(json(world.ask(token_request()).await.unwrap()).contains("secret 700"));
    // Nobody answers: who holds a token that works does not wait the whole time for a question.
    world.online.send(true).unwrap();
    let before = tokio::time::Instant::now();
    let asked = world.ask(token_request());
    let (_request, _way) = world.at_cloud().await;
    assert!(json(asked.await.unwrap()).contains("secret 700"));
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_answers_is_refused_at_once() {
    let world = World::online().await;
    for text in [
        "default/podpatch/web",
        "null/nodepatch/edge-1",
        "default/event/e",
        "default/volume/v",
    ] {
        let refused = world.ask(Request::query(key(text))).await.unwrap();
        assert_eq!(
            refused,
            Err(RequestError::Refused(format!("{text} cannot be asked for")))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn kinds_that_only_pods_name_are_kept_and_unknown_ones_are_not() {
    let mut world = World::online().await;
    for (text, kept) in [
        ("null/runtimeclass/x", true),
        ("default/serviceaccount/x", true),
        ("null/volumeattachment/x", true),
        ("default/certificatesigningrequest/x", false),
        ("default/somethingelse/x", false),
    ] {
        let asked = world.ask(Request::query(key(text)));
        let (request, way) = world.at_cloud().await;
        way.send(reply(&request, &object("x", "u", "7")));
        assert_eq!(json(asked.await.unwrap()), object("x", "u", "7"));
        assert_eq!(world.stored(text).await.is_some(), kept, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_given_out() {
    let mut world = World::online().await;
    let asked = world.ask(token_request());
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, &token(-5)));
    asked.await.unwrap().unwrap();
    world.online.send(false).unwrap();
    assert_eq!(
        world.ask(token_request()).await.unwrap(),
        Err(RequestError::Offline)
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_cloud_is_a_timeout_of_one_question() {
    let mut world = World::online().await;
    let asked = world.ask(Request::query(key(CONFIG)));
    let (_request, _way) = world.at_cloud().await;
    assert_eq!(asked.await.unwrap(), Err(RequestError::Timeout));
}
