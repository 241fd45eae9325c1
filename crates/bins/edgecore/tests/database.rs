//! `edgecore database` on files as they lie on a node.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use expect_test::{Expect, expect};
use kedge_store::meta::{MetaStore, Report, Row, Settings, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const CLEAR: &str = "c2VjcmV0LWluLWNsZWFy";

/// A node's folder, which goes with its owner.
struct Site {
    dir: PathBuf,
    settings: Settings,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Site {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("kedge-edgecore-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("certs")).unwrap();
        let shown = dir.display();
        let yaml = format!(
            "database: {{dataSource: {shown}/edgecore.db}}\nmodules: {{edgeHub: {{tlsPrivateKeyFile: {shown}/certs/server.key}}}}\n"
        );
        std::fs::write(dir.join("edgecore.yaml"), yaml).unwrap();
        let settings = Settings::at(dir.join("edgecore.db")).with_key_file(dir.join("certs/store.key"));
        Self { dir, settings }
    }

    /// `edgecore database ...` with what it says.
    fn check(&self, args: &[&str], expect: Expect) {
        let config = self.dir.join("edgecore.yaml");
        let out = Command::new(env!("CARGO_BIN_EXE_edgecore"))
            .arg("database")
            .args(args)
            .arg("--config")
            .arg(config)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        let code = out.status.code().unwrap();
        let shown = format!("$ database {}\n{stdout}{stderr}[{code}]\n", args.join(" "));
        expect.assert_eq(&shown.replace(&self.dir.display().to_string(), "DIR"));
    }

    fn has(&self, file: &str, text: &str) -> bool {
        let bytes = std::fs::read(self.dir.join(file)).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

fn row(key: &str, kind: &str, more: &str) -> Write {
    let value = format!(r#"{{"metadata":{{"uid":"{kind}","resourceVersion":"1"}}{more}}}"#);
    let (key, kind) = (key.to_owned(), kind.to_owned());
    Write::Put(Row { key, kind, value })
}

#[tokio::main(flavor = "current_thread")]
async fn fill(settings: &Settings) -> MetaStore {
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    let secret = format!(r#","data":{{"p":"{CLEAR}"}}"#);
    let report = Report {
        priority: 1,
        coalesce: None,
        value: "{}".to_owned(),
    };
    for write in [
        row("default/pod/web", "pod", ""),
        row("default/secret/s", "secret", &secret),
        Write::Push(report),
    ] {
        store.submit(write).await.unwrap().await.unwrap();
    }
    store
}

#[tokio::main(flavor = "current_thread")]
async fn held(settings: &Settings) -> Vec<(String, String)> {
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    let rows = store.all().await.unwrap();
    rows.into_iter().map(|row| (row.key, row.value)).collect()
}

fn remove(file: &Path) {
    std::fs::remove_file(file).unwrap();
}

#[test]
fn what_is_held_goes_to_an_official_edgecore_and_comes_back() {
    let site = Site::new("database");
    let store = fill(&site.settings);
    site.check(
        &["export"],
        expect![[r#"
        $ database export
        edgecore: open the metadata database DIR/edgecore.db.kedge: another process holds it; stop the EdgeCore that runs, then try again
        [1]
    "#]],
    );
    drop(store);
    let before = held(&site.settings);
    site.check(
        &["export"],
        expect![[r#"
        $ database export
        2 objects, 1 of them pods, written to DIR/edgecore.db (secrets in clear); an official EdgeCore can start; 1 report that the cloud has not taken stays behind
        [0]
    "#]],
    );
    assert!(site.has("edgecore.db", CLEAR));
    remove(&site.settings.database());
    site.check(
        &["import"],
        expect![[r#"
        $ database import
        2 objects, 1 of them pods, taken over from DIR/edgecore.db
        [0]
    "#]],
    );
    assert!(!site.has("edgecore.db", CLEAR) && !site.has("edgecore.db.kedge", CLEAR));
    let key = std::fs::read(&site.settings.key_file).unwrap();
    site.check(
        &["rotate-key"],
        expect![[r#"
        $ database rotate-key
        1 secret or token is sealed with a new key in DIR/certs/store.key; the old one is forgotten
        [0]
    "#]],
    );
    assert_ne!(std::fs::read(&site.settings.key_file).unwrap(), key);
    assert_eq!(held(&site.settings), before);
}

#[test]
fn what_cannot_be_done_is_told() {
    let site = Site::new("no-database");
    for act in ["import", "export", "rotate-key"] {
        let path = if act == "import" {
            "DIR/edgecore.db"
        } else {
            "DIR/edgecore.db.kedge"
        };
        let expected = format!(
            "$ database {act}\nedgecore: there is no metadata database {path}; is `database.dataSource` right?\n[1]\n"
        );
        let config = site.dir.join("edgecore.yaml");
        let out = Command::new(env!("CARGO_BIN_EXE_edgecore"))
            .args(["--config", config.to_str().unwrap(), "database", act])
            .output()
            .unwrap();
        let shown = format!(
            "$ database {act}\n{}[{}]\n",
            String::from_utf8_lossy(&out.stderr),
            out.status.code().unwrap()
        );
        assert_eq!(shown.replace(&site.dir.display().to_string(), "DIR"), expected);
    }
    std::fs::write(&site.settings.data_source, "").unwrap();
    site.check(&["import"], expect![[r#"
        $ database import
        edgecore: DIR/edgecore.db is no database of an official EdgeCore: it has no table `meta` with key, type and value
        [1]
    "#]]);
}
