//! Files that are no longer what they were.

use super::file::Directory;
use crate::meta::{Error, MetaStore, Report, Row, Settings, Write};
use proptest::prelude::*;
use std::path::PathBuf;

fn pod(number: usize) -> Row {
    let filler = "x".repeat(3000);
    Row {
        key: format!("default/pod/p{number:03}"),
        kind: "pod".to_owned(),
        value: format!(
            r#"{{"metadata":{{"uid":"u{number}","resourceVersion":"{number}"}},"filler":"{filler}"}}"#
        ),
    }
}

fn secret() -> Row {
    Row {
        key: "default/secret/s".to_owned(),
        kind: "secret".to_owned(),
        value: r#"{"metadata":{"uid":"s","resourceVersion":"1"},"data":{}}"#.to_owned(),
    }
}

fn report() -> Report {
    Report {
        priority: 1,
        coalesce: None,
        value: r#"{"event":1}"#.to_owned(),
    }
}

/// A store with a secret, 60 pods and a report, closed.
async fn filled(directory: &Directory) -> PathBuf {
    let path = directory.path("edgecore.db");
    let store = MetaStore::open(&path).unwrap();
    let objects = std::iter::once(secret()).chain((0..60).map(pod)).map(Write::Put);
    let mut pending = Vec::new();
    for write in objects.chain([Write::Push(report())]) {
        pending.push(store.submit(write).await.unwrap());
    }
    for answer in pending {
        answer.await.unwrap();
    }
    path
}

/// Waits until the thread of a dropped store has closed the file.
fn closed(directory: &Directory) -> PathBuf {
    let (file, log) = (
        directory.path("edgecore.db.kedge"),
        directory.path("edgecore.db.kedge-wal"),
    );
    while log.exists() {
        std::thread::yield_now();
    }
    file
}

fn corrupt_files(directory: &Directory) -> usize {
    let names = std::fs::read_dir(directory.path(".")).unwrap();
    let is_one = |name: &str| name.contains(".corrupt-") && !name.ends_with("-wal");
    names
        .filter(|entry| is_one(entry.as_ref().unwrap().file_name().to_str().unwrap()))
        .count()
}

#[tokio::test]
async fn of_a_file_with_a_hole_all_but_the_hole_is_read_back() {
    let directory = Directory::new();
    let path = filled(&directory).await;
    let store = MetaStore::open(&path).unwrap();
    store.submit(Write::Complete).await.unwrap().await.unwrap();
    drop(store);
    let file = closed(&directory);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = (bytes.len() / 2) & !4095;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&file, &bytes).unwrap();

    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    let mended = opened.mended.unwrap();
    assert_eq!(
        std::fs::read(&mended.aside).unwrap(),
        bytes,
        "the evidence is kept"
    );
    let store = opened.store;
    let left = store.list("pod").await.unwrap();
    assert!(left.len() >= 40, "{} of 60", left.len());
    for row in &left {
        let number: usize = row.key[13..].parse().unwrap();
        assert_eq!(*row, pod(number), "what is read back is what was written");
    }
    assert_eq!(store.get(&secret().key).await.unwrap(), Some(secret()));
    assert_eq!(store.reports(9).await.unwrap().len(), 1);
    assert_eq!(mended.objects, left.len() + 1);
    assert!(store.put(pod(99)).await.unwrap(), "and it is written again");
    drop(store);
    for restart in 0..2 {
        closed(&directory);
        let store = MetaStore::open(&path).unwrap();
        assert!(!store.complete().await.unwrap(), "restart {restart}");
    }
}

#[tokio::test]
async fn rubbish_is_kept_aside_and_the_store_begins_anew() {
    let directory = Directory::new();
    let path = filled(&directory).await;
    let file = closed(&directory);
    for round in 1..6 {
        std::fs::write(
            &file,
            format!("this is a letter and not a database {round}").repeat(200),
        )
        .unwrap();
        let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
        assert_eq!(opened.mended.unwrap().objects, 0);
        assert_eq!(opened.store.all().await.unwrap(), []);
        assert_eq!(corrupt_files(&directory), round.min(3), "never more than three");
        assert!(opened.store.put(pod(round)).await.unwrap());
        drop(opened.store);
        closed(&directory);
    }
}

