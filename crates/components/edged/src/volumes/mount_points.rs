//! The paths behind a container's mounts that must exist before it starts: sub paths of volumes, the hosts file, the
//! file for its last words.

use super::directory::make_directory;
use super::error::{Error, blocking};
use super::{Volumes, is_plain_name};
use kedge_api::{Container, Pod, VolumeMount};
use kedge_containers::{ContainerConfig, Propagation};
use kedge_host::beneath::{self, Missing};
use kedge_host::mounts;
use kedge_pods::translate::{self, MountSource};
use kedge_pods::{Config, Refusal};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The node's own file, which pods with the node's network see.
const NODE_HOSTS: &str = "/etc/hosts";
/// Mounts upon each other at one place that are taken away.
const LAYERS_MAX: usize = 16;

/// One sub path: a place below a volume that a container sees.
struct SubPath {
    /// Which of the container's mounts.
    index: usize,
    /// The volume.
    base: PathBuf,
    below: PathBuf,
    /// Where the place is mounted for the runtime to find; nothing where nothing is mounted.
    target: Option<PathBuf>,
}

impl Volumes {
    /// Makes what stands behind the mounts of a container and points the mounts at it.
    pub(crate) async fn make_mount_points(
        &self,
        config: &Config,
        pod: &Pod,
        spec: &Container,
        attempt: u32,
        pod_ips: &[String],
        made: &mut ContainerConfig,
    ) -> Result<(), Refusal> {
        self.try_mount_points(config, pod, spec, attempt, pod_ips, made)
            .await
            .map_err(|error| {
                let why = error.sentence();
                let message = format!(
                    "failed to prepare the mounts of container \"{}\": {why}",
                    spec.name
                );
                Refusal::new(crate::objects::CONFIG_ERROR, message)
            })
    }

    async fn try_mount_points(
        &self,
        config: &Config,
        pod: &Pod,
        spec: &Container,
        attempt: u32,
        pod_ips: &[String],
        made: &mut ContainerConfig,
    ) -> Result<(), Error> {
        let bidirectional = |mount: &kedge_containers::Mount| mount.propagation == Propagation::Bidirectional;
        if !made.security.privileged && made.mounts.iter().any(bidirectional) {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            return Err(Error::Unfit(why.to_owned()));
        }
        let groups = self
            .inner
            .standing()
            .get(pod.uid())
            .map(|standing| standing.groups.clone());
        for group in groups.unwrap_or_default() {
            if !made.security.supplemental_groups.contains(&group) {
                made.security.supplemental_groups.push(group);
            }
        }
        let sub_paths = self.sub_paths(pod, spec, made)?;
        let resolved = blocking(move || {
            sub_paths
                .into_iter()
                .map(SubPath::make)
                .collect::<Result<Vec<_>, _>>()
        });
        for (index, path) in resolved.await? {
            made.mounts[index].host_path = path;
        }
        let has = |path: &Path| made.mounts.iter().any(|mount| mount.host_path == path);
        let hosts = translate::etc_hosts(config, pod);
        let hosts = has(&hosts).then(|| {
            let node = std::fs::read_to_string(NODE_HOSTS).unwrap_or_default();
            (hosts, translate::hosts_file(config, pod, pod_ips, &node))
        });
        let words = translate::termination_log(config, pod, &spec.name, attempt);
        let words = has(&words).then_some(words);
        blocking(move || {
            if let Some((path, text)) = hosts {
                write_hosts(&path, &text)?;
            }
            words.map_or(Ok(()), |path| make_words(&path))
        })
        .await
    }

