//! The control groups that were handed over to this user. Limits that nobody keeps would be a lie, so a node has them or
//! is not started.

use super::failed;
use crate::Error;
use crate::helper::node::OWN_GROUP;
use kedge_host::cgroups::{Layout, REQUIRED, group_in};
use rustix::fs::{Access, CWD};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How people get one.
const ADVICE: &str = "start it in a group that systemd hands over: systemd-run --user --scope --property=Delegate=yes \
                      kedge ..., or as a service of systemd --user with Delegate=yes";
/// How they get more in it.
const MORE: &str = "let root write `[Service]` and `Delegate=cpu cpuset io memory pids` to \
                    /etc/systemd/system/user@.service.d/delegate.conf, and log in anew";

/// What the node takes for the whole of the control groups.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delegated {
    /// Where each tree is mounted, and which group shall be seen there.
    pub(super) mounts: Vec<(PathBuf, PathBuf)>,
    /// In version 2 no process is in a group that hands controllers down: this one's processes have to move.
    pub(super) busy: bool,
}

impl Delegated {
    /// Finds the group of this process in every tree, and whether it is this user's.
    pub(super) fn find() -> Result<Self, Error> {
        let layout = kedge_host::cgroups::layout().map_err(failed)?;
        let own = std::fs::read_to_string("/proc/self/cgroup").map_err(failed)?;
        let found = Self::of(&layout, &own)?;
        for (_, group) in &found.mounts {
            require_ours(group, found.busy)?;
        }
        if found.busy {
            let group = found
                .mounts
                .first()
                .map(|(_, group)| group.join("cgroup.controllers"));
            let listed = group.map(std::fs::read_to_string).transpose().map_err(failed)?;
            require_controllers(listed.as_deref().unwrap_or_default())?;
        }
        Ok(found)
    }

    /// Where the node's own processes shall be.
    pub(super) fn own(&self) -> Option<PathBuf> {
        let group = self.mounts.first().filter(|_| self.busy);
        group.map(|(_, group)| group.join(OWN_GROUP))
    }

    /// `own` is what the kernel says of this process.
    fn of(layout: &Layout, own: &str) -> Result<Self, Error> {
        let trees: BTreeSet<(&Path, &str)> = match layout {
            Layout::V2 { mount, .. } => [(mount.as_path(), "")].into(),
            Layout::V1 { mounts } => named(mounts).collect(),
            Layout::Hybrid { mounts, unified } => named(mounts).chain([(unified.as_path(), "")]).collect(),
        };
        let mut mounts: Vec<(PathBuf, PathBuf)> = Vec::new();
        for (mount, controller) in trees {
            if mounts.iter().any(|(known, _)| known == mount) {
                continue;
            }
            let group = group_in(own, controller).ok_or_else(|| {
                failed(format!(
                    "the kernel does not say which group of {} this process is in",
                    mount.display()
                ))
            })?;
            // A service that is started anew while its pods run is put there by systemd.
            let group = match group.parent() {
                Some(above) if controller.is_empty() && group.ends_with(OWN_GROUP) => above.to_owned(),
                Some(_) | None => group,
            };
            mounts.push((mount.to_owned(), mount.join(group)));
        }
        Ok(Self {
            mounts,
            busy: matches!(layout, Layout::V2 { .. }),
        })
    }
}

fn named(mounts: &std::collections::BTreeMap<String, PathBuf>) -> impl Iterator<Item = (&Path, &str)> {
    mounts
        .iter()
        .map(|(name, mount)| (mount.as_path(), name.as_str()))
}

/// Moves this process to the group of the node's own processes, as seen from the machine.
pub(super) fn join(group: &Path) -> Result<(), Error> {
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()).map_err(|error| {
        failed(format!("move to its control group {}: {error}; start kedge as the user that started it first, in a session of systemd", group.display()))
    })
}

fn require_ours(group: &Path, unified: bool) -> Result<(), Error> {
    let files: &[&str] = if unified {
        &["cgroup.procs", "cgroup.subtree_control"]
    } else {
        &[]
    };
    let paths = [group.to_owned()]
        .into_iter()
        .chain(files.iter().map(|file| group.join(file)));
    for path in paths {
        if let Err(errno) = rustix::fs::accessat(CWD, &path, Access::WRITE_OK, rustix::fs::AtFlags::empty()) {
            return Err(failed(format!(
                "control group {} is not this user's ({errno}), so no limit of a pod would be kept; {ADVICE}",
                path.display()
            )));
        }
    }
    Ok(())
}

fn require_controllers(listed: &str) -> Result<(), Error> {
    let missing = REQUIRED
        .iter()
        .find(|name| !listed.split_whitespace().any(|found| found == **name));
    missing.map_or(Ok(()), |name| {
        Err(failed(format!(
            "the control group of this user has no {name} controller; {MORE}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn told(layout: &Layout, own: &str) -> String {
        match Delegated::of(layout, own) {
            Ok(found) => {
                let line = |(mount, group): &(PathBuf, PathBuf)| {
                    format!("{} <- {}", mount.display(), group.display())
                };
                let lines: Vec<String> = found.mounts.iter().map(line).collect();
                format!("{}\nbusy: {}", lines.join("\n"), found.busy)
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_group_of_a_service_becomes_the_root() {
        let v2 = Layout::V2 {
            mount: "/sys/fs/cgroup".into(),
            controllers: BTreeSet::new(),
        };
        expect![[r#"
            /sys/fs/cgroup <- /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/kedge.service
            busy: true"#]]
        .assert_eq(&told(&v2, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/kedge.service\n"));
        expect![[r#"
            /sys/fs/cgroup <- /sys/fs/cgroup/a/kedge.service
            busy: true"#]]
        .assert_eq(&told(&v2, "0::/a/kedge.service/kedge-node\n"));
        expect!["start without root the node: the kernel does not say which group of /sys/fs/cgroup this process is in"]
            .assert_eq(&told(&v2, "0::/../other\n"));
    }

    #[test]
    fn every_tree_of_version_one_has_its_own() {
        let shared = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct");
        let hybrid = Layout::Hybrid {
            mounts: [
                ("cpu".to_owned(), shared.clone()),
                ("cpuacct".to_owned(), shared),
                ("memory".to_owned(), "/sys/fs/cgroup/memory".into()),
                ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd".into()),
            ]
            .into(),
            unified: "/sys/fs/cgroup/unified".into(),
        };
        expect![[r#"
            /sys/fs/cgroup/cpu,cpuacct <- /sys/fs/cgroup/cpu,cpuacct/a
            /sys/fs/cgroup/memory <- /sys/fs/cgroup/memory/b:c
            /sys/fs/cgroup/systemd <- /sys/fs/cgroup/systemd/
            /sys/fs/cgroup/unified <- /sys/fs/cgroup/unified/d
            busy: false"#]]
        .assert_eq(&told(
            &hybrid,
            "4:cpu,cpuacct:/a\n3:memory:/b:c\n1:name=systemd:/\n0::/d\n",
        ));
    }

    #[test]
    fn a_controller_that_is_not_handed_over_is_named() {
        require_controllers("cpuset cpu io memory pids\n").unwrap();
        let refused = require_controllers("memory pids\n").unwrap_err().to_string();
        assert!(
            refused.contains("no cpu controller") && refused.contains("delegate.conf"),
            "{refused}"
        );
    }
}
