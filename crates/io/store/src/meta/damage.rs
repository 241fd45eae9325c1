//! A damaged file is kept aside, and what can still be read of it goes into a new one.
//!
//! What is read back may lack rows, or hold older ones than were acknowledged. Both are mended by the next digest: the
//! cloud sends what differs. Until then the node goes on with what it has, instead of with nothing.

use super::outbox::{OutboxUse, Report};
use super::seal::{Sealer, beside};
use super::{Cause, Error, Limits, Row, rows, schema, slim_meta};
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::de::IgnoredAny;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Damaged files that are kept for a look at them; older ones go, so that they never fill the disk.
const KEPT_MAX: usize = 3;
const MARK: &str = ".corrupt-";
/// The name of the new file while it is being filled.
const NEW: &str = ".new";

/// What became of a damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Where the damaged file lies now.
    pub aside: PathBuf,
    /// Objects that were read back.
    pub objects: usize,
    /// Reports that were read back.
    pub reports: usize,
}

impl Mended {
    /// Of a mending that was cut off after the new file was filled.
    pub(super) fn counted(fresh: &Connection, path: &Path) -> rusqlite::Result<Self> {
        let count = |table| {
            let sql = format!("SELECT count(*) FROM {table}");
            fresh.query_row(&sql, [], |row| row.get(0))
        };
        Ok(Self {
            aside: kept(path).pop().unwrap_or_default(),
            objects: count("objects")?,
            reports: count("outbox")?,
        })
    }
}

/// Makes a new file of what can be read, then puts it in the place of the damaged one. A power cut in between leaves
/// either the damaged file, or the new one under its first name for [`finish`].
pub(super) fn mend(
    path: &Path,
    sealer: &Sealer,
    limits: &Limits,
    detail: &str,
) -> Result<(Connection, Mended), Error> {
    let failed = |error: io::Error| Error::Open {
        path: path.to_owned(),
        cause: Cause::Io(error),
    };
    let new = beside(path, NEW);
    remove(&new).map_err(failed)?;
    let mut fresh = schema::open(&new, limits)?;
    let saved = salvage(path, &mut fresh, sealer, limits).map_err(|error| schema::open_error(&new, error))?;
    // Closing carries the log into the file, which can then be renamed.
    let closed = fresh.close().map_err(|(_, error)| error);
    closed.map_err(|error| schema::open_error(&new, error))?;
    let aside = set_aside(path).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    prune(path);
    let (objects, reports) = saved;
    tracing::error!(
        path = %path.display(), aside = %aside.display(), detail, objects, reports,
        "the store was damaged and is kept aside; what could be read of it is in a new one, and the cloud sends \
         what is missing"
    );
    let mended = Mended {
        aside,
        objects,
        reports,
    };
    Ok((schema::open(path, limits)?, mended))
}

/// Ends a mending that a power cut ended. True if there was one: then objects may be missing.
pub(super) fn finish(path: &Path) -> io::Result<bool> {
    let new = beside(path, NEW);
    if path.exists() {
        remove(&new)?;
        return Ok(false);
    }
    if !new.exists() {
        return Ok(false);
    }
    // The log of the file that was set aside must not be taken for one of the new file.
    remove(&beside(path, "-wal"))?;
    fs::rename(&new, path)?;
    Ok(true)
}

