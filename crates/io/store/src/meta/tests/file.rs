//! What only a file can do: stay, be foreign, be damaged, fill up.

use crate::meta::{Limits, MetaStore, Report, Row, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with its owner.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kedge-meta-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pod(name: &str, value: &str) -> Row {
    Row {
        key: format!("default/pod/{name}"),
        kind: "pod".to_owned(),
        value: value.to_owned(),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn rows_and_reports_are_there_after_a_restart() {
    let directory = Directory::new();
    let path = directory.path("deep/edgecore.db");
    let report = Report {
        priority: 1,
        coalesce: None,
        value: "event".to_owned(),
    };
    {
        let store = MetaStore::open(&path).unwrap();
        store.put(pod("web", "{}")).await.unwrap();
        store
            .submit(Write::Push(report.clone()))
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let store = MetaStore::open(&path).unwrap();
    assert_eq!(store.all().await.unwrap(), [pod("web", "{}")]);
    assert_eq!(store.reports(9).await.unwrap()[0].report, report);
    assert_eq!(store.outbox_use().await.unwrap().bytes, 5);
}

#[tokio::test]
async fn only_the_owner_may_read_it() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = MetaStore::open(&path).unwrap();
    store.put(pod("web", "{}")).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&directory.path("edgecore.db-wal")), 0o600);
}

#[tokio::test]
async fn a_database_of_the_go_edge_is_opened_in_place() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let go = rusqlite::Connection::open(&path).unwrap();
    go.execute_batch(
        "CREATE TABLE `meta` (`key` text(256), `type` text(32), `value` text, PRIMARY KEY (`key`));
         CREATE TABLE `device` (`id` text(64), PRIMARY KEY (`id`));
         INSERT INTO device VALUES ('sensor');
         INSERT INTO meta VALUES ('default/pod/web', 'pod', '{\"metadata\":{\"uid\":\"u\",\"resourceVersion\":\"4\"}}');",
    )
    .unwrap();
    drop(go);
    let store = MetaStore::open(&path).unwrap();
    assert_eq!(store.list("pod").await.unwrap().len(), 1);
    assert_eq!(store.digest().await.unwrap()[0].version, "4");
    store.put(pod("db", "{}")).await.unwrap();
    let go = rusqlite::Connection::open(&path).unwrap();
    let devices: String = go
        .query_row("SELECT id FROM device", [], |row| row.get(0))
        .unwrap();
    assert_eq!(devices, "sensor");
}

#[test]
fn a_damaged_or_foreign_file_says_the_way_out() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    std::fs::write(
        &path,
        "this is a letter, not a database, and long enough to be read as one page",
    )
    .unwrap();
    let shown = MetaStore::open(&path).unwrap_err().to_string();
    assert!(
        shown.starts_with(&format!("the metadata database {} is damaged", path.display())),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("mv {p} {p}.damaged", p = path.display())),
        "{shown}"
    );

    let path = directory.path("foreign.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("CREATE TABLE meta (id INTEGER, body TEXT)")
        .unwrap();
    drop(other);
    let shown = MetaStore::open(&path).unwrap_err().to_string();
    assert!(shown.contains("table `meta` has the columns id, body"), "{shown}");

    let shown = MetaStore::open(Path::new("/proc/nothing/edgecore.db"))
        .unwrap_err()
        .to_string();
    assert!(
        shown.starts_with("open the metadata database /proc/nothing/edgecore.db: "),
        "{shown}"
    );
}

#[tokio::test]
async fn a_full_disk_fails_the_write_that_does_not_fit_and_nothing_else() {
    let directory = Directory::new();
    let limits = Limits {
        database_bytes_max: 128 * 1024,
        ..Limits::default()
    };
    let store = MetaStore::open_with(&directory.path("edgecore.db"), limits).unwrap();
    store.put(pod("small", "{}")).await.unwrap();
    // Submitted together, so that they may share a transaction.
    let large = store
        .submit(Write::Put(pod("web", &"x".repeat(512 * 1024))))
        .await
        .unwrap();
    let after = store.submit(Write::Put(pod("after", "{}"))).await.unwrap();
    assert_eq!(
        large.await.unwrap_err().to_string(),
        "store pod default/web: disk full"
    );
    assert!(after.await.unwrap().changed);
    let names: Vec<String> = store
        .all()
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(names, ["default/pod/after", "default/pod/small"]);
}

#[tokio::test]
async fn unchanged_bytes_are_not_written() {
    let directory = Directory::new();
    let store = MetaStore::open(&directory.path("edgecore.db")).unwrap();
    store.put(pod("web", "{}")).await.unwrap();
    let log = directory.path("edgecore.db-wal");
    let before = std::fs::metadata(&log).unwrap().len();
    assert!(before > 0);
    for _ in 0..50 {
        store.put(pod("web", "{}")).await.unwrap();
    }
    assert_eq!(std::fs::metadata(&log).unwrap().len(), before);
}
