//! The store on SQLite: WAL, every commit flushed.

use super::writer::Failure;
use super::{
    Action, ChangeKind, Commit, Content, Entry, LOG_ROWS_MAX, LOG_TRIM_STEP, OpenError, Options, Revision,
    Write,
};
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::collections::VecDeque;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// Written to `user_version`, so that a file of another program or of a later layout is recognised.
const LAYOUT: i64 = 0x6b65_6402;
/// The layout before it: no reserved revisions, and whole values in the log. It is taken over as it is.
const LAYOUT_BEFORE: i64 = 0x6b65_6401;
/// Page cache in KiB. All reads are served from the listener's memory; the cache serves only the b-tree's upper pages.
const CACHE_KIB: i64 = 2000;
/// Pages in the WAL before it is folded back (4 MiB).
const CHECKPOINT_PAGES: i64 = 1000;

/// How long a predecessor that is just ending may still hold the file.
const PREDECESSOR_WAIT: Duration = Duration::from_millis(500);

const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS cur(key TEXT PRIMARY KEY, rv INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log(rv INTEGER PRIMARY KEY, key TEXT NOT NULL, change INTEGER NOT NULL,
                                   value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS reserved(one INTEGER PRIMARY KEY CHECK (one = 1), rv INTEGER NOT NULL);";

const PUT: &str = "INSERT INTO cur(key, rv, value) VALUES(?1, ?2, ?3)
                   ON CONFLICT(key) DO UPDATE SET rv = excluded.rv, value = excluded.value";
const REMOVE: &str = "DELETE FROM cur WHERE key = ?1";

pub(super) struct Sqlite {
    connection: Connection,
    /// Revisions of the rows of the log, oldest first.
    log: VecDeque<Revision>,
    /// Rows that the open transaction added to the log.
    added: usize,
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
        let (content, log) = read(&connection).map_err(|source| open_error(path, source))?;
        let sqlite = Self {
            connection,
            log,
            added: 0,
        };
        Ok((sqlite, content))
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

    /// The value of a put stands in `cur` only: a later one of the same key replaces it, and readers that resume after
    /// a restart are told the later one. That halves what a change writes.
    pub(super) fn apply(&mut self, write: &Write, commit: &Commit) -> Result<(), Failure> {
        let revision = signed(commit.revision);
        let value: &[u8] = &commit.value;
        let last: &[u8] = match write.action {
            Action::Put(_) => {
                self.run(PUT, params![commit.key, revision, value])?;
                &[]
            }
            Action::Delete(_) => {
                self.run(REMOVE, params![commit.key])?;
                value
            }
        };
        let log = "INSERT INTO log(rv, key, change, value) VALUES(?1, ?2, ?3, ?4)";
        let change = change_number(commit.kind);
        self.run(log, params![revision, commit.key, change, last])?;
        self.log.push_back(commit.revision);
        self.added += 1;
        Ok(())
    }

    /// Writes the present state of a key without a row in the log.
    pub(super) fn snapshot(&mut self, key: &str, value: Option<(Revision, &[u8])>) -> Result<(), Failure> {
        match value {
            Some((revision, value)) => self.run(PUT, params![key, signed(revision), value]),
            None => self.run(REMOVE, params![key]),
        }
    }

    /// After a crash no revision up to this one is given out again.
    pub(super) fn reserve(&mut self, up_to: Revision) -> Result<(), Failure> {
        let reserve =
            "INSERT INTO reserved(one, rv) VALUES(1, ?1) ON CONFLICT(one) DO UPDATE SET rv = excluded.rv";
        self.run(reserve, params![signed(up_to)])
    }

    pub(super) fn commit(&mut self) -> Result<(), Failure> {
        let kept = usize::try_from(LOG_ROWS_MAX).unwrap_or(usize::MAX);
        let step = usize::try_from(LOG_TRIM_STEP).unwrap_or(usize::MAX);
        let gone = match self.log.len() {
            rows if rows > kept + step => rows - kept,
            _ => 0,
        };
        if gone > 0 {
            self.run("DELETE FROM log WHERE rv < ?1", params![signed(self.log[gone])])?;
        }
        self.connection.execute_batch("COMMIT").map_err(Failure)?;
        self.log.drain(..gone);
        self.added = 0;
        Ok(())
    }

    pub(super) fn rollback(&mut self) {
        // SQLite may have rolled back by itself (disk full); then there is nothing to do and it says so.
        let _ = self.connection.execute_batch("ROLLBACK");
        self.log.truncate(self.log.len() - self.added);
        self.added = 0;
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

/// Creates the tables in an empty file or in one of the layout before, and says which layout the file has.
fn layout(connection: &Connection) -> rusqlite::Result<i64> {
    let version = |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let found = version(connection)?;
    if (found == 0 && tables == 0) || found == LAYOUT_BEFORE {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {CREATE} PRAGMA user_version = {LAYOUT}; COMMIT;"
        ))?;
    }
    version(connection)
}

/// Everything that is stored, and the revisions of the rows of the log.
fn read(connection: &Connection) -> rusqlite::Result<(Content, VecDeque<Revision>)> {
    let mut content = Content::default();
    let mut query = connection.prepare("SELECT key, rv, value FROM cur ORDER BY key")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let value = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        content.entries.push(Entry {
            key: row.get(0)?,
            revision: unsigned(row.get(1)?),
            value,
        });
    }
    let (mut numbers, mut log) = (VecDeque::new(), Vec::new());
    let mut query = connection.prepare("SELECT rv, key, change, value FROM log ORDER BY rv")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let commit = Commit {
            revision: unsigned(row.get(0)?),
            key: row.get(1)?,
            kind: change_kind(row.get(2)?),
            value: Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?),
        };
        numbers.push_back(commit.revision);
        log.extend(with_value(commit, &content.entries));
    }
    let reserved: Option<i64> = connection
        .query_row("SELECT rv FROM reserved", [], |row| row.get(0))
        .optional()?;
    let of_entries = content.entries.iter().map(|entry| entry.revision).max();
    let last = of_entries.max(numbers.back().copied()).unwrap_or(0);
    content.revision = last.max(reserved.map_or(0, unsigned));
    content.log_after = numbers.front().map_or(content.revision, |first| first - 1);
    content.log = log;
    Ok((content, numbers))
}

/// A row of the log with the value that it left to `cur`; `None` when a later change has replaced it there.
fn with_value(mut commit: Commit, entries: &[Entry]) -> Option<Commit> {
    let in_log = match commit.kind {
        ChangeKind::Deleted => true,
        ChangeKind::Created | ChangeKind::Updated => !commit.value.is_empty(),
    };
    if !in_log {
        let place = entries
            .binary_search_by(|entry| entry.key.as_str().cmp(&commit.key))
            .ok()?;
        let entry = entries
            .get(place)
            .filter(|entry| entry.revision == commit.revision)?;
        commit.value = entry.value.clone();
    }
    Some(commit)
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
