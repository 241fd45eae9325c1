//! The store on SQLite: WAL, every commit flushed.

use super::writer::Failure;
use super::{
    Action, ChangeKind, Commit, Content, Entry, LOG_ROWS_MAX, LOG_TRIM_STEP, OpenError, Options, Revision,
    Write,
};
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Written to `user_version`, so that a file of another program or of a later layout is recognised.
const LAYOUT: i64 = 0x6b65_6401;
/// Page cache in KiB. All reads are served from the listener's memory; the cache serves only the b-tree's upper pages.
const CACHE_KIB: i64 = 2000;
/// Pages in the WAL before it is folded back (4 MiB).
const CHECKPOINT_PAGES: i64 = 1000;

/// How long a predecessor that is just ending may still hold the file.
const PREDECESSOR_WAIT: Duration = Duration::from_millis(500);

const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS cur(key TEXT PRIMARY KEY, rv INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log(rv INTEGER PRIMARY KEY, key TEXT NOT NULL, change INTEGER NOT NULL,
                                   value BLOB NOT NULL);";

pub(super) struct Sqlite {
    connection: Connection,
    /// Revision of the oldest row of the log.
    log_first: Revision,
}

impl Sqlite {
    pub(super) fn open(path: &Path, options: Options) -> Result<(Self, Content), OpenError> {
        prepare_file(path)?;
        let connection = connect(path, options).map_err(|source| open_error(path, source))?;
        let layout = layout(&connection).map_err(|source| open_error(path, source))?;
        if layout != LAYOUT {
            let detail = format!("its layout number is {layout:#x}");
            return Err(OpenError::Foreign {
                path: path.to_owned(),
                detail,
            });
        }
        let content = read(&connection).map_err(|source| open_error(path, source))?;
        let log_first = content
            .log
            .first()
            .map_or(content.revision + 1, |commit| commit.revision);
        Ok((
            Self {
                connection,
                log_first,
            },
            content,
        ))
    }

    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(Failure)
    }

    pub(super) fn found(&mut self, key: &str) -> Result<Option<Revision>, Failure> {
        let mut query = self
            .connection
            .prepare_cached("SELECT rv FROM cur WHERE key = ?1")
            .map_err(Failure)?;
        let found: Option<i64> = query
            .query_row([key], |row| row.get(0))
            .optional()
            .map_err(Failure)?;
        Ok(found.map(unsigned))
    }

    pub(super) fn apply(&mut self, write: &Write, commit: &Commit) -> Result<(), Failure> {
        let revision = signed(commit.revision);
        let value: &[u8] = &commit.value;
        let change = change_number(commit.kind);
        match write.action {
            Action::Put(_) => {
                let put = "INSERT INTO cur(key, rv, value) VALUES(?1, ?2, ?3)
                           ON CONFLICT(key) DO UPDATE SET rv = excluded.rv, value = excluded.value";
                self.run(put, params![commit.key, revision, value])?;
            }
            Action::Delete(_) => {
                self.run("DELETE FROM cur WHERE key = ?1", params![commit.key])?;
            }
        }
        let log = "INSERT INTO log(rv, key, change, value) VALUES(?1, ?2, ?3, ?4)";
        self.run(log, params![revision, commit.key, change, value])
    }

    pub(super) fn commit(&mut self, last: Revision) -> Result<(), Failure> {
        let mut log_first = self.log_first;
        if last.saturating_sub(log_first) > LOG_ROWS_MAX + LOG_TRIM_STEP {
            log_first = last - LOG_ROWS_MAX;
            self.run("DELETE FROM log WHERE rv < ?1", params![signed(log_first)])?;
        }
        self.connection.execute_batch("COMMIT").map_err(Failure)?;
        self.log_first = log_first;
        Ok(())
    }

    pub(super) fn rollback(&mut self) {
        // SQLite may have rolled back by itself (disk full); then there is nothing to do and it says so.
        let _ = self.connection.execute_batch("ROLLBACK");
    }

    fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<(), Failure> {
        let mut statement = self.connection.prepare_cached(sql).map_err(Failure)?;
        statement.execute(params).map_err(Failure)?;
        Ok(())
    }
}

/// Makes directory and file readable by their owner only; SQLite gives its side files the mode of the main file.
fn prepare_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Create {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    Ok(())
}

fn connect(path: &Path, options: Options) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PREDECESSOR_WAIT)?;
    // One process owns the file: a second one is told so at once instead of corrupting our view of the log.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", CHECKPOINT_PAGES * 4096)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "mmap_size", 0)?;
    if let Some(pages) = options.pages_max {
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    Ok(connection)
}

/// Creates the tables in an empty file, and says which layout the file has.
fn layout(connection: &Connection) -> rusqlite::Result<i64> {
    let version = |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if version(connection)? == 0 && tables == 0 {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {CREATE} PRAGMA user_version = {LAYOUT}; COMMIT;"
        ))?;
    }
    version(connection)
}

fn read(connection: &Connection) -> rusqlite::Result<Content> {
    let mut entries = Vec::new();
    let mut query = connection.prepare("SELECT key, rv, value FROM cur ORDER BY key")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let value = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        entries.push(Entry {
            key: row.get(0)?,
            revision: unsigned(row.get(1)?),
            value,
        });
    }
    let mut log = Vec::new();
    let mut query = connection.prepare("SELECT rv, key, change, value FROM log ORDER BY rv")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let value = Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?);
        let kind = change_kind(row.get(2)?);
        log.push(Commit {
            revision: unsigned(row.get(0)?),
            key: row.get(1)?,
            kind,
            value,
        });
    }
    let last_entry = entries.iter().map(|entry| entry.revision).max().unwrap_or(0);
    let revision = log
        .last()
        .map_or(last_entry, |commit| commit.revision.max(last_entry));
    Ok(Content {
        entries,
        log,
        revision,
    })
}

fn open_error(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { path },
        Some(ErrorCode::DiskFull) => OpenError::DiskFull { path },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Foreign {
            path,
            detail: source.to_string(),
        },
        _ => OpenError::Storage { path, source },
    }
}

fn change_number(kind: ChangeKind) -> i64 {
    match kind {
        ChangeKind::Created => 1,
        ChangeKind::Updated => 2,
        ChangeKind::Deleted => 3,
    }
}

fn change_kind(number: i64) -> ChangeKind {
    match number {
        1 => ChangeKind::Created,
        3 => ChangeKind::Deleted,
        _ => ChangeKind::Updated,
    }
}

// SQLite has signed integers; a revision stays below 2^63 for longer than any disk lives.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).expect("a revision counts changes and stays below 2^63")
}

fn unsigned(number: i64) -> Revision {
    u64::try_from(number).unwrap_or(0)
}
