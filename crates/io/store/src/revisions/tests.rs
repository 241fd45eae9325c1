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

async fn contract(store: Revisions, seen: Seen) {
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

    contended(&store).await;
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
async fn contended(store: &Revisions) {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let store = store.clone();
        tasks.spawn(async move {
            store
                .write(put("race", Expect::Absent, &writer.to_string()))
                .await
        });
    }
    let won = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    let seen = Seen::default();
    contract(Revisions::memory(|_| listener(&seen)).unwrap(), seen).await;
}

#[tokio::test]
async fn the_file_store_keeps_the_contract() {
    let folder = Folder::new("contract");
    let (store, _, seen) = open(&folder, Options::default());
    contract(store, seen).await;
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
            (b, ChangeKind::Created),
            (gone, ChangeKind::Deleted)
        ]
    );
    assert!(store.write(put("b", Expect::Absent, "b")).await.unwrap() > gone);
    let mode = std::fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.close().await;
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
    let (store, _, seen) = open(&folder, Options { pages_max: Some(64) });
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
    for n in 0_u64.. {
        let revision = store
            .write(put(&format!("k{n:06}"), Expect::Absent, "v"))
            .await
            .unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged k{n:06} {revision}").unwrap();
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
        let mut acknowledged = Vec::new();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            if let Some(text) = line.unwrap().split("acknowledged ").nth(1) {
                acknowledged.push(text.to_owned());
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
        store.close().await;
    }
    assert!(last > 0);
}
