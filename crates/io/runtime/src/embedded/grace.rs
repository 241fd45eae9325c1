//! A wait of the kernel that is begun early.
//!
//! Before the kernel moves a process to another control group, it waits until every processor has let go of what it was
//! doing: 5 to 20 ms on a machine at rest, a third of what the start of a container takes. Whoever moves one during such a wait
//! waits for its rest only, and whoever comes soon after does not wait at all. Libcontainer moves a process when it has
//! been at work for some milliseconds; so as soon as a container is ordered, this process is moved to where it is
//! already. Nothing changes, and the wait is over, or nearly, when it counts.

use kedge_host::cgroups::{Layout, group_in};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};

/// Begins the wait; one at a time.
#[derive(Debug, Default)]
pub(super) struct Grace {
    under_way: Mutex<()>,
}

impl Grace {
    /// Blocks until the wait is over. Where it cannot be begun, it takes place later.
    pub(super) fn begin(&self, layout: &Layout) {
        let _one = match self.under_way.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Everybody waits for the same.
            Err(TryLockError::WouldBlock) => return,
        };
        if let Err(error) = stay(layout) {
            tracing::debug!(%error, "the kernel waits when a process is moved");
        }
    }
}

/// Moves this process to the group that it is in.
fn stay(layout: &Layout) -> std::io::Result<()> {
    let groups = std::fs::read_to_string("/proc/self/cgroup")?;
    let group = own_group(layout, &groups).ok_or(std::io::ErrorKind::NotFound)?;
    let mut file = File::options().write(true).open(group.join("cgroup.procs"))?;
    file.write_all(std::process::id().to_string().as_bytes())
}

/// The directory of this process's group in one of the trees; `None` when it is not below what is mounted.
fn own_group(layout: &Layout, groups: &str) -> Option<PathBuf> {
    let (controller, tree): (&str, &Path) = match layout {
        Layout::V2 { mount, .. } => ("", mount),
        Layout::V1 { mounts } | Layout::Hybrid { mounts, .. } => {
            let (name, mount) = mounts.first_key_value()?;
            (name, mount)
        }
    };
    Some(tree.join(group_in(groups, controller)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn the_own_group_is_found_in_every_layout() {
        let v2 = Layout::V2 {
            mount: "/cg".into(),
            controllers: BTreeSet::new(),
        };
        let v1 = Layout::V1 {
            mounts: BTreeMap::from([
                ("cpu".to_owned(), "/cg/cpu".into()),
                ("pids".to_owned(), "/cg/pids".into()),
            ]),
        };
        let outside = "0::/../elsewhere\n";
        let both = "5:cpuacct,cpu:/system/kedge:x\n1:name=systemd:/y\n0::/unified\n";
        let told =
            |layout: &Layout, groups| own_group(layout, groups).map(|group| group.display().to_string());
        assert_eq!(told(&v2, both).as_deref(), Some("/cg/unified"));
        assert_eq!(told(&v1, both).as_deref(), Some("/cg/cpu/system/kedge:x"));
        assert_eq!(told(&v2, outside), None);
        assert_eq!(told(&v1, outside), None);
    }
}
