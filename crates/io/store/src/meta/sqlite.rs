//! The store on SQLite: one thread writes, one connection reads beside it.

use super::outbox::{OutboxUse, Report, StoredReport};
use super::{Cause, DigestRow, Error, Limits, Row, Write, Written, digest_row, error, has_uid};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Writes that wait for the thread. Beyond it the submitter waits: a few commits' worth of work.
const QUEUE_MAX: usize = 256;
/// Writes in one transaction; bounds how long the first of them waits for its answer.
const BATCH_MAX: usize = 128;
/// Another process (a backup, an administrator's `sqlite3`) may hold the file for a moment.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Page cache of the writer, in KiB. The whole working set of an ordinary node fits.
const WRITER_CACHE_KIB: i64 = 2048;
/// Page cache of the reader, in KiB. Reads are rare after the start.
const READER_CACHE_KIB: i64 = 512;
/// The write-ahead log is cut back to this after a checkpoint.
const LOG_BYTES_MAX: i64 = 4 * 1024 * 1024;
/// Only the owner may read it: it holds secrets.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The first table is the one that the Go edge makes.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS `meta` (
        `key` text(256), `type` text(32), `value` text, PRIMARY KEY (`key`));
    CREATE TABLE IF NOT EXISTS kedge_outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        priority INTEGER NOT NULL,
        coalesce TEXT UNIQUE,
        value TEXT NOT NULL,
        bytes INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS kedge_outbox_order ON kedge_outbox (priority DESC, id ASC);
";

type Answer = oneshot::Sender<Result<Written, Error>>;

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    queue: mpsc::Sender<(Write, Answer)>,
    reader: Arc<Mutex<Connection>>,
    used: Arc<Mutex<OutboxUse>>,
}

impl Sqlite {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self, Error> {
        secure_file(path).map_err(|error| Error::Open {
            path: path.to_owned(),
            cause: Cause::Io(error),
        })?;
        let writer = open_connection(path, WRITER_CACHE_KIB)?;
        prepare(&writer, path, &limits)?;
        let reader = open_connection(path, READER_CACHE_KIB)?;
        let opened = |result: rusqlite::Result<OutboxUse>| result.map_err(|error| open_error(path, error));
        let used = opened(count_outbox(&writer, 0))?;
        opened(reader.pragma_update(None, "query_only", true).map(|()| used))?;

        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let shared_use = Arc::new(Mutex::new(used));
        let thread = Writer {
            connection: writer,
            limits,
            used,
            shared_use: Arc::clone(&shared_use),
        };
        std::thread::Builder::new()
            .name("meta-store".to_owned())
            .spawn(move || thread.run(orders))
            .map_err(|error| Error::Open {
                path: path.to_owned(),
                cause: Cause::Io(error),
            })?;
        Ok(Self {
            queue,
            reader: Arc::new(Mutex::new(reader)),
            used: shared_use,
        })
    }

    pub(super) async fn submit(
        &self,
        write: Write,
    ) -> Result<oneshot::Receiver<Result<Written, Error>>, Error> {
        let (tx, rx) = oneshot::channel();
        let sent = self.queue.send((write, tx)).await;
        sent.map_err(|refused| Error::Ended {
            what: error::name_of(&refused.0.0),
        })?;
        Ok(rx)
    }

    pub(super) async fn get(&self, key: String) -> Result<Option<Row>, Error> {
        self.read(error::object_name(&key), move |connection| {
            let sql = "SELECT key, type, value FROM meta WHERE key = ?1";
            connection
                .prepare_cached(sql)?
                .query_row([key], row_of)
                .optional()
        })
        .await
    }

    pub(super) async fn list(&self, kind: Option<String>) -> Result<Vec<Row>, Error> {
        let what = kind.clone().unwrap_or_else(|| "all objects".to_owned());
        self.read(what, move |connection| {
            let sql = "SELECT key, type, value FROM meta WHERE ?1 IS NULL OR type = ?1 ORDER BY key";
            connection
                .prepare_cached(sql)?
                .query_map([kind], row_of)?
                .collect()
        })
        .await
    }

