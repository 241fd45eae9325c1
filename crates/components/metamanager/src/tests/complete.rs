//! Whether anything is missing: known however often the process restarts, until the cloud has sent it.

use super::orders::{closed, damage, reopened};
use super::{PATIENCE, World, object};
use kedge_link::edge::{StoreDone, StoreOrder};
use kedge_store::meta::MetaStore;
use kedge_wire::ChangeVerb::Insert;
use kedge_wire::{Body, ObjectKey};
use std::path::Path;

impl World {
    async fn cloud_has_sent_all(&self) {
        let done = self.orders.ask(StoreOrder::Complete, PATIENCE).await.unwrap();
        assert_eq!(done, StoreDone::Noted);
    }

    fn is_complete(&self) -> bool {
        *self.complete.borrow()
    }
}

#[tokio::test]
async fn a_new_store_lacks_something_until_the_cloud_has_sent_all() {
    let (world, _) = World::start(MetaStore::memory(), true).await;
    world
        .commit(Insert, "default/pod/web", &object("web", "u1", "1"))
        .await
        .unwrap();
    let (world, held) = World::start(world.end().await, false).await;
    assert!(held.len() == 1 && !world.is_complete(), "half of a set is no set");
    world.cloud_has_sent_all().await;
    assert!(world.is_complete());
    let (world, _) = World::start(world.end().await, false).await;
    assert!(world.is_complete(), "and it starts without a cloud from now on");
}

/// The next life, without a cloud, after one in which the cloud has sent all it had.
async fn filled(path: &Path) -> (World, Vec<(ObjectKey, Body)>) {
    let (world, _) = World::start(MetaStore::open(path).unwrap(), true).await;
    world
        .commit(Insert, "default/pod/web", &object("web", "u1", "1"))
        .await
        .unwrap();
    world.cloud_has_sent_all().await;
    World::start(reopened(world.end().await, path).await, false).await
}

#[tokio::test]
async fn a_damaged_store_lacks_something_over_two_restarts_until_the_cloud_has_sent_all() {
    let directory = std::env::temp_dir().join(format!("kedge-metamanager-complete-{}", std::process::id()));
    let path = directory.join("edgecore.db");
    let (world, _) = filled(&path).await;
    assert!(world.is_complete());

    // The node goes off; meanwhile its disk loses what it wrote.
    closed(world.end().await, &path).await;
    std::fs::write(path.with_extension("db.kedge"), "no database ".repeat(1000)).unwrap();
    for restart in 0..3 {
        let (world, held) = World::start(MetaStore::open(&path).unwrap(), false).await;
        assert!(held.is_empty() && !world.is_complete(), "restart {restart}");
        closed(world.end().await, &path).await;
    }

    let (world, held) = filled(&path).await;
    assert!(held.len() == 1 && world.is_complete());
    // While it lives it is not: what it holds in memory is all there, but a later life has only the file.
    damage(&directory);
    let mut mended = world.store.mended().unwrap();
    world.store.all().await.unwrap();
    mended.changed().await.unwrap();
    assert!(world.is_complete());
    let (world, _) = World::start(reopened(world.end().await, &path).await, false).await;
    assert!(!world.is_complete());
    world.end().await;
    std::fs::remove_dir_all(directory).unwrap();
}
