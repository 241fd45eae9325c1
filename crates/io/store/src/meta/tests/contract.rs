//! One suite for the store on disk and the store in memory.

use crate::meta::{Error, Limits, MetaStore, Report, Row, Write, Written};
use std::future::Future;

fn row(key: &str, uid: &str, version: &str) -> Row {
    let kind = key.split('/').nth(1).unwrap_or("?").to_owned();
    let value = format!(r#"{{"metadata":{{"uid":"{uid}","resourceVersion":"{version}"}}}}"#);
    Row {
        key: key.to_owned(),
        kind,
        value,
    }
}

fn report(priority: u8, coalesce: Option<&str>, value: &str) -> Report {
    Report {
        priority,
        coalesce: coalesce.map(str::to_owned),
        value: value.to_owned(),
    }
}

/// Runs one story on both stores.
async fn on_both<F: Future<Output = ()>>(limits: Limits, story: impl Fn(MetaStore) -> F) {
    story(MetaStore::memory_with(limits.clone())).await;
    let directory = super::file::Directory::new();
    story(MetaStore::open_with(&directory.path("edgecore.db"), limits).unwrap()).await;
}

async fn waiting(store: &MetaStore) -> Vec<String> {
    let reports = store.reports(100).await.unwrap();
    reports.into_iter().map(|stored| stored.report.value).collect()
}

#[tokio::test]
async fn rows_are_put_read_listed_and_removed() {
    on_both(Limits::default(), |store| async move {
        assert!(store.put(row("default/pod/web", "u1", "7")).await.unwrap());
        assert!(store.put(row("default/configmap/web", "u2", "8")).await.unwrap());
        assert!(
            !store.put(row("default/pod/web", "u1", "7")).await.unwrap(),
            "the same bytes are no change"
        );
        assert!(store.put(row("default/pod/web", "u1", "9")).await.unwrap());

        assert_eq!(
            store.get("default/pod/web").await.unwrap(),
            Some(row("default/pod/web", "u1", "9"))
        );
        assert_eq!(store.get("default/pod/db").await.unwrap(), None);
        assert_eq!(
            store.list("pod").await.unwrap(),
            [row("default/pod/web", "u1", "9")]
        );
        assert_eq!(store.all().await.unwrap().len(), 2);

        assert!(store.delete("default/configmap/web", None).await.unwrap());
        assert!(!store.delete("default/configmap/web", None).await.unwrap());
        assert_eq!(store.list("configmap").await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn a_delete_with_a_uid_spares_another_object_of_that_name() {
    on_both(Limits::default(), |store| async move {
        store.put(row("default/pod/web", "new", "7")).await.unwrap();
        assert!(!store.delete("default/pod/web", Some("old")).await.unwrap());
        assert!(store.get("default/pod/web").await.unwrap().is_some());
        assert!(store.delete("default/pod/web", Some("new")).await.unwrap());
        assert_eq!(store.get("default/pod/web").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn the_digest_names_objects_with_uid_and_version() {
    on_both(Limits::default(), |store| async move {
        store.put(row("default/pod/web", "u1", "7")).await.unwrap();
        for (key, value) in [
            ("default/podpatch/web", r#"{"status":{}}"#),
            ("x/mapper/y", "not JSON"),
        ] {
            let kind = "other".to_owned();
            store
                .put(Row {
                    key: key.to_owned(),
                    kind,
                    value: value.to_owned(),
                })
                .await
                .unwrap();
        }
        let digest = store.digest().await.unwrap();
        let told: Vec<_> = digest
            .iter()
            .map(|row| [&row.key, &row.kind, &row.uid, &row.version])
            .collect();
        assert_eq!(told, [["default/pod/web", "pod", "u1", "7"]]);
    })
    .await;
}

#[tokio::test]
async fn writes_are_committed_in_the_order_of_their_submission() {
    on_both(Limits::default(), |store| async move {
        let mut pending = Vec::new();
        for version in 0..300 {
            let write = Write::Put(row("default/pod/web", "u1", &version.to_string()));
            pending.push(store.submit(write).await.unwrap());
        }
        for answer in pending {
            assert!(answer.await.unwrap().changed);
        }
        assert_eq!(store.digest().await.unwrap()[0].version, "299");
    })
    .await;
}

#[tokio::test]
async fn reports_come_by_priority_then_age_and_the_newest_of_a_key_stays() {
    on_both(Limits::default(), |store| async move {
        let push = async |report| store.submit(Write::Push(report)).await.unwrap().await.unwrap();
        push(report(1, None, "event 1")).await;
        let first = push(report(5, Some("web"), "web Pending")).await.report.unwrap();
        push(report(9, None, "delete db")).await;
        push(report(1, None, "event 2")).await;
        let second = push(report(5, Some("web"), "web Running")).await;
        assert_eq!(second.replaced, Some(first));
        assert_eq!(
            waiting(&store).await,
            ["delete db", "web Running", "event 1", "event 2"]
        );
        assert_eq!(store.reports(2).await.unwrap().len(), 2);

        let forget = async |report| {
            store
                .submit(Write::Forget { report })
                .await
                .unwrap()
                .await
                .unwrap()
        };
        assert_eq!(
            forget(first).await,
            Written::default(),
            "a late confirmation leaves the newer report"
        );
        assert!(forget(second.report.unwrap()).await.changed);
        assert_eq!(waiting(&store).await, ["delete db", "event 1", "event 2"]);
    })
    .await;
}

#[tokio::test]
async fn a_full_outbox_drops_the_oldest_of_the_lowest_priority_and_counts() {
    let limits = Limits {
        reports_max: 3,
        ..Limits::default()
    };
    on_both(limits, |store| async move {
        let push = async |report| store.submit(Write::Push(report)).await.unwrap().await.unwrap();
        let oldest = push(report(1, None, "event 1")).await.report.unwrap();
        push(report(1, None, "event 2")).await;
        push(report(9, None, "delete a")).await;
        assert_eq!(push(report(9, None, "delete b")).await.dropped, [oldest]);
        push(report(9, None, "delete c")).await;
        push(report(1, None, "event 3")).await;
        assert_eq!(waiting(&store).await, ["delete a", "delete b", "delete c"]);
        let outbox = store.outbox_use().await.unwrap();
        assert_eq!((outbox.reports, outbox.dropped), (3, 3));
    })
    .await;
}

#[tokio::test]
async fn the_outbox_is_capped_in_bytes() {
    let limits = Limits {
        report_bytes_max: 10,
        ..Limits::default()
    };
    on_both(limits, |store| async move {
        let push = async |report| store.submit(Write::Push(report)).await.unwrap().await;
        push(report(1, None, "1234")).await.unwrap();
        push(report(1, None, "5678")).await.unwrap();
        push(report(1, None, "90ab")).await.unwrap();
        assert_eq!(waiting(&store).await, ["5678", "90ab"]);
        assert_eq!(store.outbox_use().await.unwrap().bytes, 8);
        let refused = push(report(9, Some("web"), "1234567890")).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::TooLarge {
                    bytes: 13,
                    max: 10,
                    ..
                }
            ),
            "{refused}"
        );
        assert_eq!(waiting(&store).await, ["5678", "90ab"]);
    })
    .await;
}

#[tokio::test]
async fn nothing_is_missing_once_it_was_said() {
    on_both(Limits::default(), |store| async move {
        assert!(!store.complete().await.unwrap());
        store.put(row("default/pod/web", "u1", "7")).await.unwrap();
        for changed in [true, false] {
            let said = store.submit(Write::Complete).await.unwrap().await.unwrap();
            assert_eq!(said.changed, changed);
            assert!(store.complete().await.unwrap());
        }
    })
    .await;
}
