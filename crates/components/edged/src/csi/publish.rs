//! Making a volume stand for a pod: staged once on the node where the driver wants that, then published for each pod.

use super::driver::Driver;
use super::facts::{Attach, Facts};
use super::layout::{self, Note};
use super::request::{self, Access, Mode};
use super::{Csi, DRIVER_PATIENCE, Error, Published, Source, Wanted, directory, make_dir, remove_file};
use crate::volumes::{fetch, pod_token};
use kedge_api::{CsiPersistentVolumeSource, PersistentVolume, SecretReference, VolumeAttachment};
use kedge_grpc::csi::node_service_capability::rpc;
use kedge_grpc::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    VolumeCapability,
};
use kedge_wire::{ObjectKey, ObjectKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A volume that is made for one pod is used by that one.
const EPHEMERAL_MODE: &str = "ReadWriteOnce";

/// One volume, one pod, one driver.
#[derive(Clone, Copy)]
struct Task<'a> {
    driver: &'a Driver,
    facts: &'a Facts,
    note: &'a Note,
    wanted: Wanted<'a>,
}

impl<'a> Task<'a> {
    fn modes(&self) -> Vec<&'a str> {
        match self.wanted.source {
            Source::Persistent(volume, _) => volume.spec.access_modes.iter().map(String::as_str).collect(),
            Source::Ephemeral(_) => vec![EPHEMERAL_MODE],
        }
    }

    fn fs_type(&self) -> Option<&'a str> {
        match self.wanted.source {
            Source::Persistent(_, source) => source.fs_type.as_deref(),
            Source::Ephemeral(source) => source.fs_type.as_deref(),
        }
    }

    fn attributes(&self) -> &'a BTreeMap<String, String> {
        match self.wanted.source {
            Source::Persistent(_, source) => &source.volume_attributes,
            Source::Ephemeral(source) => &source.volume_attributes,
        }
    }

    /// Holds what the driver needs to publish.
    fn secret(&self) -> Option<SecretReference> {
        match self.wanted.source {
            Source::Persistent(_, source) => source.node_publish_secret_ref.clone(),
            Source::Ephemeral(source) => {
                let reference = source.node_publish_secret_ref.as_ref()?;
                Some(SecretReference::local(self.wanted.pod.namespace(), reference))
            }
        }
    }

    fn read_only(&self) -> bool {
        match self.wanted.source {
            Source::Persistent(_, source) => self.wanted.read_only || source.read_only,
            Source::Ephemeral(_) => self.wanted.read_only,
        }
    }

    /// The group to which the driver gives the volume by itself.
    fn group_of_driver(&self) -> Option<u32> {
        self.wanted
            .group
            .filter(|_| self.driver.can(rpc::Type::VolumeMountGroup))
    }

    fn capability(&self) -> VolumeCapability {
        let options: &[String] = match self.wanted.source {
            Source::Persistent(volume, _) => &volume.spec.mount_options,
            Source::Ephemeral(_) => &[],
        };
        request::capability(&Access {
            modes: &self.modes(),
            fs_type: self.fs_type(),
            options,
            mode: if self.wanted.block {
                Mode::Block
            } else {
                Mode::Mount
            },
            group: self.group_of_driver(),
            several_writers_known: self.driver.can(rpc::Type::SingleNodeMultiWriter),
        })
    }

    fn published(&self, path: PathBuf) -> Published {
        let is_ours = request::group_is_ours(self.facts.group, &self.modes(), self.fs_type());
        Published {
            path,
            group_given: self.group_of_driver().is_some() || !is_ours,
            republish: self.facts.republishes,
        }
    }
}

