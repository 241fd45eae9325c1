//! The machine this process runs on.
//!
//! **Duty.** Read the facts of the node: what it is ([`facts`]), how full it is ([`usage`]), how its control groups are
//! mounted ([`cgroups`]) and what they use ([`groups`]), how its CPUs belong together ([`processors`]), what its disks and networks carry ([`disks`], [`network`]), who
//! a process is ([`process`]), which users it knows ([`users`]), what this one uses ([`own`]) and need not keep ([`memory`]). And run other programs
//! ([`program`]): this is the only crate that does, with an argument vector, a deadline and bounded output, never through a
//! shell.
//!
//! **Inputs.** `/proc`, `/sys`, `/etc/machine-id`, `/etc/os-release`; a [`Root`] other than `/` reads a copy of them,
//! which is how tests hold machines they do not have.
//!
//! **Outputs.** Plain data and typed errors that name the file.
//!
//! Who has decided so may also mount and unmount ([`mounts`]) open paths that must not leave a directory
//! ([`beneath`]), and give files away ([`ownership`]).
//!
//! **Never.** It changes nothing on the machine by itself, and it keeps nothing between calls.

pub mod beneath;
pub mod cgroups;
pub mod clock;
pub mod disks;
mod error;
mod facts;
pub mod groups;
pub mod memory;
pub mod mounts;
pub mod network;
pub mod node;
pub mod own;
pub mod ownership;
mod parse;
pub mod process;
pub mod processors;
pub mod program;
mod root;
pub mod start;
mod usage;
pub mod users;
mod watch;

pub use error::Error;
pub use facts::{Facts, addresses, architecture, architecture_variant, boot_id, facts, facts_of, is_root};
pub use root::Root;
pub use usage::{DiskUsage, Usage, disk_usage, usage, usage_of};
pub use watch::{Changes, Watch};
