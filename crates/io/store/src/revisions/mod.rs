//! The durable object log of the embedded Kubernetes API: a map from key to value in which every change gets the next
//! revision, and the last changes in order.
//!
//! **Duty.** Take writes from many askers, commit them together, and answer only when they are on the disk. Give each
//! change a revision that is larger than every one before it, also across restarts and kill -9. Refuse a write whose
//! expectation about the stored revision does not hold.
//!
//! **Inputs.** [`Write`]s. **Outputs.** [`Commit`]s, told to one listener in order and before any asker is answered,
//! so that whoever was answered can read what it wrote; and at opening, everything that is stored.
//!
//! Changes whose loss harms nobody ([`Keep::Lazily`]) wait in memory for the next snapshot and cost no flush of their
//! own. Their revisions are never given out twice either: a range of revisions is reserved on the disk before the first
//! of them is used, and after a crash counting goes on behind that range.
//!
//! **Never.** It does not look into values, besides printing the revision at the place that the [`Draft`] leaves.
//!
//! ```text
//!   askers --write--> queue --(drain, at most BATCH_MAX)--> one transaction --commit--> listener --> answers
//!                                     └──(all lazy)──> memory ──────────────────────────^
//!                                                        └──(every SNAPSHOT_PERIOD, in slices)──> disk
//! ```

mod memory;
mod sqlite;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many writes wait for the writer thread before askers wait too: a few batches, so that the writer never idles
/// while there is work and a burst costs at most some megabytes.
pub const WAITING_MAX: usize = 1024;
/// Writes in one transaction: large enough that one flush serves many askers, small enough that it takes milliseconds.
pub const BATCH_MAX: usize = 256;
/// Changes kept for readers that resume after a restart. Older ones must list again.
pub const LOG_ROWS_MAX: u64 = 5_000;
/// Rows beyond [`LOG_ROWS_MAX`] that may gather before they are removed together.
pub const LOG_TRIM_STEP: u64 = 500;
/// Largest value: the request limit of the API (3 MiB) and room for what the server adds.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// Longest key: group, plural, namespace and name at their own limits.
pub const KEY_BYTES_MAX: usize = 1024;

/// How old a lazily kept change may get before it is on the disk. A renewal of a lease that a crash undoes is at most
/// this old; its node renews again long before anybody acts on that.
pub const SNAPSHOT_PERIOD: Duration = Duration::from_secs(60);
/// Lazily kept changes that one transaction of the snapshot writes: a few milliseconds, which the writes that arrive
/// meanwhile wait.
pub const SNAPSHOT_SLICE: usize = 256;
/// Lazily kept changes that may wait in memory; when there are more, the snapshot begins early. At half a KiB each, a
/// few ten megabytes.
pub const LAZY_MAX: usize = 50_000;
/// Revisions reserved at once for lazily kept changes: one small transaction for so many of them, and the largest gap
/// that a crash leaves in the numbering.
pub const REVISIONS_RESERVED: u64 = 100_000;

/// A position in the log. The first change has revision 1.
pub type Revision = u64;

/// A value with a hole in which the store prints the revision of the change, in decimal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Draft {
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

impl Draft {
    /// The value at a revision.
    fn print(&self, revision: Revision) -> Bytes {
        let digits = revision.to_string();
        let mut value = Vec::with_capacity(self.before.len() + digits.len() + self.after.len());
        value.extend_from_slice(&self.before);
        value.extend_from_slice(digits.as_bytes());
        value.extend_from_slice(&self.after);
        Bytes::from(value)
    }

    fn bytes(&self) -> usize {
        self.before.len() + self.after.len()
    }
}

/// What the writer believes is stored under the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// A value whose last change has this revision.
    At(Revision),
}

/// What to do with the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store the draft.
    Put(Draft),
    /// Remove the value; the draft is its last state, kept in the log only.
    Delete(Draft),
}

/// When a change must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Before its asker is answered.
    #[default]
    Durably,
    /// Within [`SNAPSHOT_PERIOD`], or when the store is closed. A crash may undo it. Readers that resume after a
    /// restart are not told of it one by one: it is not in [`Content::log`].
    Lazily,
}

/// One compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub expect: Expect,
    pub action: Action,
    pub keep: Keep,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    Updated,
    Deleted,
}

/// One change, durable unless it was to be kept lazily.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub revision: Revision,
    pub key: String,
    pub kind: ChangeKind,
    pub value: Bytes,
}

/// One stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub revision: Revision,
    pub value: Bytes,
}

/// What was found at opening.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// All values, ordered by key.
    pub entries: Vec<Entry>,
    /// The last durable changes, oldest first, without gaps but for changes that a later one of the same key replaced.
    pub log: Vec<Commit>,
    /// Nothing is missing from [`Content::log`] after this revision.
    pub log_after: Revision,
    /// The revision of the last change, or a later one after a crash; 0 when there was none.
    pub revision: Revision,
}