    fn sub_paths(&self, pod: &Pod, spec: &Container, made: &ContainerConfig) -> Result<Vec<SubPath>, Error> {
        let standing = self.inner.standing().get(pod.uid()).cloned().unwrap_or_default();
        let has_one = |mount: &VolumeMount| {
            let set = |path: &Option<String>| path.as_ref().is_some_and(|path| !path.is_empty());
            set(&mount.sub_path) || set(&mount.sub_path_expr)
        };
        let mut found = Vec::new();
        for (number, mount) in spec
            .volume_mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| has_one(mount))
        {
            // Nothing may reach the runtime unresolved: it follows every link.
            let lost = || Error::Unfit(format!("volume {} of a sub path does not stand", mount.name));
            let Some(MountSource::Path { path: base, .. }) = standing.sources.get(&mount.name) else {
                return Err(lost());
            };
            let place = Path::new("/").join(&mount.mount_path);
            let index = made
                .mounts
                .iter()
                .position(|made| made.container_path == place && made.host_path.starts_with(base));
            let index = index.ok_or_else(lost)?;
            let below = made.mounts[index]
                .host_path
                .strip_prefix(base)
                .unwrap_or(Path::new(""));
            if !is_plain_name(&spec.name) {
                return Err(Error::Unfit(format!("{:?} is no name of a container", spec.name)));
            }
            let name = standing.names.get(&mount.name).unwrap_or(&mount.name);
            let target = self.inner.paths.sub_paths(pod.uid()).join(name).join(&spec.name);
            found.push(SubPath {
                index,
                base: base.clone(),
                below: below.to_owned(),
                target: self.inner.mounts.then(|| target.join(number.to_string())),
            });
        }
        Ok(found)
    }
}

impl SubPath {
    /// Opens the place without leaving the volume, and mounts exactly what was opened: a link that changes afterwards
    /// changes nothing for the container.
    fn make(self) -> Result<(usize, PathBuf), Error> {
        let found = std::fs::metadata(&self.base).map_err(Error::file("look at", &self.base))?;
        let mode = found.permissions().mode() & 0o7777;
        let place = beneath::open(&self.base, &self.below, Missing::MakeDirectories(mode))?;
        let Some(target) = self.target else {
            return Ok((self.index, beneath::path_of(place.as_fd())?));
        };
        mount(place.as_fd(), &target)?;
        Ok((self.index, target))
    }
}

fn mount(place: BorrowedFd<'_>, target: &Path) -> Result<(), Error> {
    let wanted = beneath::identity(place)?;
    for _ in 0..LAYERS_MAX {
        if !mounts::is_mount_point(target)? {
            break;
        }
        // Of an earlier start of the container: the same place stays.
        let there = beneath::open(target, Path::new(""), Missing::Refuse)?;
        if beneath::identity(there.as_fd())? == wanted {
            return Ok(());
        }
        drop(there);
        mounts::detach(target)?;
    }
    let is_dir = std::fs::metadata(beneath::path_of(place)?).is_ok_and(|found| found.is_dir());
    make_target(target, is_dir)?;
    Ok(mounts::bind_open(place, target)?)
}

/// A directory is mounted on a directory, anything else on a file.
fn make_target(target: &Path, is_dir: bool) -> Result<(), Error> {
    match target.symlink_metadata() {
        Ok(found) if found.is_dir() == is_dir => return Ok(()),
        Ok(found) => {
            let removed = if found.is_dir() {
                std::fs::remove_dir(target)
            } else {
                std::fs::remove_file(target)
            };
            removed.map_err(Error::file("remove", target))?;
        }
        Err(_) => {}
    }
    if is_dir {
        return make_directory(target, 0o750);
    }
    make_directory(target.parent().unwrap_or(target), 0o750)?;
    std::fs::File::create(target)
        .map(drop)
        .map_err(Error::file("create", target))
}

/// Written only when it changes, in place: containers hold the file itself.
fn write_hosts(path: &Path, text: &str) -> Result<(), Error> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    make_directory(path.parent().unwrap_or(path), 0o750)?;
    std::fs::write(path, text).map_err(Error::file("write", path))?;
    set_mode(path, 0o644).map_err(Error::file("set the mode of", path))
}

/// A file that any user of the container may write.
fn make_words(path: &Path) -> Result<(), Error> {
    make_directory(path.parent().unwrap_or(path), 0o750)?;
    let made = std::fs::OpenOptions::new().create(true).append(true).open(path);
    made.map(drop).map_err(Error::file("create", path))?;
    set_mode(path, 0o666).map_err(Error::file("set the mode of", path))
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}
