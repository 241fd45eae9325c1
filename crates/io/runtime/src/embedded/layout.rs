use crate::{Error, durable};
use std::path::{Path, PathBuf};

/// Where things are below the root directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directories that are missing. The root is made absolute: helpers run with another working directory.
    pub(super) fn make(root: PathBuf) -> Result<Self, Error> {
        durable::make_directory(&root)?;
        let root = root
            .canonicalize()
            .map_err(|source| Error::io("find", &root, source))?;
        let layout = Self { root };
        for directory in [
            layout.sandboxes(),
            layout.containers(),
            layout.states(),
            layout.images(),
        ] {
            durable::make_directory(&directory)?;
        }
        Ok(layout)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Locked by the runtime that has the directory open.
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("runtime.lock")
    }

    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Images that are on their way.
    pub(super) fn pulls(&self) -> PathBuf {
        self.root.join("pulls")
    }

    pub(super) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(super) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(super) fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    pub(super) fn states(&self) -> PathBuf {
        self.root.join("states")
    }

    pub(super) fn state(&self, id: &str) -> PathBuf {
        self.states().join(format!("{id}.json"))
    }

    pub(super) fn probe(&self) -> PathBuf {
        self.root.join(".overlay-probe")
    }

    pub(super) fn fuse_probe(&self) -> PathBuf {
        self.root.join(".fuse-probe")
    }

    pub(super) fn users_probe(&self) -> PathBuf {
        self.root.join(".users-probe")
    }
}
