//! SIGKILL at any moment: what was acknowledged is there, and the store opens.

use super::file::Directory;
use crate::meta::{MetaStore, Report, Row, Settings, Write as Order, rotate_key};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Tells the re-executed test binary where to write. Only the child has it.
pub(super) const PATH_VARIABLE: &str = "KEDGE_TEST_META_KILL_PATH";
/// The first number that the child writes.
const FIRST_VARIABLE: &str = "KEDGE_TEST_META_KILL_FIRST";
/// Lives of one store, each ended by a kill.
const LIVES: usize = 12;

/// Large enough that the log is carried into the file now and then.
fn row(number: usize) -> Row {
    let kind = if number.is_multiple_of(3) { "secret" } else { "pod" };
    Row {
        key: format!("default/{kind}/p{}", number % 50),
        kind: kind.to_owned(),
        value: format!(
            "{{\"n\":{number},\"filler\":\"{}\"}}",
            "x".repeat(number % 7 * 3000)
        ),
    }
}

fn number_of(row: &Row) -> usize {
    let digits = row.value.trim_start_matches("{\"n\":").split(',').next().unwrap();
    digits.parse().unwrap()
}

fn victim_of(test: &str, path: &Path, first: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(PATH_VARIABLE, path)
        .env(FIRST_VARIABLE, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn path_of_victim() -> Option<PathBuf> {
    std::env::var_os(PATH_VARIABLE).map(PathBuf::from)
}

/// Past the test harness's capture, in one write, so that the parent sees whole lines.
fn say(text: &str) -> bool {
    std::io::stdout()
        .lock()
        .write_all(format!("{text}\n").as_bytes())
        .is_ok()
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "run by everything_acknowledged_survives_sigkill"]
async fn writer() {
    let Some(path) = path_of_victim() else { return };
    let first: usize = std::env::var(FIRST_VARIABLE).unwrap().parse().unwrap();
    let store = MetaStore::open(&path).unwrap();
    for number in first.. {
        let report = Report {
            priority: 1,
            coalesce: None,
            value: number.to_string(),
        };
        let put = store.submit(Order::Put(row(number))).await.unwrap();
        let push = store.submit(Order::Push(report)).await.unwrap();
        put.await.unwrap();
        let report = push.await.unwrap().report.unwrap();
        if !say(&format!("acknowledged {number}")) {
            return;
        }
        if number % 5 != 0 {
            store.submit(Order::Forget { report }).await.unwrap();
        }
    }
}

/// Lets a child write until it has acknowledged `count`, kills it, and returns the last acknowledged number.
fn live_and_die(path: &Path, first: usize, count: usize) -> Option<usize> {
    let mut child = victim_of("meta::tests::kill::writer", path, first);
    let mut last = None;
    let mut acknowledged = 0;
    if count == 0 {
        child.kill().unwrap();
    }
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, number)) = line.split_once("acknowledged ") else {
            continue;
        };
        last = Some(number.parse().unwrap());
        acknowledged += 1;
        if acknowledged == count {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        acknowledged >= count,
        "the child ended by itself after {acknowledged}"
    );
    last
}

#[tokio::test]
async fn everything_acknowledged_survives_sigkill() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let mut next = 0;
    for life in 0..LIVES {
        // The first dies while the file is being made, later ones after more and more work.
        let last = live_and_die(&path, next, life * 17);
        next = last.map_or(next, |last| last + 1);
        let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
        assert_eq!(
            (opened.mended, opened.unopened),
            (None, Vec::new()),
            "a kill is no damage"
        );
        let rows = opened.store.all().await.unwrap();
        for expected in next.saturating_sub(50)..next {
            let key = row(expected).key;
            let held = rows.iter().find(|row| row.key == key).unwrap();
            // The one after the last acknowledged may be there too: it was committed, and not yet said.
            let number = number_of(held);
            assert!(
                number >= expected && *held == row(number),
                "life {life}: {key} is of {number}"
            );
        }
        let reports = opened.store.reports(usize::MAX >> 1).await.unwrap();
        for kept in (0..next).filter(|number| number % 5 == 0) {
            let kept = kept.to_string();
            assert!(
                reports.iter().any(|stored| stored.report.value == kept),
                "report {kept}"
            );
        }
        // What was committed and not said is written again under the same number by the next life.
    }
    assert!(next > 500, "{next}");
}