    pub(super) async fn digest(&self) -> Result<Vec<DigestRow>, Error> {
        self.read("the digest".to_owned(), |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key, type, value FROM meta ORDER BY key")?;
            let rows = statement.query_map([], row_of)?;
            // One row at a time: the values together may be large.
            rows.filter_map(|row| row.map(digest_row).transpose()).collect()
        })
        .await
    }

    pub(super) async fn reports(&self, max: usize) -> Result<Vec<StoredReport>, Error> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.read("the outbox".to_owned(), move |connection| {
            let sql = "SELECT id, priority, coalesce, value FROM kedge_outbox ORDER BY priority DESC, id ASC LIMIT ?1";
            connection.prepare_cached(sql)?.query_map([max], report_of)?.collect()
        })
        .await
    }

    pub(super) async fn outbox_use(&self) -> Result<OutboxUse, Error> {
        Ok(*self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read<T, F>(&self, what: String, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let reader = Arc::clone(&self.reader);
        let read = tokio::task::spawn_blocking(move || {
            query(&reader.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match read.await {
            Ok(result) => result.map_err(|error| Error::Read {
                what,
                cause: error.into(),
            }),
            Err(_) => Err(Error::Ended {
                what: format!("read {what}"),
            }),
        }
    }
}

fn row_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    // The Go table allows NULL in `type` and `value`.
    let text = |column| {
        row.get::<_, Option<String>>(column)
            .map(Option::unwrap_or_default)
    };
    Ok(Row {
        key: text(0)?,
        kind: text(1)?,
        value: text(2)?,
    })
}

fn report_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredReport> {
    let report = Report {
        priority: row.get(1)?,
        coalesce: row.get(2)?,
        value: row.get(3)?,
    };
    Ok(StoredReport {
        id: row.get(0)?,
        report,
    })
}

/// Makes the file with its mode before SQLite sees it: the log beside it takes the same mode.
fn secure_file(path: &Path) -> std::io::Result<()> {
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        for suffix in ["-wal", "-shm"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(suffix);
            match fs::set_permissions(&beside, Permissions::from_mode(FILE_MODE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn open_error(path: &Path, error: rusqlite::Error) -> Error {
    match Cause::from(error) {
        Cause::Damaged(detail) => Error::Damaged {
            path: path.to_owned(),
            detail,
        },
        cause => Error::Open {
            path: path.to_owned(),
            cause,
        },
    }
}

fn open_connection(path: &Path, cache_kib: i64) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_MAX)?;
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        Ok(connection)
    };
    open().map_err(|error| open_error(path, error))
}

fn prepare(connection: &Connection, path: &Path, limits: &Limits) -> Result<(), Error> {
    let settle = || {
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
        let page_bytes: u64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(limits.database_bytes_max / page_bytes.max(1)).unwrap_or(i64::MAX);
        // A statement that answers: pragma_update would refuse its row.
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        connection.pragma_query_value(None, "quick_check", |row| row.get::<_, String>(0))
    };
    let check = settle().map_err(|error| open_error(path, error))?;
    if check != "ok" {
        return Err(Error::Damaged {
            path: path.to_owned(),
            detail: check,
        });
    }
    connection
        .execute_batch(SCHEMA)
        .map_err(|error| open_error(path, error))?;
    let columns = columns_of(connection, "meta").map_err(|error| open_error(path, error))?;
    if ["key", "type", "value"]
        .iter()
        .any(|wanted| !columns.iter().any(|column| column == wanted))
    {
        let detail = format!("its table `meta` has the columns {}", columns.join(", "));
        return Err(Error::Foreign {
            path: path.to_owned(),
            detail,
        });
    }
    Ok(())
}

fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn count_outbox(connection: &Connection, dropped: u64) -> rusqlite::Result<OutboxUse> {
    let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM kedge_outbox";
    connection.query_row(sql, [], |row| {
        Ok(OutboxUse {
            reports: row.get(0)?,
            bytes: row.get(1)?,
            dropped,
        })
    })
}

/// Owns the connection that writes.
struct Writer {
    connection: Connection,
    limits: Limits,
    used: OutboxUse,
    /// A copy of `used` after each commit, for those who ask.
    shared_use: Arc<Mutex<OutboxUse>>,
}

impl Writer {
    fn run(mut self, mut orders: mpsc::Receiver<(Write, Answer)>) {
        while let Some(first) = orders.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                let Ok(next) = orders.try_recv() else { break };
                batch.push(next);
            }
            self.commit(batch);
        }
    }

    /// One transaction for all. If it fails each write gets its own, so that one bad write fails alone.
    fn commit(&mut self, batch: Vec<(Write, Answer)>) {
        let writes: Vec<&Write> = batch.iter().map(|(write, _)| write).collect();
        if let Ok(done) = self.transact(&writes) {
            for ((_, answer), written) in batch.into_iter().zip(done) {
                // An asker that gave up is not an error.
                let _ = answer.send(Ok(written));
            }
            return;
        }
        for (write, answer) in batch {
            let result = self
                .transact(&[&write])
                .map(|mut done| done.pop().unwrap_or_default());
            let _ = answer.send(result);
        }
    }

    fn transact(&mut self, writes: &[&Write]) -> Result<Vec<Written>, Error> {
        let name = || {
            writes
                .first()
                .map_or_else(String::new, |write| error::name_of(write))
        };
        let failed = |error: rusqlite::Error| Error::Write {
            what: name(),
            cause: error.into(),
        };
        let mut used = self.used;
        // Dropping the transaction rolls it back.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let apply = |write: &&Write| apply(&transaction, write, &mut used, &self.limits);
        let done = writes.iter().map(apply).collect::<Result<Vec<_>, Error>>()?;
        transaction.commit().map_err(failed)?;
        self.used = used;
        *self.shared_use.lock().unwrap_or_else(PoisonError::into_inner) = used;
        Ok(done)
    }
}

fn apply(
    db: &Transaction<'_>,
    write: &Write,
    used: &mut OutboxUse,
    limits: &Limits,
) -> Result<Written, Error> {
    let result = match write {
        Write::Put(row) => put(db, row).map(changed),
        Write::Delete { key, uid } => delete(db, key, uid.as_deref()).map(changed),
        Write::Push(report) if report.bytes() > limits.report_bytes_max => {
            let (what, bytes) = (error::name_of(write), report.bytes());
            return Err(Error::TooLarge {
                what,
                bytes,
                max: limits.report_bytes_max,
            });
        }
        Write::Push(report) => push(db, report, used, limits),
        Write::Forget { report } => remove_report(db, *report, used).map(changed),
    };
    result.map_err(|error| Error::Write {
        what: error::name_of(write),
        cause: error.into(),
    })
}

fn changed(changed: bool) -> Written {
    Written {
        changed,
        ..Written::default()
    }
}

fn put(db: &Transaction<'_>, row: &Row) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO meta (key, type, value) VALUES (?1, ?2, ?3)
        ON CONFLICT (key) DO UPDATE SET type = excluded.type, value = excluded.value
        WHERE type IS NOT excluded.type OR value IS NOT excluded.value";
    Ok(db
        .prepare_cached(sql)?
        .execute([&row.key, &row.kind, &row.value])?
        > 0)
}

fn delete(db: &Transaction<'_>, key: &str, uid: Option<&str>) -> rusqlite::Result<bool> {
    if let Some(uid) = uid {
        let mut stored = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        let value: Option<String> = stored.query_row([key], |row| row.get(0)).optional()?.flatten();
        if !value.is_some_and(|value| has_uid(&value, uid)) {
            return Ok(false);
        }
    }
    Ok(db
        .prepare_cached("DELETE FROM meta WHERE key = ?1")?
        .execute([key])?
        > 0)
}

fn push(
    db: &Transaction<'_>,
    report: &Report,
    used: &mut OutboxUse,
    limits: &Limits,
) -> rusqlite::Result<Written> {
    let mut replaced = None;
    if let Some(key) = &report.coalesce {
        let mut same = db.prepare_cached("SELECT id FROM kedge_outbox WHERE coalesce = ?1")?;
        replaced = same.query_row([key], |row| row.get(0)).optional()?;
        if let Some(old) = replaced {
            remove_report(db, old, used)?;
        }
    }
    let sql = "INSERT INTO kedge_outbox (priority, coalesce, value, bytes) VALUES (?1, ?2, ?3, ?4)";
    let values = params![report.priority, report.coalesce, report.value, report.bytes()];
    let id = db.prepare_cached(sql)?.insert(values)?;
    used.reports += 1;
    used.bytes += report.bytes();
    let dropped = shrink(db, used, limits)?;
    Ok(Written {
        changed: true,
        report: u64::try_from(id).ok(),
        replaced,
        dropped,
    })
}

/// Drops the oldest report of the lowest priority until the outbox is below its caps.
fn shrink(db: &Transaction<'_>, used: &mut OutboxUse, limits: &Limits) -> rusqlite::Result<Vec<u64>> {
    let mut dropped = Vec::new();
    while used.reports > limits.reports_max || used.bytes > limits.report_bytes_max {
        let sql = "SELECT id FROM kedge_outbox ORDER BY priority ASC, id ASC LIMIT 1";
        let victim: Option<u64> = db
            .prepare_cached(sql)?
            .query_row([], |row| row.get(0))
            .optional()?;
        let Some(victim) = victim else { break };
        remove_report(db, victim, used)?;
        used.dropped += 1;
        dropped.push(victim);
    }
    Ok(dropped)
}

fn remove_report(db: &Transaction<'_>, id: u64, used: &mut OutboxUse) -> rusqlite::Result<bool> {
    let mut delete = db.prepare_cached("DELETE FROM kedge_outbox WHERE id = ?1 RETURNING bytes")?;
    let Some(bytes) = delete.query_row([id], |row| row.get::<_, usize>(0)).optional()? else {
        return Ok(false);
    };
    used.reports = used.reports.saturating_sub(1);
    used.bytes = used.bytes.saturating_sub(bytes);
    Ok(true)
}
