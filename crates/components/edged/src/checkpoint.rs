//! Files of a kubelet, byte for byte in what matters: a node can be converted, and back, with its pods running.
//!
//! A kubelet writes a number behind its data, which it computes over the way in which a Go program prints them for
//! people. Who uses this file knows that print; here is what all such files have in common.

use std::path::{Path, PathBuf};

/// The file of a node with some hundred devices has some ten kilobytes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{act} {path}")]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read {path}: {reason}")]
    NotUnderstood { path: PathBuf, reason: String },
}

/// Reads the file as `parse` understands it; `None` when there is none.
pub(crate) fn read<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Error> {
    let failed = |source| Error::Io {
        act: "read",
        path: path.to_owned(),
        source,
    };
    let not_understood = |reason| Error::NotUnderstood {
        path: path.to_owned(),
        reason,
    };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > BYTES_MAX => {
            return Err(not_understood(format!("it has more than {BYTES_MAX} bytes")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text).map(Some).map_err(not_understood)
}

/// Replaces the file, so that a power cut leaves the old or the new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    kedge_files::replace(path, text.as_bytes()).map_err(|source| Error::Io {
        act: "write",
        path: path.to_owned(),
        source,
    })
}

/// FNV-1a over the printed data.
pub(crate) fn checksum(printed: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    printed.bytes().fold(0x811c_9dc5, step)
}

/// Says that data do not belong to their number.
pub(crate) fn verify(told: u64, printed: &str) -> Result<(), String> {
    let expected = u64::from(checksum(printed));
    if told == expected {
        return Ok(());
    }
    Err(format!("its checksum is {told}, that of its content {expected}"))
}
