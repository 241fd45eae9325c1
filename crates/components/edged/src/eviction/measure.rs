//! What is left of memory, disks and process ids.

use crate::beside::Beside;
use kedge_host::Root;
use kedge_host::cgroups::Layout;
use kedge_host::disks::{FileSystem, file_system};
use kedge_pods::allocatable::{Machine, memory_for_pods};
use kedge_pods::eviction::{Observation, Observations, Rules, Signal};
use kedge_wire::Time;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where the runtime keeps its images is asked this often: only a reconfigured runtime answers differently.
const LAYOUT_INTERVAL: Duration = Duration::from_secs(600);
/// A runtime that does not answer in time is asked again at the next look.
const RUNTIME_MAX: Duration = Duration::from_secs(10);

/// The gauges of this machine.
#[derive(Debug)]
pub(super) struct Gauges {
    fixed: Arc<Fixed>,
    /// Where the images are.
    images: Option<PathBuf>,
    images_asked: Option<Time>,
    own_imagefs: bool,
}

/// What does not change.
#[derive(Debug)]
struct Fixed {
    machine: Root,
    root_dir: PathBuf,
    signals: BTreeSet<Signal>,
    /// All pods together, where that is less than the machine: how much they may use, and their control groups.
    pods: Option<(u64, Layout, Vec<String>)>,
}

impl Gauges {
    pub(super) fn new(beside: &Beside, rules: &Rules) -> Self {
        let config = &beside.config;
        let signals: BTreeSet<Signal> = rules
            .thresholds
            .iter()
            .map(|threshold| threshold.signal)
            .collect();
        let machine = Machine {
            memory_bytes: beside.facts.memory_bytes,
            ..Machine::default()
        };
        let may_use = memory_for_pods(&machine, &config.allocatable_rules());
        // Without reservations the node runs short before its pods do.
        let is_less = may_use < machine.memory_bytes && signals.contains(&Signal::AllocatableMemoryAvailable);
        let layout = is_less.then(|| kedge_host::cgroups::layout().ok()).flatten();
        Self {
            fixed: Arc::new(Fixed {
                machine: config.machine.clone(),
                root_dir: config.root_dir.clone(),
                signals,
                pods: layout.map(|layout| (may_use, layout, config.face.cgroup_roots.clone())),
            }),
            images: None,
            images_asked: None,
            own_imagefs: false,
        }
    }

    /// Whether images lie on a disk of their own.
    pub(super) fn own_imagefs(&self) -> bool {
        self.own_imagefs
    }

    /// Measures now.
    pub(super) async fn read(&mut self, beside: &Beside) -> Observations {
        self.find_images(beside).await;
        let (fixed, images) = (Arc::clone(&self.fixed), self.images.clone());
        match tokio::task::spawn_blocking(move || fixed.read(images.as_ref())).await {
            Ok((observed, own_imagefs)) => {
                self.own_imagefs = own_imagefs;
                observed
            }
            Err(error) => {
                tracing::error!(%error, "what is left of the node was not measured");
                Observations::new()
            }
        }
    }

    async fn find_images(&mut self, beside: &Beside) {
        let now = beside.clock.now();
        if self
            .images_asked
            .is_some_and(|at| now.since(at) < LAYOUT_INTERVAL)
        {
            return;
        }
        match tokio::time::timeout(RUNTIME_MAX, beside.runtime.image_usage()).await {
            Ok(Ok(usage)) => {
                self.images = Some(usage.mount_point);
                self.images_asked = Some(now);
            }
            Ok(Err(error)) => tracing::debug!(%error, "where the images are is unknown"),
            Err(_) => tracing::debug!("the runtime does not tell in time where the images are"),
        }
    }
}

impl Fixed {
    /// What can be measured, and whether images lie on a disk of their own. Blocks for some small files.
    fn read(&self, images: Option<&PathBuf>) -> (Observations, bool) {
        let mut all = Observations::new();
        self.read_memory(&mut all);
        self.read_processes(&mut all);
        let nodefs = measured(file_system(&self.root_dir));
        let imagefs = images.and_then(|path| measured(file_system(path)));
        let mut disk = |disk: Option<FileSystem>, available: Signal, inodes: Signal| {
            let Some(disk) = disk else { return };
            let rows = [
                (available, disk.available_bytes, disk.capacity_bytes),
                // Some file systems have no inodes to run out of.
                (inodes, disk.inodes_free, disk.inodes),
            ];
            let known = rows.into_iter().filter(|(_, _, capacity)| *capacity > 0);
            all.extend(
                known.map(|(signal, available, capacity)| (signal, Observation { available, capacity })),
            );
        };
        disk(nodefs, Signal::NodefsAvailable, Signal::NodefsInodesFree);
        // Images that lie beside everything else are measured with it.
        let shown = imagefs.or(nodefs);
        disk(shown, Signal::ImagefsAvailable, Signal::ImagefsInodesFree);
        let own_imagefs = match (nodefs, imagefs) {
            (Some(nodefs), Some(imagefs)) => nodefs.id != imagefs.id,
            (_, _) => false,
        };
        (all, own_imagefs)
    }

    fn read_memory(&self, all: &mut Observations) {
        if let Some(memory) = measured(kedge_host::node::memory(&self.machine)) {
            let observation = Observation {
                available: memory.available_bytes,
                capacity: memory.total_bytes,
            };
            all.insert(Signal::MemoryAvailable, observation);
        }
        if let Some((may_use, layout, roots)) = &self.pods {
            let used = roots
                .iter()
                .find_map(|root| kedge_host::groups::group_usage(layout, root)?.memory);
            let observation = used.map(|used| Observation {
                available: may_use.saturating_sub(used.working_set),
                capacity: *may_use,
            });
            all.extend(observation.map(|observation| (Signal::AllocatableMemoryAvailable, observation)));
        }
    }

    fn read_processes(&self, all: &mut Observations) {
        if !self.signals.contains(&Signal::PidAvailable) {
            return;
        }
        if let Some(processes) = measured(kedge_host::node::processes(&self.machine)) {
            let observation = Observation {
                available: processes.max.saturating_sub(processes.running),
                capacity: processes.max,
            };
            all.insert(Signal::PidAvailable, observation);
        }
    }
}

fn measured<T>(result: Result<T, kedge_host::Error>) -> Option<T> {
    result
        .inspect_err(|error| tracing::debug!(%error, "not measured"))
        .ok()
}
