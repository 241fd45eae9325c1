//! The runtime's records and directories, with errors that name them.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Records are a few kilobytes; the image index of a node full of images is below this.
const RECORD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Makes a directory and its parents, readable by their owner only.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    kedge_files::make_directory(path).map_err(|source| Error::io("make directory", path, source))
}

/// Replaces `path` by `bytes` so that after a power cut either the old or the new content is there, whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    kedge_files::replace(path, bytes).map_err(|source| Error::io("write", path, source))
}

/// Replaces `path` by `bytes` for as long as this boot lasts: a power cut may leave it empty or torn.
pub(crate) fn write_for_boot(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    kedge_files::replace_for_boot(path, bytes).map_err(|source| Error::io("write", path, source))
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    kedge_files::sync_directory(path).map_err(|source| Error::io("flush directory", path, source))
}

/// [`write`] for a record.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    write(path, &record_bytes(path, record)?)
}

/// [`write_for_boot`] for a record.
pub(crate) fn write_record_for_boot<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    write_for_boot(path, &record_bytes(path, record)?)
}

fn record_bytes<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(record).map_err(|error| Error::io("write", path, error.into()))
}

/// Reads a record; `None` when there is none.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("read", path, source)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io("read", path, source))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::io("read", path, error.into()))
}

/// Removes a directory with everything in it; one that is gone already is no error.
pub(crate) fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    kedge_files::remove(path).map_err(|source| Error::io("remove", path, source))
}

/// Names in a directory, sorted; none when it does not exist. Names that begin with a dot are unfinished writes.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::io("list", path, source);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
