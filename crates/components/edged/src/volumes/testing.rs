//! What the tests of volumes share.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own that goes with the value, and with it what is still mounted below.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-volumes-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }
}

impl Deref for TempDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = kedge_host::mounts::detach_below(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether mounting can be tried; says so when not.
pub(crate) fn can_mount() -> bool {
    if !kedge_host::is_root() {
        eprintln!("not root: what needs mounts is not tested");
    }
    kedge_host::is_root()
}
