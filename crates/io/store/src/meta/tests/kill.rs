//! SIGKILL in the middle of writing: what was acknowledged is there.

use super::file::Directory;
use crate::meta::{MetaStore, Row};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Tells the re-executed test binary where to write. Only the child has it.
const PATH_VARIABLE: &str = "KEDGE_TEST_META_KILL_PATH";
/// Acknowledgements to wait for before the kill.
const ACKNOWLEDGED_MIN: usize = 200;

fn row(number: usize) -> Row {
    Row {
        key: format!("default/pod/p{number}"),
        kind: "pod".to_owned(),
        value: format!("{{\"n\":{number}}}"),
    }
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "run by everything_acknowledged_survives_sigkill"]
async fn victim() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else {
        return;
    };
    let store = MetaStore::open(&PathBuf::from(path)).unwrap();
    for number in 0.. {
        store.put(row(number)).await.unwrap();
        // Past the test harness's capture, in one write, so that the parent sees whole lines.
        let line = format!("acknowledged {number}\n");
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn everything_acknowledged_survives_sigkill() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["meta::tests::kill::victim", "--exact", "--ignored", "--nocapture"])
        .env(PATH_VARIABLE, &path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        acknowledged += usize::from(line.unwrap().contains("acknowledged "));
        if acknowledged == ACKNOWLEDGED_MIN {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(
        acknowledged >= ACKNOWLEDGED_MIN,
        "the child ended by itself after {acknowledged}"
    );

    let store = MetaStore::open(&path).unwrap();
    for number in 0..acknowledged {
        let key = format!("default/pod/p{number}");
        assert_eq!(
            store.get(&key).await.unwrap(),
            Some(row(number)),
            "of {acknowledged} acknowledged"
        );
    }
}
