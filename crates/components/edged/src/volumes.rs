//! A pod's volumes below `<root_dir>/pods/<uid>/volumes`.
//!
//! Files with the content of config maps, secrets and tokens are written with the modes that the pod asks for, inside
//! `pods/`, which only the owner of this process may enter; containers see them by their own mount. They are on the
//! disk of the node and not in memory, so that a pod starts after a power cut without the cloud.

mod atomic;
mod content;
mod token;

pub(crate) use content::Sources;

use crate::cloud::Cloud;
use kedge_api::{HostPathType, Pod, Volume};
use kedge_pods::translate::{Inputs, MountSource, pod_dir};
use kedge_pods::{Config, Refusal};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Reason of a pod whose volume cannot be made.
const MOUNT_ERROR: &str = "FailedMount";
/// A volume that lacks something is tried again after this time.
const RETRY: std::time::Duration = std::time::Duration::from_secs(60);

/// Creates a directory that others cannot enter; an existing one is left as it is.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
}

/// The volumes of a pod, and when a token in them must be renewed.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) refresh_at: Option<Time>,
}

/// Makes all volumes or brings them up to date.
pub(crate) async fn prepare(
    inputs: &Inputs<'_>,
    sources: &Sources,
    cloud: &Cloud,
    now: Time,
) -> Result<Prepared, Refusal> {
    let mut prepared = Prepared::default();
    for volume in &inputs.pod.spec.volumes {
        let refresh = prepare_one(inputs, volume, sources, cloud, now).await?;
        prepared.refresh_at = [prepared.refresh_at, refresh].into_iter().flatten().min();
    }
    Ok(prepared)
}

async fn prepare_one(
    inputs: &Inputs<'_>,
    volume: &Volume,
    sources: &Sources,
    cloud: &Cloud,
    now: Time,
) -> Result<Option<Time>, Refusal> {
    if let Some(source) = &volume.host_path {
        check_host_path(Path::new(&source.path), source.type_).map_err(|why| refuse(volume, &why))?;
        return Ok(None);
    }
    let Some(dir) = directory(inputs.config, inputs.pod, volume) else {
        let kind = volume
            .other
            .keys()
            .next()
            .map_or("without a source", String::as_str);
        return Err(refuse(
            volume,
            &format!("volumes of kind {kind} are not supported by this version"),
        ));
    };
    let fs_group = inputs
        .pod
        .spec
        .security_context
        .as_ref()
        .and_then(|context| context.fs_group);
    let fs_group = fs_group.and_then(|group| u32::try_from(group).ok());
    if volume.empty_dir.is_some() {
        make_empty_dir(&dir, fs_group)
            .map_err(|error| refuse(volume, &format!("{}: {error}", dir.display())))?;
        return Ok(None);
    }
    let (wanted, refresh_at) = match content::files(inputs, volume, sources, cloud, &dir, now).await {
        Ok(files) => files,
        // What stands keeps its content: a pod that ran must start again without the cloud.
        Err(refusal) if dir.join(atomic::DATA).exists() => {
            tracing::warn!(
                volume = volume.name,
                reason = refusal.message,
                "volume keeps its old content"
            );
            return Ok(Some(now + RETRY));
        }
        Err(refusal) => return Err(refusal),
    };
    let name = volume.name.clone();
    let write = move || atomic::write(&dir, &wanted, fs_group);
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => Ok(refresh_at),
        Ok(Err(error)) => Err(Refusal::new(MOUNT_ERROR, format!("volume {name}: {error}"))),
        Err(_) => Err(Refusal::new(
            MOUNT_ERROR,
            format!("volume {name}: the writer was stopped"),
        )),
    }
}

fn refuse(volume: &Volume, why: &str) -> Refusal {
    Refusal::new(MOUNT_ERROR, format!("volume {}: {why}", volume.name))
}

/// Where the volumes of a pod are, for mounting.
pub(crate) fn mount_sources(config: &Config, pod: &Pod) -> BTreeMap<String, MountSource> {
    let source = |volume: &Volume| -> Option<MountSource> {
        if let Some(source) = &volume.host_path {
            return Some(MountSource::Path {
                path: PathBuf::from(&source.path),
                read_only: false,
            });
        }
        if in_memory(pod, volume) {
            return Some(MountSource::Tmpfs);
        }
        let read_only = volume.empty_dir.is_none();
        Some(MountSource::Path {
            path: directory(config, pod, volume)?,
            read_only,
        })
    };
    pod.spec
        .volumes
        .iter()
        .filter_map(|volume| Some((volume.name.clone(), source(volume)?)))
        .collect()
}

