//! The database of an official EdgeCore: taken over at the first start, written for the way back.
//!
//! It stays where `database.dataSource` names it, and ours lies beside it. What was taken from it is remembered by a
//! fingerprint of its rows: when the official EdgeCore has run again since, the fingerprint differs, and the rows are
//! taken again. Secrets are removed from it once they are sealed in ours, because it holds them in clear.

use super::outbox::Report;
use super::seal::{Sealer, beside};
use super::{Cause, Error, Limits, OutboxUse, Row, rows, schema, slim_meta};
use ring::digest::{Context, SHA256};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The fact that holds the fingerprint.
const FINGERPRINT: &str = "official database";
/// The tables as the official EdgeCore makes them, for the way back on a node that never had one.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS `meta` (`key` text,`type` text,`value` text,PRIMARY KEY (`key`));
    CREATE TABLE IF NOT EXISTS `meta_v2` (`key` text,`group_version_resource` text,`namespace` text,`name` text,\
        `resource_version` integer,`value` text,PRIMARY KEY (`key`));
";
/// Types of rows that are not objects of the node: what it said last, and what is worth nothing later. The official
/// keys of tokens do not tell whose they are in a way that can be asked for again.
const NOT_TAKEN: [&str; 8] = [
    "podpatch",
    "podstatus",
    "nodepatch",
    "nodestatus",
    "lease",
    "event",
    "certificatesigningrequest",
    "serviceaccounttoken",
];
/// Types of rows that hold something in clear that ours seals.
const IN_CLEAR: &str = "type IN ('secret', 'serviceaccounttoken')";
/// The same in the table of the official local API.
const IN_CLEAR_V2: &str = "group_version_resource LIKE '%Resource=secrets' OR key LIKE '%/secrets/%'";
/// The name of its process. Ours has the same, and is locked out already.
const OFFICIAL_PROCESS: &str = "edgecore";
/// What the official local API serves of the objects that a node holds: type, and group, version and resource.
const SERVED: [(&str, &str, &str); 4] = [
    ("pod", "/core/v1/pods", "/v1, Resource=pods"),
    ("configmap", "/core/v1/configmaps", "/v1, Resource=configmaps"),
    ("secret", "/core/v1/secrets", "/v1, Resource=secrets"),
    ("node", "/core/v1/nodes", "/v1, Resource=nodes"),
];

/// What was taken from an official database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub from: PathBuf,
    pub objects: usize,
    pub pods: usize,
}

/// What was written into an official database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub into: PathBuf,
    pub objects: usize,
    pub pods: usize,
    /// Reports that the cloud has not taken yet. The official EdgeCore keeps none; they stay in ours.
    pub reports_left: usize,
}

impl std::fmt::Display for Imported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, objects, pods } = self;
        write!(
            f,
            "{objects} objects, {pods} of them pods, taken over from {}",
            from.display()
        )
    }
}

impl std::fmt::Display for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            into,
            objects,
            pods,
            reports_left,
        } = self;
        write!(
            f,
            "{objects} objects, {pods} of them pods, written to {} (secrets in clear); an official EdgeCore can start",
            into.display()
        )?;
        match reports_left {
            0 => Ok(()),
            1 => write!(f, "; 1 report that the cloud has not taken stays behind"),
            left => write!(f, "; {left} reports that the cloud has not taken stay behind"),
        }
    }
}

/// When rows are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// When the official EdgeCore has written since they were taken last.
    IfChanged,
    Always,
    /// Never: ours was newer and is lost. What is there now counts as taken.
    Not,
}

