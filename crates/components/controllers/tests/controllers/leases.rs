//! Leases: answered at once, written when the node controller needs it, with the API there or not.

use crate::world::{PATIENCE, Session, World, body, node};
use expect_test::expect;
use kedge_wire::{NodeName, ObjectKey, Request};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1";

fn renewal(number: u64) -> Request {
    let lease = json!({
        "metadata": {"name": "edge-1", "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": "edge-1", "leaseDurationSeconds": 40, "renewTime": number},
    });
    Request::update(key(), body(lease))
}

fn key() -> ObjectKey {
    ObjectKey::lease(&NodeName::new("edge-1").unwrap())
}

/// Renews every ten seconds, as edges do, and checks that each answer comes at once.
async fn renew(session: &Session, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let asked = Instant::now();
        let answer = session.ask(renewal(number)).await;
        assert!(answer.contains(&format!(r#""renewTime":{number}"#)), "{answer}");
        assert_eq!(asked.elapsed(), Duration::ZERO, "no call, no wait");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn until_written(world: &World, number: u64) {
    let written = |lease: Option<&Value>| {
        lease.is_some_and(|lease| lease["spec"]["renewTime"].as_u64() >= Some(number))
    };
    tokio::time::timeout(PATIENCE, world.api.until_object(LEASE, written))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_node_gets_its_lease_and_three_writes_a_minute_are_enough() {
    let world = World::new(&[node("edge-1")]).await;
    let session = world.session("edge-1").await;
    session.check(Request::query(key()), expect![[r#"response: {"Object":null,"Err":{"ErrStatus":{"status":"Failure","message":"leases \"edge-1\" not found","reason":"NotFound","code":404,"metadata":{},"details":{"name":"edge-1","kind":"leases"}}}}"#]]).await;
    session.check(renewal(0), expect![[r#"response: {"Object":{"metadata":{"name":"edge-1","namespace":"kube-node-lease"},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0},"kind":"Lease","apiVersion":"coordination.k8s.io/v1"},"Err":null}"#]]).await;
    until_written(&world, 0).await;
    expect![[r#"{"metadata":{"name":"edge-1","namespace":"kube-node-lease","ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"edge-1","uid":"edge-1-uid"}],"resourceVersion":"2","uid":"uid-2"},"spec":{"holderIdentity":"edge-1","leaseDurationSeconds":40,"renewTime":0},"kind":"Lease","apiVersion":"coordination.k8s.io/v1"}"#]].assert_eq(&world.api.object(LEASE).unwrap().to_string());

    let calls = |world: &World| world.calls(LEASES).len() + world.calls(LEASE).len();
    let before = calls(&world);
    renew(&session, 1..61).await;
    let a_minute = (calls(&world) - before) as f64 / 10.0;
    assert!(
        a_minute <= 3.0,
        "{a_minute} calls a minute for the lease of a node at rest"
    );
    // The API is never further behind than the node controller's grace allows.
    until_written(&world, 58).await;
    // From the first write on, the edge works with the uid and version of the API.
    let answer = session.ask(renewal(100)).await;
    assert!(answer.contains(r#""uid":"uid-"#), "{answer}");
    assert!(!world.series("kedge_controllers_lease_writes_saved").is_empty());
}

#[tokio::test(start_paused = true)]
async fn five_minutes_without_an_api_and_every_lease_is_answered() {
    let world = World::new(&[node("edge-1")]).await;
    let session = world.session("edge-1").await;
    renew(&session, 0..3).await;
    until_written(&world, 0).await;

    world.api.go_away();
    // An edge that starts now creates its lease.
    let started = world.session("edge-2").await;
    let asked = Request::query(ObjectKey::lease(&NodeName::new("edge-2").unwrap()));
    assert!(started.ask(asked).await.contains("404"));
    renew(&session, 3..33).await;
    assert!(world.api.object(LEASE).unwrap()["spec"]["renewTime"].as_u64() < Some(4));
    world.api.come_back();
    let back = Instant::now();
    until_written(&world, 32).await;
    assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_api_that_says_later_is_left_alone() {
    let world = World::new(&[node("edge-1")]).await;
    let session = world.session("edge-1").await;
    let mut later = kedge_cluster::peer::status(429, "TooManyRequests", "later");
    later["details"] = json!({"retryAfterSeconds": 9});
    world.api.refuse_once("PATCH", LEASE, later);
    let began = Instant::now();
    session.ask(renewal(0)).await;
    until_written(&world, 0).await;
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_writes_what_waited() {
    let world = World::new(&[node("edge-1")]).await;
    let session = world.session("edge-1").await;
    renew(&session, 0..1).await;
    until_written(&world, 0).await;
    session.ask(renewal(1)).await;
    let ended = Instant::now();
    drop(session);
    until_written(&world, 1).await;
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_new_cloud_takes_over_a_lease_that_exists() {
    let lease = json!({"metadata": {"name": "edge-1", "namespace": "kube-node-lease", "uid": "official"},
                       "spec": {"renewTime": 0, "leaseTransitions": 1}});
    let world = World::new(&[node("edge-1"), (LEASE.to_owned(), lease)]).await;
    let session = world.session("edge-1").await;
    // An edge that starts asks first, and gets the lease as it is.
    assert!(
        session
            .ask(Request::query(key()))
            .await
            .contains(r#""uid":"official""#)
    );
    // One that was running carries on with what the cloud before had told it.
    let renewal = json!({
        "metadata": {"name": "edge-1", "namespace": "kube-node-lease", "uid": "official", "resourceVersion": "77"},
        "spec": {"renewTime": 5},
    });
    let first = session.ask(Request::update(key(), body(renewal))).await;
    assert!(first.contains(r#""uid":"official""#), "{first}");
    until_written(&world, 5).await;
    assert_eq!(world.calls(LEASE), ["GET", "PATCH"]);
    assert_eq!(world.api.object(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
}

/// The roles of the official cloud allow to update leases and not to patch them.
#[tokio::test(start_paused = true)]
async fn a_cloud_that_may_not_patch_leases_replaces_them() {
    let lease = json!({"metadata": {"name": "edge-1", "namespace": "kube-node-lease"},
                       "spec": {"renewTime": 0, "leaseTransitions": 1}});
    let world = World::new(&[node("edge-1"), (LEASE.to_owned(), lease)]).await;
    let forbidden = kedge_cluster::peer::status(403, "Forbidden", "cannot patch leases");
    world.api.refuse_once("PATCH", LEASE, forbidden);
    let session = world.session("edge-1").await;
    renew(&session, 1..5).await;
    until_written(&world, 3).await;
    assert_eq!(world.calls(LEASE)[..5], ["PATCH", "GET", "PUT", "GET", "PUT"]);
    assert_eq!(world.api.object(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
}