/// An `emptyDir` in memory belongs to one container; one that several share is on the disk, where they can.
fn in_memory(pod: &Pod, volume: &Volume) -> bool {
    let memory = volume
        .empty_dir
        .as_ref()
        .is_some_and(|source| source.medium.as_deref() == Some("Memory"));
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let mounts = containers
        .flat_map(|c| &c.volume_mounts)
        .filter(|mount| mount.name == volume.name);
    let plain = |mount: &kedge_api::VolumeMount| mount.sub_path.is_none() && mount.sub_path_expr.is_none();
    memory && mounts.clone().count() <= 1 && mounts.clone().all(plain)
}

/// The directory of a volume that has one of its own.
fn directory(config: &Config, pod: &Pod, volume: &Volume) -> Option<PathBuf> {
    let kind = if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else {
        return None;
    };
    Some(pod_dir(config, pod).join("volumes").join(kind).join(&volume.name))
}

fn make_empty_dir(dir: &Path, fs_group: Option<u32>) -> io::Result<()> {
    let made = !dir.exists();
    std::fs::create_dir_all(dir)?;
    if made {
        let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
        give_to_group(dir, fs_group)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Without root (the hollow runtime) no container runs as another group, so nothing is lost when it is refused.
fn give_to_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    match std::os::unix::fs::chown(path, None, group) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !kedge_host::is_root() => Ok(()),
        result => result,
    }
}

/// What the pod says must be at a path of the node.
fn check_host_path(path: &Path, want: HostPathType) -> Result<(), String> {
    let shown = path.display();
    let create = |result: io::Result<()>| result.map_err(|error| format!("create {shown}: {error}"));
    match want {
        // What is not there becomes a directory, as every container runtime makes it.
        HostPathType::Unchecked if path.exists() => return Ok(()),
        HostPathType::Unchecked | HostPathType::DirectoryOrCreate if !path.exists() => {
            return create(
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path),
            );
        }
        HostPathType::FileOrCreate if !path.exists() => {
            return create(std::fs::File::create_new(path).map(drop));
        }
        HostPathType::Unchecked
        | HostPathType::DirectoryOrCreate
        | HostPathType::Directory
        | HostPathType::FileOrCreate
        | HostPathType::File
        | HostPathType::Socket
        | HostPathType::CharDevice
        | HostPathType::BlockDevice => {}
    }
    let kind = std::fs::metadata(path)
        .map_err(|error| format!("{shown}: {error}"))?
        .file_type();
    let (fits, name) = match want {
        HostPathType::Unchecked => (true, "anything"),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => (kind.is_dir(), "a directory"),
        HostPathType::FileOrCreate | HostPathType::File => (kind.is_file(), "a file"),
        HostPathType::Socket => (kind.is_socket(), "a socket"),
        HostPathType::CharDevice => (kind.is_char_device(), "a character device"),
        HostPathType::BlockDevice => (kind.is_block_device(), "a block device"),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("{shown} is not {name}"))
    }
}

/// Removes everything of a pod. Nothing below is a mount of this process: tmpfs volumes belong to the runtime.
pub(crate) fn remove(config: &Config, pod: &Pod) -> io::Result<()> {
    let uid = pod.uid();
    if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
        return Ok(());
    }
    match std::fs::remove_dir_all(pod_dir(config, pod)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the paths behind mounts that do not exist yet (sub paths, termination logs), and makes sure that a sub path
/// does not lead out of its volume by a symbolic link.
pub(crate) fn make_mount_points(
    pod_dir: &Path,
    mounts: &[kedge_containers::Mount],
    termination_log: &Path,
) -> Result<(), Refusal> {
    let fail = |path: &Path, why: String| {
        Refusal::new(
            crate::objects::CONFIG_ERROR,
            format!("prepare mount {}: {why}", path.display()),
        )
    };
    for mount in mounts {
        let Some(path) = &mount.host_path else { continue };
        if path == termination_log {
            make_file(path).map_err(|error| fail(path, error.to_string()))?;
            continue;
        }
        if !path.starts_with(pod_dir) {
            continue;
        }
        if !path.exists() {
            std::fs::create_dir_all(path).map_err(|error| fail(path, error.to_string()))?;
        }
        let real = path
            .canonicalize()
            .map_err(|error| fail(path, error.to_string()))?;
        let home = pod_dir
            .canonicalize()
            .map_err(|error| fail(path, error.to_string()))?;
        if !real.starts_with(home.join("volumes")) {
            return Err(fail(
                path,
                "a symbolic link leads out of the pod's volumes".to_owned(),
            ));
        }
    }
    Ok(())
}

/// A file that any user of the container may write.
fn make_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}
