//! Making and removing the namespaces of a sandbox. They are held by bind mounts, not by a process.

use super::{Failure, network};
use crate::embedded::records::SandboxOrder;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use std::fs::File;
use std::path::Path;

/// Makes what the order names, and undoes it when a part fails.
pub(super) fn up(order: &SandboxOrder) -> Result<(), Failure> {
    make(order).inspect_err(|_| drop(down(order)))
}

/// Removes what the order names; what is not there is no error.
pub(super) fn down(order: &SandboxOrder) -> Result<(), Failure> {
    if let Some(network) = &order.network {
        network::detach(&network.veth)?;
    }
    [&order.network_pin, &order.ipc_pin]
        .into_iter()
        .flatten()
        .try_for_each(|pin| unpin(pin))
}

fn make(order: &SandboxOrder) -> Result<(), Failure> {
    if let Some(pin) = &order.ipc_pin {
        unshare(CloneFlags::CLONE_NEWIPC).map_err(|error| Failure::new("make an IPC namespace", error))?;
        hold("ipc", pin)?;
    }
    let Some(pin) = &order.network_pin else {
        return Ok(());
    };
    let of_node = open_namespace("net")?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Failure::new("make a network namespace", error))?;
    hold("net", pin)?;
    let of_pod = open_namespace("net")?;
    let Some(network) = &order.network else {
        return Ok(());
    };
    // Sockets belong to the namespace they are opened in, so one thread can speak to both.
    let enter = |namespace: &File| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Failure::new("change the network namespace", error))
    };
    network::attach(network, &of_pod, || enter(&of_node), || enter(&of_pod))
}

fn open_namespace(kind: &str) -> Result<File, Failure> {
    File::open(format!("/proc/self/ns/{kind}")).map_err(|error| Failure::new("open a namespace", error))
}

/// Keeps this process's namespace alive at a path.
fn hold(kind: &str, pin: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("hold a namespace", error);
    File::create(pin).map_err(failed)?;
    mount_bind(format!("/proc/self/ns/{kind}").as_str(), pin).map_err(|errno| failed(errno.into()))
}

fn unpin(pin: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("release a namespace", error);
    match unmount(pin, UnmountFlags::DETACH) {
        // Not mounted (any more, or since the last boot), or not even there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
