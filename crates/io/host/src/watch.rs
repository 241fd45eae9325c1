use crate::Error;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::path::{Path, PathBuf};
use tokio::net::unix::pipe;

/// One reading; what is in it does not matter, so a long queue of changes takes a few of them.
const READ_BYTES: usize = 4096;

/// What is to be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// Files appear, change, move or go, or the directory itself does.
    Any,
    /// Files are moved in: what writes beside and renames does nothing else that matters.
    MovedIn,
}

/// Notices that something happens in a directory: files appear, change, move or go.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// tokio's pipe end is nothing but a readable descriptor that it waits for, which is what inotify gives as well.
    changes: pipe::Receiver,
}

impl Watch {
    /// Begins to watch an existing directory, not what is below its directories. Must be called within a tokio runtime.
    pub fn open(path: &Path, changes: Changes) -> Result<Self, Error> {
        let failed = |source: std::io::Error| Error::Watch {
            path: path.to_owned(),
            source,
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let wanted = match changes {
            Changes::Any => {
                WatchFlags::CREATE
                    | WatchFlags::CLOSE_WRITE
                    | WatchFlags::MOVED_TO
                    | WatchFlags::MOVED_FROM
                    | WatchFlags::DELETE
                    | WatchFlags::DELETE_SELF
                    | WatchFlags::MOVE_SELF
            }
            Changes::MovedIn => WatchFlags::MOVED_TO,
        };
        inotify::add_watch(&inotify, path, wanted | WatchFlags::ONLYDIR)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            path: path.to_owned(),
            changes: pipe::Receiver::from_owned_fd_unchecked(inotify).map_err(failed)?,
        })
    }

    /// Waits for the next change. Changes that came while nobody waited are one change; an error says that the watch is
    /// of no use any more.
    pub async fn changed(&self) -> Result<(), Error> {
        let failed = |source| Error::Watch {
            path: self.path.clone(),
            source,
        };
        let mut buffer = [0_u8; READ_BYTES];
        loop {
            self.changes.readable().await.map_err(failed)?;
            match self.changes.try_read(&mut buffer) {
                Ok(_) => break,
                // Another who waits has read it.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed(error)),
            }
        }
        while self.changes.try_read(&mut buffer).is_ok_and(|count| count > 0) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn files_that_come_and_go_are_noticed() {
        let dir = std::env::temp_dir().join(format!("kedge-watch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let watch = Watch::open(&dir, Changes::Any).unwrap();
        let patience = Duration::from_secs(10);
        std::fs::write(dir.join("a"), "1").unwrap();
        tokio::time::timeout(patience, watch.changed())
            .await
            .unwrap()
            .unwrap();
        std::fs::remove_file(dir.join("a")).unwrap();
        tokio::time::timeout(patience, watch.changed())
            .await
            .unwrap()
            .unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert!(
            Watch::open(&dir, Changes::Any)
                .unwrap_err()
                .to_string()
                .contains("kedge-watch")
        );
    }
}
