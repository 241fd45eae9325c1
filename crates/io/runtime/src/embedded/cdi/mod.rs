//! Devices by name: the Container Device Interface (CDI).
//!
//! **Duty.** Whoever installs a device says in a file of the node what a container needs for it: nodes, libraries,
//! variables, programs that prepare the container. A container asks by name; here the name becomes what was said.
//!
//! **Inputs.** The names in a container's configuration and in its annotations; the files of the directories that the
//! operator names, read when a container needs one. **Outputs.** The [`Part`]s that its devices add to it.
//!
//! **Never.** It changes no container: that is `spec`'s. It keeps nothing and watches nothing.
//!
//! ```text
//!   names      vendor.com/class=device, and annotations that name devices
//!   document   one file: what it may say, and in which version of the format
//!   registry   the directories: which file describes a device, and what is wrong with the others
//! ```

mod document;
mod names;
mod registry;

pub(super) use document::{DeviceNode, Hook, Mount, NO_RIGHTS, Stage};
pub(super) use names::wanted;
pub(super) use registry::{Part, Registry};

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Whether somebody else than root, or whoever this process is, can have written a file: what it says is done with all
/// rights.
pub(super) fn others_may_write(meta: &Metadata) -> bool {
    const WRITTEN_BY_OTHERS: u32 = 0o022;
    let ours = [0, rustix::process::geteuid().as_raw()];
    !ours.contains(&meta.uid()) || meta.mode() & WRITTEN_BY_OTHERS != 0
}
