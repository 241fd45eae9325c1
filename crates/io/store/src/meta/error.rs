//! What can go wrong, in one sentence each.

use super::Write;
use std::path::PathBuf;

/// A failed act of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the metadata database {}: {cause}", path.display())]
    Open { path: PathBuf, cause: Cause },
    /// Mended when the store is opened or used; only a file that cannot be moved aside comes out.
    #[error("the metadata database {} is damaged ({detail})", path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "the metadata database {} was written by a newer edgecore (version {version} of its tables, this one knows \
         {known}); start that edgecore, or move the file away and start this one with the cloud connected",
        path.display()
    )]
    Newer {
        path: PathBuf,
        version: i32,
        known: usize,
    },
    /// Nothing is dropped for it: the key may be readable again.
    #[error("the key file of the metadata database {}: {cause}", path.display())]
    Key { path: PathBuf, cause: Cause },
    #[error("{act} the official database {}: {cause}", path.display())]
    Official {
        act: &'static str,
        path: PathBuf,
        cause: Cause,
    },
    #[error("{} is no database of an official EdgeCore: it has no table `meta` with key, type and value", path.display())]
    NotOfficial { path: PathBuf },
    #[error("there is no metadata database {}; is `database.dataSource` right?", path.display())]
    Absent { path: PathBuf },
    /// For example `store pod default/web: disk full`.
    #[error("{what}: {cause}")]
    Write { what: String, cause: Cause },
    #[error("read {what}: {cause}")]
    Read { what: String, cause: Cause },
    #[error("{what}: it has {bytes} bytes, more than the whole outbox may hold ({max})")]
    TooLarge { what: String, bytes: usize, max: usize },
    #[error("{what}: the metadata store has ended")]
    Ended { what: String },
}

/// Why the database refused.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("disk full")]
    DiskFull,
    #[error("the file system is read-only")]
    ReadOnly,
    #[error("another process holds it; stop the EdgeCore that runs, then try again")]
    Busy,
    #[error("the database is damaged ({0})")]
    Damaged(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Cause {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            Some(_) => Self::Sql(error),
            // A value of another type than its column was written with.
            None => match error {
                error @ (rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..)) => Self::Damaged(error.to_string()),
                error => Self::Sql(error),
            },
        }
    }
}

/// The act and its object in words, for messages.
pub(super) fn name_of(write: &Write) -> String {
    match write {
        Write::Put(row) => format!("store {}", object_name(&row.key)),
        Write::Delete { key, .. } => format!("remove {}", object_name(key)),
        Write::Push(report) => match &report.coalesce {
            Some(key) => format!("keep report {key}"),
            None => "keep report".to_owned(),
        },
        Write::Forget { report } => format!("forget report {report}"),
        Write::Complete => "note that nothing is missing".to_owned(),
    }
}

/// `default/pod/web` becomes `pod default/web`; any other text stays as it is.
pub(super) fn object_name(key: &str) -> String {
    let parts: Vec<&str> = key.splitn(3, '/').collect();
    match parts.as_slice() {
        ["null", kind, name] => format!("{kind} {name}"),
        [namespace, kind, name] => format!("{kind} {namespace}/{name}"),
        _ => key.to_owned(),
    }
}
