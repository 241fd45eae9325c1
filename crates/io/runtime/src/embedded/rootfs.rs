//! How container root file systems are made on this node.

use super::handlers;
use super::launch::Launcher;
use super::layout::Layout;
use crate::{Error, durable};
use std::path::PathBuf;

/// The program that stacks layers where the kernel does not.
const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// How container root file systems shall be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootfsChoice {
    /// Overlay where the kernel lets us, elsewhere the same by `fuse-overlayfs` if that is installed, and copies where
    /// nothing else is left.
    Automatic,
    /// By `fuse-overlayfs`; where that cannot be, the runtime does not start.
    Fuse,
    Copy,
}

/// How container root file systems are made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RootfsMode {
    /// Layers are stacked; containers of one image share them.
    Overlay,
    /// The same, by this program: each container has one of its own, and each access to a file asks it.
    Fuse(PathBuf),
    /// Layers are copied for each container: slower, and it takes the disk space again.
    Copy,
}

/// Tries what may not be there on the very file system the containers will be on, because some refuse to be an upper
/// layer.
pub(super) fn choose(
    choice: RootfsChoice,
    launcher: &Launcher,
    layout: &Layout,
) -> Result<RootfsMode, Error> {
    match choice {
        RootfsChoice::Copy => Ok(RootfsMode::Copy),
        RootfsChoice::Fuse => probe_fuse(launcher, layout),
        RootfsChoice::Automatic => Ok(best(launcher, layout)),
    }
}

fn best(launcher: &Launcher, layout: &Layout) -> RootfsMode {
    let refused = match probe_overlay(launcher, layout) {
        Ok(()) => return RootfsMode::Overlay,
        Err(error) => error,
    };
    match probe_fuse(launcher, layout) {
        Ok(mode) => {
            tracing::warn!(error = %refused, "overlayfs cannot be used; fuse-overlayfs serves container root file systems");
            mode
        }
        Err(error) => {
            tracing::warn!(
                error = %refused, fuse = %error,
                "neither overlayfs nor fuse-overlayfs can be used; container root file systems are copied"
            );
            RootfsMode::Copy
        }
    }
}

fn probe_overlay(launcher: &Launcher, layout: &Layout) -> Result<(), Error> {
    let probe = layout.probe();
    let outcome = launcher.probe_overlay(&probe);
    drop(durable::remove_directory(&probe));
    outcome
}

fn probe_fuse(launcher: &Launcher, layout: &Layout) -> Result<RootfsMode, Error> {
    let program = handlers::installed(FUSE_OVERLAYFS).ok_or_else(|| {
        let reason = format!(
            "it is not installed (package fuse-overlayfs): it is looked for in {} when the node agent starts",
            handlers::DIRECTORIES.join(", ")
        );
        Error::failed("make root file systems with", FUSE_OVERLAYFS, reason)
    })?;
    let probe = layout.fuse_probe();
    let outcome = launcher.probe_fuse(&probe, &program);
    drop(durable::remove_directory(&probe));
    outcome.map(|()| RootfsMode::Fuse(program))
}
