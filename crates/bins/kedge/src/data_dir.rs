//! The folder that everything is kept in, and who holds it.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Paths below the data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
}

/// What a running `kedge up` writes down for `status` and `down`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) pid: u32,
    pub(crate) api_url: String,
    pub(crate) node_name: String,
    pub(crate) hollow: bool,
}

/// Held for as long as `kedge up` runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
}

/// A run record is a few hundred bytes.
const RUN_BYTES_MAX: u64 = 64 * 1024;

impl DataDir {
    /// Makes the folder, readable by its owner only.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(root).with_context(|| {
            format!(
                "cannot make the data directory {}; name another one with --data-dir",
                root.display()
            )
        })?;
        let root = root
            .canonicalize()
            .with_context(|| format!("data directory {}", root.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        self.root.join("kedge.log")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub(crate) fn api(&self) -> PathBuf {
        self.root.join("api")
    }

    pub(crate) fn edge(&self) -> PathBuf {
        self.root.join("edge")
    }

    /// Root of the built-in container runtime.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.root.join("runtime")
    }

    /// Where an ordinary user's node is written down. An EdgeCore on the same runtime finds it there, too.
    pub(crate) fn node(&self) -> PathBuf {
        self.runtime().join(kedge_edgecore::runtime::NODE)
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("kedge.lock")
    }

    /// Takes the folder for this process.
    pub(crate) fn hold(&self) -> Result<Held> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Held { file }),
            Err(TryLockError::WouldBlock) => match self.run()? {
                Some(run) => bail!(
                    "kedge already runs on {} (process {}); stop it with `kedge down --data-dir {}` or name another \
                     --data-dir",
                    self.root.display(),
                    run.pid,
                    self.root.display()
                ),
                None => bail!(
                    "another kedge is using {}; name another --data-dir",
                    self.root.display()
                ),
            },
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The record of the process that holds the folder now; `None` when nobody does.
    pub(crate) fn run(&self) -> Result<Option<Run>> {
        let path = self.lock_file();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        match file.try_lock() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                (&file).take(RUN_BYTES_MAX).read_to_string(&mut text)?;
                Ok(serde_json::from_str(&text).ok())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }
}

impl Held {
    /// Writes down who holds the folder.
    pub(crate) fn record(&mut self, run: &Run) -> Result<()> {
        let text = serde_json::to_string(run)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file
            .write_all(text.as_bytes())
            .context("write the run record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kedge-data-dir-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let path = folder("held");
        let dir = DataDir::open(&path).unwrap();
        assert!(dir.run().unwrap().is_none());
        let mut held = dir.hold().unwrap();
        held.record(&Run {
            pid: 4711,
            api_url: "https://x".into(),
            node_name: "n".into(),
            hollow: true,
        })
        .unwrap();
        let refusal = dir.hold().unwrap_err().to_string();
        assert!(
            refusal.contains("process 4711") && refusal.contains("kedge down"),
            "{refusal}"
        );
        assert_eq!(dir.run().unwrap().unwrap().node_name, "n");
        drop(held);
        assert!(dir.run().unwrap().is_none());
        fs::remove_dir_all(path).unwrap();
    }
}
