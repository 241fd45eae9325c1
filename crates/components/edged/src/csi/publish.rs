//! Making a volume stand for a pod: staged once on the node where the driver wants that, then published for each pod.

use super::driver::Driver;
use super::layout::{self, Note};
use super::request::{self, Access, Mode};
use super::{Csi, DRIVER_PATIENCE, Error, Published, Source, Wanted, directory, make_dir, remove_file};
use crate::volumes::fetch;
use kedge_api::{CsiPersistentVolumeSource, CsiVolumeSource, PersistentVolume, VolumeAttachment};
use kedge_grpc::csi::node_service_capability::rpc;
use kedge_grpc::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    VolumeCapability,
};
use kedge_wire::{ObjectKey, ObjectKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

impl Csi {
    /// Makes a volume stand for a pod. Idempotent, as the calls of CSI are.
    pub(crate) async fn publish(&self, wanted: Wanted<'_>) -> Result<Published, Error> {
        let (driver_name, handle) = match wanted.source {
            Source::Persistent(_, source) => (source.driver.as_str(), source.volume_handle.clone()),
            Source::Ephemeral(source) => {
                let handle = layout::ephemeral_handle(wanted.pod.uid(), wanted.name);
                (source.driver.as_str(), handle)
            }
        };
        let lock = self.lock(driver_name, &handle);
        let _place = lock.lock().await;
        let note = Note {
            driver: driver_name.to_owned(),
            handle: handle.clone(),
            name: wanted.name.to_owned(),
            node: self.inner.node_name.clone(),
            attachment: layout::attachment_name(&handle, driver_name, &self.inner.node_name),
            ephemeral: matches!(wanted.source, Source::Ephemeral(_)),
            expanded_bytes: None,
        };
        let target = self.target(wanted.pod.uid(), wanted.name, wanted.block);
        if !wanted.block && kedge_host::mounts::is_mount_point(&target.path).unwrap_or(false) {
            return Ok(self.standing(&note, wanted, target.path).await);
        }
        let driver = self.inner.drivers.wait(driver_name, DRIVER_PATIENCE).await?;
        match wanted.source {
            Source::Persistent(volume, source) => {
                self.tell_in_use(Some(&note));
                self.publish_persistent(&driver, &note, wanted, volume, source)
                    .await
            }
            Source::Ephemeral(source) => self.publish_ephemeral(&driver, &note, wanted, source).await,
        }
    }

    /// What stands needs no driver, so a pod goes on while its driver is away; it is only asked to grow the volume.
    async fn standing(&self, note: &Note, wanted: Wanted<'_>, path: PathBuf) -> Published {
        let driver = self.inner.drivers.wait(&note.driver, Duration::ZERO).await;
        if let (Ok(driver), Source::Persistent(volume, _)) = (driver, wanted.source) {
            let expanded = self.expand(&driver, note, wanted, volume, &path).await;
            if let Err(error) = expanded {
                tracing::warn!(volume = wanted.name, %error, "volume not expanded");
            }
        }
        Published {
            path,
            group_given: true,
        }
    }

    async fn publish_persistent(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        volume: &PersistentVolume,
        source: &CsiPersistentVolumeSource,
    ) -> Result<Published, Error> {
        let target = self.target(wanted.pod.uid(), wanted.name, wanted.block);
        let access = Access {
            modes: &volume.spec.access_modes,
            fs_type: source.fs_type.as_deref(),
            options: &volume.spec.mount_options,
            mode: if wanted.block { Mode::Block } else { Mode::Mount },
            group: wanted.group.filter(|_| driver.can(rpc::Type::VolumeMountGroup)),
            several_writers_known: driver.can(rpc::Type::SingleNodeMultiWriter),
        };
        let group_given = access.group.is_some();
        let capability = request::capability(&access);
        let publish_context = self.attachment(note).await?;
        let staging = match driver.can(rpc::Type::StageUnstageVolume) {
            true => {
                self.stage(driver, note, wanted.block, source, &publish_context, &capability)
                    .await?
            }
            false => String::new(),
        };
        make_dir(&target.note_dir)?;
        if let Some(parent) = target.path.parent() {
            make_dir(parent)?;
        }
        keep_expanded(note, &target.note_dir)?.save(&target.note_dir)?;
        let secrets = self.secrets(source.node_publish_secret_ref.as_ref()).await?;
        driver
            .publish(NodePublishVolumeRequest {
                volume_id: note.handle.clone(),
                publish_context,
                staging_target_path: staging,
                target_path: target.path.display().to_string(),
                volume_capability: Some(capability),
                readonly: wanted.read_only || source.read_only,
                secrets,
                volume_context: source.volume_attributes.clone(),
            })
            .await?;
        self.expand(driver, note, wanted, volume, &target.path).await?;
        if wanted.block {
            self.link_device(wanted.pod.uid(), wanted.name, &target.path)?;
        }
        Ok(Published {
            path: target.path,
            group_given: group_given
                || !request::group_is_ours(&volume.spec.access_modes, source.fs_type.as_deref()),
        })
    }

    /// Where the volume is staged.
    async fn stage(
        &self,
        driver: &Driver,
        note: &Note,
        block: bool,
        source: &CsiPersistentVolumeSource,
        publish_context: &BTreeMap<String, String>,
        capability: &VolumeCapability,
    ) -> Result<String, Error> {
        let place = self.stage_place(note, block);
        make_dir(&place.mount)?;
        make_dir(&place.note_dir)?;
        // Before the call: a process that dies in it must know that there may be something to undo.
        keep_expanded(note, &place.note_dir)?.save(&place.note_dir)?;
        let staging = place.mount.display().to_string();
        let secrets = self.secrets(source.node_stage_secret_ref.as_ref()).await?;
        driver
            .stage(NodeStageVolumeRequest {
                volume_id: note.handle.clone(),
                publish_context: publish_context.clone(),
                staging_target_path: staging.clone(),
                volume_capability: Some(capability.clone()),
                secrets,
                volume_context: source.volume_attributes.clone(),
            })
            .await?;
        Ok(staging)
    }

    async fn publish_ephemeral(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        source: &CsiVolumeSource,
    ) -> Result<Published, Error> {
        let target = self.target(wanted.pod.uid(), wanted.name, false);
        let published = Published {
            path: target.path.clone(),
            group_given: source.fs_type.as_deref().unwrap_or_default().is_empty(),
        };
        let access = Access {
            modes: &["ReadWriteOnce".to_owned()],
            fs_type: source.fs_type.as_deref(),
            options: &[],
            mode: Mode::Mount,
            group: wanted.group.filter(|_| driver.can(rpc::Type::VolumeMountGroup)),
            several_writers_known: driver.can(rpc::Type::SingleNodeMultiWriter),
        };
        let reference = source
            .node_publish_secret_ref
            .as_ref()
            .map(|reference| kedge_api::SecretReference::local(wanted.pod.namespace(), reference));
        let secrets = self.secrets(reference.as_ref()).await?;
        let mut context = source.volume_attributes.clone();
        context.extend(request::pod_info(wanted.pod));
        make_dir(&target.note_dir)?;
        note.save(&target.note_dir)?;
        driver
            .publish(NodePublishVolumeRequest {
                volume_id: note.handle.clone(),
                target_path: target.path.display().to_string(),
                volume_capability: Some(request::capability(&access)),
                readonly: wanted.read_only,
                secrets,
                volume_context: context,
                ..NodePublishVolumeRequest::default()
            })
            .await?;
        Ok(published)
    }

    /// Lets the driver grow the volume to what the cloud says it holds, once for each size.
    async fn expand(
        &self,
        driver: &Driver,
        note: &Note,
        wanted: Wanted<'_>,
        volume: &PersistentVolume,
        target: &Path,
    ) -> Result<(), Error> {
        let size = volume
            .spec
            .capacity
            .get("storage")
            .map(kedge_api::Quantity::units);
        let Some(bytes) = size.filter(|_| driver.can(rpc::Type::ExpandVolume)) else {
            return Ok(());
        };
        let place = self.stage_place(note, wanted.block);
        let noted_in = if driver.can(rpc::Type::StageUnstageVolume) {
            place.note_dir
        } else {
            self.target(wanted.pod.uid(), wanted.name, wanted.block).note_dir
        };
        let noted = Note::load(&noted_in)?.unwrap_or_else(|| note.clone());
        let known = noted.expanded_bytes.or(wanted.claim_bytes);
        if known.is_some_and(|known| known < bytes) && !wanted.read_only {
            let staging = driver.can(rpc::Type::StageUnstageVolume).then_some(place.mount);
            driver
                .expand(NodeExpandVolumeRequest {
                    volume_id: note.handle.clone(),
                    volume_path: target.display().to_string(),
                    capacity_range: Some(CapacityRange {
                        required_bytes: bytes,
                        limit_bytes: 0,
                    }),
                    staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
                    volume_capability: None,
                    secrets: BTreeMap::new(),
                })
                .await?;
        }
        if noted.expanded_bytes != Some(bytes) {
            Note {
                expanded_bytes: Some(bytes),
                ..noted
            }
            .save(&noted_in)?;
        }
        Ok(())
    }

    /// What the cloud says about the attachment, for the driver. A volume that has no such object needs none, as far as
    /// this node can know: the driver refuses it otherwise.
    async fn attachment(&self, note: &Note) -> Result<BTreeMap<String, String>, Error> {
        let name = &note.attachment;
        let key = ObjectKey::namespaced(ObjectKind::VolumeAttachment, "default", name);
        let found: Result<VolumeAttachment, String> =
            fetch(&self.inner.cloud, key, "volumeattachment", name).await;
        let not_attached = |why: String| Error::NotAttached {
            name: name.clone(),
            why,
        };
        match found {
            Ok(found) if found.status.attached => Ok(found.status.attachment_metadata),
            Ok(found) => Err(not_attached(match found.status.attach_error {
                Some(error) => error.message,
                None => "the volume is not attached yet".to_owned(),
            })),
            Err(why) => {
                tracing::debug!(why, "CSI volume is used without an attachment");
                Ok(BTreeMap::new())
            }
        }
    }

    async fn secrets(
        &self,
        reference: Option<&kedge_api::SecretReference>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let Some(reference) = reference else {
            return Ok(BTreeMap::new());
        };
        let key = ObjectKey::namespaced(ObjectKind::Secret, &reference.namespace, &reference.name);
        let secret: kedge_api::Secret = fetch(&self.inner.cloud, key, "secret", &reference.name)
            .await
            .map_err(Error::Secret)?;
        request::secret_values(&secret)
            .map_err(|key| Error::Secret(format!("key {key} of secret \"{}\" is not text", reference.name)))
    }

    fn link_device(&self, uid: &str, name: &str, device: &Path) -> Result<(), Error> {
        let link = self.inner.paths.volume_device(uid, crate::volumes::CSI, name);
        make_dir(link.parent().unwrap_or(&link))?;
        remove_file(&link)?;
        std::os::unix::fs::symlink(device, &link).map_err(directory("link", &link))
    }
}

/// The note with the size that an older one remembers.
fn keep_expanded(note: &Note, dir: &Path) -> Result<Note, Error> {
    let expanded_bytes = Note::load(dir)?.and_then(|old| old.expanded_bytes);
    Ok(Note {
        expanded_bytes,
        ..note.clone()
    })
}
