//! What edged reports.

use super::{World, body, key, reply};
use crate::reports::{Next, Reports, encode};
use kedge_link::edge::RequestError;
use kedge_store::meta::{Report, StoredReport, Written};
use kedge_telemetry::channel::ask;
use kedge_wire::{ObjectKey, ObjectKind, Operation, Request};

fn status(phase: &str) -> Request {
    Request::patch_pod_status(
        "default",
        "web",
        &format!(r#"{{"status":{{"phase":"{phase}"}}}}"#),
    )
}

fn ended(pod: &str) -> Request {
    let options = body(r#"{"gracePeriodSeconds":0,"preconditions":{"uid":"u1"}}"#);
    Request::delete(ObjectKey::namespaced(ObjectKind::Pod, "default", pod), options)
}

fn event(name: &str) -> Request {
    Request::insert(key(&format!("default/event/{name}")), body("{}"))
}

const TAKEN: &str = r#"{"Object":{"metadata":{"name":"web"}},"Err":null}"#;

async fn waiting(world: &World) -> usize {
    world.store.outbox_use().await.unwrap().reports
}

async fn all_delivered(world: &World) {
    let gone = async {
        while waiting(world).await > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, gone).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn offline_reports_wait_and_go_by_priority_with_the_newest_status_only() {
    let (mut world, _) = World::start(kedge_store::meta::MetaStore::memory(), false).await;
    assert!(
        world.ask(event("started")).await.unwrap().is_ok(),
        "an event is answered once it is durable"
    );
    for phase in ["Pending", "Running"] {
        assert_eq!(
            world.ask(status(phase)).await.unwrap(),
            Err(RequestError::Offline)
        );
    }
    assert_eq!(world.ask(ended("db")).await.unwrap(), Err(RequestError::Offline));
    assert_eq!(waiting(&world).await, 3);

    world.online.send(true).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (request, way) = world.at_cloud().await;
        seen.push(format!(
            "{} {}",
            request.route.operation,
            request.body.content_data()
        ));
        way.send(reply(&request, TAKEN));
    }
    assert_eq!(
        seen,
        [
            r#"delete {"gracePeriodSeconds":0,"preconditions":{"uid":"u1"}}"#,
            r#"patch {"status":{"phase":"Running"}}"#,
            "insert {}",
        ]
    );
    all_delivered(&world).await;
}

#[tokio::test(start_paused = true)]
async fn online_the_reporter_gets_the_answer_of_the_cloud() {
    let mut world = World::online().await;
    let asked = world.ask(status("Running"));
    let (request, way) = world.at_cloud().await;
    assert_eq!(waiting(&world).await, 1, "durable before it is sent");
    way.send(reply(&request, TAKEN));
    assert_eq!(asked.await.unwrap().unwrap().body.json(), TAKEN);
    all_delivered(&world).await;
}

#[tokio::test(start_paused = true)]
async fn reports_survive_the_process() {
    let (world, _) = World::start(kedge_store::meta::MetaStore::memory(), false).await;
    assert_eq!(world.ask(ended("web")).await.unwrap(), Err(RequestError::Offline));
    let (mut world, _) = World::start(world.end().await, true).await;
    let (request, _way) = world.at_cloud().await;
    assert_eq!(
        (request.route.operation.clone(), request.key),
        (Operation::Delete, key("default/pod/web"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_report_that_was_cut_off_or_met_a_failing_api_is_sent_again() {
    let mut world = World::online().await;
    let asked = world.ask(status("Running"));
    world.at_cloud().await.1.send(Err(RequestError::Lost));
    assert_eq!(asked.await.unwrap(), Err(RequestError::Lost));
    let (request, way) = world.at_cloud().await;
    way.send(reply(
        &request,
        r#"{"Object":null,"Err":{"ErrStatus":{"code":503,"reason":"ServiceUnavailable"}}}"#,
    ));
    let (request, way) = world.at_cloud().await;
    assert_eq!(waiting(&world).await, 1);
    way.send(reply(
        &request,
        r#"{"Object":null,"Err":{"ErrStatus":{"code":404,"reason":"NotFound"}}}"#,
    ));
    all_delivered(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_status_waits_for_the_older_one_under_way() {
    let mut world = World::online().await;
    let first = world.ask(status("Pending"));
    let (older, older_way) = world.at_cloud().await;
    let second = world.ask(status("Running"));
    // Another report passes, which shows that the newer status is being held back and not merely late.
    let other = world.ask(ended("db"));
    let (request, way) = world.at_cloud().await;
    assert_eq!(request.route.operation, Operation::Delete);
    way.send(reply(&request, "\"OK\""));
    other.await.unwrap().unwrap();

    older_way.send(reply(&older, TAKEN));
    first.await.unwrap().unwrap();
    let (newer, way) = world.at_cloud().await;
    assert!(newer.body.content_data().contains("Running"));
    way.send(reply(&newer, TAKEN));
    second.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_report_that_the_cloud_never_takes_is_given_up_after_many_attempts() {
    let mut world = World::online().await;
    let asked = world.ask(status("Running"));
    for _ in 0..12 {
        world.at_cloud().await.1.send(Err(RequestError::Timeout));
    }
    assert_eq!(asked.await.unwrap(), Err(RequestError::Timeout));
    all_delivered(&world).await;
}

fn row(id: u64) -> StoredReport {
    let report = Report {
        priority: 20,
        coalesce: Some("web".into()),
        value: encode(status("Running")),
    };
    StoredReport { id, report }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_overtakes_the_commit_of_its_report_reaches_who_waits() {
    let mut reports = Reports::new();
    assert_eq!(reports.pick(vec![row(7)]).len(), 1);
    let now = tokio::time::Instant::now();
    let answer = reply(&status("Running"), TAKEN);
    assert_eq!(reports.attempted(7, answer.clone(), now), Next::Forget);
    let (waiter, answered) = ask::Reply::pair();
    let written = Written {
        report: Some(7),
        ..Written::default()
    };
    reports.kept(&written, Some(waiter));
    assert_eq!(answered.await.unwrap(), answer);
    reports.forgotten(7);
}

#[tokio::test(start_paused = true)]
async fn rows_that_were_read_before_a_delivery_do_not_send_it_again() {
    let mut reports = Reports::new();
    let now = tokio::time::Instant::now();
    assert!(reports.wanted(true, now).is_some());
    assert_eq!(reports.pick(vec![row(7)]).len(), 1);
    reports.kept(&Written::default(), None);
    assert!(
        reports.wanted(true, now).is_some(),
        "read again, with 7 still there"
    );
    reports.attempted(7, reply(&status("Running"), TAKEN), now);
    reports.forgotten(7);
    assert_eq!(reports.pick(vec![row(7)]).len(), 0);
    assert!(reports.wanted(true, now).is_some());
    assert_eq!(reports.pick(vec![row(8)]).len(), 1);
}