/// Takes the rows of the official database, if there is one, and removes what it holds in clear.
pub(super) fn take_over(
    official: &Path,
    ours: &mut Connection,
    sealer: &Sealer,
    limits: &Limits,
    take: Take,
) -> Result<Option<Imported>, Error> {
    let failed = |act: &'static str| {
        move |error: rusqlite::Error| Error::Official {
            act,
            path: official.to_owned(),
            cause: error.into(),
        }
    };
    let Some(mut theirs) = open(official)? else {
        return match take {
            Take::Always => Err(Error::NotOfficial {
                path: official.to_owned(),
            }),
            Take::IfChanged | Take::Not => Ok(None),
        };
    };
    let now = fingerprint(&theirs).map_err(failed("read"))?;
    let known = rows::fact(ours, FINGERPRINT).map_err(failed("take over"))?;
    let wanted = match take {
        Take::IfChanged => known.as_ref() != Some(&now),
        Take::Always => true,
        Take::Not => {
            rows::set_fact(ours, FINGERPRINT, &now).map_err(failed("take over"))?;
            false
        }
    };
    if (wanted || holds_clear(&theirs).map_err(failed("read"))?) && is_in_use(official) {
        return Err(Error::Official {
            act: "take over",
            path: official.to_owned(),
            cause: Cause::Busy,
        });
    }
    let mut imported = None;
    if wanted {
        let done = import(&theirs, ours, sealer, limits, &now).map_err(failed("take over"))?;
        tracing::info!(
            from = %official.display(), objects = done.0, pods = done.1,
            "the database of an official EdgeCore is taken over; `edgecore database export` writes it for the way back"
        );
        imported = Some(Imported {
            from: official.to_owned(),
            objects: done.0,
            pods: done.1,
        });
    }
    if let Err(error) = scrub(official, &mut theirs) {
        tracing::warn!(
            path = %official.display(), %error,
            "secrets stay in clear in the official database; trying again at the next start"
        );
    }
    Ok(imported)
}

/// The official database, or nothing if there is none that can be read: then the cloud sends what is missing.
fn open(path: &Path) -> Result<Option<Connection>, Error> {
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length == 0 {
        return Ok(None);
    }
    let look = || {
        let connection = schema::connect(path)?;
        let columns = columns_of(&connection, "meta")?;
        Ok::<_, rusqlite::Error>((connection, columns))
    };
    match look() {
        Ok((connection, columns))
            if ["key", "type", "value"]
                .iter()
                .all(|&name| columns.iter().any(|c| c == name)) =>
        {
            schema::close_to_others(path).map_err(|error| Error::Official {
                act: "take the rights of others from",
                path: path.to_owned(),
                cause: Cause::Io(error),
            })?;
            Ok(Some(connection))
        }
        Ok(_) => {
            tracing::warn!(path = %path.display(), "not the database of an official EdgeCore; left alone");
            Ok(None)
        }
        Err(error) => match Cause::from(error) {
            Cause::Damaged(detail) => {
                tracing::error!(
                    path = %path.display(), detail,
                    "the database of the official EdgeCore is damaged; nothing is taken from it, the cloud sends all"
                );
                Ok(None)
            }
            cause => Err(Error::Official {
                act: "open",
                path: path.to_owned(),
                cause,
            }),
        },
    }
}

fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn has_table(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    Ok(!columns_of(connection, table)?.is_empty())
}

fn text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    // The official columns allow NULL.
    let value: Option<String> = row.get(column)?;
    Ok(value.unwrap_or_default())
}

/// Of all rows but those in clear, which are removed without anybody having written. A running official EdgeCore
/// writes others every few seconds.
fn fingerprint(theirs: &Connection) -> rusqlite::Result<String> {
    let sql = format!("SELECT key, type, value FROM meta WHERE NOT coalesce({IN_CLEAR}, 0) ORDER BY key");
    let mut statement = theirs.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut context = Context::new(&SHA256);
    while let Some(row) = rows.next()? {
        for column in 0..3 {
            let part = text(row, column)?;
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            context.update(part.as_bytes());
        }
    }
    let digest = context.finish();
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Replaces what is held, in one transaction. Numbers of objects and of pods.
fn import(
    theirs: &Connection,
    ours: &mut Connection,
    sealer: &Sealer,
    limits: &Limits,
    fingerprint: &str,
) -> rusqlite::Result<(usize, usize)> {
    let transaction = ours.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Tokens stay: they are bound to a pod's uid and outlive a stay of the official EdgeCore.
    transaction.execute("DELETE FROM objects WHERE kind <> 'serviceaccounttoken'", [])?;
    // Reports from before are no longer what the node has to say.
    transaction.execute("DELETE FROM outbox", [])?;
    let (mut objects, mut pods) = (0, 0);
    let mut statement = theirs.prepare("SELECT key, type, value FROM meta ORDER BY key")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (key, kind, value) = (text(row, 0)?, text(row, 1)?, text(row, 2)?);
        if NOT_TAKEN.contains(&kind.as_str()) || key.is_empty() {
            continue;
        }
        objects += 1;
        pods += usize::from(kind == "pod");
        rows::put(&transaction, sealer, &Row { key, kind, value })?;
    }
    import_reports(theirs, &transaction, limits)?;
    rows::set_fact(&transaction, FINGERPRINT, fingerprint)?;
    transaction.commit()?;
    Ok((objects, pods))
}

