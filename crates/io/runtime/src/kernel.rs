//! System calls that no library wraps, and what a kernel must have before containers can be made at all.

use crate::Error;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::path::Path;

/// A call that is needed, how one finds out whether it is there, and the first kernel that has it.
struct Needed {
    name: &'static str,
    number: libc::c_long,
    since: &'static str,
}

const NEEDED: [Needed; 5] = [
    Needed {
        name: "open_tree",
        number: libc::SYS_open_tree,
        since: "5.2",
    },
    Needed {
        name: "fsopen",
        number: libc::SYS_fsopen,
        since: "5.2",
    },
    Needed {
        name: "pidfd_open",
        number: libc::SYS_pidfd_open,
        since: "5.3",
    },
    Needed {
        name: "openat2",
        number: libc::SYS_openat2,
        since: "5.6",
    },
    Needed {
        name: "mount_setattr",
        number: libc::SYS_mount_setattr,
        since: "5.12",
    },
];

/// Says which call this kernel lacks. What is merely faster or finer with a newer kernel has its own way without it.
pub(crate) fn require_calls() -> Result<(), Error> {
    match NEEDED.iter().find(|needed| !is_there(needed.number)) {
        Some(missing) => {
            let reason = format!(
                "this kernel has no {} (Linux {}); use a newer kernel, or containerd as the node's runtime",
                missing.name, missing.since
            );
            Err(Error::failed("start", "the embedded runtime", reason))
        }
        None => Ok(()),
    }
}

/// Calls it with what no call accepts: only one that is not there says so.
fn is_there(number: libc::c_long) -> bool {
    const NONE: libc::c_long = -1;
    const NULL: libc::c_long = 0;
    // SAFETY: descriptors of -1 and null pointers are refused before anything is read, written or made.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(number, NONE, NULL, NONE, NULL, NULL) };
    answer >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// What an answer of a call means that gives 0 or an error.
pub(crate) fn outcome(answer: libc::c_long) -> std::io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Makes what is mounted at `path`, seen from `at`, read-only; with `AT_RECURSIVE` also what is mounted below it.
pub(crate) fn mount_read_only(at: impl AsFd, path: &Path, flags: libc::c_int) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_attributes(at, path, flags, &attributes)
}

/// Maps the owners of what is in a mount that is not attached yet: to the ids of `users`, a user namespace. With
/// `AT_RECURSIVE` also those of what is mounted below it.
pub(crate) fn map_owners(tree: impl AsFd, users: impl AsFd, flags: libc::c_int) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_fd().as_raw_fd()).map_err(std::io::Error::other)?,
    };
    set_attributes(tree, Path::new(""), flags | libc::AT_EMPTY_PATH, &attributes)
}

/// Whether the network that this process is in belongs to its own users, so that its root may change it. It does not
/// where a user namespace was made and no network.
pub(crate) fn owns_network() -> bool {
    /// Which user namespace a namespace belongs to; refused for one that is above the caller's.
    const OWNER: libc::Ioctl = 0xb701;
    let Ok(network) = std::fs::File::open("/proc/self/ns/net") else {
        return true;
    };
    // SAFETY: the request takes nothing and gives a new descriptor, which is ours from then on.
    #[allow(unsafe_code)]
    let owner = unsafe {
        let answer = libc::ioctl(network.as_raw_fd(), OWNER);
        (answer >= 0).then(|| std::os::fd::OwnedFd::from_raw_fd(answer))
    };
    // Where the question is not understood, nobody is refused anything.
    owner.is_some() || std::io::Error::last_os_error().raw_os_error() != Some(libc::EPERM)
}

fn set_attributes(
    at: impl AsFd,
    path: &Path,
    flags: libc::c_int,
    attributes: &libc::mount_attr,
) -> std::io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the kernel reads the path and the structure, whose size is told, during the call only.
    #[allow(unsafe_code)]
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    outcome(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a call not be there, in a thread of its own: filters are a thread's.
    fn without(number: libc::c_long) -> Result<(), String> {
        let profile = std::env::temp_dir().join(format!("kedge-kernel-{}-{number}", std::process::id()));
        let name = NEEDED.iter().find(|needed| needed.number == number).unwrap().name;
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {{"names": ["{name}"], "action": "SCMP_ACT_ERRNO", "errnoRet": {}}}]}}"#,
            libc::ENOSYS
        );
        std::fs::write(&profile, text).unwrap();
        let wanted = kedge_containers::Seccomp::Localhost(profile.clone());
        let filters = crate::seccomp::filters(&wanted, &[]).unwrap();
        std::fs::remove_file(profile).unwrap();
        let looked = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            filters.iter().for_each(|filter| filter.install().unwrap());
            require_calls().map_err(|error| error.to_string())
        });
        looked.join().unwrap()
    }

    #[test]
    fn an_old_kernel_is_named_with_what_it_lacks() {
        require_calls().unwrap();
        for needed in &NEEDED {
            assert_eq!(
                without(needed.number),
                Err(format!(
                    "start the embedded runtime: this kernel has no {} (Linux {}); use a newer kernel, or containerd as the node's runtime",
                    needed.name, needed.since
                ))
            );
        }
    }
}