/// Why a write was refused or could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The expectation did not hold. Nothing was changed.
    #[error("write {key}: expected {expected:?} but found revision {found:?}")]
    Conflict {
        key: String,
        expected: Expect,
        found: Option<Revision>,
    },
    #[error("write {key}: {bytes} bytes are more than the limit of {max}")]
    TooLarge { key: String, bytes: usize, max: usize },
    #[error("write {key}: disk full")]
    DiskFull { key: String },
    #[error("write {key}: {source}")]
    Storage {
        key: String,
        source: Arc<rusqlite::Error>,
    },
    #[error("the store is closed")]
    Closed,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("create {path}: {source}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error("open {path}: another process has it open; stop it first, or use another data directory")]
    InUse { path: PathBuf },
    #[error("open {path}: disk full")]
    DiskFull { path: PathBuf },
    #[error("open {path}: it is not a database of this program ({detail}); move it away to start empty")]
    Foreign { path: PathBuf, detail: String },
    #[error("open {path}: {source}")]
    Storage { path: PathBuf, source: rusqlite::Error },
    #[error("start the writer thread: {0}")]
    Thread(std::io::Error),
}

/// Settings that tests and small disks change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Largest size of the database in pages of 4 KiB; beyond it writes fail with [`WriteError::DiskFull`].
    pub pages_max: Option<u32>,
    /// Instead of [`SNAPSHOT_PERIOD`].
    pub snapshot_period: Option<Duration>,
}

/// Told of every commit, in order, on the writer thread. It must be quick and must not ask the store.
pub type Listener = Box<dyn FnMut(Vec<Commit>) + Send>;

/// The handle to the store. Clones share one writer; the writer ends when the last clone is gone or on
/// [`Revisions::close`].
#[derive(Debug, Clone)]
pub struct Revisions {
    tx: mpsc::Sender<writer::Order>,
}

impl Revisions {
    /// Opens or creates the database file at `path` and reads all of it. `listener` makes the listener from what was
    /// found, before the first write can happen.
    pub fn open(
        path: &Path,
        options: Options,
        listener: impl FnOnce(Content) -> Listener,
    ) -> Result<Self, OpenError> {
        let (backend, content) = sqlite::Sqlite::open(path, options)?;
        let period = options.snapshot_period.unwrap_or(SNAPSHOT_PERIOD);
        Self::start(
            writer::Backend::Sqlite(Box::new(backend)),
            period,
            content,
            listener,
        )
    }

    /// A store with the same behaviour that forgets everything when it is closed.
    pub fn memory(listener: impl FnOnce(Content) -> Listener) -> Result<Self, OpenError> {
        let backend = writer::Backend::Memory(memory::Memory::default());
        Self::start(backend, SNAPSHOT_PERIOD, Content::default(), listener)
    }

    fn start(
        backend: writer::Backend,
        snapshot_period: Duration,
        content: Content,
        listener: impl FnOnce(Content) -> Listener,
    ) -> Result<Self, OpenError> {
        let (tx, rx) = mpsc::channel(WAITING_MAX);
        let revision = content.revision;
        let writer = writer::Writer::new(backend, revision, snapshot_period, listener(content));
        // The writer waits for orders and for the next snapshot, so it needs a clock of its own.
        let clock = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::Thread)?;
        std::thread::Builder::new()
            .name("revisions".to_owned())
            .spawn(move || clock.block_on(writer.run(rx)))
            .map_err(OpenError::Thread)?;
        Ok(Self { tx })
    }

    /// Makes one change and answers when it is durable and the listener knows of it.
    pub async fn write(&self, write: Write) -> Result<Revision, WriteError> {
        let bytes = match &write.action {
            Action::Put(draft) | Action::Delete(draft) => draft.bytes(),
        };
        if bytes > VALUE_BYTES_MAX {
            return Err(WriteError::TooLarge {
                key: write.key,
                bytes,
                max: VALUE_BYTES_MAX,
            });
        }
        if write.key.len() > KEY_BYTES_MAX {
            let bytes = write.key.len();
            return Err(WriteError::TooLarge {
                key: write.key,
                bytes,
                max: KEY_BYTES_MAX,
            });
        }
        let (reply, answer) = oneshot::channel();
        self.tx
            .send(writer::Order::Write { write, reply })
            .await
            .map_err(|_| WriteError::Closed)?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// Finishes the writes that wait, closes the file and returns when that is done. Later writes are refused.
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        if self.tx.send(writer::Order::Close { reply }).await.is_ok() {
            let _ = closed.await;
        }
    }
}
