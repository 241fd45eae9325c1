//! What the cloud wants here.

use super::{World, body, object};
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_store::meta::{Limits, MetaStore};
use kedge_wire::ChangeVerb::{Delete, Insert, Update};
use kedge_wire::{Group, Operation, Resource, Route, Source, ToEdge};
use proptest::prelude::*;

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
    let check = async |verb, object: &str, wanted: &str| {
        let refused = world.commit(verb, POD, object).await.unwrap_err();
        assert_eq!(refused, wanted, "{object}");
    };
    check(
        Insert,
        "\"text\"",
        "store default/pod/web: the content is not an object",
    )
    .await;
    check(
        Update,
        "null",
        "store default/pod/web: the content is not an object",
    )
    .await;
    check(
        Update,
        r#"{"metadata":null}"#,
        "store default/pod/web: its metadata cannot be read: invalid type: null, expected struct ObjectMeta at line 1 column 16",
    )
    .await;
    check(
        Insert,
        r#"{"metadata":{"name":"web","uid":7}}"#,
        "store default/pod/web: its metadata cannot be read: invalid type: integer `7`, expected a string at line 1 column 33",
    )
    .await;
    check(
        Insert,
        r#"{"metadata":{"name":"db","uid":"u"}}"#,
        "store default/pod/web: the content is an object with the name \"db\"",
    )
    .await;
    check(
        Update,
        r#"{"metadata":{"name":"web","namespace":"kube-system"}}"#,
        "store default/pod/web: the content is an object of the namespace \"kube-system\"",
    )
    .await;
    check(
        Delete,
        "\"web\"",
        "remove default/pod/web: the content is not an object",
    )
    .await;
    assert_eq!(world.stored(POD).await, None);

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the cloud sends, each message gets one answer, what was held stays or is replaced whole, and the node
    /// starts from its store afterwards.
    #[test]
    fn malformed_messages_are_answered_and_break_nothing(
        messages in proptest::collection::vec((0..3_usize, 0..4_usize, malformed()), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::online().await;
            let web = object("web", "u1", "7");
            world.commit(Insert, POD, &web).await.unwrap();
            let mut held = Some(web);
            for (verb, kind, content) in messages {
                let verb = [Insert, Update, Delete][verb];
                let key = ["default/pod/web", "default/configmap/c", "null/node/edge-1", "default/device/d"][kind];
                if kedge_wire::Body::from_json(content.clone()).is_err() {
                    continue;
                }
                let done = world.commit(verb, key, &content).await;
                if key == POD && done.is_ok() {
                    let stored = world.stored(POD).await;
                    prop_assert!(stored == held || stored.as_ref() == Some(&content) || verb == Delete);
                    held = stored;
                } else if key == POD {
                    prop_assert_eq!(&world.stored(POD).await, &held, "a refused message changes nothing");
                }
            }
            let (world, _) = World::start(world.end().await, true).await;
            prop_assert_eq!(world.stored(POD).await, held);
            Ok(())
        })?;
    }
}

/// Values that look a little like objects.
fn malformed() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("7".to_owned()),
        Just("\"web\"".to_owned()),
        Just("\"\"".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("1e999".to_owned()),
        Just("\"\\u0000\"".to_owned()),
    ];
    let field = |name: &'static str| {
        scalar
            .clone()
            .prop_map(move |value| format!("\"{name}\":{value}"))
    };
    let fields = prop_oneof![
        field("name"),
        field("namespace"),
        field("uid"),
        field("resourceVersion"),
        field("x")
    ];
    let metadata =
        proptest::collection::vec(fields, 0..5).prop_map(|fields| format!("{{{}}}", fields.join(",")));
    prop_oneof![
        scalar.clone(),
        scalar.prop_map(|metadata| format!("{{\"metadata\":{metadata}}}")),
        metadata
            .clone()
            .prop_map(|metadata| format!("{{\"metadata\":{metadata},\"spec\":7}}")),
        metadata.prop_map(|metadata| format!("{{\"metadata\":{metadata},\"metadata\":{metadata}}}")),
        "\\PC{0,40}",
    ]
}

#[tokio::test(start_paused = true)]
async fn rows_of_others_and_rubbish_do_not_stop_the_start() {
    let store = MetaStore::memory();
    let rows = [
        ("default/pod/web", "pod", object("web", "u1", "7")),
        ("default/pod/broken", "pod", "{\"metadata\":".to_owned()),
        ("default/pod/text", "pod", "\"text\"".to_owned()),
        ("default/configmap/list", "configmap", "[1]".to_owned()),
        ("nodeupgradejob", "task", "{}".to_owned()),
        ("", "", String::new()),
        ("default/podpatch/web", "podpatch", "not JSON".to_owned()),
    ];
    for (key, kind, value) in rows {
        let (key, kind) = (key.to_owned(), kind.to_owned());
        store
            .put(kedge_store::meta::Row { key, kind, value })
            .await
            .unwrap();
    }
    let (world, held) = World::start(store, true).await;
    let keys: Vec<String> = held.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["default/pod/web"]);
    let StoreDone::Held(digest) = world.orders.ask(StoreOrder::Held, super::PATIENCE).await.unwrap() else {
        panic!("not a digest")
    };
    assert_eq!(digest.len(), 1, "the cloud sends the others again");
    let mended = object("broken", "u2", "8");
    world.commit(Update, "default/pod/broken", &mended).await.unwrap();
    assert_eq!(world.stored("default/pod/broken").await, Some(mended));
}