/// Removes a file and its log, if they are there.
fn remove(path: &Path) -> io::Result<()> {
    for file in [path.to_owned(), beside(path, "-wal")] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Gives the file and its log another name. The file first: without its log it would be taken for whole.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut stamp = now.map_or(0, |since| since.as_secs());
    let aside = loop {
        // Ten digits until the year 2286, so that names sort by time.
        let aside = beside(path, &format!("{MARK}{stamp}"));
        if !aside.exists() {
            break aside;
        }
        stamp += 1;
    };
    fs::rename(path, &aside)?;
    match fs::rename(beside(path, "-wal"), beside(&aside, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(aside),
    }
}

/// Removes all but the newest damaged files.
fn prune(path: &Path) {
    for old in kept(path).iter().rev().skip(KEPT_MAX) {
        // What cannot be removed is in nobody's way but the administrator's.
        let _ = remove(old);
    }
}

/// The damaged files that were set aside, oldest first.
fn kept(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}{MARK}", name.to_string_lossy());
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_kept = |name: &String| {
        let stamp = name.strip_prefix(&prefix);
        stamp.is_some_and(|stamp| stamp.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut kept: Vec<String> = names.filter(is_kept).collect();
    kept.sort_unstable();
    kept.into_iter().map(|name| directory.join(name)).collect()
}

/// Reads back what is readable, from both ends of each table: damage in the middle hides only what lies there.
fn salvage(
    damaged: &Path,
    fresh: &mut Connection,
    sealer: &Sealer,
    limits: &Limits,
) -> rusqlite::Result<(usize, usize)> {
    let Ok(damaged) = open_damaged(damaged) else {
        return Ok((0, 0));
    };
    let transaction = fresh.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut objects = 0;
    let columns = "rowid, key, kind, uid, version, value";
    scan(&damaged, "objects", columns, |row| {
        objects += usize::from(keep_object(row, &transaction, sealer)?);
        Ok(())
    })?;
    let mut used = OutboxUse::default();
    scan(&damaged, "outbox", "rowid, priority, coalesce, value", |row| {
        if let Some(report) = report_of(row) {
            rows::push(&transaction, &report, &mut used, limits)?;
        }
        Ok(())
    })?;
    transaction.commit()?;
    Ok((objects, used.reports))
}

fn open_damaged(path: &Path) -> rusqlite::Result<Connection> {
    let damaged = schema::connect_alone(path)?;
    // It is evidence: nothing is carried from its log into it.
    damaged.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(damaged)
}

/// Calls `each` for every row that can be read. Only errors of `each` end it.
fn scan(
    damaged: &Connection,
    table: &str,
    columns: &str,
    mut each: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut last = i64::MIN;
    for order in ["ASC", "DESC"] {
        let sql =
            format!("SELECT {columns} FROM {table} NOT INDEXED WHERE rowid > ?1 ORDER BY rowid {order}");
        let Ok(mut statement) = damaged.prepare(&sql) else {
            return Ok(());
        };
        let Ok(mut rows) = statement.query([last]) else {
            return Ok(());
        };
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    if order == "ASC"
                        && let Ok(number) = row.get(0)
                    {
                        last = number;
                    }
                    each(row)?;
                }
                // The whole table was read.
                Ok(None) if order == "ASC" => return Ok(()),
                Ok(None) | Err(_) => break,
            }
        }
    }
    Ok(())
}

/// Takes an object over if it is one: JSON, or sealed and whole.
fn keep_object(row: &rusqlite::Row<'_>, fresh: &Transaction<'_>, sealer: &Sealer) -> rusqlite::Result<bool> {
    let (Ok(key), Ok(kind)) = (row.get::<_, String>(1), row.get::<_, String>(2)) else {
        return Ok(false);
    };
    let value = match row.get_ref(5) {
        Ok(ValueRef::Text(text)) => String::from_utf8(text.to_vec()).ok(),
        Ok(ValueRef::Blob(sealed)) => sealer.open_value(&key, &kind, sealed).ok(),
        Ok(ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_)) | Err(_) => None,
    };
    let Some(value) = value.filter(|value| serde_json::from_str::<IgnoredAny>(value).is_ok()) else {
        return Ok(false);
    };
    // The columns repeat what the value says. If they differ, one of the two is damaged.
    let meta = slim_meta(&value);
    let column = |index| row.get::<_, Option<String>>(index).ok();
    if column(3) != Some(meta.uid) || column(4) != Some(meta.resource_version) {
        return Ok(false);
    }
    rows::put(fresh, sealer, &Row { key, kind, value })
}

fn report_of(row: &rusqlite::Row<'_>) -> Option<Report> {
    let report = Report {
        priority: row.get(1).ok()?,
        coalesce: row.get(2).ok()?,
        value: row.get(3).ok()?,
    };
    serde_json::from_str::<IgnoredAny>(&report.value).ok()?;
    Some(report)
}
