//! The edge's metadata: what the node holds, and what it still has to tell the cloud.
//!
//! **Duty.** Keep rows `(key, type, value)` in the table that KubeEdge's Go edge uses, so that an existing
//! `edgecore.db` is opened in place, and an outbox of reports beside it. When a write is answered, it is on disk.
//!
//! **Inputs.** [`Write`]s. **Outputs.** [`Written`] after the commit, rows, a digest of what is held.
//!
//! **Never.** It does not decide what is stored, knows no object kinds, and holds no lock while it waits.
//!
//! ```text
//!   submit(Write) --> queue --> one writer thread: drain, one transaction, fsync, answer all
//!   get, list, digest, reports --> a second connection that reads beside it (WAL)
//! ```

mod error;
mod memory;
mod outbox;
mod sqlite;
#[cfg(test)]
mod tests;

pub use error::{Cause, Error};
pub use outbox::{OutboxUse, Report, StoredReport};

use serde::Deserialize;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// Caps of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The database file; beyond it a write fails with "disk full" instead of filling the disk of the node.
    pub database_bytes_max: u64,
    /// Reports that wait for the cloud.
    pub reports_max: usize,
    /// Bytes of reports that wait for the cloud.
    pub report_bytes_max: usize,
}

impl Default for Limits {
    /// A node with 200 pods and their config maps holds less than 100 MB; a day of reports without cloud is a few
    /// thousand of 1 to 4 KB.
    fn default() -> Self {
        Self {
            database_bytes_max: 1024 * 1024 * 1024,
            reports_max: 10_000,
            report_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// One row of the table `meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `<namespace>/<type>/<name>`.
    pub key: String,
    /// The column `type`, for example `pod`.
    pub kind: String,
    /// The object as JSON.
    pub value: String,
}

/// The identity of one held object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestRow {
    pub key: String,
    pub kind: String,
    pub uid: String,
    pub version: String,
}

/// One change, committed whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Insert or replace. Bytes that did not change are not written.
    Put(Row),
    /// Remove; with `uid` only if the stored object has this `metadata.uid`.
    Delete { key: String, uid: Option<String> },
    /// Add a report to the outbox.
    Push(Report),
    /// The cloud has this report.
    Forget { report: u64 },
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// False when the store already was as asked.
    pub changed: bool,
    /// The number of a pushed report.
    pub report: Option<u64>,
    /// The report that the pushed one replaced.
    pub replaced: Option<u64>,
    /// Reports that were dropped to keep the outbox below its caps, oldest of the lowest priority first.
    pub dropped: Vec<u64>,
}

/// A write in the queue. Writes are committed in the order of their submission; the future completes once this one
/// is durable. Dropping it does not take the write back.
#[derive(Debug)]
pub struct Pending {
    name: String,
    answer: oneshot::Receiver<Result<Written, Error>>,
}

impl Future for Pending {
    type Output = Result<Written, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(cx);
        answer.map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(Error::Ended {
                    what: self.name.clone(),
                })
            })
        })
    }
}

/// The store. Cloning shares it; the last clone that goes closes the database.
#[derive(Debug, Clone)]
pub struct MetaStore {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Memory(memory::Memory),
}

impl MetaStore {
    /// Opens or makes the database at `path`, with file mode 0600. Blocks for the time of a check of the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, Limits::default())
    }

    /// Like [`MetaStore::open`] with other caps.
    pub fn open_with(path: &Path, limits: Limits) -> Result<Self, Error> {
        Ok(Self {
            backend: Backend::Sqlite(sqlite::Sqlite::open(path, limits)?),
        })
    }

    /// A store that lives as long as its last clone, without file and without thread.
    pub fn memory() -> Self {
        Self::memory_with(Limits::default())
    }

    /// Like [`MetaStore::memory`] with other caps.
    pub fn memory_with(limits: Limits) -> Self {
        Self {
            backend: Backend::Memory(memory::Memory::new(limits)),
        }
    }

    /// Puts a write into the queue, waiting while it is full.
    pub async fn submit(&self, write: Write) -> Result<Pending, Error> {
        let name = error::name_of(&write);
        let answer = match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.submit(write).await?,
            Backend::Memory(memory) => memory.submit(write),
        };
        Ok(Pending { name, answer })
    }

    /// Stores a row; true if its bytes were new.
    pub async fn put(&self, row: Row) -> Result<bool, Error> {
        Ok(self.submit(Write::Put(row)).await?.await?.changed)
    }

    /// Removes a row; true if there was one (with this uid, when one is given).
    pub async fn delete(&self, key: &str, uid: Option<&str>) -> Result<bool, Error> {
        let write = Write::Delete {
            key: key.to_owned(),
            uid: uid.map(str::to_owned),
        };
        Ok(self.submit(write).await?.await?.changed)
    }

    /// The row under a key.
    pub async fn get(&self, key: &str) -> Result<Option<Row>, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.get(key.to_owned()).await,
            Backend::Memory(memory) => Ok(memory.get(key)),
        }
    }

    /// All rows of a type, by key.
    pub async fn list(&self, kind: &str) -> Result<Vec<Row>, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.list(Some(kind.to_owned())).await,
            Backend::Memory(memory) => Ok(memory.list(Some(kind))),
        }
    }

    /// All rows, by key.
    pub async fn all(&self) -> Result<Vec<Row>, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.list(None).await,
            Backend::Memory(memory) => Ok(memory.list(None)),
        }
    }

    /// Key, uid and resource version of every stored object that has both, by key.
    pub async fn digest(&self) -> Result<Vec<DigestRow>, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.digest().await,
            Backend::Memory(memory) => Ok(memory.list(None).into_iter().filter_map(digest_row).collect()),
        }
    }

    /// The next reports to send: highest priority first, then oldest first.
    pub async fn reports(&self, max: usize) -> Result<Vec<StoredReport>, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.reports(max).await,
            Backend::Memory(memory) => Ok(memory.reports(max)),
        }
    }

    /// How full the outbox is.
    pub async fn outbox_use(&self) -> Result<OutboxUse, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.outbox_use().await,
            Backend::Memory(memory) => Ok(memory.outbox_use()),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Slim {
    metadata: SlimMeta,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SlimMeta {
    uid: Option<String>,
    resource_version: Option<String>,
}

fn slim_meta(value: &str) -> SlimMeta {
    serde_json::from_str::<Slim>(value).unwrap_or_default().metadata
}

fn digest_row(row: Row) -> Option<DigestRow> {
    let meta = slim_meta(&row.value);
    Some(DigestRow {
        key: row.key,
        kind: row.kind,
        uid: meta.uid?,
        version: meta.resource_version?,
    })
}

fn has_uid(value: &str, uid: &str) -> bool {
    slim_meta(value).uid.as_deref() == Some(uid)
}
