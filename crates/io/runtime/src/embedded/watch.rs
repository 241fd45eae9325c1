use crate::Error;
use rustix::fs::inotify;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Notices that a supervisor wrote a state.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: AsyncFd<OwnedFd>,
}

impl Watch {
    pub(super) fn open(states: &Path) -> Result<Self, Error> {
        let failed = |source| Error::io("watch", states, source);
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        // States are written beside and renamed, so nothing else happens in the directory that matters.
        inotify::add_watch(&fd, states, inotify::WatchFlags::MOVED_TO)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            inotify: readable(fd).map_err(failed)?,
        })
    }

    /// Waits for a state to be written; several states written meanwhile are one change.
    pub(super) async fn changed(&self) {
        loop {
            // The descriptor stays registered as long as the runtime lives; without it there is nothing to wait for.
            let Ok(mut ready) = self.inotify.readable().await else {
                return std::future::pending().await;
            };
            let mut buffer = [0_u8; 4096];
            let mut seen = false;
            while rustix::io::read(self.inotify.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {
                seen = true;
            }
            ready.clear_ready();
            if seen {
                return;
            }
        }
    }
}

/// Lets tokio wait until a descriptor can be read. Must be called within a tokio runtime.
pub(super) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, stays open and stays the same until it is dropped, and it is owned by the
    // AsyncFd from here on.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}
