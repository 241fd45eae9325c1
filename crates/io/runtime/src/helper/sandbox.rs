//! Making and removing the namespaces of a sandbox. They are held by bind mounts, not by a process.

use super::room::Owner;
use super::users::Made;
use super::{Failure, network};
use crate::durable;
use crate::embedded::records::SandboxOrder;
use kedge_containers::UserNamespace;
use kedge_host::process::Identity;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

/// As much as runtimes commonly give; a pod that needs more mounts a volume in memory.
const SHARED_MEMORY_OPTIONS: &str = "mode=1777,size=65536k";

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
    [
        &order.network_pin,
        &order.ipc_pin,
        &order.pid_pin,
        &order.user_pin,
    ]
    .into_iter()
    .flatten()
    .try_for_each(|pin| unpin(pin))
}

fn make(order: &SandboxOrder) -> Result<(), Failure> {
    if let Some(shared) = &order.shared_memory {
        share_memory(shared, order.users.as_ref())?;
    }
    if let (Some(users), Some(pin)) = (&order.users, &order.user_pin) {
        return make_with_users(order, users, pin);
    }
    if let Some(pin) = &order.ipc_pin {
        unshare(CloneFlags::CLONE_NEWIPC).map_err(|error| Failure::new("make an IPC namespace", error))?;
        hold(&own("ipc"), pin)?;
    }
    let Some(pin) = &order.network_pin else {
        return Ok(());
    };
    let of_node = open_namespace(&own("net"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Failure::new("make a network namespace", error))?;
    hold(&own("net"), pin)?;
    let of_pod = open_namespace(&own("net"))?;
    connect(order, &of_node, &of_pod)
}

/// The pod's namespaces belong to its own users, so that its root may do in them what root does.
fn make_with_users(order: &SandboxOrder, users: &UserNamespace, pin: &Path) -> Result<(), Failure> {
    let made = Made::make(users, CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWNET)?;
    hold(&made.path("user"), pin)?;
    if let Some(pin) = &order.ipc_pin {
        hold(&made.path("ipc"), pin)?;
    }
    let Some(pin) = &order.network_pin else {
        return Ok(());
    };
    hold(&made.path("net"), pin)?;
    connect(
        order,
        &open_namespace(&own("net"))?,
        &open_namespace(&made.path("net"))?,
    )
}

/// Makes what is in the pod's network.
fn connect(order: &SandboxOrder, of_node: &File, of_pod: &File) -> Result<(), Failure> {
    // Sockets belong to the namespace they are opened in, so one thread can speak to both.
    let enter = |namespace: &File| {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| Failure::new("change the network namespace", error))
    };
    let Some(network) = &order.network else {
        // Plug-ins make the rest.
        enter(of_pod)?;
        return network::start_loopback();
    };
    network::attach(network, of_pod, || enter(of_node), || enter(of_pod))
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

/// This process's own.
fn own(kind: &str) -> PathBuf {
    Path::new("/proc/self/ns").join(kind)
}

fn open_namespace(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::new("open a namespace", error))
}

/// Keeps a namespace alive at a path.
fn hold(namespace: &Path, pin: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("hold a namespace", error);
    File::create(pin).map_err(failed)?;
    mount_bind(namespace, pin).map_err(|errno| failed(errno.into()))
}

/// The memory that the pod's containers share: what they leave there goes with the sandbox.
fn share_memory(at: &Path, users: Option<&UserNamespace>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new("mount the pod's shared memory", error);
    std::fs::create_dir(at).map_err(failed)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut options = SHARED_MEMORY_OPTIONS.to_owned();
    if let Some(owner) = users.map(Owner::root_of) {
        options.push_str(&format!(",uid={},gid={}", owner.uid, owner.gid));
    }
    let options = CString::new(options).map_err(|error| failed(error.into()))?;
    mount("shm", at, "tmpfs", flags, Some(options.as_c_str())).map_err(|errno| failed(errno.into()))
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