/// Early versions of this EdgeCore kept their outbox beside the official tables.
fn import_reports(theirs: &Connection, ours: &Transaction<'_>, limits: &Limits) -> rusqlite::Result<()> {
    if !has_table(theirs, "kedge_outbox")? {
        return Ok(());
    }
    let mut used = OutboxUse::default();
    let mut statement = theirs.prepare("SELECT priority, coalesce, value FROM kedge_outbox ORDER BY id")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let report = Report {
            priority: row.get(0)?,
            coalesce: row.get(1)?,
            value: row.get(2)?,
        };
        rows::push(ours, &report, &mut used, limits)?;
    }
    Ok(())
}

/// Whether there is something to remove.
fn holds_clear(theirs: &Connection) -> rusqlite::Result<bool> {
    let count = |table: &str, what: &str| {
        let sql = format!("SELECT count(*) FROM {table} WHERE {what}");
        theirs.query_row(&sql, [], |row| row.get::<_, usize>(0))
    };
    Ok(count("meta", IN_CLEAR)? > 0
        || has_table(theirs, "kedge_outbox")?
        || (has_table(theirs, "meta_v2")? && count("meta_v2", IN_CLEAR_V2)? > 0))
}

/// Whether an official EdgeCore runs on this file. It holds no lock between two statements, so its open files are
/// looked at; what cannot be looked at is not a process that runs as root, as EdgeCore does.
fn is_in_use(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter(|process| {
        let name = process.file_name();
        // `self` and `thread-self` lead to this process under another name.
        let id = name.to_str().and_then(|name| name.parse::<u32>().ok());
        id.is_some_and(|id| id != std::process::id())
    });
    let mut edges = others.filter(|process| {
        let name = std::fs::read_to_string(process.path().join("comm"));
        name.is_ok_and(|name| name.trim() == OFFICIAL_PROCESS)
    });
    edges.any(|process| {
        let files = std::fs::read_dir(process.path().join("fd"));
        let mut files = files.into_iter().flatten().flatten();
        files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path))
    })
}

/// Removes what is held in clear, also from the free pages of the file.
fn scrub(path: &Path, theirs: &mut Connection) -> rusqlite::Result<()> {
    if !holds_clear(theirs)? {
        return Ok(());
    }
    let (served, reports) = (has_table(theirs, "meta_v2")?, has_table(theirs, "kedge_outbox")?);
    // As the official EdgeCore expects it; early versions of this one used a log.
    schema::set(theirs, "journal_mode", "DELETE")?;
    schema::set(theirs, "secure_delete", "ON")?;
    let transaction = theirs.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(&format!("DELETE FROM meta WHERE {IN_CLEAR}"), [])?;
    if served {
        transaction.execute(&format!("DELETE FROM meta_v2 WHERE {IN_CLEAR_V2}"), [])?;
    }
    if reports {
        transaction.execute("DROP TABLE kedge_outbox", [])?;
    }
    transaction.commit()?;
    theirs.execute_batch("VACUUM")?;
    tracing::info!(
        path = %path.display(),
        "secrets and tokens are removed from the official database; they are sealed in this EdgeCore's"
    );
    Ok(())
}