#[tokio::test]
async fn a_truncated_file_and_an_empty_one_open() {
    let directory = Directory::new();
    let path = filled(&directory).await;
    let file = closed(&directory);
    let whole = std::fs::read(&file).unwrap();
    for length in [0, 1, 100, 4096, 5000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let store = MetaStore::open(&path).unwrap();
        for row in store.list("pod").await.unwrap() {
            let number: usize = row.key[13..].parse().unwrap();
            assert_eq!(row, pod(number), "cut at {length}");
        }
        assert!(store.put(pod(99)).await.unwrap(), "cut at {length}");
        drop(store);
        closed(&directory);
    }
}

#[tokio::test]
async fn damage_met_while_the_node_runs_is_mended_and_told() {
    let directory = Directory::new();
    let path = filled(&directory).await;
    let file = closed(&directory);
    let store = MetaStore::open(&path).unwrap();
    let mut mended = store.mended().unwrap();
    assert!(!mended.has_changed().unwrap());

    // Somebody writes over the second half of the open file. What lies in the page cache is still good.
    let mut bytes = std::fs::read(&file).unwrap();
    let half = (bytes.len() / 2) & !4095;
    bytes[half..].fill(0xa5);
    let open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open, &bytes, 0).unwrap();

    let left = store.all().await.unwrap();
    assert!(!left.is_empty() && left.len() < 61, "{}", left.len());
    mended.changed().await.unwrap();
    assert_eq!(store.activity().mended, 1);
    assert!(store.put(pod(99)).await.unwrap());
    assert_eq!(store.get(&pod(99).key).await.unwrap(), Some(pod(99)));
    assert_eq!(corrupt_files(&directory), 1);
}

#[tokio::test]
async fn a_mending_that_was_cut_off_is_finished_or_begun_anew() {
    let directory = Directory::new();
    let path = filled(&directory).await;
    let file = closed(&directory);
    let whole = std::fs::read(&file).unwrap();

    // Before the damaged file was set aside: what is half made is thrown away.
    std::fs::write(directory.path("edgecore.db.kedge.new"), "half").unwrap();
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    assert_eq!(opened.mended, None);
    assert_eq!(opened.store.list("pod").await.unwrap().len(), 60);
    assert!(!directory.path("edgecore.db.kedge.new").exists());
    drop(opened.store);
    closed(&directory);

    // After it: the log that is left belongs to the damaged file.
    std::fs::rename(&file, directory.path("edgecore.db.kedge.corrupt-1700000000")).unwrap();
    std::fs::write(directory.path("edgecore.db.kedge-wal"), "rubbish ".repeat(1000)).unwrap();
    std::fs::write(directory.path("edgecore.db.kedge.new"), whole).unwrap();
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    let mended = opened.mended.unwrap();
    assert_eq!((mended.objects, mended.reports), (61, 1));
    assert_eq!(
        mended.aside,
        directory.path("edgecore.db.kedge.corrupt-1700000000")
    );
    assert_eq!(opened.store.list("pod").await.unwrap().len(), 60);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever the file is overwritten, and however much: the store opens, holds only rows that it was given keys for,
    /// and takes new ones.
    #[test]
    fn a_store_opens_whatever_was_done_to_its_file(
        holes in proptest::collection::vec((any::<proptest::sample::Index>(), 1..9000_usize, any::<u8>()), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = Directory::new();
        runtime.block_on(async {
            let path = filled(&directory).await;
            let file = closed(&directory);
            let mut bytes = std::fs::read(&file).unwrap();
            for (at, length, byte) in holes {
                let start = at.index(bytes.len());
                let end = (start + length).min(bytes.len());
                bytes[start..end].fill(byte);
            }
            std::fs::write(&file, bytes).unwrap();
            let store = match MetaStore::open(&path) {
                Ok(store) => store,
                // A few numbers in the first page are those of versions to come.
                Err(Error::Newer { .. }) => return Ok(()),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let rows = store.all().await.unwrap();
            prop_assert!(rows.len() <= 61, "{}", rows.len());
            store.digest().await.unwrap();
            store.reports(9).await.unwrap();
            prop_assert!(store.put(pod(99)).await.unwrap());
            prop_assert_eq!(store.get(&pod(99).key).await.unwrap(), Some(pod(99)));
            Ok(())
        })?;
    }
}
