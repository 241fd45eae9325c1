//! Rows of the tables, out and in: what one statement does.

use super::outbox::{OutboxUse, Report, StoredReport};
use super::seal::{Sealer, Unopened, is_sealed};
use super::{Cause, DigestRow, Error, Limits, Row, Write, Written, error, slim_meta};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

/// A value as it lies in the table.
enum Stored {
    Plain(String),
    Sealed(Vec<u8>),
}

impl Stored {
    fn read(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Self> {
        match row.get_ref(column)? {
            ValueRef::Blob(sealed) => Ok(Self::Sealed(sealed.to_vec())),
            ValueRef::Text(_) | ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => {
                row.get(column).map(Self::Plain)
            }
        }
    }

    fn open(self, sealer: &Sealer, key: &str, kind: &str) -> Result<String, Unopened> {
        match self {
            Self::Plain(value) => Ok(value),
            Self::Sealed(sealed) => sealer.open_value(key, kind, &sealed),
        }
    }
}

/// The row, or nothing if its value does not open: the cloud still has it.
fn row_of(row: &rusqlite::Row<'_>, sealer: &Sealer) -> rusqlite::Result<Option<Row>> {
    let (key, kind): (String, String) = (row.get(0)?, row.get(1)?);
    match Stored::read(row, 2)?.open(sealer, &key, &kind) {
        Ok(value) => Ok(Some(Row { key, kind, value })),
        Err(why) => {
            tracing::error!(
                key = error::object_name(&key),
                ?why,
                "sealed value does not open; taken as absent"
            );
            Ok(None)
        }
    }
}

pub(super) fn get(db: &Connection, sealer: &Sealer, key: &str) -> rusqlite::Result<Option<Row>> {
    let mut statement = db.prepare_cached("SELECT key, kind, value FROM objects WHERE key = ?1")?;
    let found = statement.query_row([key], |row| row_of(row, sealer)).optional()?;
    Ok(found.flatten())
}

pub(super) fn list(db: &Connection, sealer: &Sealer, kind: Option<&str>) -> rusqlite::Result<Vec<Row>> {
    let sql = "SELECT key, kind, value FROM objects WHERE ?1 IS NULL OR kind = ?1 ORDER BY key";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([kind], |row| row_of(row, sealer))?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn digest(db: &Connection) -> rusqlite::Result<Vec<DigestRow>> {
    let sql = "SELECT key, kind, uid, version FROM objects
        WHERE uid IS NOT NULL AND version IS NOT NULL ORDER BY key";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(DigestRow {
            key: row.get(0)?,
            kind: row.get(1)?,
            uid: row.get(2)?,
            version: row.get(3)?,
        })
    })?;
    rows.collect()
}

pub(super) fn reports(db: &Connection, max: usize) -> rusqlite::Result<Vec<StoredReport>> {
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let sql = "SELECT id, priority, coalesce, value FROM outbox ORDER BY priority DESC, id ASC LIMIT ?1";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([max], |row| {
        let report = Report {
            priority: row.get(1)?,
            coalesce: row.get(2)?,
            value: row.get(3)?,
        };
        Ok(StoredReport {
            id: row.get(0)?,
            report,
        })
    })?;
    rows.collect()
}

pub(super) fn count_outbox(db: &Connection, dropped: u64) -> rusqlite::Result<OutboxUse> {
    let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM outbox";
    db.query_row(sql, [], |row| {
        Ok(OutboxUse {
            reports: row.get(0)?,
            bytes: row.get(1)?,
            dropped,
        })
    })
}

pub(super) fn fact(db: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT value FROM facts WHERE name = ?1";
    db.query_row(sql, [name], |row| row.get(0)).optional()
}

/// Nothing that the cloud wants is missing. A mended file begins without it, because facts are not read back.
const COMPLETE: &str = "complete";

pub(super) fn is_complete(db: &Connection) -> rusqlite::Result<bool> {
    Ok(fact(db, COMPLETE)?.is_some())
}

/// True if it is new.
pub(super) fn set_fact(db: &Connection, name: &str, value: &str) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO facts (name, value) VALUES (?1, ?2)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value IS NOT excluded.value";
    Ok(db.execute(sql, [name, value])? > 0)
}

/// Removes the values that no key opens, and names their rows. The cloud is asked for them again.
pub(super) fn drop_unopened(db: &Connection, sealer: &Sealer) -> rusqlite::Result<Vec<String>> {
    let mut lost = Vec::new();
    for (key, kind, sealed) in sealed_values(db)? {
        if let Err(why) = sealer.open_value(&key, &kind, &sealed) {
            tracing::debug!(key = error::object_name(&key), ?why, "sealed value does not open");
            db.execute("DELETE FROM objects WHERE key = ?1", [&key])?;
            lost.push(key);
        }
    }
    Ok(lost)
}

