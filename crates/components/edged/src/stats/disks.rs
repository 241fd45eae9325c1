//! What file systems hold and what the directories of pods take.

use crate::beside::PodView;
use crate::config::Config;
use kedge_containers::{ContainerId, ContainerState, ImageUsage, ObservedSandbox, SandboxStats};
use kedge_host::disks::{FileSystem, TreeUsage, file_system, tree_usage};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Entries of one volume that are looked at. One with more is told as large as was seen; reading on would cost the disk
/// of a small node more than the figure is worth.
const VOLUME_ENTRIES_MAX: usize = 100_000;
/// A container's logs are a few files.
const LOG_ENTRIES_MAX: usize = 1000;
/// Directories between a pod's directory and a volume's contents.
const VOLUMES_DIR: &str = "volumes";
/// The kinds whose directories are the node's own.
const ON_NODE: [&str; 5] = [
    "kubernetes.io~empty-dir",
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// What was seen at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disks {
    pub(crate) at: Time,
    /// Where pods, volumes and logs are.
    pub(crate) node: Option<FileSystem>,
    /// Where images are, and what they take of it.
    pub(crate) images: Option<(FileSystem, ImageUsage)>,
    /// By UID.
    pub(crate) pods: BTreeMap<String, PodDisks>,
}

/// Of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodDisks {
    /// Writable layers of containers that run: bytes and, where the runtime tells them, inodes.
    pub(crate) layers: BTreeMap<ContainerId, (u64, Option<u64>)>,
    /// Logs by the container's name.
    pub(crate) logs: BTreeMap<String, TreeUsage>,
    pub(crate) volumes: Vec<VolumeUsage>,
    /// Layers, logs and the volumes on the node's own disk together.
    pub(crate) ephemeral: TreeUsage,
}

/// Of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeUsage {
    pub(crate) name: String,
    /// The persistent claim behind it.
    pub(crate) claim: Option<String>,
    pub(crate) file_system: FileSystem,
    pub(crate) used: TreeUsage,
}

impl Disks {
    pub(super) fn empty(at: Time) -> Self {
        Self {
            at,
            node: None,
            images: None,
            pods: BTreeMap::new(),
        }
    }

    /// Looks. Blocks for as long as it takes to walk through the pods' directories.
    pub(super) fn look(
        at: Time,
        config: &Config,
        images: Option<ImageUsage>,
        layers: &[SandboxStats],
        pods: &[PodView],
        seen: &[ObservedSandbox],
    ) -> Self {
        let node = file_system(&config.root_dir).ok();
        let images = images.and_then(|images| Some((file_system(&images.mount_point).ok()?, images)));
        let node_id = node.map(|node| node.id);
        let stands = seen.iter().filter(|sandbox| sandbox.ready);
        let of_pod = |sandbox: &ObservedSandbox| {
            let told = layers.iter().find(|told| told.id == sandbox.id);
            let desired = pods.iter().find(|view| view.pod.uid() == sandbox.pod.uid);
            let disks = look_at_pod(config, node_id, sandbox, told, desired);
            (sandbox.pod.uid.clone(), disks)
        };
        Self {
            at,
            node,
            images,
            pods: stands.map(of_pod).collect(),
        }
    }
}

fn look_at_pod(
    config: &Config,
    node: Option<u64>,
    sandbox: &ObservedSandbox,
    told: Option<&SandboxStats>,
    desired: Option<&PodView>,
) -> PodDisks {
    let layers: BTreeMap<ContainerId, (u64, Option<u64>)> = told
        .into_iter()
        .flat_map(|told| &told.containers)
        .filter_map(|container| {
            Some((
                container.id.clone(),
                (container.layer_bytes?, container.layer_inodes),
            ))
        })
        .collect();
    let logs: BTreeMap<String, TreeUsage> = sandbox
        .containers
        .iter()
        .filter(|container| matches!(container.state, ContainerState::Running { .. }))
        .filter_map(|container| {
            let directory = container.log_path.parent()?;
            Some((container.name.clone(), tree_usage(directory, LOG_ENTRIES_MAX)))
        })
        .collect();
    let directory = config.pods_dir().join(&sandbox.pod.uid);
    let volumes = volumes(&directory, desired);
    let on_node = volumes
        .iter()
        .filter(|volume| volume.claim.is_none() && Some(volume.file_system.id) == node)
        .map(|volume| volume.used);
    let layer = |(bytes, inodes): &(u64, Option<u64>)| TreeUsage {
        bytes: *bytes,
        inodes: inodes.unwrap_or(0),
        complete: true,
    };
    let all = layers
        .values()
        .map(layer)
        .chain(logs.values().copied())
        .chain(on_node);
    let nothing = TreeUsage {
        complete: true,
        ..TreeUsage::default()
    };
    let ephemeral = all.fold(nothing, |sum, part| TreeUsage {
        bytes: sum.bytes.saturating_add(part.bytes),
        inodes: sum.inodes.saturating_add(part.inodes),
        complete: sum.complete && part.complete,
    });
    PodDisks {
        layers,
        logs,
        volumes,
        ephemeral,
    }
}

/// The volumes that have a directory of their own: what a pod borrows from the node is not its own use.
fn volumes(directory: &Path, desired: Option<&PodView>) -> Vec<VolumeUsage> {
    let claims: BTreeMap<&str, String> = desired.map_or_else(BTreeMap::new, claims);
    let mut found = Vec::new();
    for kind in names(&directory.join(VOLUMES_DIR)) {
        let of_kind = directory.join(VOLUMES_DIR).join(&kind);
        for name in names(&of_kind) {
            let path = contents(&of_kind.join(&name));
            let Ok(file_system) = file_system(&path) else {
                continue;
            };
            // Others are file systems of their own, and know themselves how full they are.
            let used = if ON_NODE.contains(&kind.as_str()) {
                tree_usage(&path, VOLUME_ENTRIES_MAX)
            } else {
                TreeUsage {
                    bytes: file_system.used_bytes,
                    inodes: file_system.inodes_used(),
                    complete: true,
                }
            };
            found.push(VolumeUsage {
                claim: claims.get(name.as_str()).cloned(),
                name,
                file_system,
                used,
            });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// A CSI volume is mounted one directory further down.
fn contents(path: &Path) -> PathBuf {
    let mounted = path.join("mount");
    if mounted.is_dir() {
        mounted
    } else {
        path.to_owned()
    }
}

fn claims(view: &PodView) -> BTreeMap<&str, String> {
    let volumes = &view.pod.spec.volumes;
    volumes
        .iter()
        .filter_map(|volume| {
            let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => source.claim_name.clone(),
                (None, Some(_)) => format!("{}-{}", view.pod.metadata.name, volume.name),
                (None, None) => return None,
            };
            Some((volume.name.as_str(), claim))
        })
        .collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
