//! Making one volume, whatever kind it is.

use super::claims::{self, Resolved, Source};
use super::directory::{Directory, Medium, bytes_in_memory, make_directory};
use super::error::{Error, blocking};
use super::{Inner, Sources, atomic, content, host_path, paths, remote};
use crate::csi;
use kedge_api::{EmptyDirVolumeSource, Pod, Volume};
use kedge_host::mounts;
use kedge_host::ownership::{self, Access};
use kedge_pods::translate::{Inputs, MountSource};
use kedge_wire::Time;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A volume that lacks something is tried again after this time.
const RETRY: Duration = Duration::from_secs(60);
/// The file system of a device when nothing else is said.
const FS_TYPE_DEFAULT: &str = "ext4";

/// What a volume is made from.
#[derive(Clone, Copy)]
pub(super) struct Making<'a> {
    pub(super) volumes: &'a Inner,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) sources: &'a Sources,
    pub(super) now: Time,
}

/// A volume that stands.
pub(super) struct Made {
    pub(super) source: MountSource,
    pub(super) name: String,
    pub(super) group: Option<u32>,
    pub(super) refresh_at: Option<Time>,
}

impl Making<'_> {
    /// An error comes with what the volume is called in events.
    pub(super) async fn make(self, volume: &Volume) -> Result<Made, (String, Error)> {
        let resolved = claims::resolve(self.pod(), volume, &self.volumes.cloud)
            .await
            .map_err(|error| (volume.name.clone(), error))?;
        let made = self.make_resolved(volume, &resolved).await;
        let (source, refresh_at) = made.map_err(|error| (resolved.name.clone(), error))?;
        Ok(Made {
            source,
            name: resolved.name,
            group: resolved.group,
            refresh_at,
        })
    }

    fn pod(&self) -> &Pod {
        self.inputs.pod
    }

    fn group(&self) -> Option<u32> {
        let context = self.pod().spec.security_context.as_ref();
        context
            .and_then(|context| context.fs_group)
            .and_then(|group| u32::try_from(group).ok())
    }

    fn dir(&self, kind: &str, name: &str) -> PathBuf {
        self.volumes.paths.volume(self.pod().uid(), kind, name)
    }

    async fn make_resolved(
        self,
        volume: &Volume,
        resolved: &Resolved,
    ) -> Result<(MountSource, Option<Time>), Error> {
        let read_only = resolved.read_only;
        let path = match &resolved.source {
            Source::Content => {
                let (path, refresh_at) = self.content(volume).await?;
                return Ok((
                    MountSource::Path {
                        path,
                        read_only: true,
                    },
                    refresh_at,
                ));
            }
            Source::EmptyDir(source) => self.empty_dir(&resolved.name, source).await?,
            Source::HostPath { path, type_ } => {
                let (path, type_) = (path.clone(), *type_);
                blocking(move || host_path::check(&path, type_).map(|()| path)).await?
            }
            Source::Local(volume) => {
                let source = volume.spec.local.clone().unwrap_or_default();
                let (path, fs_type) = (PathBuf::from(source.path), source.fs_type);
                if resolved.block {
                    let path = self.local_device(&resolved.name, path).await?;
                    return Ok((MountSource::Block { path, read_only }, None));
                }
                self.local(resolved, path, fs_type).await?
            }
            Source::Nfs { source, options } => {
                let mount = remote::Nfs {
                    source: format!("{}:{}", source.server, source.path),
                    options: options.clone(),
                    read_only,
                    dir: self.dir(paths::NFS, &resolved.name),
                };
                self.needs_mounts("nfs")?;
                blocking(move || mount.make()).await?
            }
            Source::CsiPersistent(volume) => {
                let source = volume.spec.csi.as_ref();
                let source =
                    source.ok_or_else(|| Error::Unfit("the volume names no CSI driver".to_owned()))?;
                let source = csi::Source::Persistent(volume, source);
                let (path, refresh_at) = self.csi(resolved, source).await?;
                let source = match resolved.block {
                    true => MountSource::Block { path, read_only },
                    false => MountSource::Path { path, read_only },
                };
                return Ok((source, refresh_at));
            }
            Source::CsiEphemeral(source) => {
                let (path, refresh_at) = self.csi(resolved, csi::Source::Ephemeral(source)).await?;
                return Ok((MountSource::Path { path, read_only }, refresh_at));
            }
        };
        Ok((MountSource::Path { path, read_only }, None))
    }

    fn needs_mounts(&self, kind: &str) -> Result<(), Error> {
        if self.volumes.mounts {
            return Ok(());
        }
        Err(Error::Unfit(format!(
            "this node does not mount, so it has no volumes of kind {kind}"
        )))
    }

    async fn empty_dir(&self, name: &str, source: &EmptyDirVolumeSource) -> Result<PathBuf, Error> {
        let uid = self.pod().uid();
        let directory = Directory {
            path: self.dir(paths::EMPTY_DIR, name),
            ready: self.volumes.paths.ready_marker(uid, name),
            medium: Medium::parse(source.medium.as_deref())?,
            bytes_max: self.bytes_in_memory(Some(source)),
            group: self.group(),
            mounts: self.volumes.mounts,
        };
        blocking(move || directory.make().map(|()| directory.path)).await
    }

    fn bytes_in_memory(&self, source: Option<&EmptyDirVolumeSource>) -> Option<u64> {
        bytes_in_memory(self.pod(), source, self.inputs.config.allocatable.get("memory"))
    }

    async fn content(&self, volume: &Volume) -> Result<(PathBuf, Option<Time>), Error> {
        let (kind, medium) = if volume.config_map.is_some() {
            (paths::CONFIG_MAP, Medium::Disk)
        } else if volume.secret.is_some() {
            (paths::SECRET, Medium::Memory)
        } else if volume.projected.is_some() {
            (paths::PROJECTED, Medium::Memory)
        } else {
            (paths::DOWNWARD_API, Medium::Memory)
        };
        let (uid, name) = (self.pod().uid(), &volume.name);
        let directory = Directory {
            path: self.dir(kind, name),
            ready: self.volumes.paths.ready_marker(uid, &format!("wrapped_{name}")),
            medium,
            bytes_max: self.bytes_in_memory(None),
            group: self.group(),
            mounts: self.volumes.mounts,
        };
        let stands = directory.path.join(atomic::DATA).exists();
        let wanted = content::Making {
            inputs: self.inputs,
            sources: self.sources,
            cloud: &self.volumes.cloud,
            dir: &directory.path,
            stood: directory.ready.exists(),
            now: self.now,
        };
        let (files, refresh_at) = match content::files(wanted, volume).await {
            Ok(made) => made,
            // What stands keeps its content: a pod that ran must start again without the cloud.
            Err(error) if stands => {
                tracing::warn!(
                    volume = name,
                    reason = error.sentence(),
                    "volume keeps its old content"
                );
                return Ok((directory.path, Some(self.now + RETRY)));
            }
            Err(error) => return Err(error),
        };
        let now = self.now;
        let write = move || {
            directory.clear_beneath()?;
            directory.make()?;
            atomic::write(&directory.path, &files, directory.group, now)
                .map_err(Error::file("write", &directory.path))?;
            Ok(directory.path)
        };
        Ok((blocking(write).await?, refresh_at))
    }

    /// A directory of the node, or a device of it that holds a file system.
    async fn local(
        &self,
        resolved: &Resolved,
        path: PathBuf,
        fs_type: Option<String>,
    ) -> Result<PathBuf, Error> {
        let local = Local {
            path,
            fs_type,
            device_mount: self.volumes.paths.local_mount(&resolved.name),
            dir: self.dir(paths::LOCAL, &resolved.name),
            read_only: resolved.read_only,
            group: self.group().map(|group| (group, self.group_always())),
            mounts: self.volumes.mounts,
        };
        blocking(move || local.make()).await
    }

    async fn local_device(&self, name: &str, device: PathBuf) -> Result<PathBuf, Error> {
        let uid = self.pod().uid();
        let link = self.volumes.paths.volume_device(uid, paths::LOCAL, name);
        blocking(move || {
            let found = std::fs::metadata(&device).map_err(Error::file("look at", &device))?;
            if !found.file_type().is_block_device() {
                return Err(Error::Unfit(format!(
                    "{} is not a block device",
                    device.display()
                )));
            }
            make_directory(link.parent().unwrap_or(&link), 0o750)?;
            if std::fs::read_link(&link).ok().as_deref() != Some(&device) {
                let _ = std::fs::remove_file(&link);
                std::os::unix::fs::symlink(&device, &link).map_err(Error::file("link", &link))?;
            }
            Ok(device)
        })
        .await
    }

    /// Where the volume stands, and when its driver wants to be called again.
    async fn csi(
        &self,
        resolved: &Resolved,
        source: csi::Source<'_>,
    ) -> Result<(PathBuf, Option<Time>), Error> {
        self.needs_mounts("csi")?;
        let wanted = csi::Wanted {
            pod: self.pod(),
            name: &resolved.name,
            source,
            read_only: resolved.read_only,
            block: resolved.block,
            group: self.group(),
            claim_bytes: resolved.claim_bytes,
        };
        let published = self.volumes.csi.publish(wanted).await?;
        let refresh_at = published.republish.then(|| self.now + csi::REPUBLISH_INTERVAL);
        let path = published.path;
        if let Some(group) = self.group()
            && !resolved.block
            && !published.group_given
            && !resolved.read_only
        {
            let (path, always) = (path.clone(), self.group_always());
            blocking(move || give_to_group(&path, group, always)).await?;
        }
        Ok((path, refresh_at))
    }

    /// Whether each file is looked at, or only the top of the volume.
    fn group_always(&self) -> bool {
        let context = self.pod().spec.security_context.as_ref();
        context.and_then(|context| context.fs_group_change_policy.as_deref()) != Some("OnRootMismatch")
    }
}