/// Seals anew, with the key in use, what was sealed with an older one.
pub(super) fn reseal(db: &Transaction<'_>, sealer: &Sealer) -> rusqlite::Result<usize> {
    let mut count = 0;
    for (key, kind, sealed) in sealed_values(db)? {
        if sealer.is_current(&sealed) {
            continue;
        }
        if let Ok(value) = sealer.open_value(&key, &kind, &sealed) {
            let anew = sealer.seal(&key, &kind, &value).map_err(unsealed)?;
            db.execute("UPDATE objects SET value = ?2 WHERE key = ?1", params![key, anew])?;
            count += 1;
        }
    }
    Ok(count)
}

fn sealed_values(db: &Connection) -> rusqlite::Result<Vec<(String, String, Vec<u8>)>> {
    let sql = "SELECT key, kind, value FROM objects WHERE typeof(value) = 'blob'";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

fn unsealed(error: std::io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

pub(super) fn apply(
    db: &Transaction<'_>,
    sealer: &Sealer,
    write: &Write,
    used: &mut OutboxUse,
    limits: &Limits,
) -> Result<Written, Error> {
    let result = match write {
        Write::Put(row) => put(db, sealer, row).map(changed),
        Write::Delete { key, uid } => delete(db, key, uid.as_deref()).map(changed),
        Write::Push(report) if report.bytes() > limits.report_bytes_max => {
            return Err(Error::TooLarge {
                what: error::name_of(write),
                bytes: report.bytes(),
                max: limits.report_bytes_max,
            });
        }
        Write::Push(report) => push(db, report, used, limits),
        Write::Forget { report } => remove_report(db, *report, used).map(changed),
        Write::Complete => set_fact(db, COMPLETE, "true").map(changed),
    };
    result.map_err(|error| Error::Write {
        what: error::name_of(write),
        cause: Cause::from(error),
    })
}

fn changed(changed: bool) -> Written {
    Written {
        changed,
        ..Written::default()
    }
}

/// True if something changed. Bytes that are there already are not written.
pub(super) fn put(db: &Transaction<'_>, sealer: &Sealer, row: &Row) -> rusqlite::Result<bool> {
    let meta = slim_meta(&row.value);
    let sql = "INSERT INTO objects (key, kind, uid, version, value) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (key) DO UPDATE
        SET kind = excluded.kind, uid = excluded.uid, version = excluded.version, value = excluded.value
        WHERE kind IS NOT excluded.kind OR value IS NOT excluded.value";
    let mut insert = db.prepare_cached(sql)?;
    if !is_sealed(&row.kind) {
        let values = params![row.key, row.kind, meta.uid, meta.resource_version, row.value];
        return Ok(insert.execute(values)? > 0);
    }
    // Sealing the same value twice gives different bytes, so it is compared open.
    let mut same = db.prepare_cached("SELECT kind, value FROM objects WHERE key = ?1")?;
    let held = same
        .query_row([&row.key], |held| {
            Ok((held.get::<_, String>(0)?, Stored::read(held, 1)?))
        })
        .optional()?;
    if let Some((kind, value @ Stored::Sealed(_))) = held
        && kind == row.kind
        && value.open(sealer, &row.key, &kind).as_ref() == Ok(&row.value)
    {
        return Ok(false);
    }
    let sealed = sealer.seal(&row.key, &row.kind, &row.value).map_err(unsealed)?;
    let values = params![row.key, row.kind, meta.uid, meta.resource_version, sealed];
    Ok(insert.execute(values)? > 0)
}

fn delete(db: &Transaction<'_>, key: &str, uid: Option<&str>) -> rusqlite::Result<bool> {
    let sql = "DELETE FROM objects WHERE key = ?1 AND (?2 IS NULL OR uid = ?2)";
    Ok(db.prepare_cached(sql)?.execute(params![key, uid])? > 0)
}

pub(super) fn push(
    db: &Transaction<'_>,
    report: &Report,
    used: &mut OutboxUse,
    limits: &Limits,
) -> rusqlite::Result<Written> {
    let mut replaced = None;
    if let Some(key) = &report.coalesce {
        let mut same = db.prepare_cached("SELECT id FROM outbox WHERE coalesce = ?1")?;
        replaced = same.query_row([key], |row| row.get(0)).optional()?;
        if let Some(old) = replaced {
            remove_report(db, old, used)?;
        }
    }
    let sql = "INSERT INTO outbox (priority, coalesce, value, bytes) VALUES (?1, ?2, ?3, ?4)";
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
        let sql = "SELECT id FROM outbox ORDER BY priority ASC, id ASC LIMIT 1";
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
    let mut delete = db.prepare_cached("DELETE FROM outbox WHERE id = ?1 RETURNING bytes")?;
    let Some(bytes) = delete.query_row([id], |row| row.get::<_, usize>(0)).optional()? else {
        return Ok(false);
    };
    used.reports = used.reports.saturating_sub(1);
    used.bytes = used.bytes.saturating_sub(bytes);
    Ok(true)
}
