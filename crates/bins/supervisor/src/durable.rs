//! Records that are replaced as a whole: written beside and renamed; how a container ended is flushed, too.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path` so that after a power cut either the old or the new record is there, whole.
pub(crate) fn write<T: serde::Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    replace(path, record, true)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Replaces `path` for as long as this boot lasts: whoever reads it finds the old or the new record, and a power cut may
/// leave it empty or torn. A flush takes as long as starting a container.
pub(crate) fn write_for_boot<T: serde::Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    replace(path, record, false)
}

fn replace<T: serde::Serialize>(path: &Path, record: &T, flush: bool) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let beside = parent.join(format!(".{}.tmp", name.to_string_lossy()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(&bytes)?;
    if flush {
        file.sync_data()?;
    }
    std::fs::rename(&beside, path)
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