/// Rubbish under the open store, in the file and its log.
pub(super) fn damage(directory: &std::path::Path) {
    for file in ["edgecore.db.kedge", "edgecore.db.kedge-wal"] {
        let path = directory.join(file);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; length], 0).unwrap();
    }
}

#[tokio::test]
async fn a_store_that_is_damaged_while_the_node_lives_is_filled_again_without_a_cloud() {
    let directory = std::env::temp_dir().join(format!("kedge-metamanager-damage-{}", std::process::id()));
    let path = directory.join("edgecore.db");
    let pod = |number: usize, version: &str| {
        let name = format!("p{number}");
        let object = object(&name, &name, version);
        // Together more than the page cache holds, so that the damage is met.
        let filler = format!(r#"{{"filler":"{}","#, "x".repeat(20_000));
        (format!("default/pod/{name}"), object.replacen('{', &filler, 1))
    };
    let store = MetaStore::open(&path).unwrap();
    let (world, _) = World::start(store, true).await;
    for number in 0..60 {
        let (key, pod) = pod(number, "1");
        world.commit(Insert, &key, &pod).await.unwrap();
    }
    let (key, gone) = pod(59, "1");
    world.commit(Delete, &key, &gone).await.unwrap();
    // Carried into the file, and read from there again.
    let (world, _) = World::start(reopened(world.end().await, &path).await, false).await;
    let mut mended = world.store.mended().unwrap();
    damage(&directory);
    for number in 0..10 {
        let (key, pod) = pod(number, "2");
        assert_eq!(world.commit(Update, &key, &pod).await, Ok(()));
    }
    world.store.all().await.unwrap();
    mended.changed().await.unwrap();
    let all_there = async {
        while world.store.digest().await.unwrap().len() < 59 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::PATIENCE, all_there).await.unwrap();
    for number in 0..59 {
        let (key, pod) = pod(number, if number < 10 { "2" } else { "1" });
        assert_eq!(world.stored(&key).await, Some(pod), "{key}");
    }
    assert_eq!(world.stored(&key).await, None, "what was deleted stays deleted");
    std::fs::remove_dir_all(directory).unwrap();
}

/// The store is gone when its file is closed.
pub(super) async fn closed(store: MetaStore, path: &std::path::Path) {
    drop(store);
    let log = path.with_extension("db.kedge-wal");
    while log.exists() {
        tokio::task::yield_now().await;
    }
}

/// The store after a restart of the process, closed and opened.
pub(super) async fn reopened(store: MetaStore, path: &std::path::Path) -> MetaStore {
    closed(store, path).await;
    MetaStore::open(path).unwrap()
}

#[tokio::test]
async fn a_thousand_versions_of_one_config_map_share_transactions() {
    const VERSIONS: usize = 1000;
    let directory = std::env::temp_dir().join(format!("kedge-metamanager-versions-{}", std::process::id()));
    let store = MetaStore::open(&directory.join("edgecore.db")).unwrap();
    let (mut world, _) = World::start(store, true).await;
    let config = |version: usize| object("c", "u", &version.to_string());
    let mut commits = Vec::new();
    for version in 1..=VERSIONS {
        let change = kedge_wire::ObjectChange::from_edge_controller(
            Update,
            super::key("default/configmap/c"),
            None,
            body(&config(version)),
        );
        let (reply, answer) = kedge_telemetry::channel::ask::Reply::pair();
        let question = StoreOrder::Commit(ToEdge::Object(change));
        let question = kedge_telemetry::channel::ask::Question { question, reply };
        world.orders.forward(question).await.unwrap();
        commits.push(answer);
    }
    for commit in commits {
        assert_eq!(commit.await.unwrap(), StoreDone::Committed(Ok(())));
    }
    assert_eq!(world.stored("default/configmap/c").await, Some(config(VERSIONS)));
    let activity = world.store.activity();
    assert_eq!(activity.changes + activity.superseded, VERSIONS as u64);
    // How many share a transaction depends on the disk: the slower it is, the more.
    assert!(activity.commits < VERSIONS as u64, "{activity:?}");
    let (_, newest) = world.handed_over().await;
    assert_eq!(newest, Some(config(VERSIONS)), "edged is given the newest only");
    std::fs::remove_dir_all(directory).unwrap();
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
            body(&object(&format!("p{number:02}"), &format!("u{number}"), "5")),
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
