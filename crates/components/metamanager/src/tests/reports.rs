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

#[tokio::test(start_paused = true)]
async fn a_status_that_the_cloud_has_is_told_again_without_the_outbox() {
    let mut world = World::online().await;
    let asked = world.ask(status("Running"));
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, TAKEN));
    asked.await.unwrap().unwrap();
    all_delivered(&world).await;

    let again = world.ask(status("Running"));
    let (request, way) = world.at_cloud().await;
    assert_eq!(waiting(&world).await, 0, "not written");
    // A newer one does not overtake it.
    let newer = world.ask(status("Succeeded"));
    let other = world.ask(ended("db"));
    let (deleted, delete_way) = world.at_cloud().await;
    assert_eq!(deleted.route.operation, Operation::Delete);
    delete_way.send(reply(&deleted, "\"OK\""));
    other.await.unwrap().unwrap();
    way.send(reply(&request, TAKEN));
    again.await.unwrap().unwrap();
    let (request, way) = world.at_cloud().await;
    assert!(request.body.content_data().contains("Succeeded"));
    way.send(reply(&request, TAKEN));
    newer.await.unwrap().unwrap();
    all_delivered(&world).await;

    // Told again in vain, it becomes a report like any other.
    let lost = world.ask(status("Succeeded"));
    world.at_cloud().await.1.send(Err(RequestError::Lost));
    let (request, way) = world.at_cloud().await;
    assert_eq!(waiting(&world).await, 1);
    way.send(reply(&request, TAKEN));
    lost.await.unwrap().unwrap();
    all_delivered(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_waits_already_is_not_written_again() {
    let (mut world, _) = World::start(kedge_store::meta::MetaStore::memory(), false).await;
    let first = |rows: Vec<StoredReport>| rows[0].id;
    assert_eq!(
        world.ask(status("Running")).await.unwrap(),
        Err(RequestError::Offline)
    );
    let id = first(world.store.reports(9).await.unwrap());
    for _ in 0..3 {
        assert_eq!(
            world.ask(status("Running")).await.unwrap(),
            Err(RequestError::Offline)
        );
        assert_eq!(first(world.store.reports(9).await.unwrap()), id, "the same row");
    }
    world.online.send(true).unwrap();
    let (request, way) = world.at_cloud().await;
    let asked = world.ask(status("Running"));
    tokio::task::yield_now().await;
    way.send(reply(&request, TAKEN));
    let answered = async {
        // Either it waited for the report under way, or it was told again after it.
        tokio::select! {
            answer = asked => answer.unwrap().unwrap(),
            (request, way) = world.at_cloud() => {
                way.send(reply(&request, TAKEN));
                std::future::pending().await
            }
        }
    };
    tokio::time::timeout(super::PATIENCE, answered).await.unwrap();
}

/// The life of a node at rest, on a real disk.
#[tokio::test]
async fn leases_and_repetitions_never_touch_the_disk() {
    let directory = std::env::temp_dir().join(format!("kedge-metamanager-rest-{}", std::process::id()));
    let store = kedge_store::meta::MetaStore::open(&directory.join("edgecore.db")).unwrap();
    let (mut world, _) = World::start(store, true).await;
    let pod = super::object("web", "u1", "7");
    world
        .commit(kedge_wire::ChangeVerb::Insert, "default/pod/web", &pod)
        .await
        .unwrap();
    let told = world.ask(status("Running"));
    let (request, way) = world.at_cloud().await;
    way.send(reply(&request, TAKEN));
    told.await.unwrap().unwrap();
    all_delivered(&world).await;

    let content = || {
        let read = |name| std::fs::read(directory.join(name)).unwrap();
        (read("edgecore.db.kedge"), read("edgecore.db.kedge-wal"))
    };
    let (before, changes) = (content(), world.store.activity().changes);
    for beat in 0..100 {
        let lease = ObjectKey::lease(&kedge_wire::NodeName::new("edge-1").unwrap());
        let spec = format!(r#"{{"spec":{{"renewTime":"{beat}"}}}}"#);
        let node_patch = kedge_wire::ObjectKey::parse("null/nodepatch/edge-1").unwrap();
        let mut node_status = Request::update(node_patch, body(&spec));
        node_status.route.operation = Operation::Patch;
        let node = ObjectKey::parse("null/node/edge-1").unwrap();
        for request in [
            Request::update(lease.clone(), body(&spec)),
            Request::query(lease),
            node_status,
            Request::update(node, body(&spec)),
            status("Running"),
        ] {
            let asked = world.ask(request);
            let (request, way) = world.at_cloud().await;
            way.send(reply(&request, TAKEN));
            asked.await.unwrap().unwrap();
        }
        // A cloud that repeats itself.
        world
            .commit(kedge_wire::ChangeVerb::Update, "default/pod/web", &pod)
            .await
            .unwrap();
    }
    assert!(content() == before, "not a byte in the file or its log");
    assert_eq!(world.store.activity().changes, changes);
    std::fs::remove_dir_all(directory).unwrap();
}