fn give_to_group(path: &Path, group: u32, always: bool) -> Result<(), Error> {
    if !always && ownership::is_given(path, group, Access::Write)? {
        return Ok(());
    }
    Ok(ownership::give(path, group, Access::Write)?)
}

struct Local {
    path: PathBuf,
    fs_type: Option<String>,
    device_mount: PathBuf,
    dir: PathBuf,
    read_only: bool,
    group: Option<(u32, bool)>,
    mounts: bool,
}

impl Local {
    fn make(self) -> Result<PathBuf, Error> {
        let found = std::fs::metadata(&self.path).map_err(Error::file("look at", &self.path))?;
        let is_device = found.file_type().is_block_device();
        if !self.path.is_absolute() || !(found.is_dir() || is_device) {
            let path = self.path.display();
            return Err(Error::Unfit(format!(
                "{path} is neither a directory nor a block device"
            )));
        }
        if !self.mounts {
            return match is_device {
                true => Err(Error::Unfit("this node does not mount devices".to_owned())),
                false => Ok(self.path),
            };
        }
        if mounts::is_mount_point(&self.dir)? {
            return Ok(self.dir);
        }
        let shown = if is_device {
            self.mount_device()?
        } else {
            self.path.clone()
        };
        make_directory(&self.dir, 0o750)?;
        mounts::bind(&shown, &self.dir, self.read_only)?;
        if let Some((group, always)) = self.group.filter(|_| !self.read_only) {
            give_to_group(&self.dir, group, always)?;
        }
        Ok(self.dir)
    }

    /// A device without a file system is not formatted: what is on it may be data that is only not understood.
    fn mount_device(&self) -> Result<PathBuf, Error> {
        if !mounts::is_mount_point(&self.device_mount)? {
            make_directory(&self.device_mount, 0o750)?;
            let fs_type = self.fs_type.as_deref().filter(|name| !name.is_empty());
            mounts::mount_device(
                &self.path,
                &self.device_mount,
                fs_type.unwrap_or(FS_TYPE_DEFAULT),
                self.read_only,
            )?;
        }
        Ok(self.device_mount.clone())
    }
}