/// Not a test of its own: gives the store a new key again and again.
#[test]
#[ignore = "run by a_rotation_killed_at_any_moment_loses_no_secret"]
fn rotator() {
    let Some(path) = path_of_victim() else { return };
    while rotate_key(&Settings::at(&path)).is_ok() && say("acknowledged 0") {}
}

#[tokio::test]
async fn a_rotation_killed_at_any_moment_loses_no_secret() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let store = MetaStore::open(&path).unwrap();
    for number in 0..30 {
        store.put(row(number * 3)).await.unwrap();
    }
    let before = store.all().await.unwrap();
    drop(store);
    let key_file = Settings::at(&path).key_file;
    for life in 0..12 {
        let mut child = victim_of("meta::tests::kill::rotator", &path, 0);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("acknowledged") {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "the child ended by itself"
            );
        }
        // Somewhere in the next one: as it begins, with both keys in the file, with one again.
        let keys = || {
            std::fs::read_to_string(&key_file)
                .unwrap_or_default()
                .lines()
                .count()
                - 1
        };
        match life % 3 {
            0 => {}
            1 => while keys() != 2 && child.try_wait().unwrap().is_none() {},
            _last => {
                while keys() != 2 && child.try_wait().unwrap().is_none() {}
                while keys() != 1 && child.try_wait().unwrap().is_none() {}
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = output.read_to_string(&mut line);
        let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
        assert_eq!(opened.unopened, [""; 0], "life {life}");
        assert_eq!(opened.store.all().await.unwrap(), before, "life {life}");
    }
}

/// Not a test of its own: takes an official database over.
#[tokio::test]
#[ignore = "run by a_conversion_killed_at_any_moment_is_done_by_the_next_start"]
async fn converter() {
    let Some(path) = path_of_victim() else { return };
    let _store = MetaStore::open(&path).unwrap();
    say("acknowledged 0");
}

#[tokio::test]
async fn a_conversion_killed_at_any_moment_is_done_by_the_next_start() {
    for life in 0..6 {
        let directory = Directory::new();
        let path = directory.path("edgecore.db");
        let theirs = rusqlite::Connection::open(&path).unwrap();
        theirs
            .execute_batch(
                "CREATE TABLE meta (key text(256), type text(32), value text, PRIMARY KEY (key));
                 WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1999)
                 INSERT INTO meta SELECT 'default/' || kind || '/' || i, kind, '{\"data\":\"' || hex(zeroblob(900)) || '\"}'
                 FROM (SELECT i, iif(i % 4, 'pod', 'secret') AS kind FROM n)",
            )
            .unwrap();
        drop(theirs);
        let mut child = victim_of("meta::tests::kill::converter", &path, 0);
        let length = |name: &str| {
            std::fs::metadata(directory.path(name))
                .map(|file| file.len())
                .ok()
        };
        let reached = || match life {
            0 => length("edgecore.db.key").is_some(),
            1 => length("edgecore.db.kedge").is_some(),
            2 => length("edgecore.db.kedge-wal") > Some(20_000),
            3 => length("edgecore.db.kedge-wal") > Some(3_000_000),
            4 => length("edgecore.db-journal").is_some(),
            _end => length("edgecore.db") < Some(3_500_000),
        };
        while !reached() && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();
        let store = MetaStore::open(&path).unwrap();
        assert_eq!(store.list("pod").await.unwrap().len(), 1500, "life {life}");
        assert_eq!(store.list("secret").await.unwrap().len(), 500, "life {life}");
        let theirs = rusqlite::Connection::open(&path).unwrap();
        let sql = "SELECT count(*) FROM meta WHERE type = 'secret'";
        let in_clear: usize = theirs.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(in_clear, 0, "life {life}");
    }
}
