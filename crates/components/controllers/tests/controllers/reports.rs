//! What a node reports, and an API that does not simply take it.

use crate::world::{PATIENCE, Session, World, pod};
use expect_test::expect;
use kedge_cluster::peer::status;
use kedge_wire::{NodeName, Request};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

const POD: &str = "/api/v1/namespaces/default/pods/web";
const STATUS: &str = "/api/v1/namespaces/default/pods/web/status";

fn report(status: &str) -> Request {
    Request::patch_pod_status(
        "default",
        "web",
        &format!(r#"{{"metadata":{{"uid":"web-uid"}},"status":{status}}}"#),
    )
}

async fn world() -> (World, Session) {
    let world = World::new(&[pod("web", "edge-1", "app")]).await;
    let session = world.session("edge-1").await;
    (world, session)
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_and_what_is_refused_is_told() {
    let (world, session) = world().await;
    let trouble = [
        (
            status(409, "Conflict", "somebody else wrote"),
            "done after 2 calls",
        ),
        (
            status(500, "InternalError", "the webhook timed out"),
            "done after 2 calls",
        ),
        (status(503, "ServiceUnavailable", "later"), "done after 2 calls"),
        (
            status(403, "Forbidden", "a webhook says no"),
            "a webhook says no after 1 calls",
        ),
        (
            status(422, "Invalid", "a webhook finds it wrong"),
            "a webhook finds it wrong after 1 calls",
        ),
        (
            status(404, "NotFound", "the pod is gone"),
            "the pod is gone after 1 calls",
        ),
    ];
    for (n, (refusal, expected)) in trouble.into_iter().enumerate() {
        let before = world.calls(STATUS).len();
        world.api.refuse_once("PATCH", STATUS, refusal);
        let answer = session.ask(report(&format!(r#"{{"phase":"{n}"}}"#))).await;
        let said = match answer.split_once(r#""message":""#) {
            Some((_, message)) => message.split('"').next().unwrap(),
            None => "done",
        };
        let calls = world.calls(STATUS).len() - before;
        assert_eq!(format!("{said} after {calls} calls"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_kept() {
    let (world, session) = world().await;
    let mut later = status(429, "TooManyRequests", "later");
    later["details"] = json!({"retryAfterSeconds": 7});
    world.api.refuse_once("PATCH", STATUS, later);
    let began = Instant::now();
    assert!(
        session
            .ask(report(r#"{"phase":"x"}"#))
            .await
            .contains(r#""Err":null"#)
    );
    assert!(began.elapsed() >= Duration::from_secs(7), "{:?}", began.elapsed());
    assert_eq!(world.calls(STATUS).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_an_api_the_edge_hears_of_it_in_time_and_reports_again() {
    let (world, session) = world().await;
    world.api.go_away();
    let began = Instant::now();
    let answer = session.ask(report(r#"{"phase":"Running"}"#)).await;
    assert!(
        answer.starts_with(r#"response: {"Object":null,"Err":{"ErrStatus""#),
        "{answer}"
    );
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    world.api.come_back();
    let answer = session.ask(report(r#"{"phase":"Running"}"#)).await;
    assert!(answer.contains(r#""phase":"Running""#), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_later_report_takes_the_place_of_one_that_waits_when_it_says_it_all() {
    let (world, session) = world().await;
    world.api.hold(STATUS);
    let mut answers = Vec::new();
    let reports = [
        r#"{"phase":"1"}"#,
        r#"{"phase":"2","podIP":"a"}"#,
        r#"{"phase":"3"}"#,
        r#"{"phase":"4"}"#,
        r#"{"phase":"5","podIP":"b"}"#,
    ];
    for (n, status) in reports.into_iter().enumerate() {
        let (requests, request) = (session.requests.clone(), report(status));
        answers.push(tokio::spawn(async move { requests.ask(request, PATIENCE).await }));
        // The worker takes them one by one; the first is under way when the second comes.
        let calls = |calls: &[String]| calls.iter().any(|call| call.contains("/web/status"));
        if n == 0 {
            tokio::time::timeout(PATIENCE, world.api.until_calls(calls))
                .await
                .unwrap();
        }
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.api.let_go();
    let mut told = String::new();
    for answer in answers {
        let answer = answer.await.unwrap().unwrap();
        let (_, status) = answer.body.json().split_once(r#""status":"#).unwrap();
        told.push_str(&format!("{status}\n"));
    }
    // 1 was under way; 3 does not say what 2 says; 4 covers 3, and 5 covers 4.
    expect![[r#"
        {"phase":"1"}},"Err":null}
        {"phase":"2","podIP":"a"}},"Err":null}
        {"phase":"5","podIP":"b"}},"Err":null}
        {"phase":"5","podIP":"b"}},"Err":null}
        {"phase":"5","podIP":"b"}},"Err":null}
    "#]]
    .assert_eq(&told);
    assert_eq!(world.calls(STATUS).len(), 3);
    expect![[r#"
        kedge_controllers_requests_total{class="pod_status",result="done"} 3
        kedge_controllers_requests_total{class="pod_status",result="superseded"} 2"#]]
    .assert_eq(&world.series("kedge_controllers_requests").join("\n"));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_not_written() {
    let (world, session) = world().await;
    world.api.hold(STATUS);
    let ask = |status: &'static str| {
        let requests = session.requests.clone();
        tokio::spawn(async move { requests.ask(report(status), Duration::from_secs(5)).await })
    };
    let (first, second) = (ask(r#"{"phase":"1"}"#), ask(r#"{"podIP":"2"}"#));
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err());
    world.api.let_go();
    let answer = session.ask(report(r#"{"hostIP":"3"}"#)).await;
    assert!(answer.contains(r#""hostIP":"3""#), "{answer}");
    assert!(!answer.contains("podIP"), "{answer}");
    assert_eq!(world.calls(STATUS).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_status_has_the_same_care() {
    let world = World::new(&[crate::world::node("edge-1")]).await;
    let session = world.session("edge-1").await;
    let path = "/api/v1/nodes/edge-1/status";
    world
        .api
        .refuse_once("PATCH", path, status(409, "Conflict", "again"));
    let node = NodeName::new("edge-1").unwrap();
    let answer = session
        .ask(Request::patch_node_status(&node, r#"{"status":{"phase":"x"}}"#))
        .await;
    assert!(answer.contains(r#""phase":"x""#), "{answer}");
    assert_eq!(world.calls(path).len(), 2);
    assert!(world.api.object(POD).is_none());
}
