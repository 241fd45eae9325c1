//! One suite for both stores, and what only the disk can show.

use super::*;
use std::io::{BufRead, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

type Seen = Arc<Mutex<Vec<Commit>>>;

fn put(key: &str, expect: Expect, text: &str) -> Write {
    let draft = Draft {
        before: format!("{text}@").into_bytes(),
        after: b"!".to_vec(),
    };
    Write {
        key: key.to_owned(),
        expect,
        action: Action::Put(draft),
        keep: Keep::Durably,
    }
}

fn lazily(write: Write) -> Write {
    Write {
        keep: Keep::Lazily,
        ..write
    }
}

fn delete(key: &str, at: Revision) -> Write {
    let draft = Draft {
        before: b"gone@".to_vec(),
        after: Vec::new(),
    };
    Write {
        key: key.to_owned(),
        expect: Expect::At(at),
        action: Action::Delete(draft),
        keep: Keep::Durably,
    }
}

fn listener(seen: &Seen) -> Listener {
    let seen = Arc::clone(seen);
    Box::new(move |commits| seen.lock().unwrap().extend(commits))
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-revisions-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
    fn file(&self) -> PathBuf {
        self.0.join("api.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens the file and gives the store, what was found and what the listener will see.
fn open(folder: &Folder, options: Options) -> (Revisions, Content, Seen) {
    let seen = Seen::default();
    let mut found = None;
    let store = Revisions::open(&folder.file(), options, |content| {
        found = Some(content);
        listener(&seen)
    })
    .unwrap();
    (store, found.unwrap(), seen)
}

async fn contract(store: Revisions, seen: Seen, keep: Keep) {
    let put = |key: &str, expect, text: &str| Write {
        keep,
        ..put(key, expect, text)
    };
    let delete = |key: &str, at| Write {
        keep,
        ..delete(key, at)
    };
    let one = store.write(put("a", Expect::Absent, "one")).await.unwrap();
    let refused = store.write(put("a", Expect::Absent, "again")).await.unwrap_err();
    assert!(matches!(refused, WriteError::Conflict { found: Some(at), .. } if at == one));
    let refused = store.write(put("b", Expect::At(7), "b")).await.unwrap_err();
    assert!(matches!(refused, WriteError::Conflict { found: None, .. }));
    let two = store.write(put("a", Expect::At(one), "two")).await.unwrap();
    assert!(store.write(delete("a", one)).await.is_err());
    let three = store.write(delete("a", two)).await.unwrap();
    let four = store.write(put("a", Expect::Absent, "new")).await.unwrap();
    assert!(one < two && two < three && three < four);

    let told: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .map(|c| (c.kind, c.value.clone()))
        .collect();
    let expected = [
        (ChangeKind::Created, format!("one@{one}!")),
        (ChangeKind::Updated, format!("two@{two}!")),
        (ChangeKind::Deleted, format!("gone@{three}")),
        (ChangeKind::Created, format!("new@{four}!")),
    ];
    assert_eq!(told, expected.map(|(kind, text)| (kind, Bytes::from(text))));

    let huge = Draft {
        before: vec![b'x'; VALUE_BYTES_MAX + 1],
        after: Vec::new(),
    };
    let refused = Write {
        key: "huge".to_owned(),
        expect: Expect::Absent,
        action: Action::Put(huge),
        keep: Keep::Durably,
    };
    assert!(matches!(
        store.write(refused).await.unwrap_err(),
        WriteError::TooLarge { .. }
    ));
    let long = put(&"k".repeat(KEY_BYTES_MAX + 1), Expect::Absent, "");
    assert!(matches!(
        store.write(long).await.unwrap_err(),
        WriteError::TooLarge { .. }
    ));

    contended(&store, keep).await;
    let revisions: Vec<_> = seen.lock().unwrap().iter().map(|c| c.revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "commits are told in order");

    let clone = store.clone();
    store.close().await;
    assert!(matches!(
        clone.write(delete("a", four)).await.unwrap_err(),
        WriteError::Closed
    ));
}

/// Of many writers with the same expectation exactly one wins.
async fn contended(store: &Revisions, keep: Keep) {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let store = store.clone();
        tasks.spawn(async move {
            let write = put("race", Expect::Absent, &writer.to_string());
            store.write(Write { keep, ..write }).await
        });
    }
    let won = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let seen = Seen::default();
    contract(
        Revisions::memory(|_| listener(&seen)).unwrap(),
        seen,
        Keep::Durably,
    )
    .await;
}

#[tokio::test]
async fn the_file_store_keeps_the_contract() {
    for keep in [Keep::Durably, Keep::Lazily] {
        let folder = Folder::new(&format!("contract-{keep:?}"));
        let (store, _, seen) = open(&folder, Options::default());
        contract(store, seen, keep).await;
    }
}

#[tokio::test]
async fn a_second_opening_finds_everything_and_goes_on_counting() {
    let folder = Folder::new("reopen");
    let (store, found, _) = open(&folder, Options::default());
    assert_eq!(found, Content::default());
    let a = store.write(put("a", Expect::Absent, "a")).await.unwrap();
    let b = store.write(put("b", Expect::Absent, "b")).await.unwrap();
    let gone = store.write(delete("b", b)).await.unwrap();
    store.close().await;

    let (store, found, _) = open(&folder, Options::default());
    assert_eq!(found.revision, gone);
    let value = Bytes::from(format!("a@{a}!"));
    assert_eq!(
        found.entries,
        [Entry {
            key: "a".to_owned(),
            revision: a,
            value
        }]
    );
    let log: Vec<_> = found.log.iter().map(|c| (c.revision, c.kind)).collect();
    assert_eq!(
        log,
        [
            (a, ChangeKind::Created),
            // The creation of b was replaced by its removal.
            (gone, ChangeKind::Deleted)
        ]
    );
    assert_eq!(found.log_after, a - 1);
    assert!(store.write(put("b", Expect::Absent, "b")).await.unwrap() > gone);
    let mode = std::fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.close().await;
}

#[tokio::test]
async fn what_is_kept_lazily_is_on_the_disk_after_a_snapshot_or_a_close() {
    let folder = Folder::new("lazy");
    let options = Options {
        snapshot_period: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    let (store, _, seen) = open(&folder, options);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..2 * SNAPSHOT_SLICE {
        let store = store.clone();
        tasks.spawn(async move {
            let created = store.write(put(&format!("k{n:04}"), Expect::Absent, "1")).await;
            let renewal = put(&format!("k{n:04}"), Expect::At(created.unwrap()), "2");
            store.write(lazily(renewal)).await.unwrap()
        });
    }
    let last = tasks.join_all().await.into_iter().max().unwrap();
    // One of them is removed durably while it may wait in memory, one lazily.
    let at = |key: &str| {
        let seen = seen.lock().unwrap();
        let last = seen.iter().rev().find(|commit| commit.key == key);
        last.unwrap().revision
    };
    let (one, two) = (at("k0000"), at("k0001"));
    store.write(delete("k0000", one)).await.unwrap();
    let gone = store.write(lazily(delete("k0001", two))).await.unwrap();
    assert!(gone > last);
    store.close().await;

    let (store, found, _) = open(&folder, Options::default());
    assert_eq!(found.revision, gone, "a store that was closed leaves no gap");
    assert_eq!(found.entries.len(), 2 * SNAPSHOT_SLICE - 2);
    let renewed = |entry: &Entry| entry.value == format!("2@{}!", entry.revision);
    assert!(found.entries.iter().all(renewed));
    let kinds: Vec<_> = found
        .log
        .iter()
        .map(|commit| (commit.kind, &*commit.key))
        .collect();
    assert_eq!(
        kinds,
        [(ChangeKind::Deleted, "k0000")],
        "renewals are not told again"
    );
    store.close().await;
}

#[tokio::test]
async fn a_file_of_the_layout_before_is_taken_over() {
    let folder = Folder::new("layout");
    let (store, _, _) = open(&folder, Options::default());
    let a = store.write(put("a", Expect::Absent, "a")).await.unwrap();
    store.close().await;
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    connection
        .execute_batch(
            "DROP TABLE reserved; UPDATE log SET value = x'616263'; PRAGMA user_version = 0x6b656401;",
        )
        .unwrap();
    drop(connection);
    let (store, found, _) = open(&folder, Options::default());
    let log: Vec<_> = found.log.iter().map(|c| (c.revision, c.value.clone())).collect();
    assert_eq!(log, [(a, Bytes::from("abc"))]);
    store.write(lazily(put("b", Expect::Absent, "b"))).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn many_writers_share_one_flush() {
    const WRITERS: usize = 64;
    const EACH: usize = 20;
    let folder = Folder::new("group");
    let batches = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&batches);
    let store = Revisions::open(&folder.file(), Options::default(), |_| {
        Box::new(move |commits| told.lock().unwrap().push(commits.len()))
    })
    .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            for n in 0..EACH {
                let write = put(&format!("{writer}/{n}"), Expect::Absent, "v");
                store.write(write).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    store.close().await;
    let batches = batches.lock().unwrap();
    assert_eq!(batches.iter().sum::<usize>(), WRITERS * EACH);
    // The first may be alone; while it is flushed all others gather.
    assert!(
        batches.len() <= WRITERS * EACH / 16,
        "{} transactions",
        batches.len()
    );
}

#[tokio::test]
async fn the_log_stays_bounded() {
    let folder = Folder::new("bounded");
    let (store, _, _) = open(&folder, Options::default());
    let mut at = store.write(put("a", Expect::Absent, "0")).await.unwrap();
    let others = LOG_ROWS_MAX + 2 * LOG_TRIM_STEP;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..others {
        let store = store.clone();
        tasks.spawn(async move {
            store
                .write(put(&format!("k{n}"), Expect::Absent, "v"))
                .await
                .unwrap()
        });
    }
    tasks.join_all().await;
    at = store.write(put("a", Expect::At(at), "1")).await.unwrap();
    store.close().await;
    let (store, found, _) = open(&folder, Options::default());
    assert_eq!((found.revision, found.log.last().unwrap().revision), (at, at));
    assert!(found.log.len() as u64 <= LOG_ROWS_MAX + LOG_TRIM_STEP + 1);
    assert_eq!(found.entries.len() as u64, others + 1);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_is_named_and_loses_nothing() {
    let folder = Folder::new("full");
    let (store, _, seen) = open(
        &folder,
        Options {
            pages_max: Some(64),
            ..Options::default()
        },
    );
    let text = "x".repeat(16 << 10);
    let mut written = 0;
    let refused = loop {
        match store
            .write(put(&format!("k{written}"), Expect::Absent, &text))
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, WriteError::DiskFull { .. }), "{refused}");
    assert_eq!(refused.to_string(), format!("write k{written}: disk full"));
    assert_eq!(seen.lock().unwrap().len(), written);
    store.close().await;
    let (store, found, _) = open(&folder, Options::default());
    assert_eq!(found.entries.len(), written);
    store
        .write(put("room again", Expect::Absent, &text))
        .await
        .unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_file_in_use_or_of_another_kind_is_refused_with_a_sentence() {
    let folder = Folder::new("refuse");
    let (store, _, seen) = open(&folder, Options::default());
    let second = Revisions::open(&folder.file(), Options::default(), |_| listener(&seen));
    assert!(matches!(second.unwrap_err(), OpenError::InUse { .. }));
    store.close().await;

    std::fs::write(
        folder.file(),
        "not a database, but long enough to have a header of one hundred bytes".repeat(9),
    )
    .unwrap();
    let broken = Revisions::open(&folder.file(), Options::default(), |_| listener(&seen));
    assert!(matches!(broken.unwrap_err(), OpenError::Foreign { .. }));
}

const CHILD_FILE: &str = "KEDGE_REVISIONS_TEST_FILE";

/// Not a test of its own: the process that `kill_nine_loses_nothing_acknowledged` kills.
#[tokio::test]
async fn child_that_writes_until_killed() {
    let Some(file) = std::env::var_os(CHILD_FILE) else {
        return;
    };
    let store = Revisions::open(Path::new(&file), Options::default(), |_| Box::new(|_| {})).unwrap();
    let mut renewed = None;
    for n in 0_u64.. {
        let revision = store
            .write(put(&format!("k{n:06}"), Expect::Absent, "v"))
            .await
            .unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged k{n:06} {revision}").unwrap();
        let expect = renewed.map_or(Expect::Absent, Expect::At);
        let renewal = lazily(put("z", expect, "renewed"));
        drop(out);
        let revision = store.write(renewal).await.unwrap();
        renewed = Some(revision);
        let mut out = std::io::stdout().lock();
        writeln!(out, "renewed {revision}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn kill_nine_loses_nothing_acknowledged() {
    let folder = Folder::new("kill");
    let mut last = 0;
    for round in 1..=3_usize {
        let _ = std::fs::remove_dir_all(&folder.0);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "revisions::tests::child_that_writes_until_killed",
            ])
            .env(CHILD_FILE, folder.file())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (mut acknowledged, mut renewed) = (Vec::new(), 0_u64);
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(text) = line.split("acknowledged ").nth(1) {
                acknowledged.push(text.to_owned());
            }
            if let Some(text) = line.strip_prefix("renewed ") {
                renewed = text.parse().unwrap();
            }
            if acknowledged.len() == 40 * round {
                child.kill().unwrap();
                break;
            }
        }
        // What it said before it died, but we had not read yet, counts too. The last line may be cut.
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        acknowledged.extend(
            rest.iter()
                .filter_map(|line| line.strip_prefix("acknowledged ").map(str::to_owned)),
        );
        child.wait().unwrap();

        let (store, found, _) = open(&folder, Options::default());
        for (n, text) in acknowledged.iter().enumerate().take(acknowledged.len() - 1) {
            let entry = &found.entries[n];
            assert_eq!(*text, format!("{} {}", entry.key, entry.revision));
        }
        last = store.write(put("after", Expect::Absent, "v")).await.unwrap();
        assert!(last > found.revision);
        assert!(last > renewed && renewed > 0, "no revision is given out twice");
        store.close().await;
    }
    assert!(last > 0);
}
