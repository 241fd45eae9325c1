//! What only a file can do: stay, be read by others, be foreign, be of another version, fill up.

use super::kill::PATH_VARIABLE;
use crate::meta::{Limits, MetaStore, Report, Row, Settings, Write, export, schema};
use rustix::fs::{IFlags, ioctl_getflags};
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
async fn reading_does_not_write() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let files = ["edgecore.db.kedge", "edgecore.db.kedge-wal"].map(|name| directory.path(name));
    for life in 0..2 {
        let store = MetaStore::open(&path).unwrap();
        for file in &files {
            let Ok(flags) = ioctl_getflags(std::fs::File::open(file).unwrap()) else {
                eprintln!("the file system of {} has no flags", file.display());
                return;
            };
            assert!(flags.contains(IFlags::NOATIME), "{life} {}", file.display());
        }
        store
            .put(pod("web", &format!("{{\"life\":{life}}}")))
            .await
            .unwrap();
        let read_at = || {
            files
                .clone()
                .map(|file| std::fs::metadata(file).unwrap().accessed().unwrap())
        };
        let before = read_at();
        // A long list leaves nothing in SQLite's own memory: the next one comes from the files.
        for _ in 0..2 {
            assert_eq!(store.list("pod").await.unwrap().len(), 1);
        }
        assert_eq!(read_at(), before);
    }
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

/// Not a test of its own: a process whose umask gives everything to everybody.
#[tokio::test]
#[ignore = "run by only_the_owner_may_read_it"]
async fn generous() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else {
        return;
    };
    let store = MetaStore::open(Path::new(&path)).unwrap();
    store.put(pod("web", "{}")).await.unwrap();
    for beside in ["", "-wal"] {
        let mut file = path.clone();
        file.push(".kedge");
        file.push(beside);
        println!("mode {:o}", mode(Path::new(&file)));
    }
}

#[test]
fn only_the_owner_may_read_it() {
    let directory = Directory::new();
    let path = directory.path("deep/edgecore.db");
    let shell = r#"umask 000; exec "$0" meta::tests::file::generous --exact --ignored --nocapture"#;
    let told = std::process::Command::new("sh")
        .args(["-c", shell])
        .arg(std::env::current_exe().unwrap())
        .env(PATH_VARIABLE, &path)
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.matches("mode 600").count(), 2, "{told}");
    assert_eq!(mode(&directory.path("deep/edgecore.db.kedge")), 0o600);
    assert_eq!(mode(&directory.path("deep/edgecore.db.key")), 0o600);
    assert_eq!(mode(&directory.path("deep")), 0o700);
    let names = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut files: Vec<String> = std::fs::read_dir(directory.path("deep"))
        .unwrap()
        .map(names)
        .collect();
    files.sort();
    // The process ended without waiting for its thread, as after a kill; but there never is a file of shared memory.
    files.retain(|name| !name.ends_with("-wal"));
    assert_eq!(files, ["edgecore.db.kedge", "edgecore.db.key"]);
}

#[tokio::test]
async fn rights_that_somebody_added_are_taken_away_at_the_next_start() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    drop(MetaStore::open(&path).unwrap());
    for name in ["edgecore.db.kedge", "edgecore.db.key"] {
        std::fs::set_permissions(directory.path(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let store = MetaStore::open(&path).unwrap();
    store.put(pod("web", "{}")).await.unwrap();
    for name in ["edgecore.db.kedge", "edgecore.db.kedge-wal", "edgecore.db.key"] {
        assert_eq!(mode(&directory.path(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn one_process_holds_it() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let _store = MetaStore::open(&path).unwrap();
    let shown = export(&Settings::at(&path)).unwrap_err().to_string();
    assert_eq!(
        shown,
        format!(
            "open the metadata database {}.kedge: another process holds it; stop the EdgeCore that runs, then try again",
            path.display()
        )
    );
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_set_aside_as_it_is() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let other = rusqlite::Connection::open(directory.path("edgecore.db.kedge")).unwrap();
    other
        .execute_batch("CREATE TABLE meta (id INTEGER, body TEXT)")
        .unwrap();
    drop(other);
    let before = std::fs::read(directory.path("edgecore.db.kedge")).unwrap();
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    // SQLite notes in the header how the file was opened last; the rest is as it was.
    let aside = std::fs::read(opened.mended.unwrap().aside).unwrap();
    assert_eq!(aside[100..], before[100..]);
    opened.store.put(pod("web", "{}")).await.unwrap();

    let shown = MetaStore::open(Path::new("/proc/nothing/edgecore.db"))
        .unwrap_err()
        .to_string();
    assert!(shown.contains("/proc/nothing/edgecore.db"), "{shown}");
}

#[test]
fn tables_are_brought_up_to_date_step_by_step_and_newer_ones_are_refused() {
    let directory = Directory::new();
    let path = directory.path("store");
    let limits = Limits::default();
    let steps = [
        "CREATE TABLE pods (name TEXT)",
        "ALTER TABLE pods ADD COLUMN uid TEXT; UPDATE pods SET uid = 'u-' || name",
    ];
    let first = schema::open_with(&path, &limits, &steps[..1]).unwrap();
    first.execute_batch("INSERT INTO pods VALUES ('web')").unwrap();
    drop(first);

    let broken = [steps[0], steps[1], "CREATE TABLE pods (twice TEXT)"];
    schema::open_with(&path, &limits, &broken).unwrap_err();
    let second = schema::open_with(&path, &limits, &steps).unwrap();
    let uid: String = second
        .query_row("SELECT uid FROM pods", [], |row| row.get(0))
        .unwrap();
    assert_eq!(
        uid, "u-web",
        "a step that failed took the one before it back with it"
    );
    drop(second);
    drop(schema::open_with(&path, &limits, &steps).unwrap());

    let older = schema::open_with(&path, &limits, &steps[..1]).unwrap_err();
    let shown = older.to_string();
    assert!(
        shown.contains("version 2 of its tables, this one knows 1"),
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
