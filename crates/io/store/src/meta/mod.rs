//! The edge's metadata: what the node holds, and what it still has to tell the cloud.
//!
//! **Duty.** Keep rows `(key, kind, value)` and an outbox of reports in a file beside the one that
//! `database.dataSource` names, which is the official EdgeCore's: its rows are taken over, and written for the way
//! back. When a write is answered, it is on disk. Secrets and tokens are sealed with a key from a file of its own. A
//! damaged file is kept aside and replaced by what can be read of it.
//!
//! **Inputs.** [`Settings`], [`Write`]s. **Outputs.** [`Written`] after the commit, rows, a digest of what is held.
//!
//! **Never.** It does not decide what is stored, and knows of kinds only which are secret. It writes nothing by itself:
//! when nobody changes anything, the disk rests. It holds no lock while it waits.
//!
//! ```text
//!   submit(Write) --> queue --> one thread, one connection: drain, one transaction, fsync, answer all
//!   get, list, digest, reports --> the same queue: a read sees every write submitted before it
//! ```

mod damage;
mod error;
mod memory;
mod official;
mod outbox;
mod rows;
mod schema;
mod seal;
mod sqlite;
#[cfg(test)]
mod tests;

pub use damage::Mended;
pub use error::{Cause, Error};
pub use official::{Exported, Imported};
pub use outbox::{OutboxUse, Report, StoredReport};

use serde::Deserialize;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{oneshot, watch};

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

/// Where a store lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `database.dataSource`: the database of the official EdgeCore, if there is one. Ours is `<data_source>.kedge`.
    pub data_source: PathBuf,
    /// The key of sealed values; made at the first start. Better not beside the database: who copies that directory
    /// should not get both.
    pub key_file: PathBuf,
    pub limits: Limits,
}

impl Settings {
    /// With the key beside the database and the usual caps.
    pub fn at(data_source: impl Into<PathBuf>) -> Self {
        let data_source = data_source.into();
        Self {
            key_file: seal::beside(&data_source, ".key"),
            data_source,
            limits: Limits::default(),
        }
    }

    /// With the key in another place.
    pub fn with_key_file(self, key_file: impl Into<PathBuf>) -> Self {
        Self {
            key_file: key_file.into(),
            ..self
        }
    }

    /// The file in which the store lies.
    pub fn database(&self) -> PathBuf {
        official::sibling(&self.data_source)
    }
}

/// A store, and what happened when it was opened. All of it is in the log already.
#[derive(Debug)]
pub struct Opened<S = MetaStore> {
    pub store: S,
    /// The rows of an official EdgeCore that were taken over.
    pub imported: Option<Imported>,
    /// The file was damaged: objects may be missing, and [`MetaStore::complete`] is false again.
    pub mended: Option<Mended>,
    /// Keys of values that were dropped because nothing opens them any more.
    pub unopened: Vec<String>,
}

/// Counts since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// Transactions.
    pub commits: u64,
    /// Writes that changed something.
    pub changes: u64,
    /// Writes that went no further because a newer one of their key waited in the same transaction.
    pub superseded: u64,
    /// How often a damaged file was replaced.
    pub mended: u64,
}

/// One held object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `<namespace>/<type>/<name>`.
    pub key: String,
    /// The part of the key between namespace and name, for example `pod`.
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
    /// Nothing that the cloud wants here is missing. Counts until the file is damaged and mended.
    Complete,
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
    /// Opens or makes the store of a node. Blocks for the time of a check of the file.
    pub fn open_node(settings: Settings) -> Result<Opened, Error> {
        let Opened {
            store,
            imported,
            mended,
            unopened,
        } = sqlite::Sqlite::open(settings)?;
        Ok(Opened {
            store: Self {
                backend: Backend::Sqlite(store),
            },
            imported,
            mended,
            unopened,
        })
    }

    /// Opens or makes the store beside `data_source` with the key there too. See [`Settings::at`].
    pub fn open(data_source: &Path) -> Result<Self, Error> {
        Self::open_with(data_source, Limits::default())
    }

    /// Like [`MetaStore::open`] with other caps.
    pub fn open_with(data_source: &Path, limits: Limits) -> Result<Self, Error> {
        let settings = Settings {
            limits,
            ..Settings::at(data_source)
        };
        Ok(Self::open_node(settings)?.store)
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

    /// Whether [`Write::Complete`] was written and nothing was lost since. Not so for a new file, nor for one that was
    /// damaged, however often the process has restarted: what runs on the node and is not held must then be left alone
    /// until the cloud has said what it wants.
    pub async fn complete(&self) -> Result<bool, Error> {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.complete().await,
            Backend::Memory(memory) => Ok(memory.complete()),
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
            Backend::Sqlite(sqlite) => Ok(sqlite.outbox_use()),
            Backend::Memory(memory) => Ok(memory.outbox_use()),
        }
    }

    /// What the store has done. A store in memory does not count.
    pub fn activity(&self) -> Activity {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.activity(),
            Backend::Memory(_) => Activity::default(),
        }
    }

    /// Changes each time a damaged file was replaced while the store was in use: objects may be missing since, or be
    /// older. Nothing for a store in memory.
    pub fn mended(&self) -> Option<watch::Receiver<u64>> {
        match &self.backend {
            Backend::Sqlite(sqlite) => Some(sqlite.mended()),
            Backend::Memory(_) => None,
        }
    }
}

/// Takes the rows of the official database named by `data_source`, also if they were taken before. EdgeCore does this by
/// itself when the official one has run since; this is for an operator who wants it now. EdgeCore must not run.
pub fn import(settings: &Settings) -> Result<Imported, Error> {
    sqlite::import(settings)
}

/// Writes what is held into the database named by `data_source`, as the official EdgeCore has it, secrets in clear: the
/// way back. EdgeCore must not run, and if it runs again it removes the secrets from there again.
pub fn export(settings: &Settings) -> Result<Exported, Error> {
    sqlite::export(settings)
}

/// Seals secrets and tokens with a new key and forgets the old one. EdgeCore must not run. Returns how many there are.
pub fn rotate_key(settings: &Settings) -> Result<usize, Error> {
    sqlite::rotate_key(settings)
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
