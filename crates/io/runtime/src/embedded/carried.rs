//! Programs that are carried in this library: packed there, written to where they can be executed.

use crate::{Error, durable};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const HASH_HEX: usize = 16;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    /// What it is called where something goes wrong.
    pub(super) name: &'static str,
    pub(super) packed: &'static [u8],
    /// Its file is named after what is in it; this stands before.
    pub(super) file_prefix: &'static str,
    /// Nobody may change it.
    pub(super) file_mode: u32,
}

impl Carried {
    /// Writes the program below `root`, unless it is there: whole, and what it shall be. Programs of earlier versions go;
    /// processes that run them do not mind.
    pub(super) fn write(&self, root: &Path) -> Result<PathBuf, Error> {
        let path = self.written(root)?;
        for name in durable::names(root)? {
            if name.starts_with(self.file_prefix) && path.file_name().is_none_or(|own| own != name.as_str()) {
                durable::remove_file(&root.join(name))?;
            }
        }
        Ok(path)
    }

    fn written(&self, root: &Path) -> Result<PathBuf, Error> {
        let mut program = Vec::new();
        GzDecoder::new(self.packed)
            .read_to_end(&mut program)
            .map_err(|error| Error::failed("unpack", self.name, error))?;
        let digest = Sha256::digest(&program);
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = root.join(format!("{}{}", self.file_prefix, &hash[..HASH_HEX]));
        let mode = |path: &Path| std::fs::metadata(path).map(|found| found.permissions().mode() & 0o7777);
        if std::fs::read(&path).is_ok_and(|found| found == program)
            && mode(&path).is_ok_and(|mode| mode == self.file_mode)
        {
            return Ok(path);
        }
        let failed = |source| Error::io("write the program", &path, source);
        let beside = root.join(format!(".{}tmp", self.file_prefix));
        durable::remove_file(&beside)?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.file_mode)
            .open(&beside)
            .map_err(failed)?;
        file.write_all(&program)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        // A program that is open for writing cannot be executed.
        drop(file);
        std::fs::rename(&beside, &path).map_err(failed)?;
        durable::sync_directory(root)?;
        Ok(path)
    }
}
