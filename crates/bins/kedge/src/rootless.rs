//! Running as an ordinary user: the process becomes root of a node of its own before anything else happens.

use crate::cli::{Command, Up};
use crate::data_dir::DataDir;
use crate::preflight;
use anyhow::{Context, Result};
use kedge_runtime::rootless::{self, Need, Node};

/// Moves this process to the node of an ordinary user, if the command needs that.
pub(crate) fn enter(dir: &DataDir, command: &Command) -> Result<Option<Node>> {
    let directory = dir.node();
    let need = match command {
        _ if !rootless::is_needed() => return Ok(None),
        Command::Status | Command::Up(Up { hollow: true, .. }) => return Ok(None),
        // Without a node there are no containers to end.
        Command::Down if !rootless::is_there(&directory) => return Ok(None),
        Command::Image(_) => Need::Users,
        Command::Down => Need::Ending,
        Command::Up(_) => Need::Everything,
    };
    if let Command::Up(up) = command
        && !rootless::lives(&directory)
    {
        // The node may have a network of its own, in which every port is free.
        preflight::require_ports(up)?;
    }
    let node = rootless::enter(&directory, need).context(
        "real containers need root, or what an ordinary user needs for them; --hollow runs everything but real \
         containers",
    )?;
    Ok(Some(node))
}