/// Writes everything that is held into the official database, secrets in clear, and remembers that nobody wrote since.
pub(super) fn export(
    official: &Path,
    ours: &mut Connection,
    sealer: &Sealer,
    reports_left: usize,
) -> Result<Exported, Error> {
    let failed = |error: rusqlite::Error| Error::Official {
        act: "write",
        path: official.to_owned(),
        cause: error.into(),
    };
    let held = rows::list(ours, sealer, None).map_err(failed)?;
    let is_taken = |row: &Row| !NOT_TAKEN.contains(&row.kind.as_str());
    let held: Vec<Row> = held.into_iter().filter(is_taken).collect();
    let mut theirs = make(official)?;
    write(&mut theirs, &held).map_err(failed)?;
    let fingerprint = fingerprint(&theirs).map_err(failed)?;
    rows::set_fact(ours, FINGERPRINT, &fingerprint).map_err(failed)?;
    Ok(Exported {
        into: official.to_owned(),
        objects: held.len(),
        pods: held.iter().filter(|row| row.kind == "pod").count(),
        reports_left,
    })
}

fn make(official: &Path) -> Result<Connection, Error> {
    let failed = |cause: Cause| Error::Official {
        act: "open",
        path: official.to_owned(),
        cause,
    };
    if is_in_use(official) {
        return Err(failed(Cause::Busy));
    }
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(schema::FILE_MODE);
    let made = options
        .open(official)
        .and_then(|_| schema::close_to_others(official));
    made.map_err(|error| failed(Cause::Io(error)))?;
    let prepare = || {
        let connection = schema::connect(official)?;
        schema::set(&connection, "journal_mode", "DELETE")?;
        connection.execute_batch(TABLES)?;
        Ok(connection)
    };
    prepare().map_err(|error: rusqlite::Error| failed(error.into()))
}

fn write(theirs: &mut Connection, held: &[Row]) -> rusqlite::Result<()> {
    let transaction = theirs.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("DELETE FROM meta", [])?;
    for (_, _, resource) in SERVED {
        let sql = "DELETE FROM meta_v2 WHERE group_version_resource = ?1";
        transaction.execute(sql, [resource])?;
    }
    for row in held {
        let sql = "INSERT INTO meta (key, type, value) VALUES (?1, ?2, ?3)";
        transaction.execute(sql, [&row.key, &row.kind, &row.value])?;
        if let Some((_, prefix, resource)) = SERVED.iter().find(|served| served.0 == row.kind) {
            serve(&transaction, row, prefix, resource)?;
        }
    }
    transaction.commit()
}

/// Writes an object where the official local API finds it.
fn serve(theirs: &Transaction<'_>, row: &Row, prefix: &str, resource: &str) -> rusqlite::Result<()> {
    let mut parts = row.key.splitn(3, '/');
    let (Some(namespace), Some(_), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(());
    };
    // Nodes belong to no namespace, whatever the row that brought them says.
    let namespace = if row.kind == "node" { "null" } else { namespace };
    let version = slim_meta(&row.value).resource_version;
    let version: i64 = version.and_then(|version| version.parse().ok()).unwrap_or(0);
    let key = format!("{prefix}/{namespace}/{name}");
    let stored_namespace = if namespace == "null" { "" } else { namespace };
    let sql = "INSERT INTO meta_v2 (key, group_version_resource, namespace, name, resource_version, value)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value, resource_version = excluded.resource_version,
            group_version_resource = excluded.group_version_resource, namespace = excluded.namespace,
            name = excluded.name";
    let values = params![key, resource, stored_namespace, name, version, row.value];
    theirs.execute(sql, values).map(|_| ())
}

/// Whether there is anything to export.
pub(super) fn require(database: &Path) -> Result<(), Error> {
    if database.exists() {
        return Ok(());
    }
    Err(Error::Absent {
        path: database.to_owned(),
    })
}

/// Ours, beside the official one.
pub(super) fn sibling(official: &Path) -> PathBuf {
    beside(official, ".kedge")
}
