//! Giving up rights, in the order in which the kernel lets one do it.

use super::Failure;
use crate::seccomp::Filter;
use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a process of a container may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Privileges {
    /// What it and its children can have at most.
    pub(crate) bounding: Vec<String>,
    /// What it has.
    pub(crate) held: Vec<String>,
    pub(crate) no_new_privileges: bool,
    /// The AppArmor profile of what it executes.
    #[serde(default)]
    pub(crate) apparmor: Option<String>,
}

impl Privileges {
    /// Becomes another user with these rights, and installs the filters of system calls.
    pub(super) fn take_as(
        &self,
        user: u32,
        group: u32,
        groups: &[u32],
        filters: &[Filter],
    ) -> Result<(), Failure> {
        let failed = |act: &'static str| move |errno: nix::errno::Errno| Failure::new(act, errno);
        self.choose_profile()?;
        self.drop_bounding()?;
        caps::securebits::set_keepcaps(true).map_err(|error| Failure::new("keep capabilities", error))?;
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&groups).map_err(failed("set groups"))?;
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        nix::unistd::setresgid(group, group, group).map_err(failed("set group"))?;
        nix::unistd::setresuid(user, user, user).map_err(failed("set user"))?;
        caps::securebits::set_keepcaps(false).map_err(|error| Failure::new("keep capabilities", error))?;
        self.confine(filters)
    }

    /// Installs the filters and gives up what is not to be held. Without `no_new_privileges` installing a filter needs a
    /// right, so it comes first.
    pub(super) fn confine(&self, filters: &[Filter]) -> Result<(), Failure> {
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|errno| Failure::new("give up new privileges", errno))?;
        } else if !filters.is_empty() {
            caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)
                .map_err(|error| Failure::new("install a filter of system calls", error))?;
        }
        for filter in filters {
            filter
                .install()
                .map_err(|error| Failure::new("install a filter of system calls", error))?;
        }
        self.drop_held()
    }

    /// Has the next program that is executed confined. A container's first process has this done by who made it.
    fn choose_profile(&self) -> Result<(), Failure> {
        const CURRENT: &str = "/proc/self/attr/apparmor/exec";
        /// Where kernels before 5.1 have it.
        const OLDER: &str = "/proc/self/attr/exec";
        let Some(profile) = &self.apparmor else {
            return Ok(());
        };
        let file = if std::path::Path::new(CURRENT).exists() {
            CURRENT
        } else {
            OLDER
        };
        std::fs::write(file, format!("exec {profile}"))
            .map_err(|error| Failure::new(&format!("take AppArmor profile {profile}"), error))
    }

    pub(super) fn drop_bounding(&self) -> Result<(), Failure> {
        let keep = named(&self.bounding);
        for capability in caps::runtime::thread_all_supported() {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .map_err(|error| Failure::new("give up capabilities", error))?;
            }
        }
        Ok(())
    }

    fn drop_held(&self) -> Result<(), Failure> {
        let held = named(&self.held);
        let none = CapsHashSet::new();
        for (set, value) in [
            (CapSet::Effective, &held),
            (CapSet::Permitted, &held),
            (CapSet::Inheritable, &none),
        ] {
            caps::set(None, set, value).map_err(|error| Failure::new("give up capabilities", error))?;
        }
        Ok(())
    }
}

/// Keys that the node agent's session holds are none of a container's business, and those of containers are none of each
/// other's.
pub(super) fn own_keyring() {
    const NEW_NAMELESS: libc::c_long = 0;
    // SAFETY: joining takes a name, and a null pointer is a new keyring without one.
    #[allow(unsafe_code)]
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, NEW_NAMELESS) };
    let error = std::io::Error::last_os_error();
    // A kernel without keys has none to keep apart.
    if joined < 0 && error.raw_os_error() != Some(libc::ENOSYS) {
        eprintln!("the session's keys are shared: {error}");
    }
}

/// Names that this kernel's library does not know were not granted in the first place.
fn named(names: &[String]) -> CapsHashSet {
    names
        .iter()
        .filter_map(|name| Capability::from_str(name).ok())
        .collect()
}
