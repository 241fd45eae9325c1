//! What the cloud wants here.

use super::{World, body, object};
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_store::meta::{Limits, MetaStore};
use kedge_wire::ChangeVerb::{Delete, Insert, Update};
use kedge_wire::{Group, Operation, Resource, Route, Source, ToEdge};

const POD: &str = "default/pod/web";

#[tokio::test(start_paused = true)]
async fn an_object_is_durable_then_handed_over_then_confirmed() {
    let mut world = World::online().await;
    let web = object("web", "u1", "7");
    assert_eq!(world.commit(Insert, POD, &web).await, Ok(()));
    assert_eq!(world.handed_over().await, (POD.to_owned(), Some(web.clone())));
    assert_eq!(world.stored(POD).await, Some(web.clone()));

    let lonely = object("a", "u2", "8");
    assert_eq!(world.commit(Insert, "default/device/a", &lonely).await, Ok(()));
    assert_eq!(world.stored("default/device/a").await, Some(lonely));

    assert_eq!(world.commit(Delete, POD, &web).await, Ok(()));
    assert_eq!(
        world.handed_over().await,
        (POD.to_owned(), None),
        "edged does not follow devices"
    );
    assert_eq!(world.stored(POD).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_handed_to_edged_at_the_next_start() {
    let world = World::online().await;
    let (web, config) = (object("web", "u1", "7"), object("c", "u2", "8"));
    world.commit(Insert, POD, &web).await.unwrap();
    world
        .commit(Insert, "default/configmap/c", &config)
        .await
        .unwrap();
    world
        .commit(Insert, "default/device/d", &object("d", "u3", "9"))
        .await
        .unwrap();
    let store = world.end().await;
    let (_world, held) = World::start(store, false).await;
    let held: Vec<_> = held
        .into_iter()
        .map(|(key, body)| (key.to_string(), body.json().to_owned()))
        .collect();
    assert_eq!(
        held,
        [("default/configmap/c".to_owned(), config), (POD.to_owned(), web)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_version_never_goes_backwards_and_a_delete_spares_another_uid() {
    let mut world = World::online().await;
    let newer = object("web", "u1", "10");
    world.commit(Insert, POD, &newer).await.unwrap();
    world.handed_over().await;
    assert_eq!(world.commit(Update, POD, &object("web", "u1", "9")).await, Ok(()));
    assert_eq!(world.stored(POD).await, Some(newer.clone()));

    assert_eq!(
        world.commit(Delete, POD, &object("web", "old", "3")).await,
        Ok(())
    );
    assert_eq!(world.stored(POD).await, Some(newer));

    let replaced = object("web", "u2", "4");
    world.commit(Update, POD, &replaced).await.unwrap();
    assert_eq!(
        world.handed_over().await,
        (POD.to_owned(), Some(replaced)),
        "nothing in between was handed over"
    );
}

#[tokio::test]
async fn a_failed_commit_is_said_and_not_handed_over() {
    let directory = std::env::temp_dir().join(format!("kedge-metamanager-{}", std::process::id()));
    let limits = Limits {
        database_bytes_max: 128 * 1024,
        ..Limits::default()
    };
    let store = MetaStore::open_with(&directory.join("edgecore.db"), limits).unwrap();
    let (mut world, _) = World::start(store, true).await;
    let large = format!(
        r#"{{"metadata":{{"uid":"u"}},"data":"{}"}}"#,
        "x".repeat(512 * 1024)
    );
    let refused = world.commit(Insert, POD, &large).await;
    assert_eq!(refused, Err("store pod default/web: disk full".to_owned()));
    let small = object("db", "u2", "8");
    world.commit(Insert, "default/pod/db", &small).await.unwrap();
    assert_eq!(
        world.handed_over().await,
        ("default/pod/db".to_owned(), Some(small))
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_object_is_refused() {
    let world = World::online().await;
    let refused = world.commit(Insert, POD, "\"text\"").await.unwrap_err();
    assert_eq!(refused, "store default/pod/web: the content is not an object");

    let resource = Resource::Device("membership".to_owned());
    let route = Route::new(Source::DeviceController, Group::Twin, Operation::Update, resource);
    let twin = ToEdge::Twin {
        route,
        body: body("{}"),
    };
    let done = world
        .orders
        .ask(StoreOrder::Commit(twin), super::PATIENCE)
        .await
        .unwrap();
    assert!(matches!(done, StoreDone::Committed(Err(_))), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn the_digest_names_what_the_cloud_placed_after_all_earlier_commits() {
    let world = World::online().await;
    let mut commits = Vec::new();
    for number in 0..20 {
        let key = format!("default/pod/p{number:02}");
        let change = kedge_wire::ObjectChange::from_edge_controller(
            Insert,
            super::key(&key),
            None,
            body(&object("p", &format!("u{number}"), "5")),
        );
        let (reply, answer) = kedge_telemetry::channel::ask::Reply::pair();
        let question = StoreOrder::Commit(ToEdge::Object(change));
        world
            .orders
            .forward(kedge_telemetry::channel::ask::Question { question, reply })
            .await
            .unwrap();
        commits.push(answer);
    }
    let StoreDone::Held(held) = world.orders.ask(StoreOrder::Held, super::PATIENCE).await.unwrap() else {
        panic!("not a digest")
    };
    assert_eq!(held.len(), 20);
    assert_eq!(
        (
            held[19].key.as_str(),
            held[19].uid.as_str(),
            held[19].version.as_str()
        ),
        ("default/pod/p19", "u19", "5")
    );
    for commit in commits {
        assert_eq!(commit.await.unwrap(), StoreDone::Committed(Ok(())));
    }
}
