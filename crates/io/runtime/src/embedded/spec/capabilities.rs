//! Which capabilities a container has: what images expect, with what the pod adds and drops.

use kedge_containers::{Seccomp, Security};
use kedge_host::cgroups::Layout as Cgroups;
use serde_json::{Value, json};

use crate::helper::privileges::Privileges;

/// What Docker and containerd grant, which is what images expect.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All there are, in the order of their numbers.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container with this user has, where this process holds the capabilities `held` itself.
pub(super) fn privileges(security: &Security, uid: u32, cgroups: &Cgroups, held: u64) -> Privileges {
    let bounding: Vec<String> = wanted(security, cgroups)
        .into_iter()
        .filter(|name| is_held(name, held))
        .collect();
    Privileges {
        // Root has its capabilities; others may gain them only from a file that carries them. Nothing is inheritable or
        // ambient: a program that changes its user would keep what it should lose.
        held: if uid == 0 { bounding.clone() } else { Vec::new() },
        bounding,
        no_new_privileges: no_new_privileges(security),
        apparmor: None,
    }
}

pub(super) fn no_new_privileges(security: &Security) -> bool {
    !security.allow_privilege_escalation && !security.privileged
}

/// Whether this process has a capability itself. A node agent in a container lacks some, and so do its containers.
pub(super) fn is_held(name: &str, held: u64) -> bool {
    ALL.iter()
        .position(|known| *known == name)
        .is_some_and(|number| held & (1 << number) != 0)
}

/// Without the device filter, a container that may make device nodes could open the disk.
fn wanted(security: &Security, cgroups: &Cgroups) -> Vec<String> {
    if security.privileged {
        return ALL.map(str::to_owned).to_vec();
    }
    let long = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        }
    };
    let added: Vec<String> = security.add_capabilities.iter().map(long).collect();
    let dropped: Vec<String> = security.drop_capabilities.iter().map(long).collect();
    let everything = added.iter().any(|name| name == "CAP_ALL");
    let nothing = dropped.iter().any(|name| name == "CAP_ALL");
    let start: &[&str] = match (everything, nothing) {
        (true, _) => &ALL,
        (false, true) => &[],
        (false, false) => &DEFAULT,
    };
    let filtered = !matches!(cgroups, Cgroups::V2 { .. });
    let mut granted: Vec<String> = start
        .iter()
        .filter(|name| everything || filtered || **name != "CAP_MKNOD")
        .map(|name| (*name).to_owned())
        .filter(|name| !dropped.contains(name))
        .collect();
    let known = added.into_iter().filter(|name| ALL.contains(&name.as_str()));
    granted.extend(known);
    granted.sort();
    granted.dedup();
    granted
}

/// What libcontainer shall leave. Installing a filter of system calls needs a right unless new privileges are given up,
/// so it is kept until then; the container's first process drops it before it executes anything.
pub(super) fn left_by_libcontainer(privileges: &Privileges, seccomp: &Seccomp) -> Value {
    const FOR_FILTERS: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SETPCAP"];
    let needed = *seccomp != Seccomp::Unconfined && !privileges.no_new_privileges;
    let with = |names: &[String]| -> Vec<String> {
        let more = FOR_FILTERS
            .iter()
            .filter(|_| needed)
            .map(|name| (*name).to_owned());
        let mut all: Vec<String> = names.iter().cloned().chain(more).collect();
        all.sort();
        all.dedup();
        all
    };
    in_sets(&with(&privileges.bounding), &with(&privileges.held))
}

/// What another runtime shall grant: it installs the filter itself.
pub(super) fn granted_by_another(privileges: &Privileges) -> Value {
    in_sets(&privileges.bounding, &privileges.held)
}

fn in_sets(bounding: &[String], held: &[String]) -> Value {
    json!({ "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": [] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn granted_with(add: &[&str], drop: &[&str], cgroups: &Cgroups) -> Vec<String> {
        let security = Security {
            add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..Security::default()
        };
        wanted(&security, cgroups)
    }

    fn v1() -> Cgroups {
        Cgroups::V1 {
            mounts: BTreeMap::new(),
        }
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        assert_eq!(granted_with(&[], &[], &v1()).len(), DEFAULT.len());
        assert_eq!(
            granted_with(&["NET_BIND_SERVICE"], &["ALL"], &v1()),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(granted_with(&["ALL"], &["sys_boot"], &v1()).len(), ALL.len() - 1);
        assert!(granted_with(&["CAP_NO_SUCH"], &["ALL"], &v1()).is_empty());
    }

    #[test]
    fn without_a_device_filter_no_devices_are_made() {
        let v2 = Cgroups::V2 {
            mount: "/sys/fs/cgroup".into(),
            controllers: Default::default(),
        };
        assert!(!granted_with(&[], &[], &v2).contains(&"CAP_MKNOD".to_owned()));
        assert!(
            granted_with(&["MKNOD"], &[], &v2).contains(&"CAP_MKNOD".to_owned()),
            "asked for by name"
        );
    }

    #[test]
    fn what_is_not_held_is_not_granted() {
        const ALL_BUT_SYS_RESOURCE: u64 = 0x1ff_feff_ffff;
        let granted = ALL
            .iter()
            .filter(|name| is_held(name, ALL_BUT_SYS_RESOURCE))
            .count();
        assert_eq!(granted, ALL.len() - 1);
        assert!(
            !is_held("CAP_SYS_RESOURCE", ALL_BUT_SYS_RESOURCE)
                && is_held("CAP_SYS_NICE", ALL_BUT_SYS_RESOURCE)
        );
    }

    #[test]
    fn only_root_holds_what_it_may_have() {
        let of = |uid| privileges(&Security::default(), uid, &v1(), u64::MAX);
        assert_eq!(of(0).held.len(), DEFAULT.len());
        assert_eq!((of(1000).held.len(), of(1000).bounding.len()), (0, DEFAULT.len()));
        let sets = granted_by_another(&of(0));
        assert_eq!((&sets["ambient"], &sets["inheritable"]), (&json!([]), &json!([])));
    }
}
