//! Records that are replaced as a whole; how a container ended is flushed, too.

use std::path::Path;

/// Replaces `path` so that after a power cut either the old or the new record is there, whole.
pub(crate) fn write<T: serde::Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    kedge_files::replace(path, &serde_json::to_vec(record)?)
}

/// Replaces `path` for as long as this boot lasts: whoever reads it finds the old or the new record, and a power cut may
/// leave it empty or torn.
pub(crate) fn write_for_boot<T: serde::Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    kedge_files::replace_for_boot(path, &serde_json::to_vec(record)?)
}
