//! Holding the namespaces of a node without root, for as long as it lives.
//!
//! ```text
//!   this process                       its parent
//!   a user namespace       --- done -->
//!                                      gives it its users
//!                          <-- order --
//!   the other namespaces,
//!   control groups         --- done -->
//!                                      connects the network, writes down who this is
//!                          <-- stay --
//! ```
//!
//! A parent that ends before the last word leaves nothing behind.

use super::users::become_root;
use super::{Failure, network, reply_bytes};
use crate::embedded::files::{BEHIND_STUB, only_loopback};
use crate::rootless::KINDS;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_bind, mount_change, move_mount, open_tree,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// An order names some control groups.
const ORDER_BYTES_MAX: u64 = 64 * 1024;
/// Where the node's own processes are in version 2, beside its pods.
pub(crate) const OWN_GROUP: &str = "kedge-node";
const PROCESSES: &str = "cgroup.procs";
/// What must be allowed for an ordinary user, and the value that forbids it.
const SETTINGS: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "sysctl -w user.max_user_namespaces=15000",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "an AppArmor profile for kedge with the rule `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// What is made besides the users.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Where control groups are mounted, and which group shall be seen there; `None`: users are all.
    pub(crate) mounts: Option<Vec<(PathBuf, PathBuf)>>,
    /// Processes in that group have to move to one below it.
    pub(crate) busy: bool,
    /// A network of its own.
    pub(crate) network: bool,
}

/// Is the process.
pub(super) fn run() -> ExitCode {
    let mut orders = BufReader::new(std::io::stdin().take(ORDER_BYTES_MAX));
    match make(&mut orders) {
        Ok(Word::Stay) => stay(),
        Ok(Word::Nobody) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody else is there to be told.
            drop(say(Err(failure)));
            ExitCode::FAILURE
        }
    }
}

/// What the parent has last said.
enum Word {
    Stay,
    /// It has ended, or does not need us any more.
    Nobody,
}

fn make(orders: &mut impl BufRead) -> Result<Word, Failure> {
    // What ends the parent from a terminal does not end the node.
    rustix::process::setsid().map_err(|errno| Failure::new("leave the terminal", errno))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(refusal)?;
    say(Ok(()))?;
    let Some(order) = line(orders)? else {
        return Ok(Word::Nobody);
    };
    let order: Order = serde_json::from_str(&order).map_err(|error| Failure::new("read the order", error))?;
    become_root()?;
    nix::unistd::setgroups(&[]).map_err(|errno| Failure::new("give up groups of the machine", errno))?;
    if let Some(mounts) = &order.mounts {
        make_namespaces(order.network)?;
        show_groups(mounts)?;
        if let Some((mount, _)) = mounts.first().filter(|_| order.busy) {
            leave_group(mount)?;
        }
    }
    say(Ok(()))?;
    Ok(line(orders)?.map_or(Word::Nobody, |_| Word::Stay))
}

/// The kernel does not say why.
fn refusal(errno: nix::errno::Errno) -> Failure {
    const ACT: &str = "make a user namespace";
    match forbidding() {
        Some((setting, remedy)) => Failure::new(ACT, format!("{errno}, because of {setting}; {remedy}")),
        None => Failure::new(ACT, errno),
    }
}

fn forbidding() -> Option<(&'static str, &'static str)> {
    let forbids = |(path, value, _): &&(&str, &str, &str)| {
        std::fs::read_to_string(path).is_ok_and(|found| found.trim() == *value)
    };
    SETTINGS
        .iter()
        .find(forbids)
        .map(|(path, _, remedy)| (*path, *remedy))
}

fn make_namespaces(network: bool) -> Result<(), Failure> {
    let mut kinds = KINDS;
    kinds.set(CloneFlags::CLONE_NEWNET, network);
    // Where only some users may use what they are in their own namespace, this is what is refused.
    unshare(kinds).map_err(refusal)?;
    // As a machine has it: what is unmounted goes from copies as well.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|errno| Failure::new("share the node's mounts", errno))?;
    if !network {
        return Ok(());
    }
    reach_resolvers()?;
    network::start_loopback()
}

/// A resolver on the machine's loopback is out of reach from another network; those behind it are asked instead.
fn reach_resolvers() -> Result<(), Failure> {
    const RESOLVERS: &str = "/etc/resolv.conf";
    let named = std::fs::read_to_string(RESOLVERS).unwrap_or_default();
    if !only_loopback(&named) || !Path::new(BEHIND_STUB).exists() {
        return Ok(());
    }
    mount_bind(BEHIND_STUB, RESOLVERS)
        .map_err(|errno| Failure::new("reach the resolvers of the machine", errno))
}

/// Shows each group at the place of its tree, as if it were the topmost.
fn show_groups(mounts: &[(PathBuf, PathBuf)]) -> Result<(), Failure> {
    let failed = |path: &Path, errno| Failure::new(&format!("show control group {}", path.display()), errno);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut trees: Vec<(&Path, OwnedFd)> = Vec::new();
    for (mount, group) in mounts.iter().filter(|(mount, group)| mount != group) {
        trees.push((
            mount,
            open_tree(CWD, group, flags).map_err(|errno| failed(group, errno))?,
        ));
    }
    for (mount, tree) in &trees {
        move_mount(tree, "", CWD, *mount, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| failed(mount, errno))?;
    }
    Ok(())
}

/// Moves every process of the group to one below it, this one and the parent among them.
fn leave_group(group: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("move to a control group of its own", error);
    let own = group.join(OWN_GROUP);
    match std::fs::create_dir(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listed = std::fs::read_to_string(group.join(PROCESSES)).map_err(failed)?;
    for pid in listed.lines() {
        match std::fs::write(own.join(PROCESSES), pid) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            moved => moved.map_err(failed)?,
        }
    }
    Ok(())
}

fn line(orders: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let read = orders
        .read_line(&mut line)
        .map_err(|error| Failure::new("read the order", error))?;
    Ok((read > 0).then_some(line))
}

fn say(outcome: Result<(), Failure>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(&reply_bytes(outcome))
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new("answer", error))
}

/// Until it is killed: its namespaces are all that is wanted of it.
fn stay() -> ExitCode {
    let let_go = || -> std::io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(())
    };
    if let_go().is_err() {
        return ExitCode::FAILURE;
    }
    // Its name tells people what it is.
    let _ = rustix::thread::set_name(c"kedge-node");
    loop {
        nix::unistd::pause();
    }
}
