//! What nobody may read from the disk alone.

use super::file::Directory;
use crate::meta::seal::{Sealer, Unopened};
use crate::meta::{MetaStore, Row, Settings, Write, rotate_key};
use proptest::prelude::*;
use std::path::Path;

const PASSWORD: &str = "correct-horse-battery-staple";

fn secret(name: &str) -> Row {
    Row {
        key: format!("default/secret/{name}"),
        kind: "secret".to_owned(),
        value: format!(
            r#"{{"metadata":{{"uid":"u-{name}","resourceVersion":"7"}},"stringData":{{"p":"{PASSWORD}"}}}}"#
        ),
    }
}

fn token() -> Row {
    Row {
        key: "default/serviceaccounttoken/robot".to_owned(),
        kind: "serviceaccounttoken".to_owned(),
        value: format!(r#"{{"status":{{"token":"{PASSWORD}"}}}}"#),
    }
}

fn config() -> Row {
    Row {
        key: "default/configmap/c".to_owned(),
        kind: "configmap".to_owned(),
        value: r#"{"metadata":{"uid":"c","resourceVersion":"7"},"data":{"plain":"to be read"}}"#.to_owned(),
    }
}

fn holds(directory: &Directory, text: &str) -> bool {
    let files = std::fs::read_dir(directory.path(".")).unwrap();
    let found = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    files.into_iter().any(|file| found(&file.unwrap().path()))
}

#[tokio::test]
async fn secrets_and_tokens_are_not_on_the_disk_in_clear() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let store = MetaStore::open(&path).unwrap();
    for row in [secret("s"), token(), config()] {
        assert!(store.put(row.clone()).await.unwrap());
        assert!(
            !store.put(row.clone()).await.unwrap(),
            "the same again is no change"
        );
        assert_eq!(store.get(&row.key).await.unwrap(), Some(row));
    }
    assert!(!holds(&directory, PASSWORD), "nor in the log");
    assert!(holds(&directory, "to be read"));
    drop(store);
    let store = MetaStore::open(&path).unwrap();
    assert_eq!(store.all().await.unwrap(), [config(), secret("s"), token()]);
    let digest = store.digest().await.unwrap();
    assert_eq!(digest.len(), 2, "identity and version are not secret: {digest:?}");
    assert!(!holds(&directory, PASSWORD));
    assert!(store.delete("default/secret/s", Some("u-s")).await.unwrap());
}

