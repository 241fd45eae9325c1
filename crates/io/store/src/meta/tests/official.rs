//! A node that was an official EdgeCore's, and becomes it again.

use super::file::Directory;
use crate::meta::{MetaStore, Report, Row, Settings, Write, export, import};
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The tables as the official EdgeCore v1.23.1 makes them.
const TABLES: &str = "
    CREATE TABLE `meta` (`key` text,`type` text,`value` text,PRIMARY KEY (`key`));
    CREATE TABLE `meta_v2` (`key` text,`group_version_resource` text,`namespace` text,`name` text,\
        `resource_version` integer,`value` text,PRIMARY KEY (`key`));
    CREATE TABLE `device` (`id` text,`name` text,`description` text,`state` text,`last_online` text,\
        PRIMARY KEY (`id`));
    CREATE TABLE `sub_topics` (`topic` text,PRIMARY KEY (`topic`));
    INSERT INTO device (id, name) VALUES ('sensor', 'sensor');
    INSERT INTO sub_topics VALUES ('$hw/events/#');
";

fn object(name: &str, uid: &str, version: &str) -> String {
    format!(r#"{{"metadata":{{"name":"{name}","uid":"{uid}","resourceVersion":"{version}"}}}}"#)
}

const CLEAR: &str = "c2VjcmV0LWluLWNsZWFy";

fn secret() -> String {
    format!(r#"{{"metadata":{{"name":"s","uid":"s","resourceVersion":"5"}},"data":{{"p":"{CLEAR}"}}}}"#)
}

fn official(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .unwrap();
    connection
}

/// What an official EdgeCore leaves behind when it is stopped.
fn left_behind(path: &Path) {
    let theirs = official(path);
    theirs.execute_batch(TABLES).unwrap();
    for (key, kind, value) in [
        ("default/pod/web", "pod", object("web", "w", "7")),
        ("kube-system/pod/proxy", "pod", object("proxy", "p", "8")),
        ("default/configmap/c", "configmap", object("c", "c", "4")),
        ("default/secret/s", "secret", secret()),
        ("null/node/edge-1", "node", object("edge-1", "n", "9")),
        ("default/podpatch/web", "podpatch", r#"{"status":{}}"#.to_owned()),
        ("kube-node-lease/lease/edge-1", "lease", "{}".to_owned()),
        (
            "\"robot\"/\"default\"/[]string(nil)/3607/v1.BoundObjectReference{}",
            "serviceaccounttoken",
            format!(r#"{{"status":{{"token":"{CLEAR}"}}}}"#),
        ),
    ] {
        let sql = "INSERT INTO meta VALUES (?1, ?2, ?3)";
        theirs.execute(sql, [key, kind, &value]).unwrap();
    }
    let sql = "INSERT INTO meta_v2 VALUES (?1, ?2, 'default', ?3, 5, ?4)";
    for (key, resource, name, value) in [
        (
            "/core/v1/secrets/default/s",
            "/v1, Resource=secrets",
            "s",
            secret(),
        ),
        (
            "/core/v1/pods/default/old",
            "/v1, Resource=pods",
            "old",
            object("old", "o", "1"),
        ),
        (
            "/apps/v1/deployments/default/d",
            "apps/v1, Resource=deployments",
            "d",
            object("d", "d", "1"),
        ),
    ] {
        theirs.execute(sql, [key, resource, name, &value]).unwrap();
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

async fn keys(store: &MetaStore) -> Vec<String> {
    let rows = store.all().await.unwrap();
    rows.into_iter().map(|row| row.key).collect()
}

fn rows(path: &Path, sql: &str) -> Vec<String> {
    let theirs = official(path);
    let mut statement = theirs.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn in_clear(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .windows(CLEAR.len())
        .any(|window| window == CLEAR.as_bytes())
}

const TAKEN: [&str; 5] = [
    "default/configmap/c",
    "default/pod/web",
    "default/secret/s",
    "kube-system/pod/proxy",
    "null/node/edge-1",
];

#[tokio::test]
async fn a_node_is_taken_over_at_the_first_start() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    left_behind(&path);
    assert!(in_clear(&path));
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    let imported = opened.imported.unwrap();
    assert_eq!((imported.objects, imported.pods), (5, 2));
    let store = opened.store;
    assert_eq!(keys(&store).await, TAKEN);
    assert_eq!(
        store.get("default/secret/s").await.unwrap().unwrap().value,
        secret()
    );
    assert_eq!(store.digest().await.unwrap().len(), 5);

    assert!(
        !in_clear(&path),
        "what is sealed in ours is no longer in clear in theirs"
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(
        rows(&path, "SELECT id FROM device"),
        ["sensor"],
        "what others need stays"
    );
    assert_eq!(rows(&path, "SELECT topic FROM sub_topics"), ["$hw/events/#"]);

    store.delete("default/pod/web", None).await.unwrap();
    drop(store);
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    assert_eq!(opened.imported, None, "once: nobody has written there since");
    assert_eq!(keys(&opened.store).await.len(), 4);
}

#[tokio::test]
async fn the_way_back_holds_what_was_held_last_and_the_way_there_again_too() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    left_behind(&path);
    let settings = Settings::at(&path);
    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    store.delete("kube-system/pod/proxy", None).await.unwrap();
    let db = Row {
        key: "default/pod/db".to_owned(),
        kind: "pod".to_owned(),
        value: object("db", "d", "20"),
    };
    store.put(db).await.unwrap();
    let report = Report {
        priority: 1,
        coalesce: None,
        value: "{}".to_owned(),
    };
    store.submit(Write::Push(report)).await.unwrap().await.unwrap();
    drop(store);

    let exported = export(&settings).unwrap();
    assert_eq!(
        (exported.objects, exported.pods, exported.reports_left),
        (5, 2, 1)
    );
    assert_eq!(
        exported.to_string(),
        format!(
            "5 objects, 2 of them pods, written to {} (secrets in clear); an official EdgeCore can start; 1 report that \
             the cloud has not taken stays behind",
            path.display()
        )
    );
    let pods = "SELECT value FROM meta WHERE type = 'pod' ORDER BY key";
    assert_eq!(
        rows(&path, pods),
        [object("db", "d", "20"), object("web", "w", "7")]
    );
    assert_eq!(
        rows(&path, "SELECT value FROM meta WHERE type = 'secret'"),
        [secret()]
    );
    let served = "SELECT key || ' ' || name || ' ' || resource_version FROM meta_v2 ORDER BY key";
    assert_eq!(
        rows(&path, served),
        [
            "/apps/v1/deployments/default/d d 5",
            "/core/v1/configmaps/default/c c 4",
            "/core/v1/nodes/null/edge-1 edge-1 9",
            "/core/v1/pods/default/db db 20",
            "/core/v1/pods/default/web web 7",
            "/core/v1/secrets/default/s s 5",
        ]
    );
    assert_eq!(
        rows(&path, "PRAGMA journal_mode"),
        ["delete"],
        "as the official EdgeCore has it"
    );

    // Started again without that the official one ran: nothing is taken, and the secrets go from there again.
    let opened = MetaStore::open_node(settings.clone()).unwrap();
    assert_eq!(opened.imported, None);
    assert!(!in_clear(&path));
    assert_eq!(opened.store.outbox_use().await.unwrap().reports, 1);
    drop(opened.store);

    // The official one ran for a while: it got a pod and lost one.
    export(&settings).unwrap();
    let theirs = official(&path);
    theirs
        .execute_batch("DELETE FROM meta WHERE key = 'default/pod/db'")
        .unwrap();
    let sql = "INSERT INTO meta VALUES ('default/pod/new', 'pod', ?1)";
    theirs.execute(sql, [object("new", "x", "30")]).unwrap();
    drop(theirs);
    let opened = MetaStore::open_node(settings).unwrap();
    assert_eq!(opened.imported.unwrap().pods, 2);
    let held: Vec<String> = keys(&opened.store).await;
    assert_eq!(
        held,
        [
            "default/configmap/c",
            "default/pod/new",
            "default/pod/web",
            "default/secret/s",
            "null/node/edge-1"
        ]
    );
    assert_eq!(
        opened.store.outbox_use().await.unwrap().reports,
        0,
        "no longer what the node has to say"
    );
}

#[tokio::test]
async fn a_node_that_never_was_official_can_become_it() {
    let directory = Directory::new();
    let settings = Settings::at(directory.path("edgecore.db"));
    let shown = export(&settings).unwrap_err().to_string();
    assert!(shown.starts_with("there is no metadata database "), "{shown}");
    let shown = import(&settings).unwrap_err().to_string();
    assert!(
        shown.contains("is no database of an official EdgeCore"),
        "{shown}"
    );

    let store = MetaStore::open_node(settings.clone()).unwrap().store;
    let web = Row {
        key: "default/pod/web".to_owned(),
        kind: "pod".to_owned(),
        value: object("web", "w", "7"),
    };
    store.put(web).await.unwrap();
    drop(store);
    assert_eq!(export(&settings).unwrap().pods, 1);
    assert_eq!(
        rows(&settings.data_source, "SELECT key FROM meta"),
        ["default/pod/web"]
    );
    assert_eq!(import(&settings).unwrap().pods, 1);
}

#[tokio::test]
async fn after_damage_an_old_official_database_does_not_come_back_to_life() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    left_behind(&path);
    let store = MetaStore::open(&path).unwrap();
    store.delete("default/pod/web", None).await.unwrap();
    drop(store);
    let ours = directory.path("edgecore.db.kedge");
    while directory.path("edgecore.db.kedge-wal").exists() {
        std::thread::yield_now();
    }
    std::fs::write(&ours, "rubbish ".repeat(1000)).unwrap();
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    assert!(opened.mended.is_some() && opened.imported.is_none());
    assert_eq!(
        keys(&opened.store).await,
        [""; 0],
        "pods of long ago must not start; the cloud sends those of today"
    );
    drop(opened.store);
    assert_eq!(MetaStore::open_node(Settings::at(&path)).unwrap().imported, None);
}

#[tokio::test]
async fn an_official_database_that_is_damaged_or_something_else_does_not_stop_the_node() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    for content in ["", "rubbish"] {
        std::fs::write(&path, content.repeat(1000)).unwrap();
        let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
        assert_eq!(opened.imported, None);
        assert_eq!(keys(&opened.store).await, [""; 0]);
    }
    std::fs::remove_file(&path).unwrap();
    official(&path)
        .execute_batch("CREATE TABLE meta (id INTEGER)")
        .unwrap();
    assert_eq!(MetaStore::open_node(Settings::at(&path)).unwrap().imported, None);
    assert_eq!(
        rows(&path, "SELECT name FROM pragma_table_info('meta')"),
        ["id"],
        "left alone"
    );
}

#[tokio::test]
async fn the_tables_of_early_versions_are_taken_over_with_their_outbox() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    left_behind(&path);
    let theirs = official(&path);
    theirs
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE kedge_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER NOT NULL,
                coalesce TEXT UNIQUE, value TEXT NOT NULL, bytes INTEGER NOT NULL);
             INSERT INTO kedge_outbox (priority, coalesce, value, bytes) VALUES (20, 'default/podpatch/web', '{}', 22);",
        )
        .unwrap();
    drop(theirs);
    let store = MetaStore::open(&path).unwrap();
    assert_eq!(keys(&store).await, TAKEN);
    let reports = store.reports(9).await.unwrap();
    assert_eq!(
        reports[0].report.coalesce.as_deref(),
        Some("default/podpatch/web")
    );
    drop(store);
    let opened = MetaStore::open_node(Settings::at(&path)).unwrap();
    assert_eq!(opened.imported, None);
    assert_eq!(opened.store.outbox_use().await.unwrap().reports, 1, "not twice");
}

#[tokio::test]
async fn while_the_official_edgecore_runs_its_database_is_left_alone() {
    let directory = Directory::new();
    let path = directory.path("edgecore.db");
    left_behind(&path);
    // A process of its name, with its file open.
    let program = directory.path("edgecore");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let mut running = std::process::Command::new(&program)
        .arg("600")
        .stdin(std::fs::File::open(&path).unwrap())
        .spawn()
        .unwrap();
    let comm = format!("/proc/{}/comm", running.id());
    while std::fs::read_to_string(&comm).unwrap().trim() != "edgecore" {}
    let shown = MetaStore::open(&path).unwrap_err().to_string();
    assert_eq!(
        shown,
        format!(
            "take over the official database {}: another process holds it; stop the EdgeCore that runs, then try again",
            path.display()
        )
    );
    assert!(in_clear(&path), "nothing was removed");
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(keys(&MetaStore::open(&path).unwrap()).await, TAKEN);
}