/// Where a volume is staged, and what its attachment says. Both empty where there is none.
#[derive(Default)]
struct Ground {
    staging: String,
    context: BTreeMap<String, String>,
}

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
        let facts = self.inner.facts.of(driver_name, &self.inner.cloud).await?;
        facts.check_mode(driver_name, note.ephemeral)?;
        let task = Task {
            driver: &driver,
            facts: &facts,
            note: &note,
            wanted,
        };
        match wanted.source {
            Source::Persistent(volume, source) => {
                self.tell_in_use(Some(&note));
                self.publish_persistent(task, volume, source).await
            }
            Source::Ephemeral(_) => {
                make_dir(&target.note_dir)?;
                note.save(&target.note_dir)?;
                self.call_publish(task, Ground::default(), &target.path).await?;
                Ok(task.published(target.path))
            }
        }
    }

    /// What stands needs no driver, so a pod goes on while its driver is away; it is only asked to grow the volume, and
    /// called again where it wants that.
    async fn standing(&self, note: &Note, wanted: Wanted<'_>, path: PathBuf) -> Published {
        let facts = self.inner.facts.of(&note.driver, &self.inner.cloud).await;
        let published = Published {
            path,
            group_given: true,
            // Who does not know looks again.
            republish: facts.as_ref().map_or(true, |facts| facts.republishes),
        };
        let Ok(driver) = self.inner.drivers.wait(&note.driver, Duration::ZERO).await else {
            return published;
        };
        if let Source::Persistent(volume, _) = wanted.source {
            let expanded = self.expand(&driver, note, wanted, volume, &published.path).await;
            if let Err(error) = expanded {
                tracing::warn!(volume = wanted.name, %error, "volume not expanded");
            }
        }
        let again = match &facts {
            Ok(facts) if facts.republishes => {
                let task = Task {
                    driver: &driver,
                    facts,
                    note,
                    wanted,
                };
                self.publish_again(task, &published.path).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = again {
            tracing::warn!(
                volume = wanted.name,
                error,
                "volume not published again; it stays as it is"
            );
        }
        published
    }

    async fn publish_again(&self, task: Task<'_>, path: &Path) -> Result<(), String> {
        let ground = self.ground_of_standing(task).await;
        let ground = ground.map_err(|error| error.to_string())?;
        let called = self.call_publish(task, ground, path).await;
        called.map_err(|error| error.to_string())
    }

    async fn ground_of_standing(&self, task: Task<'_>) -> Result<Ground, Error> {
        if task.note.ephemeral {
            return Ok(Ground::default());
        }
        let place = self.stage_place(task.note, task.wanted.block);
        let staged = task.driver.can(rpc::Type::StageUnstageVolume);
        Ok(Ground {
            staging: if staged {
                place.mount.display().to_string()
            } else {
                String::new()
            },
            context: self.attachment(task.note, task.facts.attach).await?,
        })
    }

    async fn publish_persistent(
        &self,
        task: Task<'_>,
        volume: &PersistentVolume,
        source: &CsiPersistentVolumeSource,
    ) -> Result<Published, Error> {
        let Task {
            driver, note, wanted, ..
        } = task;
        let target = self.target(wanted.pod.uid(), wanted.name, wanted.block);
        let context = self.attachment(note, task.facts.attach).await?;
        let staging = match driver.can(rpc::Type::StageUnstageVolume) {
            true => self.stage(task, source, &context).await?,
            false => String::new(),
        };
        make_dir(&target.note_dir)?;
        if let Some(parent) = target.path.parent() {
            make_dir(parent)?;
        }
        keep_expanded(note, &target.note_dir)?.save(&target.note_dir)?;
        self.call_publish(task, Ground { staging, context }, &target.path)
            .await?;
        self.expand(driver, note, wanted, volume, &target.path).await?;
        if wanted.block {
            self.link_device(wanted.pod.uid(), wanted.name, &target.path)?;
        }
        Ok(task.published(target.path))
    }

    /// The same call whether the volume is new to the pod or stands.
    async fn call_publish(&self, task: Task<'_>, ground: Ground, path: &Path) -> Result<(), Error> {
        let Task {
            driver,
            facts,
            note,
            wanted,
        } = task;
        let mut volume_context = task.attributes().clone();
        if facts.tells_pod(note.ephemeral) {
            volume_context.extend(request::pod_info(wanted.pod, note.ephemeral));
        }
        volume_context.extend(self.tokens(task).await?);
        let secrets = self.secrets(task.secret().as_ref()).await?;
        driver
            .publish(NodePublishVolumeRequest {
                volume_id: note.handle.clone(),
                publish_context: ground.context,
                staging_target_path: ground.staging,
                target_path: path.display().to_string(),
                volume_capability: Some(task.capability()),
                readonly: task.read_only(),
                secrets,
                volume_context,
            })
            .await
    }

    /// Tokens of the pod, by the audiences for which the driver wants them.
    async fn tokens(&self, task: Task<'_>) -> Result<Option<(String, String)>, Error> {
        let mut tokens = BTreeMap::new();
        for asked in &task.facts.tokens {
            let (pod, audience) = (task.wanted.pod, asked.audience.as_str());
            let token = pod_token(&self.inner.cloud, pod, audience, asked.expiration_seconds).await;
            tokens.insert(audience, token.map_err(Error::Token)?);
        }
        if tokens.is_empty() {
            return Ok(None);
        }
        let text = serde_json::to_string(&tokens).expect("a map with keys of text is always JSON");
        Ok(Some((request::TOKENS.to_owned(), text)))
    }

    /// Where the volume is staged.
    async fn stage(
        &self,
        task: Task<'_>,
        source: &CsiPersistentVolumeSource,
        publish_context: &BTreeMap<String, String>,
    ) -> Result<String, Error> {
        let note = task.note;
        let place = self.stage_place(note, task.wanted.block);
        make_dir(&place.mount)?;
        make_dir(&place.note_dir)?;
        // Before the call: a process that dies in it must know that there may be something to undo.
        keep_expanded(note, &place.note_dir)?.save(&place.note_dir)?;
        let staging = place.mount.display().to_string();
        let secrets = self.secrets(source.node_stage_secret_ref.as_ref()).await?;
        task.driver
            .stage(NodeStageVolumeRequest {
                volume_id: note.handle.clone(),
                publish_context: publish_context.clone(),
                staging_target_path: staging.clone(),
                volume_capability: Some(task.capability()),
                secrets,
                volume_context: source.volume_attributes.clone(),
            })
            .await?;
        Ok(staging)
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

    /// What the cloud says about the attachment, for the driver. Where nobody says whether one is needed, a volume that
    /// has none is used without: the driver refuses it otherwise.
    async fn attachment(&self, note: &Note, attach: Attach) -> Result<BTreeMap<String, String>, Error> {
        if attach == Attach::Never {
            return Ok(BTreeMap::new());
        }
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
            Err(why) if attach == Attach::Needed => Err(not_attached(why)),
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
