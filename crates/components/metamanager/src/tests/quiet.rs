//! A node that only says that it still lives does not touch the disk, and loses nothing by it.

use super::orders::{closed, reopened};
use super::{PATIENCE, World, object};
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_store::meta::{Limits, MetaStore};
use kedge_wire::ChangeVerb::{Insert, Update};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const NODE: &str = "null/node/edge-1";

/// As the node was at a version; `at` is its heartbeat.
fn node(version: u32, ready: &str, at: u32) -> String {
    format!(
        r#"{{"kind":"Node","metadata":{{"name":"edge-1","uid":"n1","resourceVersion":"{version}","managedFields":[{at}]}},
"spec":{{}},"status":{{"conditions":[{{"type":"Ready","status":"{ready}","lastHeartbeatTime":"{at}"}}]}}}}"#
    )
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kedge-metamanager-quiet-{name}-{}", std::process::id()))
}

/// Every file of the store, its length and when it was written.
fn files(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| {
            let about = entry.metadata().unwrap();
            (entry.path(), about.len(), about.modified().unwrap())
        })
        .collect();
    files.sort();
    files
}

impl World {
    /// As the cloud learns at the start of a session.
    async fn version_told(&self) -> String {
        match self.orders.ask(StoreOrder::Held, PATIENCE).await.unwrap() {
            StoreDone::Held(held) => held
                .iter()
                .filter(|held| held.key == NODE)
                .map(|held| held.version.clone())
                .collect(),
            StoreDone::Committed(_) | StoreDone::Noted => panic!("not what is held"),
        }
    }
}

#[tokio::test]
async fn heartbeats_are_acknowledged_and_handed_on_without_a_transaction() {
    let folder = folder("rest");
    let store = MetaStore::open(&folder.join("edgecore.db")).unwrap();
    let (mut world, _) = World::start(store, true).await;
    world.commit(Insert, NODE, &node(1, "True", 1)).await.unwrap();
    world.handed_over().await;
    let (files_before, done_before) = (files(&folder), world.store.activity());
    for version in 2..=20 {
        let beat = node(version, "True", version);
        world.commit(Update, NODE, &beat).await.unwrap();
        assert_eq!(world.handed_over().await, (NODE.to_owned(), Some(beat)));
    }
    assert_eq!(world.store.activity(), done_before);
    assert_eq!(files(&folder), files_before);
    assert_eq!(world.stored(NODE).await.unwrap(), node(1, "True", 1));
    let stale = world.commit(Update, NODE, &node(12, "Unknown", 12)).await;
    assert!(stale.is_ok() && world.stored(NODE).await.unwrap() == node(1, "True", 1));
    // Whoever writes takes it along.
    world
        .commit(Insert, "default/configmap/c", &object("c", "u", "1"))
        .await
        .unwrap();
    assert_eq!(world.stored(NODE).await.unwrap(), node(20, "True", 20));
    world
        .commit(Update, NODE, &node(21, "Unknown", 20))
        .await
        .unwrap();
    assert_eq!(world.stored(NODE).await.unwrap(), node(21, "Unknown", 20));
    let store = world.end().await;
    closed(store, &folder.join("edgecore.db")).await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_version_that_was_acknowledged_is_told_to_the_cloud_and_to_the_next_life() {
    let folder = folder("told");
    let path = folder.join("edgecore.db");
    let (world, _) = World::start(MetaStore::open(&path).unwrap(), true).await;
    world.commit(Insert, NODE, &node(1, "True", 1)).await.unwrap();
    world.commit(Update, NODE, &node(2, "True", 2)).await.unwrap();
    assert_eq!(world.version_told().await, "2");
    assert_eq!(world.stored(NODE).await.unwrap(), node(2, "True", 2));
    world.commit(Update, NODE, &node(3, "True", 3)).await.unwrap();
    let store = reopened(world.end().await, &path).await;
    let (world, holding) = World::start(store, true).await;
    assert_eq!(holding.len(), 1);
    assert_eq!(world.version_told().await, "3");
    let before = world.store.activity();
    world.commit(Update, NODE, &node(4, "True", 4)).await.unwrap();
    assert_eq!(
        world.store.activity(),
        before,
        "what the last life stored is known"
    );
    let store = world.end().await;
    closed(store, &path).await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn what_repeats_a_change_that_was_not_stored_is_not_acknowledged() {
    const BYTES_MAX: u64 = 64 * 1024;
    let folder = folder("full");
    let limits = Limits {
        database_bytes_max: BYTES_MAX,
        ..Limits::default()
    };
    let store = MetaStore::open_with(&folder.join("edgecore.db"), limits).unwrap();
    let (world, _) = World::start(store, true).await;
    world.commit(Insert, NODE, &node(1, "True", 1)).await.unwrap();
    let words = "x".repeat(usize::try_from(BYTES_MAX).unwrap());
    let (change, beat) = (node(2, &words, 2), node(3, &words, 3));
    let (change, beat) = tokio::join!(
        world.commit(Update, NODE, &change),
        world.commit(Update, NODE, &beat)
    );
    assert!(change.is_err() && beat.is_err(), "{change:?} {beat:?}");
    assert_eq!(world.version_told().await, "1");
    assert_eq!(world.stored(NODE).await.unwrap(), node(1, "True", 1));
    let store = world.end().await;
    closed(store, &folder.join("edgecore.db")).await;
    std::fs::remove_dir_all(&folder).unwrap();
}
