//! The records of official clouds: read when an edge comes, written when one may take over again.

use crate::world::{PATIENCE, World, key, node, pod};
use kedge_cluster::peer::Peer as Api;
use kedge_controllers::Config;
use kedge_link::Peer;
use kedge_wire::{ObjectKey, ObjectKind};
use serde_json::{Value, json};

const SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs";
const CLUSTER_SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/clusterobjectsyncs";

fn official(api: &Api) {
    api.serve("objectsyncs");
    api.serve("clusterobjectsyncs");
}

fn record(node: &str, uid: &str, kind: &str, name: &str, version: &str) -> (String, Value) {
    let record = json!({
        "metadata": {"name": format!("{node}.{uid}"), "namespace": "default"},
        "spec": {"objectAPIVersion": "v1", "objectKind": kind, "objectName": name},
        "status": {"objectResourceVersion": version},
    });
    (format!("{SYNCS}/{node}.{uid}"), record)
}

fn writing() -> Config {
    Config {
        object_syncs: true,
        ..Config::default()
    }
}

async fn until(world: &World, path: &str, holds: impl Fn(Option<&Value>) -> bool) {
    // The sweep waits a minute, of a paused clock.
    let waited = tokio::time::timeout(PATIENCE * 5, world.api.until_object(path, holds)).await;
    assert!(waited.is_ok(), "{path}: {:#?}", world.api.calls());
}

#[tokio::test]
async fn an_official_edge_is_taken_over_with_what_it_holds() {
    let objects = [
        pod("web", "edge-1", "app"),
        record("edge-1", "web-uid", "Pod", "web", "7"),
        record("edge-1", "gone-uid", "Pod", "gone", "5"),
        record("edge-2", "x", "Pod", "x", "5"),
    ];
    let world = World::with(Config::default(), &objects, official).await;
    let held = |held: &[(ObjectKey, kedge_wire::Uid, kedge_wire::ResourceVersion)]| {
        let lines = held.iter();
        let lines: Vec<String> = lines
            .map(|(key, uid, version)| format!("{key} {uid}@{version}"))
            .collect();
        lines.join(", ")
    };
    let session = world.session_of("edge-1", Peer::Official).await;
    assert_eq!(
        held(&session.first.held),
        "default/pod/gone gone-uid@5, default/pod/web web-uid@7"
    );
    // Our own edges say themselves what they hold.
    assert_eq!(held(&world.session("edge-1").await.first.held), "");
}

#[tokio::test]
async fn a_cluster_without_records_is_complete_without_them() {
    let world = World::new(&[pod("web", "edge-1", "app")]).await;
    let session = world.session_of("edge-1", Peer::Official).await;
    assert!(session.first.held.is_empty());
    assert_eq!(session.first.objects.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_are_written_as_an_official_cloud_expects_them() {
    let world = World::with(writing(), &[node("edge-1")], official).await;
    let session = world.session_of("edge-1", Peer::Official).await;
    let web = key(ObjectKind::Pod, "web");
    let says = |version: &'static str| {
        move |record: Option<&Value>| {
            record.is_some_and(|record| record["status"]["objectResourceVersion"] == version)
        }
    };

    session.acknowledge(web.clone(), "U1", Some("5"));
    until(&world, &format!("{SYNCS}/edge-1.u1"), says("5")).await;
    let written = world.api.object(&format!("{SYNCS}/edge-1.u1")).unwrap();
    assert_eq!(
        written["spec"],
        json!({"objectAPIVersion": "v1", "objectKind": "Pod", "objectName": "web"})
    );
    session.acknowledge(web.clone(), "U1", Some("6"));
    until(&world, &format!("{SYNCS}/edge-1.u1"), says("6")).await;
    session.acknowledge(
        ObjectKey::cluster(ObjectKind::Node, "edge-1"),
        "n1",
        Some("not a number"),
    );
    until(
        &world,
        &format!("{CLUSTER_SYNCS}/edge-1.n1"),
        says("not a number"),
    )
    .await;

    // The watch has told of both records.
    let known = r#"kedge_controllers_index_objects{kind="object_sync"} 2"#;
    while world.series(known).is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    // The pod is created anew; whether its end or its beginning is taken first, one record is left.
    session.acknowledge(web.clone(), "U1", None);
    session.acknowledge(web.clone(), "U2", Some("9"));
    until(&world, &format!("{SYNCS}/edge-1.u2"), says("9")).await;
    until(&world, &format!("{SYNCS}/edge-1.u1"), |record| record.is_none()).await;
    session.acknowledge(web, "U2", None);
    until(&world, &format!("{SYNCS}/edge-1.u2"), |record| record.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn without_the_kinds_or_the_right_to_read_them_nothing_is_tried() {
    for code in [404, 403] {
        let world = World::with(writing(), &[node("edge-1"), pod("web", "edge-1", "a")], |api| {
            let refusal = kedge_cluster::peer::status(code, "No", "no");
            for kind in ["objectsyncs", "clusterobjectsyncs"] {
                let path = format!("/apis/reliablesyncs.kubeedge.io/v1alpha1/{kind}");
                api.refuse_once("GET", &path, refusal.clone());
            }
        })
        .await;
        let session = world.session_of("edge-1", Peer::Official).await;
        assert_eq!(session.first.objects.len(), 2);
        session.acknowledge(key(ObjectKind::Pod, "web"), "u1", Some("5"));
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(world.calls(SYNCS).is_empty());
    }
}

#[tokio::test]
async fn nothing_is_written_for_own_edges_or_when_it_is_switched_off() {
    for (config, peer) in [(writing(), Peer::Kedge), (Config::default(), Peer::Official)] {
        let world = World::with(config, &[node("edge-1"), pod("web", "edge-1", "a")], official).await;
        let mut session = world.session_of("edge-1", peer).await;
        session.acknowledge(key(ObjectKind::Pod, "web"), "u1", Some("5"));
        // A later fact, so that a write would have been made by now.
        let (path, object) = pod("db", "edge-1", "a");
        world.api.put(&path, object);
        session.next_change().await;
        assert!(world.calls(SYNCS).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_removes_the_records_of_nodes_that_are_gone() {
    let cloud_node = (
        "/api/v1/nodes/cloud-1".to_owned(),
        json!({"metadata": {"name": "cloud-1"}}),
    );
    let objects = [
        node("edge-1"),
        cloud_node,
        record("edge-1", "a", "Pod", "a", "1"),
        record("edge-9", "b", "Pod", "b", "1"),
        record("cloud-1", "c", "Pod", "c", "1"),
    ];
    let world = World::with(writing(), &objects, official).await;
    // Until it leads it touches nothing.
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    assert!(world.api.object(&format!("{SYNCS}/edge-9.b")).is_some());
    world.leads.send_replace(true);
    until(&world, &format!("{SYNCS}/edge-9.b"), |record| record.is_none()).await;
    assert!(world.api.object(&format!("{SYNCS}/edge-1.a")).is_some());
    assert!(world.api.object(&format!("{SYNCS}/cloud-1.c")).is_some());
    world.api.remove("/api/v1/nodes/edge-1");
    until(&world, &format!("{SYNCS}/edge-1.a"), |record| record.is_none()).await;
}
