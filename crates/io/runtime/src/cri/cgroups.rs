//! The control groups of pods, for which the interface leaves the node agent to care.
//!
//! ```text
//!   cgroupfs   <root>/kubepods/burstable/pod<uid>/<container>
//!   systemd    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/<container>.scope
//! ```

use crate::{Error, cgroup};
use kedge_containers::{CgroupDriver, PodIdentity, Resources, SandboxConfig};
use kedge_host::cgroups::{Layout, layout};

/// Below the configured root; all pods of the node are below it.
const PODS: &str = "kubepods";
/// The classes of service that have a group of their own. Guaranteed pods lie beside these.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
/// Pods that asked for nothing get what the others leave.
const BEST_EFFORT_SHARES: u64 = 2;

/// How pods' groups are named on this node.
#[derive(Debug, Clone)]
pub(super) struct PodGroups {
    pub(super) root: String,
    /// Without groups of pods, every container is directly below the root.
    pub(super) per_pod: bool,
}

impl PodGroups {
    /// What the runtime is told as the parent of the pod's containers.
    pub(super) fn parent(&self, config: &SandboxConfig, driver: CgroupDriver) -> Result<String, Error> {
        if !self.per_pod {
            return cgroup::path(&[&self.root]);
        }
        let path = self.path(&config.cgroup_parent)?;
        Ok(match driver {
            CgroupDriver::Cgroupfs => path,
            // Its name alone says where it lies.
            CgroupDriver::Systemd => slice(&path),
        })
    }

    /// Makes a pod's group before its sandbox. Where systemd makes groups, the runtime asks it to; see [`Self::limit`].
    pub(super) fn make(&self, config: &SandboxConfig, driver: CgroupDriver) -> Result<(), Error> {
        if !self.per_pod || driver == CgroupDriver::Systemd {
            return Ok(());
        }
        let layout = read_layout()?;
        if config.cgroup_parent.starts_with(CLASSES[1]) {
            let least = Resources {
                cpu_shares: Some(BEST_EFFORT_SHARES),
                ..Resources::default()
            };
            cgroup::make_pod(&layout, &self.path(CLASSES[1])?, &least)?;
        }
        cgroup::make_pod(&layout, &self.path(&config.cgroup_parent)?, &config.resources)
    }

    /// Gives the slice that systemd made for a sandbox the pod's limits.
    pub(super) fn limit(&self, config: &SandboxConfig, driver: CgroupDriver) -> Result<(), Error> {
        if !self.per_pod || driver == CgroupDriver::Cgroupfs {
            return Ok(());
        }
        let path = self.path(&config.cgroup_parent)?;
        cgroup::limit_existing(&read_layout()?, &nested(&path), &config.resources)
    }

    /// Removes what is left of a pod. systemd removes its empty slices itself.
    pub(super) fn remove(&self, pod: &PodIdentity, driver: CgroupDriver) -> Result<(), Error> {
        if !self.per_pod || driver == CgroupDriver::Systemd {
            return Ok(());
        }
        let layout = read_layout()?;
        let name = format!("pod{}", pod.uid);
        let places = CLASSES.iter().map(|class| format!("{class}/{name}"));
        places
            .chain([name.clone()])
            .try_for_each(|place| cgroup::remove_empty_tree(&layout, &self.path(&place)?))
    }

    fn path(&self, below: &str) -> Result<String, Error> {
        cgroup::path(&[&self.root, PODS, below])
    }
}

fn read_layout() -> Result<Layout, Error> {
    layout().map_err(|error| Error::failed("read", "the layout of control groups", error))
}

/// The parts of a path as systemd joins them. A dash means nesting, so those in a part become underscores.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(|part| part.replace('-', "_")).collect()
}

/// `/kubepods/burstable/podA-B` is `kubepods-burstable-podA_B.slice`.
fn slice(path: &str) -> String {
    format!("{}.slice", parts(path).join("-"))
}

/// Where the slice lies: below each of those that its name begins with.
fn nested(path: &str) -> String {
    let parts = parts(path);
    let slices = (1..=parts.len()).map(|count| format!("{}.slice", parts[..count].join("-")));
    format!("/{}", slices.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_each_driver() {
        let table = [
            (
                "",
                "burstable/podab-cd",
                "/kubepods/burstable/podab-cd",
                "kubepods-burstable-podab_cd.slice",
            ),
            ("/", "podab", "/kubepods/podab", "kubepods-podab.slice"),
            (
                "/own",
                "besteffort/podx",
                "/own/kubepods/besteffort/podx",
                "own-kubepods-besteffort-podx.slice",
            ),
        ];
        for (root, cgroup_parent, cgroupfs, systemd) in table {
            let groups = PodGroups {
                root: root.to_owned(),
                per_pod: true,
            };
            let config = SandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                ..SandboxConfig::default()
            };
            let parent = |driver| groups.parent(&config, driver).unwrap();
            assert_eq!(parent(CgroupDriver::Cgroupfs), cgroupfs);
            assert_eq!(parent(CgroupDriver::Systemd), systemd);
        }
        assert_eq!(
            nested("/kubepods/burstable/poda-b"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice"
        );
    }

    #[test]
    fn without_groups_of_pods_the_root_is_the_parent() {
        let groups = PodGroups {
            root: "/own".to_owned(),
            per_pod: false,
        };
        let config = SandboxConfig {
            cgroup_parent: "burstable/podx".to_owned(),
            ..SandboxConfig::default()
        };
        assert_eq!(groups.parent(&config, CgroupDriver::Cgroupfs).unwrap(), "/own");
    }

    #[test]
    fn a_pod_cannot_leave_its_root() {
        let groups = PodGroups {
            root: String::new(),
            per_pod: true,
        };
        let config = SandboxConfig {
            cgroup_parent: "../x".to_owned(),
            ..SandboxConfig::default()
        };
        assert!(groups.parent(&config, CgroupDriver::Cgroupfs).is_err());
    }
}
