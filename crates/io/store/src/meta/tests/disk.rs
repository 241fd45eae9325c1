//! What goes to the disk: nothing at rest, little when one object changes often, and an error when it is full.

use super::file::Directory;
use crate::meta::{MetaStore, Report, Row, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

fn row(kind: &str, name: &str, value: &str) -> Row {
    Row {
        key: format!("default/{kind}/{name}"),
        kind: kind.to_owned(),
        value: value.to_owned(),
    }
}

fn log_of(directory: &Directory) -> PathBuf {
    directory.path("edgecore.db.kedge-wal")
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Both files as they are: not a byte may change.
fn content(directory: &Directory) -> (Vec<u8>, Vec<u8>) {
    let file = std::fs::read(directory.path("edgecore.db.kedge")).unwrap();
    (file, std::fs::read(log_of(directory)).unwrap())
}

#[tokio::test]
async fn nothing_is_written_when_nothing_changes() {
    let directory = Directory::new();
    let store = MetaStore::open(&directory.path("edgecore.db")).unwrap();
    let held = [
        row("pod", "web", r#"{"metadata":{"uid":"u","resourceVersion":"7"}}"#),
        row("secret", "s", r#"{"data":{"password":"aGFyZA=="}}"#),
        row("serviceaccounttoken", "robot", r#"{"status":{"token":"t"}}"#),
    ];
    for held in &held {
        store.put(held.clone()).await.unwrap();
    }
    let before = content(&directory);
    for _ in 0..200 {
        for held in &held {
            assert!(!store.put(held.clone()).await.unwrap());
        }
        assert!(!store.delete("default/pod/absent", None).await.unwrap());
        assert!(!store.delete("default/pod/web", Some("another")).await.unwrap());
        let forget = store.submit(Write::Forget { report: 9 }).await.unwrap();
        assert!(!forget.await.unwrap().changed);
        store.digest().await.unwrap();
        store.all().await.unwrap();
    }
    assert!(
        content(&directory) == before,
        "the same bytes in the file and in its log"
    );
}

#[tokio::test]
async fn a_thousand_versions_of_one_object_cost_a_few_transactions() {
    const VERSIONS: usize = 1000;
    let directory = Directory::new();
    let store = MetaStore::open(&directory.path("edgecore.db")).unwrap();
    store.put(row("configmap", "other", "{}")).await.unwrap();
    let (commits, log) = (store.activity().commits, length(&log_of(&directory)));
    let version = |number| {
        let value = format!(
            r#"{{"metadata":{{"uid":"u","resourceVersion":"{number}"}},"data":"{}"}}"#,
            "x".repeat(2000)
        );
        row("configmap", "c", &value)
    };
    let mut pending = Vec::new();
    for number in 0..VERSIONS {
        pending.push(store.submit(Write::Put(version(number))).await.unwrap());
    }
    for answer in pending {
        assert!(answer.await.unwrap().changed);
    }
    let held = store.get("default/configmap/c").await.unwrap();
    assert_eq!(held, Some(version(VERSIONS - 1)));

    let activity = store.activity();
    let commits = activity.commits - commits;
    assert_eq!(activity.superseded + activity.changes, VERSIONS as u64 + 1);
    // How many find themselves in one transaction depends on the disk; that they share them does not.
    assert!(activity.superseded > VERSIONS as u64 / 4, "{activity:?}");
    let grown = length(&log_of(&directory)) - log;
    assert!(
        grown < commits * 5 * 4096,
        "{grown} bytes in {commits} transactions"
    );
}

#[tokio::test]
async fn the_log_stays_small_however_much_is_written() {
    let directory = Directory::new();
    let store = MetaStore::open(&directory.path("edgecore.db")).unwrap();
    let mut largest = 0;
    for number in 0..600 {
        let value = format!(r#"{{"n":{number},"data":"{}"}}"#, "x".repeat(60_000));
        store
            .put(row("configmap", &(number % 7).to_string(), &value))
            .await
            .unwrap();
        largest = largest.max(length(&log_of(&directory)));
    }
    // The limit of the log and one transaction above it, of 36 MB that went through.
    assert!(largest < 3 * 1024 * 1024, "{largest}");
    let file = length(&directory.path("edgecore.db.kedge"));
    assert!(file < 2 * 1024 * 1024, "{file}");
}

/// A file system of its own, small enough to be filled.
struct SmallDisk(Directory);

impl SmallDisk {
    fn new() -> Self {
        let directory = Directory::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
            .arg(directory.path("."))
            .status();
        assert!(mounted.unwrap().success(), "a small tmpfs can be mounted");
        Self(directory)
    }

    fn fill(&self) {
        std::fs::write(self.0.path("ballast"), vec![0; 1 << 20]).unwrap_err();
    }

    fn free(&self) {
        std::fs::remove_file(self.0.path("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path(".")).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_forgotten_once_there_is_space() {
    let disk = SmallDisk::new();
    let path = disk.0.path("edgecore.db");
    let store = MetaStore::open(&path).unwrap();
    let web = row("pod", "web", r#"{"metadata":{"uid":"u","resourceVersion":"7"}}"#);
    store.put(web.clone()).await.unwrap();
    disk.fill();
    let large = row(
        "configmap",
        "c",
        &format!(r#"{{"data":"{}"}}"#, "x".repeat(100_000)),
    );
    for _ in 0..3 {
        let refused = store.put(large.clone()).await.unwrap_err().to_string();
        assert_eq!(refused, "store configmap default/c: disk full");
    }
    assert_eq!(
        store.get(&web.key).await.unwrap(),
        Some(web.clone()),
        "reading goes on"
    );

    // A start on the full disk: the node has its pods.
    drop(store);
    let store = MetaStore::open(&path).unwrap();
    assert_eq!(store.all().await.unwrap(), [web]);
    store.put(large.clone()).await.unwrap_err();

    disk.free();
    assert!(store.put(large.clone()).await.unwrap());
    let report = Report {
        priority: 1,
        coalesce: None,
        value: "{}".to_owned(),
    };
    let pushed = store.submit(Write::Push(report)).await.unwrap().await.unwrap();
    assert!(pushed.changed);
    assert_eq!(store.all().await.unwrap().len(), 2);
}
