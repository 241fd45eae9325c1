//! The machine this process runs on.
//!
//! **Duty.** Read the facts of the node: what it is ([`facts`]), how full it is ([`usage`]), how its control groups are
//! mounted ([`cgroups`]), who a process is ([`process`]). And run other programs ([`program`]): this is the only crate
//! that does, with an argument vector, a deadline and bounded output, never through a shell.
//!
//! **Inputs.** `/proc`, `/sys`, `/etc/machine-id`, `/etc/os-release`; a [`Root`] other than `/` reads a copy of them,
//! which is how tests hold machines they do not have.
//!
//! **Outputs.** Plain data and typed errors that name the file.
//!
//! **Never.** It changes nothing on the machine by itself, and it keeps nothing between calls.

pub mod cgroups;
pub mod clock;
mod error;
mod facts;
pub mod mounts;
mod parse;
pub mod process;
pub mod program;
mod root;
mod usage;

pub use error::Error;
pub use facts::{Facts, architecture, boot_id, facts, facts_of, is_root};
pub use root::Root;
pub use usage::{DiskUsage, Usage, disk_usage, usage, usage_of};