#[tokio::test]
async fn a_lost_key_costs_the_secrets_and_nothing_else() {
    let directory = Directory::new();
    let settings =
        Settings::at(directory.path("edgecore.db")).with_key_file(directory.path("certs/store.key"));
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    for row in [secret("s"), token(), config()] {
        store.put(row).await.unwrap();
    }
    drop(store);
    for lost in ["gone", "emptied", "rubbish"] {
        match lost {
            "gone" => std::fs::remove_file(&settings.key_file).unwrap(),
            "emptied" => std::fs::write(&settings.key_file, "").unwrap(),
            _rubbish => std::fs::write(&settings.key_file, [0xff; 300]).unwrap(),
        }
        let opened = MetaStore::open_node(settings.clone()).unwrap();
        assert_eq!(opened.unopened, [secret("s").key, token().key], "{lost}");
        assert_eq!(opened.store.all().await.unwrap(), [config()], "{lost}");
        let digest = opened.store.digest().await.unwrap();
        assert_eq!(digest.len(), 1, "the cloud hears that the secret is not held");
        for row in [secret("s"), token()] {
            assert!(opened.store.put(row).await.unwrap(), "{lost}");
        }
    }
    let opened = MetaStore::open_node(settings).unwrap();
    assert_eq!(opened.unopened, [""; 0]);
    assert_eq!(opened.store.all().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_key_file_that_cannot_be_read_drops_nothing() {
    let directory = Directory::new();
    let settings = Settings::at(directory.path("edgecore.db")).with_key_file(directory.path("key"));
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    store.put(secret("s")).await.unwrap();
    drop(store);
    std::fs::rename(directory.path("key"), directory.path("away")).unwrap();
    std::fs::create_dir(directory.path("key")).unwrap();
    let shown = MetaStore::open_node(settings.clone()).unwrap_err().to_string();
    assert!(
        shown.starts_with("the key file of the metadata database "),
        "{shown}"
    );
    std::fs::remove_dir(directory.path("key")).unwrap();
    std::fs::rename(directory.path("away"), directory.path("key")).unwrap();
    let store = MetaStore::open_node(settings).unwrap().store;
    assert_eq!(store.all().await.unwrap(), [secret("s")]);
}

#[tokio::test]
async fn a_rotated_key_opens_what_the_old_one_sealed_and_the_old_one_is_gone() {
    let directory = Directory::new();
    let settings = Settings::at(directory.path("edgecore.db")).with_key_file(directory.path("key"));
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    for row in [secret("a"), secret("b"), config()] {
        store.put(row).await.unwrap();
    }
    drop(store);
    let old = std::fs::read_to_string(&settings.key_file).unwrap();
    assert_eq!(rotate_key(&settings).unwrap(), 2);
    let new = std::fs::read_to_string(&settings.key_file).unwrap();
    assert_eq!((old.lines().count(), new.lines().count()), (2, 2));
    assert!(!new.contains(old.lines().nth(1).unwrap()));
    let store = MetaStore::open_node(settings).unwrap().store;
    assert_eq!(store.all().await.unwrap(), [config(), secret("a"), secret("b")]);
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_at_the_next_start() {
    let directory = Directory::new();
    let settings = Settings::at(directory.path("edgecore.db")).with_key_file(directory.path("key"));
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    store.put(secret("a")).await.unwrap();
    drop(store);
    // The new key is saved, and nothing is sealed with it yet.
    let old = std::fs::read_to_string(&settings.key_file).unwrap();
    Sealer::open(&settings.key_file)
        .unwrap()
        .add_key(&settings.key_file)
        .unwrap();
    let opened = MetaStore::open_node(settings.clone()).unwrap();
    assert_eq!(opened.store.all().await.unwrap(), [secret("a")]);
    assert_eq!(opened.unopened, [""; 0]);
    let now = std::fs::read_to_string(&settings.key_file).unwrap();
    assert!(now.lines().count() == 2 && !now.contains(old.lines().nth(1).unwrap()));
}

#[tokio::test]
async fn a_sealed_value_in_another_row_or_changed_is_not_given_out() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    let store = MetaStore::open(&path).unwrap();
    store.put(secret("admin")).await.unwrap();
    store.put(secret("guest")).await.unwrap();
    drop(store);
    let file = rusqlite::Connection::open(directory.path("edgecore.db.kedge")).unwrap();
    file.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    file.execute_batch(
        "UPDATE objects SET value = (SELECT value FROM objects WHERE key = 'default/secret/admin')
         WHERE key = 'default/secret/guest'",
    )
    .unwrap();
    drop(file);
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    assert_eq!(opened.unopened, ["default/secret/guest"]);
    let write = Write::Put(secret("guest"));
    assert!(opened.store.submit(write).await.unwrap().await.unwrap().changed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_opens_and_no_other_bytes_do(
        value in ".{0,200}",
        flip in any::<proptest::sample::Index>(),
        bit in 0..8_u8,
        noise in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let directory = Directory::new();
        let sealer = Sealer::open(&directory.path("key")).unwrap();
        let sealed = sealer.seal("k", "secret", &value).unwrap();
        prop_assert_eq!(sealer.open_value("k", "secret", &sealed).unwrap(), value.clone());
        prop_assert_ne!(sealer.seal("k", "secret", &value).unwrap(), sealed.clone(), "never the same twice");
        prop_assert_eq!(sealer.open_value("other", "secret", &sealed), Err(Unopened::Altered));
        let mut altered = sealed.clone();
        altered[flip.index(sealed.len())] ^= 1 << bit;
        prop_assert!(sealer.open_value("k", "secret", &altered).is_err());
        prop_assert!(sealer.open_value("k", "secret", &noise).is_err());
        let other = Sealer::open(&directory.path("other")).unwrap();
        prop_assert_eq!(other.open_value("k", "secret", &sealed), Err(Unopened::OtherKey));
    }
}
