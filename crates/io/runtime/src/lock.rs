//! Locks between processes: advisory, on files of their own, let go by the kernel when their holder ends, however it
//! ends. Each taking opens the file anew, so they keep threads of one process apart as well.

use crate::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Pause between two tries: shorter than anything that is done under a lock takes.
const TRY_INTERVAL: Duration = Duration::from_millis(20);

const FILE_MODE: u32 = 0o600;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: File,
}

/// Whom a lock keeps out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sharing {
    /// Only those who want it for themselves.
    Shared,
    /// Everybody else.
    Exclusive,
}

impl FileLock {
    /// Takes the lock on a file, which is made when it is missing; `None` when others hold it for all of `wait_max`.
    /// Blocks the thread meanwhile.
    pub(crate) fn take(path: &Path, sharing: Sharing, wait_max: Duration) -> Result<Option<Self>, Error> {
        let failed = |source| Error::io("lock", path, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(FILE_MODE).open(path).map_err(failed)?;
        let began = Instant::now();
        loop {
            let tried = match sharing {
                Sharing::Shared => file.try_lock_shared(),
                Sharing::Exclusive => file.try_lock(),
            };
            match tried {
                Ok(()) => return Ok(Some(Self { file })),
                Err(TryLockError::WouldBlock) if began.elapsed() >= wait_max => return Ok(None),
                Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_INTERVAL),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

impl FileLock {
    /// Whether the file that is locked is still the one of this name: who removes one holds its lock, and others may have
    /// waited for it meanwhile.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        let place = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let held = self.file.metadata().map(place).ok();
        held.is_some() && held == std::fs::metadata(path).map(place).ok()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Said aloud, because closing is not enough: a process that is just being started has a copy of the descriptor
        // until it executes its program. Failing leaves what closing does.
        drop(self.file.unlock());
    }
}
