use crate::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files of `/proc` and `/etc` are small; one that is larger than this is not what we think it is.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where the machine's files are read: `/`, or a directory with copies of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The machine itself.
    pub fn machine() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A directory that looks like the root of a machine.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    pub(crate) fn read(&self, absolute: &str) -> Result<String, Error> {
        let path = self.path(absolute);
        read_bounded(&path).map_err(|source| Error::Read { path, source })
    }

    /// The names in a directory; those that are not UTF-8 are nobody's here.
    pub(crate) fn names(&self, absolute: &str) -> Result<Vec<String>, Error> {
        let path = self.path(absolute);
        let failed = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Reads a small text file; bytes that are not UTF-8 become replacement characters.
pub(crate) fn read_bounded(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
