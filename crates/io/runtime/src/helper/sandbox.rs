//! Making and removing the namespaces of a sandbox. They are held by bind mounts, not by a process.

use super::{Failure, network};
use crate::durable;
use crate::embedded::records::SandboxOrder;
use kedge_host::process::Identity;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::fs::File;
use std::path::Path;

/// As much as runtimes commonly give; a pod that needs more mounts a volume in memory.
const SHARED_MEMORY_OPTIONS: &std::ffi::CStr = c"mode=1777,size=65536k";

/// Makes what the order names, and undoes it when a part fails.
pub(super) fn up(order: &SandboxOrder) -> Result<(), Failure> {
    make(order).inspect_err(|_| drop(down(order)))
}

/// Removes what the order names; what is not there is no error.
pub(super) fn down(order: &SandboxOrder) -> Result<(), Failure> {
    if let Some(network) = &order.network {
        network::detach(&network.veth)?;
    }
    if let Some(pin) = &order.pid_pin {
        end_holder(pin)?;
    }
    if let Some(shared) = &order.shared_memory {
        release(shared)?;
        remove(std::fs::remove_dir(shared))?;
    }
    [&order.network_pin, &order.ipc_pin, &order.pid_pin]
        .into_iter()
        .flatten()
        .try_for_each(|pin| unpin(pin))
}

fn make(order: &SandboxOrder) -> Result<(), Failure> {
    if let Some(shared) = &order.shared_memory {
        share_memory(shared)?;
    }
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
        // Plug-ins make the rest.
        return network::start_loopback();
    };
    // Sockets belong to the namespace they are opened in, so one thread can speak to both.
    let enter = |namespace: &File| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Failure::new("change the network namespace", error))
    };
    network::attach(network, &of_pod, || enter(&of_node), || enter(&of_pod))
}

/// Ends the first process of the pod's processes, which the supervisor started, and with it everything in its namespace.
fn end_holder(pin: &Path) -> Result<(), Failure> {
    let failed = |error: kedge_host::Error| Failure::new("end the pod's processes", error);
    let record = pin.with_extension("json");
    // A record that a power cut has torn tells of a process that the same cut has ended.
    let identity: Option<Identity> = durable::read_record(&record).unwrap_or_default();
    if let Some(handle) = identity
        .map_or(Ok(None), |identity| identity.open())
        .map_err(failed)?
    {
        handle.signal(rustix::process::Signal::KILL).map_err(failed)?;
    }
    Ok(durable::remove_file(&record)?)
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

/// The memory that the pod's containers share: what they leave there goes with the sandbox.
fn share_memory(at: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("mount the pod's shared memory", error);
    std::fs::create_dir(at).map_err(failed)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", at, "tmpfs", flags, Some(SHARED_MEMORY_OPTIONS)).map_err(|errno| failed(errno.into()))
}

fn unpin(pin: &Path) -> Result<(), Failure> {
    release(pin)?;
    remove(std::fs::remove_file(pin))
}

fn release(mounted: &Path) -> Result<(), Failure> {
    match unmount(mounted, UnmountFlags::DETACH) {
        // Not mounted (any more, or since the last boot), or not even there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::new("release a namespace", errno)),
    }
}

fn remove(removed: std::io::Result<()>) -> Result<(), Failure> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new("release a namespace", error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
