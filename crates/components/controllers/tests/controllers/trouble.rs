//! An API that is gone for minutes, and watches that fall behind.

use crate::world::{World, config_map, pod};
use kedge_link::Peer;
use kedge_wire::Request;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn what_changed_while_no_watch_looked_is_told() {
    let world = World::new(&[
        config_map("app"),
        pod("web", "edge-1", "app"),
        pod("old", "edge-1", "app"),
    ])
    .await;
    let mut session = world.session("edge-1").await;
    assert_eq!(session.first.objects.len(), 3);
    let (new_path, new) = pod("new", "edge-1", "app");
    let (old_path, _) = pod("old", "edge-1", "app");
    // Every version is forgotten: the next watch is answered with 410.
    world
        .api
        .change_unseen(vec![(new_path, Some(new)), (old_path, None)]);
    let mut told = [session.next_change().await, session.next_change().await];
    told.sort();
    assert_eq!(told, ["default/pod/new is new-uid", "default/pod/old is gone"]);
}

#[tokio::test(start_paused = true)]
async fn five_minutes_without_an_api_end_no_session_and_lose_nothing() {
    let world = World::new(&[config_map("app"), pod("web", "edge-1", "app")]).await;
    let mut session = world.session("edge-1").await;
    world.api.go_away();
    let (path, mut object) = config_map("app");
    object["data"]["a"] = "2".into();
    world.api.change_unseen(vec![(path, Some(object))]);
    let (path, _) = pod("web", "edge-1", "app");
    world.api.change_unseen(vec![(path, None)]);
    tokio::time::sleep(Duration::from_secs(300)).await;
    // What is known is still told to a node that comes now.
    assert_eq!(world.session("edge-2").await.first.objects.len(), 0);
    world.api.come_back();
    let mut told = vec![session.next_change().await, session.next_change().await];
    if told
        .iter()
        .any(|change| change == "default/configmap/app is app-uid")
    {
        told.push(session.next_change().await);
    }
    assert!(told.contains(&"default/pod/web is gone".to_owned()), "{told:?}");
    assert!(
        told.contains(&"default/configmap/app is gone".to_owned()),
        "{told:?}"
    );
}

/// A cloud was restarted while a pod was deleted, and nothing wrote down that an official edge has it.
#[tokio::test(start_paused = true)]
async fn a_pod_that_nobody_remembers_is_deleted_at_an_official_edge() {
    let world = World::new(&[pod("web", "edge-1", "app"), pod("moved", "edge-2", "app")]).await;
    let mut session = world.session_of("edge-1", Peer::Official).await;
    let report = |pod: &str, uid: &str| {
        let patch = format!(r#"{{"metadata":{{"uid":"{uid}"}},"status":{{"phase":"Running"}}}}"#);
        Request::patch_pod_status("default", pod, &patch)
    };
    // It reports every ten seconds, and gets to hear that the pods are not there.
    for _ in 0..6 {
        assert!(session.ask(report("ghost", "g")).await.contains("404"));
        assert!(session.ask(report("moved", "moved-uid")).await.contains("404"));
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    // What the API knows and the index does not is no leftover.
    let (path, object) = pod("late", "edge-1", "app");
    world.api.answer_always("GET", &path, object);
    assert!(session.ask(report("late", "late-uid")).await.contains("503"));
    assert!(session.ask(report("ghost", "g")).await.contains("404"));
    assert_eq!(session.change().await, None);

    let session = world.session_of("edge-1", Peer::Official).await;
    let held: Vec<String> = session
        .first
        .held
        .iter()
        .map(|(key, uid, _)| format!("{key} {uid}"))
        .collect();
    assert_eq!(held, ["default/pod/ghost g", "default/pod/moved moved-uid"]);
    let session = world.session_of("edge-1", Peer::Official).await;
    assert!(session.first.held.is_empty());
}
