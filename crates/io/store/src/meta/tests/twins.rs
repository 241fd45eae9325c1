//! Any history of writes leaves the store on disk and the store in memory the same.

use super::file::Directory;
use crate::meta::{Limits, MetaStore, Report, Row, Write};
use proptest::prelude::*;

fn object(uid: u8, version: u8) -> String {
    format!(r#"{{"metadata":{{"uid":"u{uid}","resourceVersion":"{version}"}}}}"#)
}

fn write() -> impl Strategy<Value = Write> {
    // The last name is that of a secret, which the disk holds sealed.
    let kind = |name: u8| if name == 2 { "secret" } else { "pod" };
    let key = move |name: u8| format!("default/{}/p{name}", kind(name));
    prop_oneof![
        (0..3_u8, 0..3_u8, 0..3_u8).prop_map(move |(name, uid, version)| {
            Write::Put(Row {
                key: key(name),
                kind: kind(name).to_owned(),
                value: object(uid, version),
            })
        }),
        (0..3_u8, proptest::option::of(0..3_u8)).prop_map(move |(name, uid)| {
            Write::Delete {
                key: key(name),
                uid: uid.map(|uid| format!("u{uid}")),
            }
        }),
        (0..3_u8, proptest::option::of(0..3_u8), 0..40_usize).prop_map(|(priority, coalesce, bytes)| {
            let coalesce = coalesce.map(|key| format!("k{key}"));
            Write::Push(Report {
                priority,
                coalesce,
                value: "x".repeat(bytes),
            })
        }),
        (0..30_u64).prop_map(|report| Write::Forget { report }),
        Just(Write::Complete),
    ]
}

async fn told(store: &MetaStore, write: Write) -> String {
    match store.submit(write).await.unwrap().await {
        Ok(written) => format!("{written:?}"),
        Err(error) => error.to_string(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disk_and_memory_are_twins(writes in proptest::collection::vec(write(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = Directory::new();
        let limits = Limits { reports_max: 4, report_bytes_max: 36, ..Limits::default() };
        let memory = MetaStore::memory_with(limits.clone());
        let disk = MetaStore::open_with(&directory.path("edgecore.db"), limits).unwrap();
        runtime.block_on(async {
            for write in writes {
                prop_assert_eq!(told(&memory, write.clone()).await, told(&disk, write).await);
            }
            prop_assert_eq!(memory.all().await.unwrap(), disk.all().await.unwrap());
            prop_assert_eq!(memory.digest().await.unwrap(), disk.digest().await.unwrap());
            prop_assert_eq!(memory.reports(9).await.unwrap(), disk.reports(9).await.unwrap());
            prop_assert_eq!(memory.outbox_use().await.unwrap(), disk.outbox_use().await.unwrap());
            Ok(())
        })?;
    }
}
