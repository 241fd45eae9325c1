//! Files that are replaced as a whole: written beside and renamed; where it matters after a power cut, flushed before.
//!
//! A process that is killed takes nothing with it that was written, flushed or not. So what means nothing after the next
//! boot (a sandbox's namespaces, a container's process) is not flushed: on a device's card a flush takes as long as
//! starting a container. A power cut may leave such a file empty or torn, and whoever reads it has to expect that.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Records are a few kilobytes; the image index of a node full of images is below this.
const RECORD_BYTES_MAX: u64 = 16 * 1024 * 1024;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Makes a directory and its parents, readable by their owner only.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|source| Error::io("make directory", path, source))
}

/// Replaces `path` by `bytes` so that after a power cut either the old or the new content is there, whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let parent = replace(path, bytes, Flush::Now)?;
    sync_directory(parent)
}

/// Replaces `path` by `bytes` for as long as this boot lasts.
pub(crate) fn write_for_boot(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes, Flush::Later).map(drop)
}

/// Whether the content must reach the disk before its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Now,
    Later,
}

/// Whoever reads `path` meanwhile finds the old or the new content, never a part. Gives back the directory.
fn replace<'a>(path: &'a Path, bytes: &[u8], flush: Flush) -> Result<&'a Path, Error> {
    let failed = |source| Error::io("write", path, source);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(ErrorKind::InvalidInput.into()));
    };
    let beside = parent.join(format!(".{}.tmp", name.to_string_lossy()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&beside)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    if flush == Flush::Now {
        file.sync_all().map_err(failed)?;
    }
    std::fs::rename(&beside, path).map_err(failed)?;
    Ok(parent)
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::io("flush directory", path, source))
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
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
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
