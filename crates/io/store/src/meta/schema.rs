//! The file: its mode, its settings, its tables and how they came to be.

use super::seal::beside;
use super::{Cause, Error, Limits};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// Another process (a former EdgeCore that is ending) may hold the file for a moment.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Page cache, in KiB. What is read often is in memory anyway, as objects; this is for the inner pages of the tree.
const CACHE_KIB: i64 = 512;
/// Pages in the write-ahead log before they are carried into the file: 2 MiB, so that a key that is written often costs
/// one page of the file and not one for each write.
const LOG_PAGES: i64 = 512;
/// The log is cut back to this when a larger transaction made it grow.
const LOG_BYTES_MAX: i64 = 2 * 1024 * 1024;
/// Files up to this size are checked whole at each start, which costs a few milliseconds. Larger ones are not: damage
/// shows when the rows are read, and is mended then.
const CHECK_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// SQLite's page, which it is never told to change.
const PAGE_BYTES: u64 = 4096;
/// Only the owner may read it.
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// `kedg`, so that a file of another program is never taken for ours, but set aside.
const APPLICATION_ID: i32 = 0x6b65_6467;

/// A newer EdgeCore may be this many versions ahead. A number beyond it is damage.
const VERSIONS_AHEAD_MAX: usize = 1000;

/// What brings a file from version N to N + 1. Only ever appended to: files of all versions are in the field.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE objects (
        key TEXT PRIMARY KEY NOT NULL,
        kind TEXT NOT NULL,
        uid TEXT,
        version TEXT,
        value NOT NULL);  -- JSON as text, or sealed as a blob
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        priority INTEGER NOT NULL,
        coalesce TEXT UNIQUE,
        value TEXT NOT NULL,
        bytes INTEGER NOT NULL);
    CREATE INDEX outbox_order ON outbox (priority DESC, id ASC);
    CREATE TABLE facts (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL);
"];

/// Opens or makes the file at `path`. One process holds it: it keeps the lock, and with it the index of the log in its
/// own memory instead of a third file.
pub(super) fn open(path: &Path, limits: &Limits) -> Result<Connection, Error> {
    open_with(path, limits, &MIGRATIONS)
}

pub(super) fn open_with(path: &Path, limits: &Limits, migrations: &[&str]) -> Result<Connection, Error> {
    let failed = |error: rusqlite::Error| open_error(path, error);
    secure_file(path).map_err(|error| Error::Open {
        path: path.to_owned(),
        cause: Cause::Io(error),
    })?;
    whole(path)?;
    let mut connection = connect_alone(path).map_err(failed)?;
    settle(&connection, limits).map_err(failed)?;
    check(&connection, path)?;
    migrate(&mut connection, path, migrations)?;
    // SQLite locks the file only, so the log may be opened beside it.
    if let Ok(log) = File::open(beside(path, "-wal")) {
        reading_is_not_noted(&log);
    }
    Ok(connection)
}

/// A connection to an existing file, ours or not, without settings that change it.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect_plain(path)?;
    set(&connection, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

/// The same, and no other process can have one beside it.
pub(super) fn connect_alone(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect_plain(path)?;
    // Before the first look into the file, which already setting the cache is: only then is the log's index kept in
    // memory. As a file it could not be made on a full disk, and the node would not start.
    set(&connection, "locking_mode", "EXCLUSIVE")?;
    set(&connection, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

fn connect_plain(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    Ok(connection)
}

pub(super) fn set(
    connection: &Connection,
    pragma: &str,
    value: impl std::fmt::Display,
) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("PRAGMA {pragma} = {value}"))
}

fn settle(connection: &Connection, limits: &Limits) -> rusqlite::Result<()> {
    set(connection, "journal_mode", "WAL")?;
    set(connection, "synchronous", "FULL")?;
    set(connection, "journal_size_limit", LOG_BYTES_MAX)?;
    set(connection, "wal_autocheckpoint", LOG_PAGES)?;
    // What is removed is overwritten: no remains of old values in free pages.
    set(connection, "secure_delete", "ON")?;
    let pages = i64::try_from(limits.database_bytes_max / PAGE_BYTES).unwrap_or(i64::MAX);
    set(connection, "max_page_count", pages)
}

/// A file that was closed well ends with a whole page. With a log beside it, it may not: then the log has the rest.
fn whole(path: &Path) -> Result<(), Error> {
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes.is_multiple_of(PAGE_BYTES) || beside(path, "-wal").exists() {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        detail: format!("it is cut off: {bytes} bytes are no whole pages"),
    })
}

fn check(connection: &Connection, path: &Path) -> Result<(), Error> {
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes > CHECK_BYTES_MAX {
        return Ok(());
    }
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match verdict.map_err(|error| open_error(path, error))? {
        verdict if verdict == "ok" => Ok(()),
        detail => Err(Error::Damaged {
            path: path.to_owned(),
            detail,
        }),
    }
}

fn migrate(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), Error> {
    let failed = |error: rusqlite::Error| open_error(path, error);
    let number = |connection: &Connection, pragma| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i32>(0))
            .map_err(failed)
    };
    let (version, owner) = (
        number(connection, "user_version")?,
        number(connection, "application_id")?,
    );
    let tables: usize = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    if owner != APPLICATION_ID && tables > 0 {
        return Err(damaged(path, "it is not marked as ours"));
    }
    let done = usize::try_from(version).unwrap_or_default();
    if done > migrations.len() + VERSIONS_AHEAD_MAX {
        return Err(damaged(path, "its version is no number of ours"));
    }
    if done > migrations.len() {
        return Err(Error::Newer {
            path: path.to_owned(),
            version,
            known: migrations.len(),
        });
    }
    if done == migrations.len() {
        return Ok(());
    }
    // All steps or none: a power cut in between leaves the old version.
    let upgrade = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for migration in &migrations[done..] {
            transaction.execute_batch(migration)?;
        }
        set(&transaction, "application_id", APPLICATION_ID)?;
        set(&transaction, "user_version", migrations.len())?;
        transaction.commit()
    };
    upgrade(connection).map_err(failed)
}

fn damaged(path: &Path, detail: &str) -> Error {
    Error::Damaged {
        path: path.to_owned(),
        detail: detail.to_owned(),
    }
}

pub(super) fn open_error(path: &Path, error: rusqlite::Error) -> Error {
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

/// Makes the file with its mode before SQLite sees it: the log beside it takes the same mode, whatever the umask.
fn secure_file(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _in_the_working_directory => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)?;
    let is_new = !path.exists();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    // Now or never: closing it later would give up SQLite's locks.
    reading_is_not_noted(&file);
    for suffix in ["-wal", "-shm", "-journal"] {
        close_to_others(&beside(path, suffix))?;
    }
    if is_new {
        // Else a power cut may lose the name of a file whose content was acknowledged.
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Else the kernel writes to the disk when a file was read for the first time since it was written. A file system that has
/// no such choice is left as it is.
fn reading_is_not_noted(file: &File) {
    let noted = ioctl_getflags(file).and_then(|flags| match flags.contains(IFlags::NOATIME) {
        true => Ok(()),
        false => ioctl_setflags(file, flags | IFlags::NOATIME),
    });
    if let Err(error) = noted {
        tracing::debug!(%error, "the file system notes when the store is read");
    }
}

/// Takes the rights of group and others from a file, if it is there.
pub(super) fn close_to_others(path: &Path) -> io::Result<()> {
    match fs::set_permissions(path, Permissions::from_mode(FILE_MODE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
