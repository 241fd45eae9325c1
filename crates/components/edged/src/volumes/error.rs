//! Why a volume could not be made or removed.

use crate::csi;
use std::path::{Path, PathBuf};

/// The sentences end up in the pod's events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What the pod asks for cannot be had.
    #[error("{0}")]
    Unfit(String),
    #[error("{act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Host(#[from] kedge_host::Error),
    #[error(transparent)]
    Csi(#[from] csi::Error),
    /// This process ends.
    #[error("the work was stopped")]
    Stopped,
}

impl Error {
    /// For `map_err`.
    pub(crate) fn file(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File {
            act,
            path: path.to_owned(),
            source,
        }
    }

    /// The error and its causes on one line.
    pub(crate) fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Runs what touches the disk where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Stopped))
}
